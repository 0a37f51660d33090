"""The one thread that runs the model: streams of many clients take turns in it, a token at a time.

One thread, because hooks stand on the model's modules while it runs, and because every further thread would start
its own team of processor threads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class Worker:
    """Runs functions and streams in its thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def run(self, job: Callable[..., T], *args: Any) -> T:
        """Call a function."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, job, *args)

    async def stream(self, items: Iterator[T]) -> AsyncIterator[T]:
        """Go through a generator; it is closed when nobody listens any more."""
        try:
            while (item := await self.run(next, items, _END)) is not _END:
                yield item
        finally:
            self._thread.submit(getattr(items, "close", lambda: None))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
