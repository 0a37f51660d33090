"""The same command gives the same bytes, whatever seed Python's hashes have; threads change the last digits only."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline import run, said, steps
from tests.roots import TINY_LABEL, snapshot

PICTURES = (".png", ".pdf")  # their text stands beside them


@pytest.fixture(scope="module")
def again(pipeline_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a second run, with another seed of Python's hashes."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(pipeline_root.parent / TINY_LABEL, folder / TINY_LABEL)
    return run(folder, PYTHONHASHSEED="4242")


def artifacts(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(root).items() if not name.endswith(PICTURES)}


@pytest.mark.slow
def test_every_script_ran(pipeline_root: Path) -> None:
    assert json.loads((pipeline_root.parent / "codes.json").read_text()) == dict.fromkeys(steps(""), 0)
    kinds = {(Path(name).parts[0], Path(name).suffix) for name in artifacts(pipeline_root)}
    expected = {
        ("vectors", ".pt"),
        ("normalized_vectors", ".pt"),
        ("activations", ".pt"),
        ("finetuned_models", ".pt"),
        ("results", ".json"),
        ("datasets", ".json"),
        ("analysis", ".txt"),
        ("finetune_logs", ".txt"),
    }
    assert expected <= kinds


@pytest.mark.slow
def test_the_same_commands_give_the_same_bytes_with_any_hash_seed(pipeline_root: Path, again: Path) -> None:
    first, second = artifacts(pipeline_root), artifacts(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert set(snapshot(pipeline_root)) == set(snapshot(again))  # the same figures


@pytest.mark.slow
def test_the_same_commands_say_the_same(pipeline_root: Path, again: Path) -> None:
    def spoken(root: Path) -> dict[str, str]:
        return {name: re.sub(r"127\.0\.0\.1:\d+", "", text) for name, text in said(root, "").items()}

    assert said(pipeline_root, ".out") == said(again, ".out")
    assert spoken(pipeline_root) == spoken(again)


COMPUTING = ("vectors", "normalized", "ab", "truthful_qa", "mmlu", "answers", "sampled", "weights")


@pytest.mark.slow
def test_the_number_of_threads_changes_no_number_beyond_rounding(pipeline_root: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline_root.parent / TINY_LABEL, tmp_path / TINY_LABEL)
    root = run(tmp_path, *COMPUTING, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", PYTHONHASHSEED="random")
    compared = [path for path in root.rglob("*") if path.suffix in (".pt", ".json") and path.name != "provenance.json"]
    assert len(compared) > 60
    for path in compared:
        other = pipeline_root / path.relative_to(root)
        if path.suffix == ".pt":
            assert_close(torch.load(path, weights_only=True), torch.load(other, weights_only=True))
        else:
            assert_same_numbers(json.loads(path.read_text()), json.loads(other.read_text()))


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    else:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def assert_same_numbers(one: Any, other: Any) -> None:
    """Equal but for floats, which may differ by 1e-5; texts, free answers among them, are the same."""
    assert type(one) is type(other)
    if isinstance(one, float):
        assert math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_numbers(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_numbers(a, b)
    else:
        assert one == other
