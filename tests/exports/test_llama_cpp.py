"""An exported file steers llama.cpp as it steers here: the right layer, and clearly less so one layer off.

Needs llama-cpp-python, which is not installed by default.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import export_vectors
from tests.exports import llama_cpp as llama
from tests.models import N_LAYERS, build_model, random_vector, steered_logits
from tests.roots import TINY_LABEL
from utils.exports.gguf_files import llama_cpp_vectors
from utils.files.writing import save_tensor
from utils.model.steering import Steering
from utils.paths import DataPaths

pytestmark = pytest.mark.llama_cpp
IDS = [1, 40, 41, 90, 12, 55, 60, 61]


@pytest.fixture(autouse=True)
def _llama_cpp_is_installed() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def centred_cosine(one: Tensor, other: Tensor) -> float:
    """Smallest over the tokens, of logits without their mean over the vocabulary."""
    one, other = (logits - logits.mean(dim=-1, keepdim=True) for logits in (one, other))
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).min())


def test_llama_cpp_computes_the_same_logits_without_steering(tmp_path: Path) -> None:
    model = build_model("llama")
    there = llama.logits(llama.write_llama(model, tmp_path / "model.gguf"), IDS)
    assert centred_cosine(there, steered_logits(model, IDS, 0, None)) > 0.999


@pytest.mark.parametrize("layer", range(1, N_LAYERS))
def test_an_exported_file_steers_llama_cpp_at_its_layer_and_no_other(layer: int, tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    vector = random_vector(layer, size=3.0)
    save_tensor(paths.vector("refusal", layer, TINY_LABEL, normalized=True), vector)
    flags = ["--root", str(tmp_path), "--behaviors", "refusal", "--layers", str(layer), "--multiplier", "1.5"]
    assert export_vectors.main([*flags, "--format", "gguf", "--model", f"nowhere/{TINY_LABEL}"]) == 0
    [file] = (tmp_path / "exports" / "gguf").rglob("*.gguf")
    model = build_model("llama")
    there = llama.logits(llama.write_llama(model, tmp_path / "model.gguf"), IDS, llama_cpp_vectors(file))
    cosines = {
        block: centred_cosine(there, steered_logits(model, IDS, 0, Steering(block, 1.5, vector)))
        for block in range(N_LAYERS)
    }
    assert cosines[layer] > 0.999
    assert max(value for block, value in cosines.items() if block != layer) < 0.98
