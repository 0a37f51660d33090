"""What a sweep shows behind itself: the effect, or answers side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.roots import results
from utils.evaluation.glance import side_by_side


def test_columns_hold_their_own_text_and_no_line_is_wider_than_asked() -> None:
    lines = list(side_by_side([("-1", "one two three four five six seven"), ("+0", ""), ("+1", "short")], 62))
    assert max(map(len, lines)) <= 62
    assert lines[0].split() == ["-1", "+0", "+1"]
    assert lines[1].split() == ["one", "two", "three", "four", "(nothing)", "short"]


def test_an_ab_sweep_ends_with_its_largest_effect(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--multipliers", -20, 0, 20) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sycophancy, layer ") and "on these very items" in out[0] and out[0].endswith("n=3")
    layer = int(out[0].split("layer ")[1].split()[0])
    shown = {line.split(":")[0].strip(): float(line.split(": ")[1].split()[0]) for line in out[1:]}
    for multiplier in (-20, 0, 20):
        [name] = [n for n in results(steered_root) if f"layer={layer}_multiplier={float(multiplier)}_" in n]
        records = results(steered_root)[name]
        match = [r["a_prob"] if r["answer_matching_behavior"] == "(A)" else r["b_prob"] for r in records]
        both = [r["a_prob"] + r["b_prob"] for r in records]
        mean = sum(m / b for m, b in zip(match, both, strict=True)) / len(records)
        assert shown[f"multiplier {multiplier}"] == pytest.approx(mean, abs=6e-4)
    assert "change from 0" in out[1] and "change from 0" not in out[2]


def test_free_answers_stand_side_by_side(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--layers", 1, "--type", "open_ended", "--max_new_tokens", 5, "--multipliers", -1, 0, 1]
    assert evaluate(*flags) == 0
    out = capsys.readouterr().out
    assert "answers at multiplier -1, 0, 1" in out
    for records in results(steered_root).values():
        assert all(record["question"] in out for record in records)
    assert evaluate(*flags) == 0  # nothing to do: nothing is shown
    assert capsys.readouterr().out == ""
