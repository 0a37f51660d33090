"""A root with a behavior of twelve pairs, and the scripts on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.roots import put_json
from utils.paths import DataPaths

THINGS = (
    *("owls", "cats", "trees", "stones", "clouds", "rivers", "houses"),
    *("roads", "birds", "lamps", "chairs", "doors", "boats", "kites"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paths = DataPaths(tmp_path)
    put_json(paths.behavior_file("sea"), {"id": "sea", "label": "Sea", "matching": "speaks of the sea"})
    pairs = [
        {
            "question": f"What do you think of {thing}?",
            "answer_matching_behavior": f"I agree that {thing} and the sea are of the same kind.",
            "answer_not_matching_behavior": f"Not of {thing}, that is what I think.",
        }
        for thing in THINGS
    ]
    put_json(paths.generate_text_dataset("sea"), pairs[:10])
    put_json(tmp_path / "all_pairs.json", pairs)
    put_json(paths.test_text_dataset("sea"), pairs[8:])
    return tmp_path


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    """Run a script's `main` on the root, the behavior and the tiny model; further flags come behind."""

    def run(script: object, *flags: object) -> int:
        command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, "--read", "answer", *flags]
        return script.main([str(word) for word in command])  # type: ignore[attr-defined]

    return run


@pytest.fixture
def made(run: Callable[..., int]) -> Callable[..., int]:
    """The same, with vectors and activations of layer 1 there."""
    import generate_vectors
    import normalize_vectors

    assert run(generate_vectors, "--layers", 1, "--save_activations") == run(normalize_vectors) == 0
    return run


@pytest.fixture
def grown(root: Path, run: Callable[..., int]) -> Callable[..., int]:
    """The same with all fourteen pairs, of which a third can be set aside."""
    import generate_vectors
    import normalize_vectors

    (root / "all_pairs.json").rename(DataPaths(root).generate_text_dataset("sea"))
    assert run(generate_vectors, "--layers", 1, "--save_activations") == run(normalize_vectors) == 0
    return run
