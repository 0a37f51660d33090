"""An extraction that is stopped goes on where it was, and gives the same bytes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import generate_vectors
from llama_wrapper import LlamaWrapper
from tests.models import build_wrapper
from tests.roots import TINY_LABEL, snapshot, write_raw_dataset
from utils.vectors import sums as extraction
from utils.vectors.sums import PairSums

N_PAIRS, BATCH = 9, 2
Generate = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pairs = write_raw_dataset(tmp_path / "root", "sycophancy", N_PAIRS)
    target = tmp_path / "root" / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"
    target.parent.mkdir(parents=True)
    pairs.rename(target)
    return tmp_path / "root"


@pytest.fixture
def generate(root: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    monkeypatch.setattr(extraction, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(extraction, "SHARE_OF_SAVING", 1e9)

    def run(*flags: object) -> int:
        command = ["--root", root, "--behaviors", "sycophancy", "--model", tiny_checkpoint, "--batch_size", BATCH]
        return generate_vectors.main([str(word) for word in (*command, *flags)])

    return run


def sums_files(root: Path) -> list[Path]:
    return sorted((root / "vectors").rglob(".sums_*"))


def made(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(root).items() if not name.startswith("datasets")}


def stop_at(monkeypatch: pytest.MonkeyPatch, n_batches: int) -> None:
    real, seen = PairSums.save_if_due, []

    def save(self: PairSums) -> None:
        real(self)
        seen.append(len(self.done))
        if len(seen) == n_batches:
            raise KeyboardInterrupt

    monkeypatch.setattr(PairSums, "save_if_due", save)


def count_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs that are added, in order."""
    real, added = PairSums.add, []

    def add(self: PairSums, indices: Sequence[int], *halves: Any) -> None:
        added.extend(indices)
        real(self, indices, *halves)

    monkeypatch.setattr(PairSums, "add", add)
    return added


@pytest.mark.parametrize("flags", [[], ["--save_activations"], ["--no_packing"]])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    generate: Generate, root: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], n_batches: int
) -> None:
    assert generate(*flags) == 0
    undisturbed = made(root)
    for name in undisturbed:
        (root / name).unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, n_batches)
        assert generate(*flags) == 130
    assert len(sums_files(root)) == 1
    with monkeypatch.context() as patch:
        added = count_pairs(patch)
        assert generate(*flags) == 0
    assert len(added) == N_PAIRS - n_batches * (1 if "--no_packing" in flags else BATCH)
    assert made(root) == undisturbed


def test_layers_that_are_written_already_do_not_cost_the_others_their_sums(
    generate: Generate, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate() == 0
    undisturbed = made(root)
    for name in undisturbed:
        (root / name).unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, 5)  # all pairs are read, nothing is written
        assert generate() == 130
    for name in (f"vec_layer_1_{TINY_LABEL}.pt", "provenance.json"):  # as a kill while vectors are written leaves it
        (root / "vectors" / "sycophancy" / name).write_bytes(undisturbed[f"vectors/sycophancy/{name}"])
    with monkeypatch.context() as patch:
        added = count_pairs(patch)
        assert generate() == 0
    assert added == []
    assert made(root) == undisturbed


@pytest.mark.parametrize("change", ["pairs", "weights", "batch size", "damage"])
def test_sums_of_other_data_weights_or_batches_are_not_taken(
    generate: Generate, root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert generate() == 130
    flags: list[object] = []
    if change == "pairs":
        path = root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"
        path.write_text(path.read_text().replace("asks3", "wonders"))
    elif change == "weights":
        real = LlamaWrapper.load

        def load(*args: Any, **options: Any) -> LlamaWrapper:
            wrapper = real(*args, **options)
            with torch.no_grad():
                next(wrapper.model.parameters()).add_(0.1)
            return wrapper

        monkeypatch.setattr(LlamaWrapper, "load", load)
    elif change == "damage":
        [path] = sums_files(root)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        flags = ["--batch_size", 3]
    added = count_pairs(monkeypatch)
    assert generate(*flags) == 0
    assert sorted(added) == list(range(N_PAIRS))


def test_sums_without_activations_leave_no_trace_where_activations_are_asked_for(
    generate: Generate, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate("--save_activations") == 0
    vectors = {name: content for name, content in made(root).items() if name.endswith(".pt")}
    for name in made(root):
        (root / name).unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert generate() == 130
    added = count_pairs(monkeypatch)
    assert generate("--save_activations") == 0
    assert sorted(added) == list(range(N_PAIRS))
    assert {name: content for name, content in made(root).items() if name.endswith(".pt")} == vectors


def test_sums_left_behind_finished_vectors_go_with_the_next_run_and_others_stay(
    generate: Generate, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PairSums, "forget", lambda _: None)
        assert generate("--layers", 0, 1) == 0
    assert len(sums_files(root)) == 1
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        assert generate("--layers", 2, 3, "--no_packing") == 130
    [of_the_others] = sums_files(root)
    assert generate("--layers", 0) == 0
    assert sums_files(root) == [of_the_others]
    assert generate("--layers", 2, 3, "--no_packing") == 0
    assert sums_files(root) == []


def test_a_pair_that_comes_twice_counts_once(tmp_path: Path) -> None:
    sums = PairSums(tmp_path / "sums.pt", [0], 3, 2, keep_all=True)
    first, second = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 7.0]]])
    sums.add([2], first, second)
    sums.add([2, 0], torch.cat([first, second]), torch.cat([second, first]))
    assert sums.mean.total.tolist() == [[-4.0 + 4.0, -5.0 + 5.0]]
    assert sums.done == [2, 0]
    assert sums.sides is not None
    assert sums.sides["pos"][0, [2, 0]].tolist() == [[1.0, 2.0], [5.0, 7.0]]


def test_each_process_sends_what_it_has_read_and_only_the_main_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    positive, negative = torch.randn(5, 1, 2), torch.randn(5, 1, 2)
    shares = {0: [0, 3], 1: [1, 2, 4]}
    sent: dict[int, Any] = {}
    parts = {}
    for index, pairs in shares.items():
        parts[index] = PairSums(tmp_path / "sums.pt", [0], 5, 2, keep_all=True)
        parts[index].add(pairs, positive[pairs], negative[pairs])
        monkeypatch.setattr(extraction.processes, "gather_to_main", lambda own, i=index: sent.setdefault(i, own) and [])
        parts[index].gather()
    assert {index: own[2]["pos"].shape for index, own in sent.items()} == {0: (1, 2, 2), 1: (1, 3, 2)}
    monkeypatch.setattr(extraction.processes, "gather_to_main", lambda _: [sent[0], sent[1]])
    parts[0].gather()
    whole = PairSums(tmp_path / "sums.pt", [0], 5, 2, keep_all=True)
    whole.add(range(5), positive, negative)
    assert whole.sides is not None and parts[0].sides is not None
    assert all(torch.equal(parts[0].sides[side], whole.sides[side]) for side in whole.sides)
    torch.testing.assert_close(parts[0].mean.vector, whole.mean.vector)
    assert parts[0].mean.n_pairs == 5


def test_after_a_resume_the_bar_counts_each_pair_once(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that were read before come again in the company of others where batches are formed anew."""
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert generate() == 130
    counted: list[int] = []

    class Bar:
        def __init__(self, total: int, initial: int, **_: Any) -> None:
            counted.append(initial)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: int) -> None:
            counted.append(n)

    real = LlamaWrapper.answer_activations

    def everything_again(self: LlamaWrapper, pairs: Any, layers: Any, batch_size: Any, _: Any, read: Any) -> Any:
        return real(self, pairs, layers, batch_size, (), read)

    monkeypatch.setattr(LlamaWrapper, "answer_activations", everything_again)
    monkeypatch.setattr("utils.vectors.extraction.progress", Bar)
    assert generate() == 0
    assert counted[0] == 2 * BATCH and sum(counted) == N_PAIRS


def test_a_fingerprint_tells_weights_apart() -> None:
    one, same, other = build_wrapper("llama"), build_wrapper("llama"), build_wrapper("llama")
    with torch.no_grad():
        list(other.model.parameters())[-1].mul_(1.001)
    assert one.fingerprint == same.fingerprint != other.fingerprint
