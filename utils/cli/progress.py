"""The progress of long work: a bar on a terminal, a line now and then where there is none."""

import logging
import sys
import time
from functools import cache
from typing import Any

from utils.model import processes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


def progress(iterable: Any = None, **options: Any) -> Any:
    """A tqdm bar on stderr; where stderr is no terminal, a log line every 30 seconds instead.

    Of several processes only the main one shows it.
    """
    if not processes.is_main():
        return _bars()[0](iterable, disable=True, **options)
    if sys.stderr.isatty():
        return _bars()[0](iterable, dynamic_ncols=True, **options)
    return _bars()[1](iterable, mininterval=SECONDS_BETWEEN_LINES, maxinterval=SECONDS_BETWEEN_LINES, **options)


@cache
def _bars() -> tuple[type, type]:
    """tqdm's bar, and one that logs lines."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc]
        def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002  overrides
            now = time.monotonic()
            if now - self.__dict__.setdefault("_last_line", now) < SECONDS_BETWEEN_LINES:
                return
            self.__dict__["_last_line"] = now
            of_all = f" of {self.total}" if self.total else ""
            rate = self.format_dict["rate"]
            left = f", about {(self.total - self.n) / rate:.0f} s left" if rate and self.total else ""
            facts = f", {self.postfix}" if self.postfix else ""
            log.info("%s: %s%s%s%s", (self.desc or "at work").removesuffix(": "), self.n, of_all, facts, left)

        def close(self) -> None:
            self.leave = False
            self.disable = True  # nothing is drawn, so nothing is cleared

    return tqdm, Lines
