"""The vectors that come with the repository are what its scripts make of its data."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import generate_vectors
import normalize_vectors
from utils.behaviors import published_behaviors
from utils.files.reading import load_vector
from utils.model.checkpoints import EMBEDDED_LABEL
from utils.paths import REPOSITORY, DataPaths

N_LAYERS = 30
BUNDLED = DataPaths(REPOSITORY)
REGENERATED = range(N_LAYERS) if "CAA_KILLS" in os.environ else range(0, 8)
"""Nothing above them runs: a quarter of the time, with layers of which the later ones are made."""


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("behavior", ["refusal"])
def test_the_bundled_vectors_regenerate_from_the_bundled_data(tmp_path: Path, behavior: str) -> None:
    dataset = DataPaths(tmp_path).generate_dataset(behavior)
    dataset.parent.mkdir(parents=True)
    shutil.copy(BUNDLED.generate_dataset(behavior), dataset)
    flags = ["--root", str(tmp_path), "--behaviors", behavior, "--model_size", "135m", "--layers"]
    assert generate_vectors.main([*flags, *map(str, REGENERATED)]) == 0
    for layer in REGENERATED:
        made = load_vector(DataPaths(tmp_path).vector(behavior, layer, EMBEDDED_LABEL, normalized=False))
        kept = load_vector(BUNDLED.vector(behavior, layer, EMBEDDED_LABEL, normalized=False))
        torch.testing.assert_close(made, kept, rtol=0, atol=1e-4)


def test_the_bundled_normalised_vectors_are_those_of_the_bundled_vectors(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "vectors", tmp_path / "vectors")
    assert normalize_vectors.main(["--root", str(tmp_path), "--model_size", "135m"]) == 0
    for behavior in published_behaviors():
        for layer in range(N_LAYERS):
            made = load_vector(DataPaths(tmp_path).vector(behavior, layer, EMBEDDED_LABEL, normalized=True))
            kept = load_vector(BUNDLED.vector(behavior, layer, EMBEDDED_LABEL, normalized=True))
            torch.testing.assert_close(made, kept, rtol=1e-6, atol=1e-6)
