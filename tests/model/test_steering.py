"""The maths of steering vectors, and the hooks, on modules small enough to follow by hand."""

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
    mean_difference,
    normalize_to_mean_norm,
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


def test_a_mean_difference_is_the_mean_of_differences() -> None:
    positive = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    negative = torch.tensor([[0.0, 2.0], [1.0, 4.0]])
    assert mean_difference(positive, negative).tolist() == [1.5, 3.0]


def test_a_mean_difference_is_taken_in_double_precision() -> None:
    positive = torch.cat([torch.full((1, 1), 2.0**25), torch.ones(3, 1)])
    negative = torch.cat([torch.full((1, 1), 2.0**25 - 4), torch.zeros(3, 1)])
    assert mean_difference(positive, negative).tolist() == [7 / 4]


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (torch.ones(2, 3), torch.ones(3, 3)),
        (torch.ones(0, 3), torch.ones(0, 3)),
        (torch.ones(3), torch.ones(3)),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(positive: Tensor, negative: Tensor) -> None:
    with pytest.raises(UserError, match="two equal activation tables"):
        mean_difference(positive, negative)


def test_normalised_vectors_have_the_mean_norm_and_their_own_direction() -> None:
    found = normalize_to_mean_norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, -15.0])})
    assert found["a"].tolist() == pytest.approx([6.0, 8.0]) and found["b"].tolist() == pytest.approx([0.0, -10.0])


def test_a_vector_without_direction_cannot_be_normalised() -> None:
    with pytest.raises(UserError, match="the vector of b is all zeros"):
        normalize_to_mean_norm({"a": torch.ones(2), "b": torch.zeros(2)})


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
    with capture_outputs(blocks, torch.tensor([3, 1])) as captured:
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
