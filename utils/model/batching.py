"""Batches that fit into memory: formed by a budget of tokens, halved on running out, shared by processes."""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from utils.errors import UserError
from utils.model import processes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)
T = TypeVar("T")

# Tokens in one forward pass. More brings no speed on a CPU; on a GPU the free memory has a say.
CPU_TOKENS_PER_PASS = 1024
GPU_TOKENS_PER_PASS = 32768


class Batcher:
    """Runs items in batches on one model's device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, config: "PretrainedConfig") -> None:
        self.device, self.dtype, self.config = device, dtype, config
        self._scale = 1.0  # halved whenever the memory did not suffice

    def run(
        self,
        items: Sequence[int],
        widths: Sequence[float],
        run: Callable[[list[int]], T],
        batch_size: int | None,
        skip: Collection[int] = (),
        *,
        shared: bool = True,
    ) -> Iterator[tuple[list[int], T]]:
        """Run items in batches of like width, the widest first; on running out of memory halve and go on.

        Batches are formed over all items, whatever is in `skip` and however many processes share them, so
        that every item is computed in the company in which an undisturbed run computes it. Those with
        nothing left to do, and those of other processes, are left out.

        Args:
            items: Numbers of the items.
            widths: Tokens that each takes in a pass; all items of a batch take as many as its widest.
            run: Computes a batch.
            batch_size: Items in one batch; None for as many as the budget allows.
            skip: Items that are done.
            shared: Whether other processes take their share of the batches.
        """
        for batch in self._shares(items, widths, batch_size, shared=shared):
            if not all(item in skip for item in batch):
                yield from self.run_halving(batch, run)

    def run_flowing(
        self,
        items: Sequence[int],
        widths: Sequence[float],
        run: Callable[[list[int], int], Iterator[tuple[int, T]]],
        batch_size: int | None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, T]]:
        """Run items where one takes the place of another that has ended; on running out of memory halve and go on.

        Args:
            items: Numbers of the items.
            widths: Tokens that each takes.
            run: From items and how many of them may run at once to places in these items, as they end, and what
                came of them.
            batch_size: Items at once; None for as many as the budget allows.
            skip: Items that are done.
        """
        width_of = dict(zip(items, widths, strict=True))
        shares = self._shares(items, widths, batch_size, keep_order=True)
        waiting = [item for batch in shares for item in batch if item not in skip]
        while waiting:
            at_once = batch_size or max(1, int(self.token_budget() // max(width_of[item] for item in waiting)))
            done = set()
            try:
                for place, result in run(waiting, at_once):
                    done.add(place)
                    yield waiting[place], result
            except (RuntimeError, MemoryError) as err:
                self._check_out_of_memory(err, min(at_once, len(waiting)))
            else:
                return
            batch_size = self._halved(min(at_once, len(waiting)))
            waiting = [item for place, item in enumerate(waiting) if place not in done]

    def _shares(
        self,
        items: Sequence[int],
        widths: Sequence[float],
        batch_size: int | None,
        *,
        keep_order: bool = False,
        shared: bool = True,
    ) -> list[list[int]]:
        """The batches of this process; see `run`."""
        width_of = dict(zip(items, widths, strict=True))
        waiting = list(items) if keep_order else sorted(items, key=lambda item: -width_of[item])
        budget = math.inf if batch_size else self.token_budget()
        if shared:
            budget = min(processes.gather(budget))
        batches = []
        while waiting:
            count = _batch_count([width_of[item] for item in waiting[: batch_size or len(waiting)]], budget)
            batches.append(waiting[:count])
            del waiting[:count]
        return [batch for ordinal, batch in enumerate(batches) if not shared or processes.is_mine(ordinal)]

    def run_halving(self, batch: list[int], run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Run a batch; where the memory does not suffice, its halves.

        Raises:
            UserError: If it does not suffice for a single item.
        """
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as err:
            self._check_out_of_memory(err, len(batch))
        else:
            yield batch, result
            return
        middle = self._halved(len(batch))
        yield from self.run_halving(batch[:middle], run)
        yield from self.run_halving(batch[middle:], run)

    def _check_out_of_memory(self, err: Exception, n_items: int) -> None:
        """Raise what is another error.

        Raises:
            UserError: If the memory does not suffice for a single item.
        """
        if not is_out_of_memory(err):
            raise err
        if n_items == 1:
            raise UserError(
                f"out of memory on {self.device} with a single item; use --dtype bfloat16, "
                "fewer --layers or --multipliers at a time, or a larger device"
            ) from err

    def _halved(self, n_items: int) -> int:
        """Free what can be freed, once the error and what it holds are gone; how many items to go on with."""
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        self._scale /= 2
        log.warning("out of memory with %d at once; continuing with %d", n_items, (n_items + 1) // 2)
        return (n_items + 1) // 2

    def token_budget(self) -> float:
        """Tokens that one forward pass may hold."""
        if self.device.type != "cuda":
            return self._scale * CPU_TOKENS_PER_PASS
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        width = self.config.hidden_size + 2 * getattr(self.config, "intermediate_size", 4 * self.config.hidden_size)
        # activations of one block in the model's dtype, and logits in float32 for about half of the tokens
        bytes_per_token = 6 * width * self.dtype.itemsize + 4 * self.config.vocab_size
        return self._scale * min(GPU_TOKENS_PER_PASS, 0.6 * free / bytes_per_token)


def is_out_of_memory(err: BaseException) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(err, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(err)


def _batch_count(widths: Sequence[float], budget: float) -> int:
    """How many of the waiting items go into the next pass; all are padded to the widest of them."""
    widest = 0.0
    for count, width in enumerate(widths):
        widest = max(widest, width)
        if count and widest * (count + 1) > budget:
            return count
    return len(widths)
