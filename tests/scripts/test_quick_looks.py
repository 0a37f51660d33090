"""Quick looks: a few items, own questions, any vector, ranges of layers, and flags that are nearly right."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import prompting_with_steering
from tests.models import random_vector
from tests.roots import error_lines, put_json, results
from utils.cli import progress as progress_module
from utils.cli.progress import progress
from utils.paths import DataPaths
from utils.settings import VectorKind


def test_a_range_of_layers_has_both_ends(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", "0-1", 3, "--multipliers", 1) == 0
    assert sorted(re.findall(r"layer=(\d)", " ".join(results(steered_root)))) == ["0", "1", "3"]
    assert evaluate("--layers", "3-1") == 2


def test_the_first_items_alone_are_another_result(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 1, "--multipliers", 1, "--limit", 2) == 0
    assert evaluate("--layers", 1, "--multipliers", 1) == 0
    whole, part = (results(steered_root)[name] for name in sorted(results(steered_root), key=lambda n: "limit=2" in n))
    assert len(part) == 2 and [r["a_prob"] for r in part] == pytest.approx([r["a_prob"] for r in whole[:2]], rel=1e-4)


def test_own_questions_are_answered(evaluate: Callable[..., int], steered_root: Path, tmp_path: Path) -> None:
    file = put_json(tmp_path / "mine.json", [{"question": "What is the sea?"}])
    flags = ["--layers", 1, "--type", "open_ended", "--max_new_tokens", 4, "--multipliers", 1]
    assert evaluate(*flags, "--questions", file) == 0
    [(name, records)] = results(steered_root).items()
    assert "_questions=mine" in name and [record["question"] for record in records] == ["What is the sea?"]


def test_vectors_from_files_are_added_up(evaluate: Callable[..., int], steered_root: Path, tmp_path: Path) -> None:
    files = []
    for seed in (3, 4):
        torch.save(random_vector(seed), tmp_path / f"v{seed}.pt")
        files += ["--vector", tmp_path / f"v{seed}.pt"]
    torch.save(random_vector(3) + random_vector(4), tmp_path / "sum.pt")
    assert evaluate("--layers", 1, "--multipliers", 1, *files) == 0
    assert evaluate("--layers", 1, "--multipliers", 1, "--vector", tmp_path / "sum.pt") == 0
    one, other = (results(steered_root)[name] for name in sorted(results(steered_root)))
    assert ["_vector=sum" in name or "_vector=v3+v4" in name for name in results(steered_root)] == [True, True]
    assert [r["a_prob"] for r in one] == pytest.approx([r["a_prob"] for r in other], rel=1e-5)


def test_what_was_chosen_is_evaluated_and_what_was_not_is_not_guessed(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--chosen") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "no validated choice; run: ./choose_steering.py --behaviors sycophancy" in line
    path = DataPaths(steered_root).chosen_steering("sycophancy", "tiny-chat", VectorKind())
    put_json(path, {"layer": 2, "strength": 0.25})
    assert evaluate("--chosen") == 0
    assert sorted(re.findall(r"layer=2_strength=(-?[\d.]+)_", " ".join(results(steered_root)))) == [
        "-0.25",
        "0.0",
        "0.25",
    ]
    put_json(path, {"layer": "2"})
    assert evaluate("--chosen") == 2


def test_a_flag_that_is_nearly_right_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert prompting_with_steering.main(["--multiplier", "1"]) == 2
    assert "unrecognized arguments: --multiplier (did you mean --multipliers?)" in capsys.readouterr().err


def test_without_a_terminal_long_work_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.05)
    start = time.monotonic()
    with caplog.at_level(logging.INFO), progress(total=40, desc="pairs") as bar:
        for _ in range(40):
            time.sleep(0.01)
            bar.update()
    longest = (time.monotonic() - start) / 0.05  # lines that fit in between
    lines = [message for message in caplog.messages if message.startswith("pairs: ")]
    assert 2 <= len(lines) <= longest
    assert re.fullmatch(r"pairs: \d+ of 40, about \d+ s left", lines[-1])
