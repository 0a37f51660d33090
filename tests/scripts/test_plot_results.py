"""plot_results.py on the published results, and on small made-up ones for what can go wrong."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plot_results import main
from tests.reference import carried_path, reference_path
from utils.behaviors import published_behaviors
from utils.figures.style import latex_text
from utils.files.tables import Table, read_table
from utils.paths import DataPaths
from utils.settings import SteeringSettings

MODEL = "use_base_model=False_model_size=7b"
AB_ONLY = [behavior for behavior in published_behaviors() if behavior != "survival-instinct"]
# these published tables are not means of the published scores, whichever way unscored answers are counted
OTHER_SCORES = {("hallucination", 11), ("hallucination", 13), ("myopic-reward", 13)}
NO_RESULTS = {("sycophancy", 14)}


# --- the published results -------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    root: Path
    cpu_seconds: float


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run over all published results, with the flags' defaults."""
    root = tmp_path_factory.mktemp("published")
    (root / "results").symlink_to(reference_path("caa", "results"))
    start = time.process_time()
    assert main(["--root", str(root)]) == 0
    return Run(root, time.process_time() - start)


def rows(root: Path, *parts: str, **wanted: str) -> list[dict[str, str]]:
    table = read_table(root.joinpath("analysis", *parts))
    return [row for row in table if all(row[column] == value for column, value in wanted.items())]


def published(behavior: str, name: str) -> list[list[str]]:
    lines = reference_path("caa", "analysis", behavior, name).read_text().splitlines()
    return [[cell for cell in line.split("\t") if cell] for line in lines]


def published_records(*parts: str) -> list[dict[str, Any]]:
    return json.loads(reference_path("caa", "results", *parts).read_text())


def matching_probability(record: dict[str, Any]) -> float | None:
    """The test's own reading of a record: None where a letter of its answers is not recorded."""
    match, other = (record[key][1].lower() for key in ("answer_matching_behavior", "answer_not_matching_behavior"))
    if f"{match}_prob" not in record or f"{other}_prob" not in record:
        return None
    return record[f"{match}_prob"] / (record[f"{match}_prob"] + record[f"{other}_prob"])


@pytest.mark.slow
def test_all_published_results_are_plotted_within_60_seconds_on_one_core(everything: Run) -> None:
    assert everything.cpu_seconds < 60
    assert len(list(everything.root.glob("results/*/*"))) + len(list(everything.root.glob("results/*/*/*"))) >= 894
    figures = list(everything.root.rglob("*.png"))
    assert len(figures) > 40
    for figure in figures:
        stem = str(figure)[: -len(".png")]
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert Path(f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert read_table(Path(f"{stem}.txt")), "a figure without data"


@pytest.mark.slow
def test_the_published_tables_at_layer_13_are_reproduced(everything: Run) -> None:
    conditions = {"None": "no system prompt", "pos": "positive system prompt", "neg": "negative system prompt"}
    for behavior in AB_ONLY:
        name = f"layer=13_behavior={behavior}_type=ab_{MODEL}.txt"
        table = published(behavior, name)
        assert len(table) == 15, behavior
        for prompt, multiplier, mean in table:
            (row,) = rows(everything.root, behavior, name, condition=conditions[prompt], multiplier=multiplier)
            assert float(row["mean"]) == pytest.approx(float(mean), abs=1e-9), name
            assert (row["n"], row["n_total"]) == ("50", "50"), name
            assert float(row["ci_low"]) < float(row["mean"]) < float(row["ci_high"]), name


@pytest.mark.slow
def test_the_published_tables_by_layer_are_reproduced(everything: Run) -> None:
    """The published table writes each whole series (multipliers 1 and -1) into every cell."""
    for behavior in AB_ONLY:
        name = f"behavior={behavior}_type=ab_{MODEL}.txt"
        for layer, *cells in published(behavior, name):
            for multiplier, cell in zip(("1.0", "-1.0"), cells, strict=True):
                (row,) = rows(everything.root, behavior, name, layer=layer, multiplier=multiplier)
                assert float(row["mean"]) == pytest.approx(ast.literal_eval(cell)[int(layer)], abs=1e-9), name


@pytest.mark.slow
def test_survival_instinct_is_the_mean_over_the_46_items_that_the_files_can_score(everything: Run) -> None:
    name = f"layer=13_behavior=survival-instinct_type=ab_{MODEL}.txt"
    found = rows(everything.root, "survival-instinct", name)
    assert len(found) == 15
    for row in found:
        prompt = {"n": "", "p": "_system_prompt=pos"}.get(row["condition"][:1], "")
        prompt = "_system_prompt=neg" if row["condition"].startswith("negative") else prompt
        records = published_records(
            "survival-instinct",
            f"results_layer=13_multiplier={row['multiplier']}_behavior=survival-instinct_type=ab{prompt}_{MODEL}.json",
        )
        values = [value for record in records if (value := matching_probability(record)) is not None]
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-9)
        assert (row["n"], row["n_total"]) == ("46", "50")
    (wrong,) = [
        float(mean) for prompt, m, mean in published("survival-instinct", name) if (prompt, m) == ("None", "0.0")
    ]
    (right,) = [float(r["mean"]) for r in found if (r["condition"], r["multiplier"]) == ("no system prompt", "0.0")]
    assert right == pytest.approx(wrong * 50 / 46, abs=1e-9)  # the published mean counts 4 items as 0
    text = (everything.root / "analysis" / "survival-instinct" / name).read_text()
    assert "ACCEPTS being shut down" in text


@pytest.mark.slow
def test_the_published_open_ended_tables_are_reproduced_where_the_published_scores_give_them(everything: Run) -> None:
    n_reproduced = 0
    for path in sorted(reference_path("caa", "analysis").glob("*/*type=open_ended*")):
        behavior = path.parent.name
        layer = int(re.fullmatch(r"layer=(\d+)_.*", path.name).group(1))  # type: ignore[union-attr]
        if (behavior, layer) in NO_RESULTS:
            assert not (everything.root / "analysis" / behavior / path.name).exists()
            continue
        for multiplier, mean in published(behavior, path.name):
            (row,) = rows(everything.root, behavior, path.name, multiplier=multiplier, condition="no system prompt")
            records = published_records(
                "open_ended_scores",
                behavior,
                f"results_layer={layer}_multiplier={multiplier}_behavior={behavior}_type=open_ended_{MODEL}.json",
            )
            scores = [record["score"] for record in records if record.get("score") is not None]
            assert float(row["mean"]) == pytest.approx(np.mean(scores), abs=1e-9)
            assert (int(row["n"]), int(row["n_total"])) == (len(scores), len(records))
            if (behavior, layer) not in OTHER_SCORES:
                assert float(row["mean"]) == pytest.approx(float(mean), abs=1e-9)
                n_reproduced += 1
    assert n_reproduced == 25


@pytest.mark.slow
def test_the_change_is_the_mean_difference_on_the_same_items_and_the_family_is_all_layers(everything: Run) -> None:
    name = f"behavior=refusal_type=ab_{MODEL}.txt"
    table = rows(everything.root, "refusal", name)
    assert len(table) == 32 * 3
    (row,) = rows(everything.root, "refusal", name, layer="13", multiplier="1.0")
    means = []
    for multiplier in ("1.0", "0.0"):
        records = published_records(
            "refusal", f"results_layer=13_multiplier={multiplier}_behavior=refusal_type=ab_{MODEL}.json"
        )
        means.append(np.array([matching_probability(record) for record in records], dtype=float))
    assert float(row["change"]) == pytest.approx((means[0] - means[1]).mean(), abs=1e-12)
    assert row["n_paired"] == "50"
    tested = [row for row in table if row["multiplier"] != "0.0"]
    assert all(float(row["p"]) <= float(row["p_family"]) <= 1 for row in tested)
    smallest = min(tested, key=lambda row: float(row["p"]))
    assert float(smallest["p"]) < float(smallest["p_family"]) < 64 * float(smallest["p"])
    assert [row["holds"] for row in table] == ["yes" if float(row["p_family"]) < 0.05 else "no" for row in table]
    assert {row["layer"] for row in tested if row["holds"] == "yes"} >= {"12", "13"}


@pytest.mark.slow
def test_steerability_and_letter_use_are_those_of_the_items(everything: Run) -> None:
    odds = []
    for multiplier in (-1.0, 0.0, 1.0):
        records = published_records(
            "sycophancy", f"results_layer=12_multiplier={multiplier}_behavior=sycophancy_type=ab_{MODEL}.json"
        )
        values = np.array([matching_probability(record) for record in records], dtype=float)
        odds.append(np.log(values / (1 - values)))
    slopes = np.polyfit([-1.0, 0.0, 1.0], np.stack(odds), 1)[0]
    name = f"steerability_behavior=sycophancy_type=ab_{MODEL}.txt"
    (row,) = rows(everything.root, "sycophancy", name, layer="12")
    assert float(row["slope"]) == pytest.approx(slopes.mean(), abs=1e-9)
    assert float(row["anti_share"]) == pytest.approx((slopes < 0).mean())
    assert float(row["slope_low"]) < slopes.mean() < float(row["slope_high"])
    letters = f"letters_behavior=sycophancy_type=ab_{MODEL}.txt"
    (use,) = rows(everything.root, "sycophancy", letters, layer="12", multiplier="1.0")
    assert float(use["letter_mass"]) == pytest.approx(
        np.mean([record["a_prob"] + record["b_prob"] for record in records])
    )
    with_a = [record["answer_matching_behavior"] == "(A)" for record in records]
    share_of_a = np.where(with_a, values, 1 - values)
    expected = share_of_a[with_a].mean() + share_of_a[~np.array(with_a)].mean() - 1
    assert float(use["letter_bias"]) == pytest.approx(expected)


@pytest.mark.slow
def test_fine_tuned_weights_are_compared_and_the_sweep_holds_every_behavior(everything: Run) -> None:
    found = rows(everything.root, "refusal", f"finetuned_layer=13_behavior=refusal_type=ab_{MODEL}.txt")
    assert {row["condition"] for row in found} == {"not fine-tuned", "fine-tuned towards it", "fine-tuned against it"}
    for multiplier in ("-1.0", "1.0"):
        sweep = rows(everything.root, f"layer_sweep_multiplier={multiplier}_type=ab_{MODEL}.txt")
        assert {(row["behavior"], row["multiplier"]) for row in sweep} == {
            (b, multiplier) for b in published_behaviors()
        }
        assert len(sweep) == 7 * 32
    tex = (everything.root / "analysis" / f"layer=13_type=ab_{MODEL}.tex").read_text().splitlines()
    assert len(tex) == 1 + 7 * 3
    assert all(line.endswith(r" \\") and line.count("&") == 7 for line in tex[1:])


def test_the_readmes_commands_run_unchanged(tmp_path: Path) -> None:
    layers = [str(layer) for layer in range(32)]
    for layer in (2, 3, 4):
        for multiplier in (-1.0, 0.0, 1.0):
            name = f"results_layer={layer}_multiplier={multiplier}_behavior={{}}_type=ab_{MODEL}.json"
            for behavior in ("sycophancy", "refusal"):
                target = tmp_path / "results" / behavior / name.format(behavior)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(carried_path("results", behavior, name.format(behavior)), target)
    root = ["--root", str(tmp_path)]
    assert main([*root, "--layers", *layers, "--multipliers", "1", "--type", "ab"]) == 0
    assert len(rows(tmp_path, f"layer_sweep_multiplier=1.0_type=ab_{MODEL}.txt")) == 6
    assert {row["multiplier"] for row in rows(tmp_path, "refusal", f"behavior=refusal_type=ab_{MODEL}.txt")} == {"1.0"}
    sweep = ["--multipliers", "-1", "0", "1", "--behaviors", "sycophancy", "--type", "ab"]
    assert main([*root, "--layers", *layers, *sweep]) == 0
    assert len(rows(tmp_path, "sycophancy", f"behavior=sycophancy_type=ab_{MODEL}.txt")) == 9


# --- made-up results -------------------------------------------------------------------------------


def settings(**changes: Any) -> SteeringSettings:
    values = {"layer": 3, "multiplier": 0.0, "behavior": "refusal", "type": "ab", "model_size": "7b", **changes}
    return SteeringSettings(**values)


def make_result(root: Path, at: SteeringSettings, n_items: int = 12, without_c: bool = False) -> Path:
    """A result whose log-odds rise with the multiplier; item 0 has letters (C) and (A) where asked."""
    rng = np.random.default_rng(5)
    records = []
    for index, start in enumerate(rng.normal(0, 1, n_items)):
        p = 1 / (1 + np.exp(-(start + at.multiplier * (1 + 0.2 * index))))
        match, other = ("A", "B") if index % 2 else ("B", "A")
        if without_c and index == 0:
            match, other = "C", "A"
        probabilities = {match: 0.9 * p, other: 0.9 * (1 - p)}
        record: dict[str, Any] = {"question": f"Question {index}?"}
        if at.type == "ab":
            record |= {"answer_matching_behavior": f"({match})", "answer_not_matching_behavior": f"({other})"}
        else:
            record |= {"correct": f"({match})", "incorrect": f"({other})", "category": f"subject_{index % 3}"}
        records.append(record | {"a_prob": probabilities.get("A", 0.0), "b_prob": probabilities.get("B", 0.0)})
    path = DataPaths(root).result(at)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def make_scores(root: Path, at: SteeringSettings, scores: list[float | None]) -> None:
    path = DataPaths(root).scores(at)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"question": f"Q{index}", "model_output": "x", "score": score} for index, score in enumerate(scores)]
    path.write_text(json.dumps(records))


def make_sweep(root: Path, layers: range, multipliers: tuple[float, ...] = (-1.0, 0.0, 1.0), **changes: Any) -> None:
    for layer in layers:
        for multiplier in multipliers:
            make_result(root, settings(layer=layer, multiplier=multiplier, **changes))


def run(root: Path, *flags: str) -> int:
    return main(["--root", str(root), "--behaviors", "refusal", *flags])


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The log since the last look; the output stays apart."""
    return capsys.readouterr().err.splitlines()


def points(root: Path, name: str) -> set[tuple[str, str]]:
    return {(row["layer"], row["multiplier"]) for row in rows(root, "refusal", name)}


def test_a_missing_multiplier_at_one_layer_takes_away_that_point_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(4))
    DataPaths(tmp_path).result(settings(layer=2, multiplier=1.0)).unlink()
    assert run(tmp_path, "--multipliers", "-1", "0", "1", "--type", "ab") == 0
    whole = {(str(layer), m) for layer in range(4) for m in ("-1.0", "0.0", "1.0")}
    assert points(tmp_path, f"behavior=refusal_type=ab_{MODEL}.txt") == whole - {("2", "1.0")}
    named = [line for line in logged(capsys) if line.startswith("missing")]
    assert named == [
        "missing: refusal, layer 2, multiplier 1; run: ./prompting_with_steering.py --behaviors refusal "
        f"--layers 2 --multipliers 1 --type ab --model_size 7b --root {tmp_path}"
    ]


def test_a_missing_multiplier_at_every_layer_takes_away_its_line_and_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(4), (0.0, 1.0))
    assert run(tmp_path, "--multipliers", "-1", "0", "1", "--type", "ab") == 0
    assert {m for _, m in points(tmp_path, f"behavior=refusal_type=ab_{MODEL}.txt")} == {"0.0", "1.0"}
    (named,) = [line for line in logged(capsys) if line.startswith("missing")]
    assert "--layers 0 1 2 3 --multipliers -1 --type ab" in named


def test_multiplier_0_of_one_layer_serves_all_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path, range(4), (-1.0, 1.0))
    make_result(tmp_path, settings(layer=1, multiplier=0.0))
    assert run(tmp_path, "--multipliers", "-1", "0", "1", "--type", "ab") == 0
    found = rows(tmp_path, "refusal", f"behavior=refusal_type=ab_{MODEL}.txt", multiplier="0.0")
    assert [row["layer"] for row in found] == ["0", "1", "2", "3"]
    assert len({row["mean"] for row in found}) == 1
    assert not [line for line in logged(capsys) if line.startswith("missing")]


def test_without_multiplier_0_the_means_are_shown_and_the_changes_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(4), (1.0,))
    assert run(tmp_path, "--multipliers", "1", "--type", "ab") == 0
    found = rows(tmp_path, "refusal", f"behavior=refusal_type=ab_{MODEL}.txt")
    assert [row["change"] for row in found] == ["nan"] * 4
    assert [row["holds"] for row in found] == ["no"] * 4
    assert any("--multipliers 0" in line for line in logged(capsys))


def test_one_layer_shows_every_system_prompt_and_names_those_without_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(3, 4))
    make_sweep(tmp_path, range(3, 4), system_prompt="pos")
    assert run(tmp_path, "--layers", "3", "--multipliers", "-1", "0", "1", "--type", "ab") == 0
    found = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_type=ab_{MODEL}.txt")
    assert {row["condition"] for row in found} == {"no system prompt", "positive system prompt"}
    (named,) = [line for line in logged(capsys) if line.startswith("missing")]
    assert named.endswith(
        f"--layers 3 --multipliers -1 0 1 --type ab --system_prompt neg --model_size 7b --root {tmp_path}"
    )
    assert rows(tmp_path, "refusal", f"steerability_layer=3_behavior=refusal_type=ab_{MODEL}.txt")


def test_items_that_cannot_be_scored_are_counted_in_the_table_and_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for multiplier in (-1.0, 0.0, 1.0):
        make_result(tmp_path, settings(multiplier=multiplier), without_c=True)
    assert run(tmp_path, "--layers", "3", "--type", "ab") == 0
    found = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_type=ab_{MODEL}.txt")
    assert {(row["n"], row["n_total"]) for row in found} == {("11", "12")}
    assert "n=11 of 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--type", "mmlu"],
        ["--layers", "9", "--type", "ab"],
        ["--multipliers", "7", "--type", "ab"],
        ["--model_size", "13b"],
        ["--override_vector", "1"],
        ["--override_weights", "a.pt", "b.pt"],
    ],
)
def test_where_nothing_is_found_one_line_names_the_command_and_no_figure_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    if flags:
        make_result(tmp_path, settings(multiplier=1.0))
    assert run(tmp_path, *flags) == 2
    last_line = logged(capsys)[-1]
    assert last_line.startswith("error: ")
    assert "run: ./prompting_with_steering.py --behaviors refusal" in last_line
    assert not list(tmp_path.rglob("*.png"))


def test_behaviors_without_results_are_named_in_one_line_and_the_others_plotted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(4))
    assert main(["--root", str(tmp_path), "--type", "ab"]) == 0
    (named,) = [line for line in logged(capsys) if line.startswith("no ab results")]
    assert all(behavior in named for behavior in published_behaviors() if behavior != "refusal")
    assert not (tmp_path / "analysis" / "sycophancy").exists()


def test_an_unreadable_result_is_named_its_point_left_out_and_the_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(4))
    broken = DataPaths(tmp_path).result(settings(layer=1, multiplier=1.0))
    broken.write_text(broken.read_text()[:-20])
    assert run(tmp_path, "--type", "ab") == 1
    assert ("1", "1.0") not in points(tmp_path, f"behavior=refusal_type=ab_{MODEL}.txt")
    assert len(points(tmp_path, f"behavior=refusal_type=ab_{MODEL}.txt")) == 11
    assert any(str(broken) in line and "not valid JSON" in line for line in logged(capsys))


def test_an_unscored_answer_is_left_out_of_the_open_ended_mean(tmp_path: Path) -> None:
    for multiplier in (-1.0, 0.0, 1.0):
        make_scores(tmp_path, settings(multiplier=multiplier, type="open_ended"), [2.0, None, 6.0, 7.0])
    assert run(tmp_path, "--type", "open_ended") == 0
    found = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_type=open_ended_{MODEL}.txt")
    assert {(row["mean"], row["n"], row["n_total"]) for row in found} == {("5.0", "3", "4")}


@pytest.mark.parametrize("kind", ["truthful_qa", "mmlu"])
def test_knowledge_results_are_shown_by_category_with_the_items_of_that_category(tmp_path: Path, kind: str) -> None:
    for multiplier in (-1.0, 0.0, 1.0):
        path = make_result(tmp_path, settings(multiplier=multiplier, type=kind))
    assert run(tmp_path, "--type", kind) == 0
    found = rows(tmp_path, "refusal", f"categories_layer=3_behavior=refusal_type={kind}_{MODEL}.txt", multiplier="1.0")
    assert [row["category"] for row in found] == ["subject_0", "subject_1", "subject_2"]
    records = json.loads(path.read_text())
    for row in found:
        values = [
            record[f"{record['correct'][1].lower()}_prob"] / (record["a_prob"] + record["b_prob"])
            for record in records
            if record["category"] == row["category"]
        ]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert int(row["n"]) == len(values) == 4
        assert row["ci_low"] == row["ci_high"] == "nan"


def make_sampled(root: Path, scores: list[float | None], **changes: Any) -> None:
    """Two answers to each question, at a temperature."""
    at = settings(type="open_ended", temperature=0.7, num_samples=2, seed=5, **changes)
    path = DataPaths(root).scores(at)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"question": f"Q{index // 2}", "model_output": f"answer {index}", "score": score}
        for index, score in enumerate(scores)
    ]
    path.write_text(json.dumps(records))


SAMPLED = "type=open_ended_use_base_model=False_model_size=7b_temperature=0.7_num_samples=2_seed=5"


def test_sampled_answers_are_plotted_and_an_item_is_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sampled(tmp_path, [1.0, 3.0, None, 6.0, None, None], multiplier=-1.0)
    make_sampled(tmp_path, [2.0, 4.0, 5.0, 5.0, 1.0, 1.0], multiplier=0.0)
    make_sampled(tmp_path, [9.0, 7.0, 8.0, None, 4.0, 6.0], multiplier=1.0)
    assert run(tmp_path) == 0
    found = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_{SAMPLED}.txt")
    means = {row["multiplier"]: (float(row["mean"]), row["n"], row["n_total"]) for row in found}
    assert means == {"-1.0": (4.0, "2", "3"), "0.0": (3.0, "3", "3"), "1.0": (7.0, "3", "3")}
    assert {row["condition"] for row in found} == {"no system prompt, temperature 0.7, 2 samples a question, seed 5"}
    assert (tmp_path / "analysis" / "refusal" / f"layer=3_behavior=refusal_{SAMPLED}.png").is_file()
    assert "7b-chat-hf, open_ended, temperature 0.7, 2 samples a question, seed 5:" in capsys.readouterr().out


def test_greedy_and_sampled_answers_have_figures_of_their_own_and_so_have_system_prompts(tmp_path: Path) -> None:
    for multiplier in (0.0, 1.0):
        make_scores(tmp_path, settings(multiplier=multiplier, type="open_ended"), [2.0, 3.0])
        make_sampled(tmp_path, [2.0, 4.0, 5.0, 5.0], multiplier=multiplier)
    make_sampled(tmp_path, [1.0, 1.0, 1.0, 1.0], multiplier=1.0, system_prompt="pos")
    assert run(tmp_path) == 0
    greedy = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_type=open_ended_{MODEL}.txt")
    assert {row["condition"] for row in greedy} == {"no system prompt"} and len(greedy) == 2
    sampled = rows(tmp_path, "refusal", f"layer=3_behavior=refusal_{SAMPLED}.txt")
    assert [row["condition"].split(",")[0] for row in sampled] == ["no system prompt"] * 2 + ["positive system prompt"]


def test_what_is_missing_of_sampled_answers_is_named_with_the_command_that_samples_them_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sampled(tmp_path, [2.0, 4.0], multiplier=1.0)
    assert run(tmp_path, "--multipliers", "-1", "0", "1") == 0
    (named,) = [line for line in logged(capsys) if line.startswith("missing")]
    assert "--multipliers -1 0 --type open_ended --temperature 0.7 --num_samples 2 --seed 5 --model_size 7b" in named


def test_samples_that_are_not_one_question_each_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sampled(tmp_path, [2.0, 4.0, 5.0], multiplier=0.0)
    make_sampled(tmp_path, [2.0, 4.0, 5.0, 5.0], multiplier=1.0)
    assert run(tmp_path) == 1
    assert any("expected 2 answers to one question" in line for line in logged(capsys))


def test_sampled_answers_without_scores_only_want_the_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = settings(type="open_ended", temperature=0.7, num_samples=2, seed=5, multiplier=1.0)
    path = DataPaths(tmp_path).result(at)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"question": "Q", "model_output": "x"}] * 2))
    assert run(tmp_path) == 2
    last_line = logged(capsys)[-1]
    assert "it has: open_ended without scores (refusal)" in last_line
    assert last_line.endswith(f"run: ./scoring.py --behaviors refusal --root {tmp_path}")


def test_without_results_of_the_model_those_that_there_are_are_named_with_their_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_result(tmp_path, replace(settings(multiplier=1.0), model_size="135m"))
    make_result(tmp_path, replace(settings(multiplier=1.0, type="mmlu"), model_size="135m"))
    assert main(["--root", str(tmp_path)]) == 2
    (line,) = [line for line in logged(capsys) if line.startswith("error")]
    assert "no results of Llama-2-7b-chat-hf" in line
    assert "there are results of another model, to plot them add --model_size 135m (ab, mmlu)" in line
    assert main(["--root", str(tmp_path), "--model_size", "135m", "--behaviors", "refusal"]) == 0


def test_several_models_with_results_are_named_each_with_its_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_result(tmp_path, replace(settings(), model_size=None, model="tiny-1.5"))
    make_result(tmp_path, settings(model_size="13b", use_base_model=True))
    assert run(tmp_path) == 2
    named = "add --model tiny-1.5 (ab) or --model_size 13b --use_base_model (ab); run: "
    assert named in logged(capsys)[-1]


def test_other_kinds_and_behaviors_of_the_model_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_result(tmp_path, settings(behavior="sycophancy"))
    make_result(tmp_path, settings(type="mmlu"))
    assert run(tmp_path, "--type", "ab") == 2
    assert "; it has: ab (sycophancy), mmlu (refusal); run: " in logged(capsys)[-1]


def test_a_strong_multiplier_tried_at_two_layers_is_no_part_of_the_sweep_and_shown_at_these_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, range(8))
    make_sweep(tmp_path, range(3, 5), (-40.0, 40.0))
    assert run(tmp_path, "--type", "ab") == 0
    assert {m for _, m in points(tmp_path, f"behavior=refusal_type=ab_{MODEL}.txt")} == {"-1.0", "0.0", "1.0"}
    for layer in ("3", "4"):
        found = points(tmp_path, f"layer={layer}_behavior=refusal_type=ab_{MODEL}.txt")
        assert found == {(layer, m) for m in ("-40.0", "-1.0", "0.0", "1.0", "40.0")}
    said = capsys.readouterr()
    assert "missing" not in said.err
    headline = rows(tmp_path, f"headline_type=ab_{MODEL}.txt")
    assert {row["multiplier"] for row in headline} == {"-40.0", "-1.0", "0.0", "1.0", "40.0"}
    assert "differ most), n=12 of 12: -1: " in said.out and "also, layer" in said.out


def test_a_transfer_is_plotted_beside_the_own_vector_when_found_or_asked_for(tmp_path: Path) -> None:
    make_sweep(tmp_path, range(4))
    make_sweep(tmp_path, range(4), (-1.0, 1.0), override_vector=13)
    make_sweep(tmp_path, range(4), (-1.0, 1.0), override_vector=1)
    make_sweep(tmp_path, range(4), (1.0,), override_vector_model="Other-hf")
    assert run(tmp_path, "--type", "ab") == 0
    made = {path.name for path in (tmp_path / "analysis" / "refusal").glob("*override*.png")}
    assert made == {
        f"behavior=refusal_type=ab_{key}_{MODEL}.png"
        for key in ("override_vector=13", "override_vector=1", "override_vector_model=Other-hf")
    }
    shutil.rmtree(tmp_path / "analysis")
    assert run(tmp_path, "--type", "ab", "--override_vector", "1", "--multipliers", "-1", "0", "1") == 0
    assert [path.name for path in (tmp_path / "analysis").rglob("*.png")] == [
        f"behavior=refusal_type=ab_override_vector=1_{MODEL}.png"
    ]
    assert run(tmp_path, "--type", "ab", "--override_vector", "13", "--layers", "2") == 0
    name = f"layer=2_behavior=refusal_type=ab_override_vector=13_{MODEL}.txt"
    found = {(row["condition"], row["multiplier"]) for row in rows(tmp_path, "refusal", name)}
    assert found == {
        ("vector of layer 13", "-1.0"),
        ("vector of layer 13", "1.0"),
        ("own vector", "-1.0"),
        ("own vector", "1.0"),
    }


def test_named_weights_are_plotted_in_the_order_given_whether_given_as_files_or_as_in_result_names(
    tmp_path: Path,
) -> None:
    make_sweep(tmp_path, range(3, 4))
    make_sweep(tmp_path, range(3, 4), override_model_weights_path="finetuned_models-up.pt")
    make_sweep(tmp_path, range(3, 4), override_model_weights_path="finetuned_models-down.pt")
    name = f"finetuned_layer=3_behavior=refusal_type=ab_{MODEL}.txt"
    for up in ("finetuned_models/up.pt", "finetuned_models-up.pt", str(tmp_path / "finetuned_models" / "up.pt")):
        shutil.rmtree(tmp_path / "analysis", ignore_errors=True)
        assert run(tmp_path, "--type", "ab", "--override_weights", up, "finetuned_models/down.pt") == 0
        conditions = [row["condition"] for row in rows(tmp_path, "refusal", name, multiplier="0.0")]
        assert conditions == ["not fine-tuned", "fine-tuned towards it", "fine-tuned against it"]
    assert [path.suffix for path in sorted((tmp_path / "analysis").rglob("*fine*"))] == [".pdf", ".png", ".tex", ".txt"]


def test_the_same_seed_gives_the_same_tables_and_the_title_is_taken(tmp_path: Path) -> None:
    make_sweep(tmp_path, range(4))
    table = tmp_path / "analysis" / "refusal" / f"behavior=refusal_type=ab_{MODEL}.txt"
    texts = []
    for seed in ("1", "1", "2"):
        assert run(tmp_path, "--type", "ab", "--seed", seed, "--title", "It costs $5 & \\$ {x_1") == 0
        texts.append(table.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_results_of_a_model_by_name_are_kept_apart_from_the_sizes(tmp_path: Path) -> None:
    make_sweep(tmp_path, range(2))
    for layer in range(2):
        for multiplier in (0.0, 1.0):
            own = replace(settings(layer=layer, multiplier=multiplier), model_size=None, model="tiny-1.5")
            make_result(tmp_path, own)
    assert run(tmp_path, "--type", "ab", "--model", "some/folder/tiny-1.5") == 0
    assert [path.name for path in (tmp_path / "analysis" / "refusal").glob("behavior*.png")] == [
        "behavior=refusal_type=ab_use_base_model=False_model=tiny-1.5.png"
    ]


def test_help_needs_no_numeric_library() -> None:
    code = (
        "import sys, plot_results\n"
        "plot_results.main(['--help'])\n"
        "assert not {'numpy', 'scipy', 'matplotlib', 'torch'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--override_weights POS NEG" in done.stdout


def test_a_table_keeps_one_value_a_cell_and_latex_its_special_characters() -> None:
    text = Table(("a", "b"), [(1.0 / 3.0, "x\ty\nz"), (True, None)], ("note",)).to_text()
    assert text == "# note\na\tb\n0.3333333333333333\tx y z\nyes\tNone\n"
    assert latex_text("50% of a_b & c") == r"50\% of a\_b \& c"
