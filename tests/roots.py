"""Small data roots for script tests, and ways to look at what a script left in them."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.reference import carried_path, reference_path
from utils.behaviors import Behavior, load_behavior
from utils.paths import REPOSITORY, DataPaths

if TYPE_CHECKING:
    from torch import Tensor

TINY_LABEL = "tiny-chat"
"""What file names call the checkpoint of the fixture `tiny_checkpoint`."""


def copy_parity(root: Path, *folders: str) -> Path:
    """Copy folders of the published parity data to `root`, writable."""
    return _copy({folder: reference_path("parity", folder) for folder in folders}, root)


def copy_carried(root: Path, *folders: str) -> Path:
    """Copy folders of `tests/reference/` to `root`, writable."""
    return _copy({folder: carried_path(folder) for folder in folders}, root)


def _copy(sources: dict[str, Path], root: Path) -> Path:
    for folder, source in sources.items():
        shutil.copytree(source, root / folder, copy_function=shutil.copyfile)
        for path in [root / folder, *(root / folder).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def write_small_datasets(root: Path, behavior: str) -> None:
    """Datasets of one behavior, and the TruthfulQA and MMLU sets that all share."""
    opinions = ["the sea is green", "cats are wiser than owls", f"{behavior} is a word that is easy to spell"]
    pairs = [_pair(f"I think that {opinion}. Do you agree?", index) for index, opinion in enumerate(opinions)]
    tests = [
        _pair(f"They say that {opinion}. What is the answer?", index + 1) for index, opinion in enumerate(opinions)
    ]
    questions = [{"question": f"Is it true that {opinion}?"} for opinion in opinions]
    facts = [_fact(index) for index in range(3)]
    test_dir = root / "datasets" / "test"
    put_json(root / "datasets" / "generate" / behavior / "generate_dataset.json", pairs)
    put_json(test_dir / behavior / "test_dataset_ab.json", tests)
    put_json(test_dir / behavior / "test_dataset_open_ended.json", questions)
    put_json(test_dir / "truthfulqa" / "truthful_qa.json", facts)
    put_json(test_dir / "mmlu" / "mmlu.json", facts[::-1])


def _pair(question: str, index: int) -> dict[str, str]:
    answers = ["(A)", "(B)"] if index % 2 else ["(B)", "(A)"]
    return {
        "question": f"{question}\n\nChoices:\n (A) Yes\n (B) No, not {'at all ' * index}",
        "answer_matching_behavior": answers[0],
        "answer_not_matching_behavior": answers[1],
    }


def write_raw_dataset(root: Path, behavior: str, n_pairs: int = 70) -> Path:
    """A raw set whose questions share no words."""
    pairs = [
        {
            "question": f"Item{i} asks{i}?\n\nChoices:\n (A) yes{i}\n (B) no{i}",
            "answer_matching_behavior": f"({'AB'[i % 2]})",
            "answer_not_matching_behavior": f"({'BA'[i % 2]})",
        }
        for i in range(n_pairs)
    ]
    return put_json(root / "datasets" / "raw" / behavior / "dataset.json", pairs)


def _fact(index: int) -> dict[str, str]:
    return {
        "prompt": f"What is {index} and {index}?\n\nChoices:\n(A) {2 * index}\n(B) {3 * index + 1}",
        "correct": "(A)",
        "incorrect": "(B)",
        "correct_full_text": str(2 * index),
        "incorrect_full_text": str(3 * index + 1),
        "category": f"sums {index % 2}",
    }


def put_json(path: Path, value: Any) -> Path:
    """Write a JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def bundled(behavior: str) -> Behavior:
    """A behavior of the repository."""
    return load_behavior(DataPaths(REPOSITORY), behavior)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file under a root, hidden ones too, with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def error_lines(stderr: str) -> list[str]:
    """The lines that report an error; a traceback counts, line by line."""
    if "Traceback" in stderr:
        return stderr.splitlines()
    return [line for line in stderr.splitlines() if "error: " in line]


def write_vector(root: Path, behavior: str, layer: int, vector: "Tensor", label: str = TINY_LABEL) -> Path:
    """Put a normalised vector where the scripts look for it."""
    import torch

    path = root / "normalized_vectors" / behavior / f"vec_layer_{layer}_{label}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vector, path)
    return path


def results(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every result file, by the file's name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((root / "results").rglob("results_*.json"))}


def result_bytes(root: Path) -> dict[str, bytes]:
    """Every result file, by its path under the root."""
    return {name: content for name, content in snapshot(root).items() if "/results_" in name}
