"""`prompting_with_steering.py` where results are there already: made otherwise, or by another run meanwhile."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import build_model, random_vector
from tests.roots import TINY_LABEL, put_json, result_bytes, write_vector
from tests.scripts.test_prompting_faults import kill_at
from utils.evaluation import sweep
from utils.files.journal import Journal, open_journal
from utils.files.provenance import PROVENANCE_NAME
from utils.paths import REPOSITORY
from utils.settings import parse_result_name

Evaluate = Callable[..., int]
Capture = pytest.CaptureFixture[str]
FREE = ("--type", "open_ended", "--multipliers", 0, 1, "--layers", 1)


def provenance_path(root: Path) -> Path:
    return root / "results" / "sycophancy" / PROVENANCE_NAME


def change_runs(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what is recorded of every run."""
    record = json.loads(provenance_path(root).read_text())
    for run in record["runs"].values():
        change(run)
    provenance_path(root).write_text(json.dumps(record))


def warnings(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "made with other settings" in line]


def save_weights(root: Path, seed: int) -> Path:
    path = root / "finetuned_models" / "sycophancy_pos_finetune_all.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(build_model("llama", seed=seed).state_dict(), path)
    return path


# --- made otherwise ---


def test_results_of_weights_that_were_fine_tuned_again_are_kept_with_a_word_until_overwrite(
    evaluate: Evaluate, steered_root: Path, capsys: Capture, loads: list[str]
) -> None:
    command = ["--layers", 1, "--override_model_weights_path", save_weights(steered_root, 8)]
    assert evaluate(*command) == 0
    before = result_bytes(steered_root)
    save_weights(steered_root, 9)
    capsys.readouterr()
    assert evaluate(*command) == 0
    assert loads == [TINY_LABEL]  # once, by the first run
    [line] = warnings(capsys)
    assert line.startswith("3 result files that are there were made with other settings: weights_sha256 (")
    assert line.endswith("; --overwrite makes them again")
    assert result_bytes(steered_root) == before
    assert evaluate(*command, "--overwrite") == 0
    after = result_bytes(steered_root)
    assert all(after[name] != content for name, content in before.items())
    capsys.readouterr()
    assert evaluate(*command) == 0
    assert warnings(capsys) == []


def change_test_set(root: Path) -> None:
    path = root / "datasets/test/sycophancy/test_dataset_ab.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))


def change_system_prompt(root: Path) -> None:
    path = root / "datasets" / "behaviors" / "sycophancy.json"
    behavior = json.loads((REPOSITORY / "datasets" / "behaviors" / "sycophancy.json").read_text())
    behavior["system_prompts"]["pos"] = "Agree."
    put_json(path, behavior)


@pytest.mark.parametrize(
    ("flags", "change", "more", "named", "n_files"),
    [
        ([*FREE, "--max_new_tokens", 4], None, ["--max_new_tokens", 6], "max_new_tokens (6, now 4)", 2),
        ([], None, ["--no_packing"], "packed (false, now true)", 9),
        ([], None, ["--dtype", "bfloat16"], "dtype (bfloat16, now float32)", 9),
        (["--layers", 1, "--system_prompt", "pos"], change_system_prompt, [], ", now Agree.)", 3),
        ([], change_test_set, [], "n_items (3, now 2)", 9),
        ([], lambda root: write_vector(root, "sycophancy", 2, random_vector(99)), [], "vector_sha256 (", 2),
    ],
)
def test_results_that_were_made_otherwise_are_named_with_what_differs(
    flags: list[Any],
    change: Callable[[Path], object] | None,
    more: list[str],
    named: str,
    n_files: int,
    evaluate: Evaluate,
    steered_root: Path,
    capsys: Capture,
    request: pytest.FixtureRequest,
) -> None:
    layers = [] if flags else ["--layers", 1, 2, 3]
    assert evaluate(*layers, *flags, *more) == 0
    before = result_bytes(steered_root)
    if change:
        change(steered_root)
    capsys.readouterr()
    request.getfixturevalue("loading_is_forbidden")
    assert evaluate(*layers, *flags) == 0
    [line] = warnings(capsys)
    assert line.startswith(f"{n_files} result files that are there were made with other settings: ")
    assert named in line
    assert result_bytes(steered_root) == before


def test_results_of_all_behaviors_are_named_in_one_warning(
    evaluate: Evaluate, steered_root: Path, capsys: Capture
) -> None:
    command = [*FREE, "--behaviors", "sycophancy", "refusal"]
    assert evaluate(*command, "--max_new_tokens", 4) == 0
    capsys.readouterr()
    assert evaluate(*command, "--max_new_tokens", 5) == 0
    [line] = warnings(capsys)
    assert line.startswith(
        "4 result files that are there were made with other settings: max_new_tokens (4, now 5); e.g. "
    )


def test_what_only_the_loaded_model_tells_is_compared_when_it_is_loaded_and_nothing_is_said_twice(
    evaluate: Evaluate, steered_root: Path, capsys: Capture
) -> None:
    assert evaluate("--layers", 1, 2) == 0
    write_vector(steered_root, "sycophancy", 2, random_vector(99))
    change_runs(steered_root, lambda run: run.update(weights_fingerprint="of other weights"))
    capsys.readouterr()
    assert evaluate("--layers", 1, 2, 3) == 0
    first, second = warnings(capsys)
    assert first.startswith("2 result files that are there were made with other settings: vector_sha256 (")
    assert second.startswith(
        "4 result files that are there were made with other settings: weights_fingerprint (of other weights, now "
    )


def test_another_command_and_other_versions_of_libraries_make_no_result_stale(
    evaluate: Evaluate, steered_root: Path, capsys: Capture
) -> None:
    assert evaluate("--layers", 1) == 0
    change_runs(steered_root, lambda run: run.update(command="./older", torch="1.0", transformers="4.0"))
    capsys.readouterr()
    assert evaluate("--layers", 1, 2) == 0
    assert evaluate("--layers", 1, 2, "--batch_size", 1) == 0
    assert warnings(capsys) == []


@pytest.mark.parametrize("known", [{}, {"command": "./older", "vectors_sha256": "?", "dtype": None}])
def test_what_an_older_record_does_not_say_is_not_compared(
    known: dict[str, Any], evaluate: Evaluate, steered_root: Path, capsys: Capture
) -> None:
    assert evaluate("--layers", 1) == 0

    def forget(run: dict[str, Any]) -> None:
        run.clear()
        run.update(known)

    change_runs(steered_root, forget)
    capsys.readouterr()
    assert evaluate("--layers", 1, 2) == 0
    provenance_path(steered_root).unlink()
    assert evaluate("--layers", 1, 2) == 0
    assert warnings(capsys) == []


def test_older_results_do_not_pass_for_those_of_a_run_that_was_killed_before_it_replaced_them(
    evaluate: Evaluate, steered_root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(*FREE, "--max_new_tokens", 4) == 0
    before = result_bytes(steered_root)
    with monkeypatch.context() as patch:
        kill_at(patch, 4, KeyboardInterrupt())
        assert evaluate(*FREE, "--max_new_tokens", 6, "--overwrite", "--batch_size", 1) == 130
    [kept] = [name for name, content in result_bytes(steered_root).items() if content == before[name]]
    capsys.readouterr()
    assert evaluate(*FREE, "--max_new_tokens", 6) == 0
    [line] = warnings(capsys)
    assert line.startswith("1 result files") and "max_new_tokens (4, now 6)" in line and kept in line


# --- made by another run meanwhile ---


@pytest.fixture
def another_run_comes_first(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Before this run gets its journal, another one does the same from beginning to end."""

    def arrange(*command: object) -> None:
        @contextmanager
        def open_late(path: Path, header: dict[str, Any]) -> Iterator[Journal]:
            monkeypatch.setattr(sweep, "open_journal", open_journal)
            assert evaluate(*command) == 0
            with open_journal(path, header) as journal:
                yield journal

        monkeypatch.setattr(sweep, "open_journal", open_late)

    return arrange


def last_line(capsys: Capture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_what_another_run_wrote_meanwhile_is_not_said_to_be_written(
    evaluate: Evaluate, another_run_comes_first: Callable[..., None], steered_root: Path, capsys: Capture
) -> None:
    another_run_comes_first("--layers", 1)
    assert evaluate("--layers", 1) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "wrote 0 result files, skipped 0, failed 0; another run has written 3 meanwhile"
    assert err[-2] == (
        f"wrote none to {steered_root}/results/sycophancy: another run has written what was missing meanwhile"
    )
    assert len(result_bytes(steered_root)) == 3


@pytest.mark.parametrize("kind", [(), FREE[:2]])
def test_a_run_of_another_kind_that_wrote_some_of_the_files_meanwhile_is_counted_apart(
    kind: tuple[str, ...],
    evaluate: Evaluate,
    another_run_comes_first: Callable[..., None],
    steered_root: Path,
    capsys: Capture,
) -> None:
    """Its journal is its own, so this run does not wait for it, and meets its files."""
    another_run_comes_first("--layers", 2, "--no_packing", *kind)
    assert evaluate("--layers", 1, 2, *kind) == 0
    assert last_line(capsys) == "wrote 3 result files, skipped 0, failed 0; another run has written 3 meanwhile"
    assert len(result_bytes(steered_root)) == 6


def test_with_overwrite_both_runs_write_everything(
    evaluate: Evaluate, another_run_comes_first: Callable[..., None], capsys: Capture
) -> None:
    assert evaluate("--layers", 1) == 0
    another_run_comes_first("--layers", 1, "--overwrite")
    assert evaluate("--layers", 1, "--overwrite") == 0
    assert last_line(capsys) == "wrote 3 result files, skipped 0, failed 0"


# --- a journal of a run that was to make something else ---


def leave_a_journal(evaluate: Evaluate, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """All of layer 1 is there, and a run that was to make layer 2 has been killed."""
    assert evaluate("--layers", 1) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 2, KeyboardInterrupt())
        assert evaluate("--layers", 1, 2, "--batch_size", 1) == 130
    assert len(result_bytes(root)) == 3
    capsys.readouterr()


def test_what_a_killed_run_did_not_have_to_make_is_made_too_where_it_is_gone_since(
    evaluate: Evaluate, steered_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    leave_a_journal(evaluate, steered_root, monkeypatch, capsys)
    removed = next(name for name in result_bytes(steered_root) if parse_result_name(Path(name).name).multiplier == 1)
    (steered_root / removed).unlink()
    assert evaluate("--layers", 1, 2, "--batch_size", 1) == 0
    assert last_line(capsys) == "wrote 4 result files, skipped 2, failed 0"
    assert len(result_bytes(steered_root)) == 6


def test_overwrite_makes_everything_again_whatever_a_killed_run_had_to_make(
    evaluate: Evaluate, steered_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    leave_a_journal(evaluate, steered_root, monkeypatch, capsys)
    paths = list((steered_root / "results").rglob("results_*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert evaluate("--layers", 1, 2, "--batch_size", 1, "--overwrite") == 0
    assert last_line(capsys) == "wrote 6 result files, skipped 0, failed 0"
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())
