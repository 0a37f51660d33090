"""Keys and values with room for the tokens to come: a step writes its own, and copies none."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class RoomyLayer(DynamicLayer):
    """One layer's keys and values as views into larger buffers.

    `keys` and `values` may be replaced from outside; the buffers are then made anew with the next token.
    """

    _layer_type = None  # not to be taken for the library's own

    def __init__(self, room: int) -> None:
        """
        Args:
            room: Tokens that the buffers have room for behind those that are there when they are made.
        """
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None  # each [batch, n_heads, capacity, head_dim]
        self._views: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002  overrides
        """Append tokens [batch, n_heads, n, head_dim]; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        is_own = self._views is not None and self._views[0] is self.keys and self._views[1] is self.values
        if self._buffers is None or not is_own or end > self._buffers[0].shape[-2]:
            self._buffers = tuple(  # type: ignore[assignment]
                _enlarged(there, new, start, end + self._room)
                for there, new in ((self.keys, key_states), (self.values, value_states))
            )
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self._show(end)
        return self.keys, self.values  # type: ignore[return-value]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Go on with some rows: the row at place `i` is that which was at `order[i]`; only rows that move are copied.

        Args:
            order: No place is taken before a row that stands there has been (`filled_order`).
        """
        end = self.get_seq_length()
        if self._buffers is None or self._views is None or self._views[0] is not self.keys:
            self.batch_select_indices(torch.tensor(order))
            return
        for buffer in self._buffers:
            for place, row in enumerate(order):
                if place != row:
                    buffer[place, :, :end] = buffer[row, :, :end]
        self._buffers = (self._buffers[0][: len(order)], self._buffers[1][: len(order)])
        self._show(end)

    def _show(self, end: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        self._views = (self.keys, self.values)


def _enlarged(there: Tensor | None, new: Tensor, n_there: int, capacity: int) -> Tensor:
    batch, n_heads, _, head_dim = new.shape
    buffer = new.new_empty(batch, n_heads, capacity, head_dim)
    if there is not None and n_there:
        buffer[..., :n_there, :] = there
    return buffer


def roomy_cache(config: "PretrainedConfig", room: int) -> DynamicCache:
    """A model's cache, with room in the layers that keep all tokens; others (sliding windows) are the library's."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_windows(cache: DynamicCache) -> bool:
    """Whether a layer keeps only the last tokens, in which padding counts."""
    return any(getattr(layer, "is_sliding", False) for layer in cache.layers)


def copied_rows(cache: DynamicCache, index: Tensor) -> DynamicCache:
    """A cache with copies of some rows of another, which stays as it is.

    Args:
        cache: The other one.
        index: Of its rows, [batch], on the CPU; a row may come several times.
    """
    found = copy(cache)
    found.layers = [copy(layer) for layer in cache.layers]
    found.batch_select_indices(index)
    return found


def filled_order(places: Sequence[int]) -> list[int]:
    """The order in which rows go on so that few of them move: the last ones fill the places of those that ended.

    Args:
        places: Of the rows that go on, ascending.
    """
    n = len(places)
    staying = set(places)
    movers = iter([place for place in places if place >= n])
    return [place if place in staying else next(movers) for place in range(n)]


def keep_cache_rows(cache: DynamicCache, order: Sequence[int]) -> None:
    """Go on with the rows of a cache at these places, in this order."""
    index = torch.tensor(order)  # on the CPU: the layers of one model may be on several devices
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep_rows(order)
        else:
            layer.batch_select_indices(index)  # type: ignore[union-attr]
