"""The scripts compute what the published implementation computes: on the bundled data, with a tiny Llama.

The numbers are in tests/reference/, so that every clone runs this.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import generate_vectors
import normalize_vectors
import prompting_with_steering
from tests.parity import (
    assert_same_activations,
    assert_same_answers,
    assert_same_probabilities,
    assert_same_vectors,
    read,
    tensor_files,
)
from tests.reference import carried_path
from tests.roots import copy_carried
from utils.model import checkpoints as models

CHAT_MODEL = "Llama-2-tiny-chat-hf"
SWEEPS = (
    "--behaviors sycophancy refusal survival-instinct --multipliers -1 0 1",
    "--behaviors sycophancy --layers 3 --multipliers -2 -0.5 0.5 2",
    "--behaviors refusal --layers 2 4 --multipliers 1 --override_vector 3",
    "--behaviors refusal --layers 3 --multipliers -1 0 1 --type truthful_qa",
    "--behaviors refusal --layers 3 --multipliers -1 0 1 --type mmlu",
    "--behaviors sycophancy refusal --layers 3 --multipliers -2 0 2 --type open_ended",
)


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which the scripts have made everything that the carried numbers are of."""
    root = copy_carried(tmp_path_factory.mktemp("parity"), "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.LLAMA_2_CHECKPOINTS, "7b", (str(carried_path(CHAT_MODEL)), "nobody/no-base-model"))
        assert generate_vectors.main(["--root", str(root), "--save_activations"]) == 0
        assert normalize_vectors.main(["--root", str(root)]) == 0
        for sweep in SWEEPS:
            assert prompting_with_steering.main(["--root", str(root), *sweep.split()]) == 0
        yield root


@pytest.mark.parametrize("folder", ["vectors", "normalized_vectors"])
def test_vectors_equal_the_published_implementation_s(made_root: Path, folder: str) -> None:
    assert len(tensor_files(carried_path(folder))) == 7 * 6
    assert_same_vectors(made_root / folder, carried_path(folder))


def test_activations_equal_the_published_implementation_s(made_root: Path) -> None:
    assert len(tensor_files(carried_path("activations"))) == 4
    assert_same_activations(made_root / "activations", carried_path("activations"))


def test_every_result_file_is_made_under_its_name_and_no_other(made_root: Path) -> None:
    published, made = (
        {f"{path.parent.name}/{path.name}" for path in (root / "results").glob("*/results_*.json")}
        for root in (carried_path(), made_root)
    )
    assert len(published) == 72
    assert made == published


@pytest.mark.parametrize(("kind", "n_files"), [("ab", 60), ("truthful_qa", 3), ("mmlu", 3)])
def test_probabilities_equal_the_published_implementation_s(made_root: Path, kind: str, n_files: int) -> None:
    published = sorted(carried_path("results").glob(f"*/*_type={kind}_*.json"))
    assert len(published) == n_files
    for path in published:
        assert_same_probabilities(read(made_root / "results" / path.parent.name / path.name), read(path))


def test_answers_equal_the_published_implementation_s(made_root: Path) -> None:
    published = sorted(carried_path("results").glob("*/*_type=open_ended_*.json"))
    assert sum(len(read(path)) for path in published) == 24
    for path in published:
        assert_same_answers(read(made_root / "results" / path.parent.name / path.name), read(path))


def test_vectors_made_without_packing_equal_the_published_implementation_s(
    tmp_path: Path, seven_b_is_tiny: None
) -> None:
    root = copy_carried(tmp_path, "datasets")
    assert generate_vectors.main(["--root", str(root), "--behaviors", "refusal", "--no_packing"]) == 0
    assert_same_vectors(root / "vectors", carried_path("vectors"), "refusal")


def test_plain_passes_equal_the_published_implementation_s(parity_root: Path) -> None:
    flags = ["--behaviors", "refusal", "--no_packing", "--layers", "0", "4", "--multipliers", "-1", "0", "1"]
    assert prompting_with_steering.main(["--root", str(parity_root), *flags]) == 0
    made = sorted((parity_root / "results").glob("*/results_*.json"))
    assert len(made) == 6
    for path in made:
        assert_same_probabilities(read(path), read(carried_path("results", "refusal", path.name)))
