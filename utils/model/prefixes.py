"""Prefixes of several rows: what all of them begin with, such as the system prompt, runs once."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from utils.model.architectures import position_switch
from utils.model.kv_cache import copied_rows, has_windows
from utils.model.padding import left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST_COMMON = 8
"""Tokens that prefixes must have in common for these to run once."""


@torch.no_grad()
def run_prefixes(
    model: "PreTrainedModel", prefixes: Sequence[Sequence[int]], cache: DynamicCache, pad_id: int
) -> tuple[DynamicCache, Tensor]:
    """Run token sequences, each from its beginning.

    Args:
        model: The model.
        prefixes: The sequences; none is empty.
        cache: An empty one.
        pad_id: Fills shorter ones: on the left, but behind what all of them begin with.

    Returns:
        The cache with a row for each prefix, and which of its tokens are real, [n_prefixes, seq_len], 1 or 0.
    """
    n_common = _n_shared(model, prefixes, cache, max(map(len, prefixes)))
    mask = torch.ones(1, 0, dtype=torch.long, device=model.device)
    if n_common:
        mask = _run_opening(model, cache, prefixes[0][:n_common])
        cache = copied_rows(cache, torch.zeros(len(prefixes), dtype=torch.long))
    rest = left_padded([prefix[n_common:] for prefix in prefixes], pad_id, model.device)
    return cache, _run(model, cache, mask.expand(len(prefixes), -1), *rest)


@torch.no_grad()
def run_opening(model: "PreTrainedModel", prefixes: Sequence[Sequence[int]], longest: int) -> "DynamicCache | None":
    """Run what token sequences have in common at their beginning; each keeps a token of its own.

    Args:
        model: The model.
        prefixes: The sequences.
        longest: Tokens of the longest of them with what will stand behind it.

    Returns:
        A cache of one row; None where it would save nothing.
    """
    cache = DynamicCache()
    n_common = _n_shared(model, prefixes, cache, longest)
    if not n_common:
        return None
    _run_opening(model, cache, prefixes[0][:n_common])
    return cache


def n_tokens(opening: DynamicCache | None) -> int:
    """Tokens of an opening; 0 where there is none."""
    return 0 if opening is None else opening.get_seq_length()


class SharedPrefixes(DynamicCache):
    """Keys and values of prefixes, handed to every row behind them; what rows add is not kept."""

    def __init__(self, prefixes: DynamicCache, rows_per_prefix: int) -> None:
        super().__init__()
        self.layers = prefixes.layers
        self._rows_per_prefix = rows_per_prefix

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        layer: Any = self.layers[layer_idx]
        return self._behind(layer.keys, key_states), self._behind(layer.values, value_states)

    def _behind(self, prefix: Tensor, states: Tensor) -> Tensor:
        rows = prefix.repeat_interleave(self._rows_per_prefix, dim=0)
        copies = states.shape[0] // rows.shape[0]
        return torch.cat([rows.repeat(copies, 1, 1, 1), states], dim=2)


def _run_opening(model: "PreTrainedModel", cache: DynamicCache, opening: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(opening)], device=model.device)
    return _run(model, cache, torch.ones(1, 0, dtype=torch.long, device=model.device), ids, torch.ones_like(ids))


def _run(model: "PreTrainedModel", cache: DynamicCache, before: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Append tokens [batch, n] to the cache; returns the whole mask."""
    whole = torch.cat([before, mask], dim=1)
    model.get_decoder()(
        input_ids=ids,
        attention_mask=whole,
        position_ids=(whole.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    return whole


def _n_shared(model: "PreTrainedModel", prefixes: Sequence[Sequence[int]], cache: DynamicCache, longest: int) -> int:
    """Tokens at the beginning that run once, of sequences of up to `longest` tokens."""
    if len(prefixes) < 2 or has_windows(cache):  # padding in the middle would count in a window
        return 0
    columns = zip(*(prefix[:-1] for prefix in prefixes), strict=False)
    n_common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    switch = position_switch(model.config)
    switches = n_common <= switch < longest
    return 0 if n_common < FEWEST_COMMON or switches else n_common
