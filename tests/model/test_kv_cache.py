"""The cache with room: the same keys and values as the library's, and rows that end move few others."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from tests.models import build_config, build_wrapper, random_vector
from utils.model.generation import Decoding, DecodingState, GenerationRow
from utils.model.kv_cache import RoomyLayer, filled_order, roomy_cache
from utils.model.steering import Steering


def states(n_rows: int, n_tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(n_rows, 2, n_tokens, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("room", [1, 3, 50])
def test_it_holds_what_the_librarys_holds_through_growing_dropping_and_replacing(room: int) -> None:
    roomy, plain = RoomyLayer(room), DynamicLayer()
    n_rows = 5

    def same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    for step in range(12):
        keys, values = states(n_rows, 4 if step == 0 else 1, step), states(n_rows, 4 if step == 0 else 1, 100 + step)
        same(roomy.update(keys, values), plain.update(keys, values))
        assert roomy.get_seq_length() == plain.get_seq_length() == 4 + step
        if step in (3, 7):
            order = filled_order([place for place in range(n_rows) if place != 1])
            roomy.keep_rows(order)
            plain.batch_select_indices(torch.tensor(order))
            n_rows -= 1
        if step == 5:
            for layer in (roomy, plain):
                layer.keys, layer.values = layer.keys[..., 2:, :], layer.values[..., 2:, :]
                layer.keys = torch.cat([torch.zeros_like(layer.keys[..., :2, :]), layer.keys], dim=-2)
                layer.values = torch.cat([torch.zeros_like(layer.values[..., :2, :]), layer.values], dim=-2)
        same((roomy.keys, roomy.values), (plain.keys, plain.values))


def test_a_step_copies_no_token_that_is_there() -> None:
    layer = RoomyLayer(10)
    layer.update(states(3, 4, 0), states(3, 4, 1))
    assert layer.keys is not None
    address = layer.keys.data_ptr()
    for step in range(10):
        layer.update(states(3, 1, step), states(3, 1, step))
        assert layer.keys.data_ptr() == address
    layer.keep_rows([0, 2])
    layer.update(states(2, 1, 5), states(2, 1, 6))
    assert layer.keys.data_ptr() != address, "the room is used up"


def test_the_last_rows_take_the_places_of_those_that_ended() -> None:
    assert filled_order([0, 1, 2]) == [0, 1, 2]
    assert filled_order([1, 3, 4]) == [3, 1, 4]
    assert filled_order([0, 2, 5]) == [0, 5, 2]
    assert filled_order([4]) == [4]


def test_only_layers_that_keep_all_tokens_get_room() -> None:
    kinds = [type(layer).__name__ for layer in roomy_cache(build_config("gemma2"), 4).layers]
    assert set(kinds) == {"RoomyLayer", "DynamicSlidingWindowLayer"}
    assert {type(layer) for layer in roomy_cache(build_config("llama"), 4).layers} == {RoomyLayer}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_rows_that_end_at_different_steps_leave_the_others_as_they_are(architecture: str) -> None:
    model = build_wrapper(architecture)
    prompt = model.chat_format.encode("What is the sea?")
    rows = [GenerationRow(prompt, Steering(1, float(m), random_vector(1))) for m in range(-3, 3)]
    alone = [dict(model.generate([row], 8))[0].token_ids for row in rows]
    decoding = Decoding(8, frozenset(), 0)
    with torch.no_grad():
        state = DecodingState(model.model, model.layers, rows, decoding)
        logits = state.prefill()
        said: list[list[int]] = [[] for _ in rows]
        for step in range(8):
            chosen = state.choose(logits)
            for row, token in zip(state.active, chosen, strict=True):
                said[row].append(token)
            if step in (1, 2, 5):  # the first row of the batch goes, then the next first one
                order = state.keep(list(range(1, len(chosen))))
                chosen = [chosen[place] for place in order]
            logits = state.step(chosen)
    assert sorted(len(tokens) for tokens in said) == [2, 3, 6, 8, 8, 8]
    for tokens, whole in zip(said, alone, strict=True):
        n = min(len(tokens), len(whole))  # there an end token ends the answer
        assert tuple(tokens[:n]) == whole[:n]
