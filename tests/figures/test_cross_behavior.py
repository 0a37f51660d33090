"""The cross-behavior matrix of plot_results.py, on result files written by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plot_results import main
from tests.roots import put_json
from utils.files.tables import read_table
from utils.paths import DataPaths
from utils.settings import SteeringSettings

NAME = "cross_behavior_layer=3_type=ab_use_base_model=False_model_size=7b"
PAIR = ("refusal", "sycophancy")


def put(root: Path, source: str, target: str, multiplier: float, chances: list[float]) -> None:
    """Results whose p(matching) are `chances`; the matching answer is (A)."""
    at = SteeringSettings(3, multiplier, target, "ab", model_size="7b")
    at = at if source == target else replace(at, vector_behavior=source)
    answers = {"answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
    records = [
        {"question": f"{target} {index}", **answers, "a_prob": chance, "b_prob": 1 - chance}
        for index, chance in enumerate(chances)
    ]
    put_json(DataPaths(root).result(at), records)


def run(root: Path) -> int:
    return main(["--root", str(root), "--type", "ab", "--behaviors", *PAIR])


def test_a_cell_is_the_mean_change_from_the_lowest_to_the_highest_multiplier(tmp_path: Path) -> None:
    low = [0.1, 0.2, 0.3, 0.4]
    highs = {(s, t): [0.3 + 0.1 * i, 0.4, 0.2, 0.5] for i, (s, t) in enumerate((s, t) for s in PAIR for t in PAIR)}
    for (source, target), high in highs.items():
        put(tmp_path, source, target, -1.0, low)
        put(tmp_path, source, target, 0.0, [0.25] * 4)
        put(tmp_path, source, target, 1.0, high)
    assert run(tmp_path) == 0
    table = read_table(tmp_path / "analysis" / f"{NAME}.txt")
    cells = {(row["vector_behavior"], row["behavior"]): row for row in table}
    assert set(cells) == set(highs)
    for key, row in cells.items():
        assert float(row["change"]) == pytest.approx(np.mean(highs[key]) - np.mean(low))
        assert float(row["ci_low"]) < float(row["change"]) < float(row["ci_high"])
        assert (row["n"], row["from_multiplier"], row["to_multiplier"]) == ("4", "-1.0", "1.0")
    assert (tmp_path / "analysis" / f"{NAME}.png").is_file()
    assert (tmp_path / "analysis" / f"{NAME}.pdf").is_file()


def test_a_missing_cell_is_left_out_and_named_with_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for multiplier, chance in ((-1.0, 0.2), (1.0, 0.6)):
        for source, target in (("refusal", "sycophancy"), ("refusal", "refusal"), ("sycophancy", "sycophancy")):
            put(tmp_path, source, target, multiplier, [chance, chance + 0.1])
    put(tmp_path, "sycophancy", "refusal", 1.0, [0.5, 0.5])
    assert run(tmp_path) == 0
    table = read_table(tmp_path / "analysis" / f"{NAME}.txt")
    pairs = {(row["vector_behavior"], row["behavior"]) for row in table}
    assert pairs == {("refusal", "refusal"), ("refusal", "sycophancy"), ("sycophancy", "sycophancy")}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "vector_behavior" in line]
    assert line.endswith(
        "run: ./prompting_with_steering.py --behaviors refusal --layers 3 --multipliers -1 --type ab "
        f"--vector_behavior sycophancy --model_size 7b --root {tmp_path}"
    )


def test_unsteered_results_of_any_vector_serve_at_multiplier_0(tmp_path: Path) -> None:
    put(tmp_path, "sycophancy", "sycophancy", 0.0, [0.2, 0.4])
    for multiplier in (0.0, 1.0):
        put(tmp_path, "refusal", "refusal", multiplier, [0.5 + 0.1 * multiplier, 0.5])
    put(tmp_path, "refusal", "sycophancy", 1.0, [0.5, 0.5])
    assert main(["--root", str(tmp_path), "--type", "ab", "--behaviors", *PAIR, "--multipliers", "0", "1"]) == 0
    table = read_table(tmp_path / "analysis" / f"{NAME}.txt")
    change = {(row["vector_behavior"], row["behavior"]): float(row["change"]) for row in table}
    assert change["refusal", "sycophancy"] == pytest.approx(0.2)


def test_without_results_of_other_vectors_there_is_no_matrix(tmp_path: Path) -> None:
    for multiplier in (-1.0, 1.0):
        put(tmp_path, "refusal", "refusal", multiplier, [0.4, 0.5 + 0.1 * multiplier])
    assert main(["--root", str(tmp_path), "--type", "ab", "--behaviors", "refusal"]) == 0
    assert not list((tmp_path / "analysis").glob("cross_behavior*"))
