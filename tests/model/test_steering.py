"""Steering and hooks, on modules small enough to follow by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models import count_hooks
from utils.errors import UserError
from utils.model.packing import PackedBatch
from utils.model.steering import (
    RowSteering,
    Steering,
    capture_outputs,
    check_range,
    output_hooks,
)


class Doubling(nn.Module):
    """A block that doubles the residual stream; `as_tuple` gives it back the way some architectures do."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.runs = 0

    def forward(self, hidden: Tensor) -> Any:
        self.runs += 1
        return (2 * hidden, "cache") if self.as_tuple else 2 * hidden


def run_through(blocks: list[nn.Module], hidden: Tensor) -> Tensor:
    for block in blocks:
        output = block(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


@pytest.fixture(params=[True, False], ids=["tuples", "tensors"])
def blocks(request: pytest.FixtureRequest) -> list[nn.Module]:
    return [Doubling(request.param) for _ in range(3)]


ONES = torch.ones(2, 4, 3)  # [batch, seq_len, d_model]


def test_a_hook_replaces_what_its_block_gave_and_nothing_else(blocks: list[nn.Module]) -> None:
    with output_hooks({blocks[1]: lambda hidden: hidden + 1}):
        assert torch.equal(run_through(blocks, ONES), torch.full_like(ONES, 10))  # ((1 * 2) * 2 + 1) * 2
    assert torch.equal(run_through(blocks, ONES), torch.full_like(ONES, 8))
    assert sum(count_hooks(block) for block in blocks) == 0


def test_hooks_are_gone_when_the_second_of_them_cannot_be_placed(blocks: list[nn.Module]) -> None:
    with (
        pytest.raises(AttributeError),
        output_hooks({blocks[0]: lambda hidden: hidden, "no module": lambda hidden: hidden}),  # type: ignore[dict-item]
    ):
        pass
    assert count_hooks(blocks[0]) == 0


def test_what_is_captured_is_a_copy_of_each_block_s_output(blocks: list[nn.Module]) -> None:
    with capture_outputs([blocks[0], blocks[2]]) as captured:
        output = run_through(blocks, ONES)
        output += 100
    assert torch.equal(captured[0], 2 * ONES) and torch.equal(captured[1], 8 * ONES)
    with capture_outputs(blocks, lambda hidden: hidden[:, [3, 1]]) as captured:
        run_through(blocks, torch.arange(8.0).reshape(1, 4, 2))
    assert captured[2].tolist() == [[[48.0, 56.0], [16.0, 24.0]]]


def test_a_pass_stops_behind_the_last_block_that_is_wanted(blocks: list[nn.Module]) -> None:
    with capture_outputs(blocks[:2], stop_after_last=True) as captured:
        run_through(blocks, ONES)
        pytest.fail("the pass went on")
    assert [block.runs for block in blocks] == [1, 1, 0]
    assert sorted(captured) == [0, 1]
    assert sum(count_hooks(block) for block in blocks) == 0


def test_every_row_gets_its_own_layer_multiplier_and_vector(blocks: list[nn.Module]) -> None:
    vector = torch.tensor([1.0, 0.0, -1.0])
    rows = RowSteering([Steering(0, 2.0, vector), None, Steering(2, -1.0, vector), Steering(0, 1.0, vector)], blocks)
    with rows.applied():
        output = run_through(blocks, torch.zeros(4, 2, 3))
    assert output[:, 0].tolist() == [[8.0, 0.0, -8.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0], [4.0, 0.0, -4.0]]
    assert torch.equal(output[:, 0], output[:, 1])


def test_only_the_positions_that_are_named_are_steered_and_rows_can_leave(blocks: list[nn.Module]) -> None:
    vector = torch.tensor([1.0, 0.0, -1.0])
    rows = RowSteering([Steering(2, 1.0, vector), Steering(2, 5.0, vector)], blocks)
    rows.positions = torch.tensor([[False, True], [True, True]])
    with rows.applied():
        output = run_through(blocks, torch.zeros(2, 2, 3))
    assert output[:, :, 0].tolist() == [[0.0, 1.0], [5.0, 5.0]]
    rows.keep_rows(torch.tensor([1]))
    rows.positions = None
    with rows.applied():
        output = run_through(blocks, torch.zeros(1, 1, 3))
    assert output[:, :, 0].tolist() == [[5.0]]


def test_one_row_can_carry_several_steerings_of_one_layer_and_of_others(blocks: list[nn.Module]) -> None:
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    several = [Steering(2, 1.0, other), Steering(0, 2.0, one), Steering(0, 3.0, other)]
    rows = RowSteering([several, None, several[1], [several[1]] * 2], blocks)
    with rows.applied():
        output = run_through(blocks, torch.zeros(4, 1, 3))
    assert output[:, 0].tolist() == [[8.0, 13.0, 0.0], [0.0, 0.0, 0.0], [8.0, 0.0, 0.0], [16.0, 0.0, 0.0]]


def test_an_operator_of_ones_own_edits_only_its_rows_and_positions(blocks: list[nn.Module]) -> None:
    def remove(hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
        unit = vector / vector.norm()
        return hidden - multiplier * (hidden @ unit)[..., None] * unit

    steering = Steering(0, 1.0, torch.tensor([0.0, 3.0, 0.0]), remove)
    rows = RowSteering([steering, None], blocks)
    rows.positions = torch.tensor([[False, True, True, False], [True, True, True, True]])
    with rows.applied():
        output = run_through(blocks, ONES)
    assert output[0].tolist() == [[8.0, 8.0, 8.0], [8.0, 0.0, 8.0], [8.0, 0.0, 8.0], [8.0, 8.0, 8.0]]
    assert torch.equal(output[1], 8 * ONES[1])


@pytest.mark.parametrize(("multiplier", "dtype"), [(1e30, torch.float32), (1e5, torch.float16), (1e30, torch.bfloat16)])
def test_steering_beyond_the_range_of_the_arithmetic_is_refused(multiplier: float, dtype: torch.dtype) -> None:
    steering = Steering(3, multiplier, torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(
        UserError, match=r"layer 3, multiplier (1e\+30|100000): what is put in then has norm .* --multipliers"
    ):
        check_range([None, [steering]], dtype)
    check_range([Steering(3, 100.0, torch.ones(3))], dtype)


def test_a_packed_batch_lets_each_tail_see_its_prefix_and_itself() -> None:
    packed = PackedBatch([[11, 12], [13]], [[[21, 22], [31, 32]]] * 2, 0, torch.device("cpu"), torch.float32)
    assert packed.input_ids.tolist() == [[11, 12, 21, 22, 31, 32], [0, 13, 21, 22, 31, 32]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3], [0, 0, 1, 2, 1, 2]]
    assert packed.tail_ends().tolist() == [3, 5]
    sees = (packed.attention_mask[:, 0] == 0).int().tolist()
    assert sees[0] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert sees[1] == [
        [1, 0, 0, 0, 0, 0],  # padding sees itself, so that no row of the softmax is empty
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]


def test_shorter_tails_are_padded_on_the_right_where_nothing_sees_it() -> None:
    packed = PackedBatch([[11], [12]], [[[21, 22], [31]], [[23], [33]]], 9, torch.device("cpu"), torch.float32)
    assert packed.input_ids.tolist() == [[11, 21, 22, 31, 9], [12, 23, 9, 33, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 1, 2]] * 2
    sees = (packed.attention_mask[0, 0] == 0).int().tolist()
    assert [row[4] for row in sees] == [0, 0, 0, 0, 1]  # the pad behind a tail is seen by itself alone
    assert [row[2] for row in sees] == [0, 0, 1, 0, 0]
