"""Commands on a root, and fine-tuned weights as they stand in result names."""

import os
import shlex
from pathlib import Path

import pytest

from utils.paths import REPOSITORY, DataPaths, VectorFile, parse_vector_name
from utils.settings import VectorKind


def test_a_command_names_the_root_where_it_is_not_the_repository(tmp_path: Path) -> None:
    assert DataPaths(REPOSITORY).command("scoring", "--layers", 1, 2) == "./scoring.py --layers 1 2"
    assert DataPaths(tmp_path).command("scoring") == f"./scoring.py --root {tmp_path}"


def test_the_repository_is_the_repository_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / "utils")
    for root in (Path(".."), REPOSITORY / "tests" / "..", Path(os.path.relpath(REPOSITORY))):
        assert DataPaths(root).command("scoring") == "./scoring.py"


def test_a_command_is_quoted_for_the_shell() -> None:
    words = ["--model", "a b/c", "--title", "it's $HOME; `ls`", "--multipliers", -1.5]
    command = DataPaths(Path("my data")).command("plot_results", *words)
    assert shlex.split(command) == ["./plot_results.py", *map(str, words), "--root", "my data"]


def test_parts_of_vectors_read_back_and_stand_beside_no_whole_vector(tmp_path: Path) -> None:
    paths, kind = DataPaths(tmp_path), VectorKind("answer", "pca", "answers", "rank2")
    path = paths.vector("refusal", 3, "a-model", normalized=True, kind=kind)
    assert path.name == "vec_layer_3_a-model_read=answer_method=pca_from=answers_part=rank2.pt"
    assert parse_vector_name(path.name) == VectorFile(3, "a-model", kind)
    path.parent.mkdir(parents=True)
    path.touch()
    assert list(paths.vector_files("refusal", normalized=True)) == []


# --- fine-tuned weights ---


def test_weights_are_named_by_their_path_from_the_root_and_found_again(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path / "root")
    for path in (
        paths.finetuned_weights("sycophancy_pos_finetune_all"),
        paths.root / "finetuned_models" / "survival-instinct_pos_finetune_all.pt",
        paths.root / "runs-of-may" / "a-b" / "best-one.pt",
        tmp_path / "else-where" / "x.pt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert "/" not in paths.weights_name(path)
        assert paths.weights_of_name(paths.weights_name(path)) == path
    assert paths.weights_name(paths.finetuned_weights("x")) == "finetuned_models-x.pt"


def test_weights_that_are_gone_are_looked_for_where_fine_tuning_puts_them(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    assert paths.weights_of_name("finetuned_models-a-b.pt") == tmp_path / "finetuned_models" / "a-b.pt"
    assert paths.weights_of_name("some-thing.pt") == Path("some-thing.pt")
    assert DataPaths(REPOSITORY).weights_of_name("finetuned_models-no-such.pt") == Path("finetuned_models/no-such.pt")


@pytest.mark.parametrize("name", ["", "-", "--", "a--b.pt", "..-x.pt", "x" * 255])
def test_a_name_that_no_file_bears_is_no_error(name: str, tmp_path: Path) -> None:
    assert DataPaths(tmp_path).weights_of_name(name) == Path(name)
