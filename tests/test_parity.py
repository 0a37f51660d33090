"""The scripts compute what the published implementation computes: on the published data, with two tiny models.

Skips where that data is missing; tests/test_parity_own.py asks the same of the bundled data, everywhere.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import generate_vectors
import normalize_vectors
import prompting_with_steering
from tests.parity import (
    assert_same_activations,
    assert_same_answers,
    assert_same_probabilities,
    assert_same_vectors,
    load,
    read,
    tensor_files,
)
from tests.reference import reference_path
from tests.roots import copy_parity
from utils.behaviors import published_behaviors
from utils.model import checkpoints as models

CHAT_MODEL, BASE_MODEL = "Llama-2-tiny-chat-hf", "Llama-2-tiny-hf"
ALL_MULTIPLIERS = ["-2", "-1.5", "-1", "-0.5", "0", "0.5", "1", "1.5", "2"]
SWEEPS = [
    "--behaviors sycophancy refusal",
    f"--behaviors sycophancy hallucination --layers 4 --multipliers {' '.join(ALL_MULTIPLIERS)}",
    f"--behaviors sycophancy --layers 4 --multipliers {' '.join(ALL_MULTIPLIERS)} --system_prompt pos",
    f"--behaviors sycophancy --layers 4 --multipliers {' '.join(ALL_MULTIPLIERS)} --system_prompt neg",
    "--behaviors sycophancy refusal --use_base_model --steer_positions all --multipliers -1 1",
    "--behaviors sycophancy --override_vector 4",
    f"--behaviors sycophancy --override_vector_model {BASE_MODEL}",
    "--behaviors sycophancy --type truthful_qa --layers 4",
    "--behaviors sycophancy --type mmlu --layers 4",
    "--behaviors sycophancy refusal --type open_ended --layers 3 4 --multipliers -2 0 2",
    "--behaviors sycophancy --type open_ended --system_prompt pos --layers 4 --multipliers -2 0 2",
]
N_LAYERS = 8


@pytest.fixture(scope="module")
def seven_b() -> Iterator[None]:
    """`7b` names the tiny chat and base models of the published data."""
    chat, base = (str(reference_path("parity", name)) for name in (CHAT_MODEL, BASE_MODEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.LLAMA_2_CHECKPOINTS, "7b", (chat, base))
        yield


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory, seven_b: None) -> Path:
    """A root in which the scripts have made vectors, activations and normalised vectors of both models."""
    root = copy_parity(tmp_path_factory.mktemp("parity"), "datasets")
    assert generate_vectors.main(["--root", str(root), "--save_activations"]) == 0
    assert generate_vectors.main(["--root", str(root), "--use_base_model"]) == 0
    assert normalize_vectors.main(["--root", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def swept_root(made_root: Path) -> Path:
    """The same root after every evaluation of the reference data."""
    for sweep in SWEEPS:
        assert prompting_with_steering.main(["--root", str(made_root), *sweep.split()]) == 0
    return made_root


@pytest.mark.parametrize("folder", ["vectors", "normalized_vectors"])
def test_vectors_equal_the_published_implementation_s(made_root: Path, folder: str) -> None:
    published = reference_path("parity", folder)
    assert len(tensor_files(published)) == len(published_behaviors()) * N_LAYERS * 2
    assert_same_vectors(made_root / folder, published)


def test_vectors_made_without_packing_equal_the_published_implementation_s(tmp_path: Path, seven_b: None) -> None:
    root = copy_parity(tmp_path, "datasets")
    assert generate_vectors.main(["--root", str(root), "--behaviors", "refusal", "--no_packing"]) == 0
    names = tensor_files(root / "vectors")
    assert len(names) == N_LAYERS
    for name in names:
        theirs = load(reference_path("parity", "vectors") / name)
        torch.testing.assert_close(load(root / "vectors" / name), theirs, rtol=0, atol=1e-5)


def test_activations_equal_the_published_implementation_s(made_root: Path) -> None:
    published = reference_path("parity", "activations")
    names = tensor_files(published)
    assert len(names) == len(published_behaviors()) * N_LAYERS * 2
    assert tensor_files(made_root / "activations") == names
    assert_same_activations(made_root / "activations", published)


def published_results() -> dict[Path, Path]:
    """Each published result file, and where ours is: base models there were steered at every token."""
    found = {}
    folder = reference_path("parity", "results")
    for path in sorted(folder.glob("*/*.json")):
        stem = path.stem + ("_steer_positions=all" if "use_base_model=True" in path.stem else "")
        found[path] = path.relative_to(folder).with_name(f"{stem}.json")
    return found


def test_every_published_result_file_is_made_under_its_name_and_no_other(swept_root: Path) -> None:
    wanted = {str(path) for path in published_results().values()}
    made = {f"{path.parent.name}/{path.name}" for path in (swept_root / "results").glob("*/results_*.json")}
    assert len(wanted) > 150
    assert made == wanted


@pytest.mark.parametrize(
    ("kind", "n_files"),
    [
        ("type=ab_use_base_model=False", 63),
        ("type=ab_system_prompt=pos_use_base_model=False", 9),
        ("type=ab_system_prompt=neg_use_base_model=False", 9),
        ("type=ab_override_vector=4_use_base_model=False", 24),
        (f"type=ab_override_vector_model={BASE_MODEL}_use_base_model=False", 24),
        ("type=ab_use_base_model=True", 32),
        ("type=truthful_qa_use_base_model=False", 3),
        ("type=mmlu_use_base_model=False", 3),
    ],
)
def test_probabilities_equal_the_published_implementation_s(swept_root: Path, kind: str, n_files: int) -> None:
    chosen = {path: ours for path, ours in published_results().items() if f"_{kind}_model_size=7b" in path.name}
    assert len(chosen) == n_files
    for path, ours in chosen.items():
        assert_same_probabilities(read(swept_root / "results" / ours), read(path))


def test_open_ended_answers_equal_the_published_implementation_s(swept_root: Path) -> None:
    chosen = {path: ours for path, ours in published_results().items() if "_type=open_ended_" in path.name}
    n_texts = 0
    for path, ours in chosen.items():
        theirs = read(path)
        assert_same_answers(read(swept_root / "results" / ours), theirs)
        n_texts += len(theirs)
    assert n_texts == 60


def test_plain_passes_equal_the_published_implementation_s(made_root: Path, tmp_path: Path) -> None:
    root = copy_parity(tmp_path / "root", "datasets")
    shutil.copytree(made_root / "normalized_vectors", root / "normalized_vectors")
    command = ["--root", str(root), "--behaviors", "refusal", "--layers", "0", "4", "--no_packing"]
    assert prompting_with_steering.main(command) == 0
    made = sorted((root / "results").glob("*/results_*.json"))
    assert len(made) == 6
    for path in made:
        assert_same_probabilities(read(path), read(reference_path("parity", "results", "refusal") / path.name))


def test_published_vectors_normalise_to_the_published_normalised_vectors(tmp_path: Path) -> None:
    published = reference_path("caa", "normalized_vectors")
    (tmp_path / "vectors").symlink_to(reference_path("caa", "vectors"))
    assert normalize_vectors.main(["--root", str(tmp_path)]) == 0
    names = tensor_files(published)
    assert len(names) == 7 * 32
    assert tensor_files(tmp_path / "normalized_vectors") == names
    for name in names:
        ours, theirs = load(tmp_path / "normalized_vectors" / name), load(published / name)
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5)


def test_a_base_model_without_steer_positions_is_steered_from_the_colon_of_response_on(
    tmp_path: Path, seven_b: None
) -> None:
    """The published code's search for the marker fails here, and it steers every token: another number."""
    root = copy_parity(tmp_path, "datasets", "normalized_vectors")
    command = ["--behaviors", "refusal", "--use_base_model", "--layers", "4", "--multipliers", "1"]
    assert prompting_with_steering.main(["--root", str(root), *command]) == 0
    name = "results_layer=4_multiplier=1.0_behavior=refusal_type=ab_use_base_model=True_model_size=7b.json"
    ours = read(root / "results" / "refusal" / name)
    theirs = read(reference_path("parity", "results", "refusal") / name)
    gaps = [abs(a["a_prob"] - b["a_prob"]) / b["a_prob"] for a, b in zip(ours, theirs, strict=True)]
    assert max(gaps) > 1e-2
