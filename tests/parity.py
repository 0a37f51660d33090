"""How numbers of the scripts are compared with those of the published implementation.

Tolerances: 1e-5 on vectors; on activations 1e-5 of the layer's largest value, because they are read from a
residual stream of size 5 to 14 where float32 itself is no finer; 1e-4 (relative) on probabilities; texts
are equal.
"""

import json
import re
from pathlib import Path

import pytest
import torch


def tensor_files(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.pt")}


def load(path: Path) -> torch.Tensor:
    value = torch.load(path, weights_only=True)
    assert isinstance(value, torch.Tensor)
    return value


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_vectors(made: Path, published: Path, behavior: str | None = None) -> None:
    """All of them, or those of one behavior, are there and equal, and no others."""
    names = {name for name in tensor_files(published) if behavior is None or name.startswith(f"{behavior}/")}
    assert names and tensor_files(made) == names
    for name in names:
        ours, theirs = load(made / name), load(published / name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def assert_same_activations(made: Path, published: Path) -> None:
    """Each published file has its equal; there may be more of ours."""
    for name in tensor_files(published):
        ours, theirs = load(made / name), load(published / name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        gap = float((ours - theirs).abs().max())
        assert gap <= 1e-5 * max(1.0, float(theirs.abs().max())), name


def assert_same_probabilities(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs) > 0
    for record, published in zip(ours, theirs, strict=True):
        assert list(record) == list(published)
        for key, value in published.items():
            if key in ("a_prob", "b_prob"):
                assert record[key] == pytest.approx(value, rel=1e-4, abs=0)
            else:
                assert record[key] == value


def assert_same_answers(ours: list[dict], theirs: list[dict]) -> None:
    """Published answers still hold the special tokens that the model wrote."""
    assert len(ours) == len(theirs) > 0
    for record, published in zip(ours, theirs, strict=True):
        assert list(record) == list(published)
        assert record["question"] == published["question"]
        assert record["raw_model_output"] == published["raw_model_output"]
        assert record["model_output"] == re.sub("</?s>", "", published["model_output"]).strip()
