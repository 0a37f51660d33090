"""Prefixes of several rows: what all of them begin with, such as the system prompt, runs once."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.model.architectures import position_switch
from utils.model.kv_cache import copied_rows, has_windows
from utils.model.padding import left_padded

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

FEWEST_COMMON = 8
"""Tokens that prefixes must have in common for these to run once."""


@torch.no_grad()
def run_prefixes(
    model: "PreTrainedModel", prefixes: Sequence[Sequence[int]], cache: "DynamicCache", pad_id: int
) -> tuple["DynamicCache", Tensor]:
    """Run token sequences, each from its beginning.

    Args:
        model: The model.
        prefixes: The sequences; none is empty.
        cache: An empty one.
        pad_id: Fills shorter ones: on the left, but behind what all of them begin with.

    Returns:
        The cache with a row for each prefix, and which of its tokens are real, [n_prefixes, seq_len], 1 or 0.
    """
    n_common = _n_shared(model, prefixes, cache)
    mask = torch.ones(1, 0, dtype=torch.long, device=model.device)
    if n_common:
        opening = torch.tensor([list(prefixes[0][:n_common])], device=model.device)
        mask = _run(model, cache, mask, opening, torch.ones_like(opening))
        cache = copied_rows(cache, torch.zeros(len(prefixes), dtype=torch.long))
    rest = left_padded([prefix[n_common:] for prefix in prefixes], pad_id, model.device)
    return cache, _run(model, cache, mask.expand(len(prefixes), -1), *rest)


def _run(model: "PreTrainedModel", cache: "DynamicCache", before: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
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


def _n_shared(model: "PreTrainedModel", prefixes: Sequence[Sequence[int]], cache: "DynamicCache") -> int:
    """Tokens at the beginning that run once; each prefix keeps one of its own."""
    if len(prefixes) < 2 or has_windows(cache):  # padding in the middle would count in a window
        return 0
    columns = zip(*(prefix[:-1] for prefix in prefixes), strict=False)
    n_common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    switch = position_switch(model.config)
    switches = n_common <= switch < max(map(len, prefixes))
    return 0 if n_common < FEWEST_COMMON or switches else n_common
