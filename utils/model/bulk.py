"""Many answers: a running batch that rows leave at their end, and that waiting rows enter in their place."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.model.generation import Decoding, DecodingState, GenerationRow, SharedPrefixes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE_TO_FILL = 4
"""Rows enter when one in so many places is free: each time, the keys and values of all rows are copied."""


@torch.no_grad()
def generate_rows(
    model: "PreTrainedModel",
    layers: Sequence[nn.Module],
    rows: Sequence[GenerationRow],
    decoding: Decoding,
    at_once: int | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Generate with a KV cache.

    What lies before the first steered token is the same under every steering, so it runs once for all rows with the
    same prompt.

    Args:
        model: The model.
        layers: Its decoder blocks.
        rows: What to generate from; they enter the batch in this order.
        decoding: How.
        at_once: Rows in the batch at most; None for all of them.

    Yields:
        Index into `rows` and the row's new tokens (an end token included), as rows end.
    """
    batch = _Batch(model, layers, rows, decoding, at_once or len(rows))
    while batch.is_filled():
        yield from batch.step()


class _Batch:
    """The rows that run, and those that wait."""

    def __init__(
        self,
        model: "PreTrainedModel",
        layers: Sequence[nn.Module],
        rows: Sequence[GenerationRow],
        decoding: Decoding,
        at_once: int,
    ) -> None:
        self.model, self.layers, self.rows, self.decoding, self.at_once = model, layers, rows, decoding, at_once
        self.said: list[list[int]] = [[] for _ in rows]
        self._waiting = deque(range(len(rows)))
        self._running: list[int] = []  # in the order of the state's rows
        self._state: DecodingState
        self._logits: Tensor
        self._prefixes = SharedPrefixes.of_all(model, [row.prompt for row in rows], decoding, at_once)

    def is_filled(self) -> bool:
        """Let waiting rows in where there is room; False when nothing is left to do."""
        free = self.at_once - len(self._running)
        if self._waiting and (not self._running or self._is_time(free)):
            coming = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            state = DecodingState(self.model, self.layers, [self.rows[row] for row in coming], self.decoding)
            logits = state.prefill(self._prefixes)
            if self._running:
                self._state.join(state)
                self._logits = torch.cat([self._logits, logits])
            else:
                self._state, self._logits = state, logits
            self._running += coming
        return bool(self._running)

    def _is_time(self, free: int) -> bool:
        wanted = min(len(self._waiting), max(1, self.at_once // SHARE_TO_FILL))
        return free >= wanted and self._state.can_join

    def step(self) -> Iterator[tuple[int, list[int]]]:
        """One token for every row; gives out those that end with it."""
        chosen = self._state.choose(self._logits)
        stays = []
        for place, (row, token) in enumerate(zip(self._running, chosen, strict=True)):
            self.said[row].append(token)
            if token in self.decoding.end_ids or len(self.said[row]) == self.decoding.max_new_tokens:
                yield row, self.said[row]
            else:
                stays.append(place)
        if stays and len(stays) < len(chosen):
            stays = self._state.keep(stays)
        self._running = [self._running[place] for place in stays]
        if stays:
            self._logits = self._state.step([chosen[place] for place in stays])
