"""Prefixes of several rows: keys and values as if each had run alone, what they have in common having run once."""

import pytest
import torch
from transformers import DynamicCache

from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, LONGROPE, ORIGINAL_CONTEXT, build_wrapper, decoder_blocks
from utils.model.prefixes import FEWEST_COMMON, run_prefixes

OPENING = list(range(10, 10 + 2 * FEWEST_COMMON))


def run(wrapper: LlamaWrapper, prefixes: list[list[int]]) -> tuple[list[torch.Tensor], list[tuple[int, ...]]]:
    """Keys of the last block, of the real tokens of each prefix [n_heads, n_tokens, head_dim]; what passes ran."""
    shapes: list[tuple[int, ...]] = []
    handle = decoder_blocks(wrapper.model)[0].register_forward_hook(
        lambda _, __, output: shapes.append(tuple(output.shape[:2]))
    )
    cache, mask = run_prefixes(wrapper.model, prefixes, DynamicCache(), wrapper.runtime.pad_id)
    handle.remove()
    keys = cache.layers[-1].keys
    assert keys is not None
    return [row[:, real.bool()] for row, real in zip(keys, mask, strict=True)], shapes


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, LONGROPE])
def test_what_prefixes_begin_with_runs_once_and_nothing_changes(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prefixes = [[*OPENING, *rest] for rest in ([40], [41, 42, 43, 44, 45], [46, 47])]
    together, shapes = run(wrapper, prefixes)
    assert shapes == [(1, len(OPENING)), (3, 5)]
    for prefix, keys in zip(prefixes, together, strict=True):
        [alone], _ = run(wrapper, [prefix])
        torch.testing.assert_close(keys, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prefixes",
    [
        [[*OPENING, 40]],
        [[*OPENING[: FEWEST_COMMON - 1], 40], [*OPENING[: FEWEST_COMMON - 1], 41, 42]],
        [[40, *OPENING], [41, *OPENING, 42]],
    ],
    ids=["alone", "too little in common", "nothing in common"],
)
def test_where_it_saves_nothing_prefixes_run_in_one_pass(prefixes: list[list[int]]) -> None:
    _, shapes = run(build_wrapper(), prefixes)
    assert shapes == [(len(prefixes), max(map(len, prefixes)))]


def test_a_prefix_that_is_another_s_beginning_keeps_a_token_of_its_own() -> None:
    wrapper = build_wrapper()
    prefixes = [OPENING, [*OPENING, 40, 41]]
    together, shapes = run(wrapper, prefixes)
    assert shapes == [(1, len(OPENING) - 1), (2, 3)]
    for prefix, keys in zip(prefixes, together, strict=True):
        torch.testing.assert_close(keys, run(wrapper, [prefix])[0][0], rtol=1e-4, atol=1e-5)


def test_no_prefix_is_run_in_parts_of_which_one_alone_is_beyond_the_switch_of_positions() -> None:
    long = [20 + i % 60 for i in range(ORIGINAL_CONTEXT + 1)]
    _, shapes = run(build_wrapper(LONGROPE), [[*OPENING, *long], [*OPENING, *long[::-1]]])
    assert shapes == [(2, len(OPENING) + len(long))]
