"""scoring.py --metrics from the command line: what it measures, writes, says and leaves alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scoring
from tests.answers import put_answers
from tests.models import build_wrapper
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.files.provenance import read_provenance
from utils.files.tables import read_table
from utils.model.perplexity import FreeAnswer, perplexities
from utils.paths import REPOSITORY

Run = Callable[..., int]
SEA = {"kind": "words", "words": ["sea", "ship"]}
PLAIN, STEERED = ["I like tea.", "What a day it is."], ["The sea, the sea!", "A ship, and a day."]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put_behavior(tmp_path / "root", SEA)
    return tmp_path / "root"


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Measure the answers of the behavior `joy` on the tiny checkpoint; further arguments come behind."""

    def measure(*flags: object) -> int:
        capsys.readouterr()
        command = ["--root", root, "--metrics", "--behaviors", "joy", "--model", tiny_checkpoint, *flags]
        return scoring.main([str(word) for word in command])

    return measure


def put_behavior(root: Path, metric: dict[str, Any] | None) -> None:
    about = {"id": "joy", "label": "Joy", "matching": "is glad", **({"metric": metric} if metric else {})}
    put_json(root / "datasets" / "behaviors" / "joy.json", about)


def put_pair(root: Path) -> tuple[str, str]:
    """Answers at multiplier 0 and 1; their names."""
    return (
        put_answers(root, "joy", PLAIN, 2, 0.0, model=TINY_LABEL),
        put_answers(root, "joy", STEERED, 2, 1.0, model=TINY_LABEL),
    )


def measured_path(root: Path, name: str) -> Path:
    return root / "results" / "open_ended_metrics" / "joy" / name


def measured(root: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(measured_path(root, name).read_text())
    return records


def test_every_answer_is_kept_with_its_numbers_and_what_made_them(root: Path, run: Run) -> None:
    _, steered = put_pair(root)
    assert run() == 0
    wrapper = build_wrapper()
    answers = json.loads((root / "results" / "joy" / steered).read_text())
    asked = [FreeAnswer(record["question"], record["model_output"]) for record in answers]
    expected = perplexities(wrapper.runtime, wrapper.chat_format, asked, batch_size=1)
    first, second = measured(root, steered)
    assert first == {
        **answers[0],
        "n_words": 4,
        "distinct_2": 4 / 5,  # the sea, sea ",", ", the", the sea, "sea !"
        "n_matches": 2,
        "matches_per_100_words": 50.0,
        "perplexity": pytest.approx(expected[0], rel=1e-4),
    }
    assert (second["n_matches"], second["perplexity"]) == (1, pytest.approx(expected[1], rel=1e-4))
    made = read_provenance(measured_path(root, steered))
    assert made is not None
    assert (made["model"], made["weights_fingerprint"]) == (TINY_LABEL, wrapper.fingerprint)
    assert (made["metric"], len(made["metric_sha256"]), made["n_answers"], made["n_empty"]) == ("words", 64, 2, 0)


def test_the_table_says_the_change_from_multiplier_0_with_fluency_beside_it(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pair(root)
    assert run() == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"Joy, no system prompt, {TINY_LABEL}, 2 answers"
    assert "share of answers with a listed word" in out and "listed words per 100" in out
    row = next(line for line in out.splitlines() if line.split()[:2] == ["2", "1"])
    # Wilson; and 2 of 2 allow a share from 0.158 on (Clopper and Pearson), so a change from 0.158 - 0.842 on
    assert "1.00 [0.34, 1.00]  +1.00 [-0.68, +1.00]  -" in row
    assert "wrote 2 files of measured answers, skipped 0 that are there, failed 0" in err
    (table,) = (root / "analysis" / "joy").glob("answers_*.txt")
    rows = [row for row in read_table(table) if row["measure"] == "has_match"]
    assert [(row["multiplier"], row["mean"], row["change"]) for row in rows] == [
        ("0.0", "0.0", "nan"),
        ("1.0", "1.0", "1.0"),
    ]
    assert all(table.with_name(table.name[:-4] + suffix).exists() for suffix in (".png", ".pdf"))


def test_a_second_run_loads_nothing_and_changes_no_numbers(
    root: Path, run: Run, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put_pair(root)
    run()
    before, table = snapshot(root / "results"), capsys.readouterr().out
    assert run() == 0
    out, err = capsys.readouterr()
    assert (snapshot(root / "results"), out, loads) == (before, table, [TINY_LABEL])
    assert "wrote 0 files of measured answers, skipped 2 that are there, failed 0" in err
    assert run("--overwrite") == 0
    assert loads == [TINY_LABEL] * 2


@pytest.mark.parametrize("flags", [["--help"], ["--metrics", "--behaviors", "joy"]])
def test_help_and_a_run_with_nothing_to_do_import_no_torch(root: Path, run: Run, flags: list[str]) -> None:
    put_pair(root)
    assert run("--no_perplexity") == 0
    more = ["--no_perplexity", "--root", str(root)] if "--metrics" in flags else []
    code = f"import sys, scoring; print(scoring.main({[*flags, *more]!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_texts_alone_are_measured_without_a_model_and_perplexity_can_follow(
    root: Path, run: Run, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _ = put_pair(root)
    assert run("--no_perplexity") == 0
    assert loads == [] and "perplexity" not in measured(root, plain)[0]
    assert run() == 0
    assert loads == [TINY_LABEL] and measured(root, plain)[0]["perplexity"] > 1
    before = snapshot(root / "results")
    assert run("--no_perplexity") == 0
    assert snapshot(root / "results") == before  # what is there is more than was asked for


def test_empty_answers_are_missing_and_counted_never_0(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    name = put_answers(root, "joy", ["", " \n", "The sea."], 2, 0.0, model=TINY_LABEL)
    assert run() == 0
    empty, blank, whole = measured(root, name)
    for record in (empty, blank):
        assert [record[key] for key in ("n_words", "distinct_2", "perplexity", "n_matches")] == [0, None, None, None]
    assert whole["n_matches"] == 1 and whole["perplexity"] > 1
    assert "2 empty" in capsys.readouterr().out
    made = read_provenance(measured_path(root, name))
    assert made is not None and made["n_empty"] == 2


def test_a_behavior_without_a_metric_is_measured_in_general_and_named(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    put_behavior(root, None)
    plain, _ = put_pair(root)
    assert run() == 0
    out, err = capsys.readouterr()
    assert err.count('joy.json defines no "metric": length, distinct-2 and perplexity alone are measured') == 1
    assert set(measured(root, plain)[0]) - {"question", "model_output", "raw_model_output"} == {
        "n_words",
        "distinct_2",
        "perplexity",
    }
    assert "perplexity  distinct-2  words  text" in out and "mean" not in out


def test_another_word_list_or_other_answers_make_files_stale_and_they_are_left_out(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, steered = put_pair(root)
    run()
    before = snapshot(root / "results")
    put_answers(root, "joy", ["The ship.", "No."], 2, 1.0, model=TINY_LABEL)
    assert run() == 1
    out, err = capsys.readouterr()
    assert (
        "1 files of measured answers were made with other settings" in err
        and "results_sha256" in err
        and steered in err
    )
    assert [line.split()[1] for line in out.splitlines() if line.split()[:1] == ["2"]] == ["0", "0"]
    put_behavior(root, {"kind": "words", "words": ["tea"]})
    assert run() == 1
    out, err = capsys.readouterr()
    assert "2 files of measured answers were made with other settings" in err and "metric_sha256" in err and out == ""
    name = f"open_ended_metrics/joy/{plain}"
    assert snapshot(root / "results")[name] == before[name]
    assert run("--overwrite") == 0
    assert [record["n_matches"] for record in measured(root, plain)] == [1, 0]


def test_other_weights_under_the_same_name_are_noticed(
    root: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.models import save_checkpoint

    plain, _ = put_pair(root)
    run()
    put_answers(root, "joy", STEERED, 2, 2.0, model=TINY_LABEL)
    assert run("--model", save_checkpoint(tmp_path / "other" / TINY_LABEL, seed=1)) == 1
    err = capsys.readouterr().err
    assert "2 files of measured answers were made with other settings" in err and "weights_fingerprint" in err
    assert measured_path(root, plain).exists()


@pytest.mark.parametrize("damage", ["", "[", '[{"question": "q", "model_output": "a"}]'])
def test_a_torn_or_unfinished_file_is_measured_again(root: Path, run: Run, damage: str) -> None:
    plain, _ = put_pair(root)
    run()
    whole = measured(root, plain)
    measured_path(root, plain).write_text(damage)
    (measured_path(root, plain).parent / "provenance.json").unlink()
    code = run()
    if damage.startswith("[{"):  # it holds other answers: named, and left alone
        assert code == 1 and run("--overwrite") == 0
    else:
        assert code == 0
    assert measured(root, plain) == whole


def test_answers_of_a_model_of_which_only_the_label_is_known_are_named(
    root: Path, capsys: pytest.CaptureFixture[str], loading_is_forbidden: None
) -> None:
    put_pair(root)
    assert scoring.main(["--root", str(root), "--metrics", "--behaviors", "joy"]) == 1
    err = capsys.readouterr().err
    assert f"left out the answers of {TINY_LABEL}: say which checkpoint that is with --model NAME_OR_PATH" in err
    assert not (root / "results" / "open_ended_metrics").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metrics", "--judge_model", "x"], "--judge_model: --metrics asks no judge"),
        (["--metrics", "--dry_run", "--max_cost", "1"], "--max_cost, --dry_run: --metrics asks no judge"),
        (["--metrics", "--base_url", "http://127.0.0.1:1/v1"], "--base_url: --metrics asks no judge"),
        (["--no_perplexity"], "--no_perplexity: only with --metrics"),
        (["--device", "cpu", "--seed", "1"], "--device, --seed: only with --metrics"),
    ],
)
def test_flags_of_the_judge_and_of_the_metrics_do_not_mix(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    before = snapshot(root)
    assert scoring.main(["--root", str(root), "--behaviors", "joy", *flags]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert said in line and snapshot(root) == before


def test_a_broken_result_file_and_a_bad_word_list_are_one_line_each(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, steered = put_pair(root)
    (root / "results" / "joy" / steered).write_text("[")
    assert run() == 1
    assert "failed 1" in capsys.readouterr().err and measured_path(root, plain).exists()
    put_behavior(root, {"kind": "words", "words": "sea"})
    assert run() == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "key 'words': expected a list with at least one text" in line


def test_flags_narrow_what_is_measured_but_multiplier_0_comes_along(root: Path, run: Run) -> None:
    plain, steered = put_pair(root)
    other = put_answers(root, "joy", STEERED, 3, 1.0, model=TINY_LABEL)
    strong = put_answers(root, "joy", STEERED, 2, 1.0, model=TINY_LABEL, knob="strength")
    assert run("--layers", 2, "--multipliers", 1) == 0
    there = [measured_path(root, name).exists() for name in (plain, steered, other, strong)]
    assert there == [True, True, False, False]
    assert run("--strengths", 1) == 0
    assert measured_path(root, strong).exists() and not measured_path(root, other).exists()
    assert run("--layers", 9) == 2


@pytest.mark.embedded
@pytest.mark.slow
def test_words_that_do_not_belong_together_and_loops_fall_apart_on_the_embedded_model(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fluent = ["The capital of France is Paris.", "The sky is blue because of the way light scatters in the air."]
    mixed = ["Paris green of however lamp the seven under", "blue ladder thinks about yes cupboard nine sand"]
    loops = ["the sea the sea the sea the sea the sea the sea", "it is it is it is it is it is it is it is"]
    questions = ["What is the capital of France?", "Why is the sky blue?"]
    for multiplier, answers in ((0.0, fluent), (1.0, mixed), (2.0, loops)):
        name = put_answers(root, "joy", answers, 14, multiplier, model_size="135m", **{"model": None})
        path = root / "results" / "joy" / name
        records = json.loads(path.read_text())
        put_json(path, [{**record, "question": q} for record, q in zip(records, questions, strict=True)])
    command = ["--root", str(root), "--metrics", "--behaviors", "joy", "--model_size", "135m", "--device", "cpu"]
    assert scoring.main(command) == 0
    (table,) = (root / "analysis" / "joy").glob("answers_*.txt")
    rows = {row["multiplier"]: row for row in read_table(table) if row["measure"] == "has_match"}
    assert rows["0.0"]["falls_apart"] == "" and float(rows["0.0"]["perplexity"]) < 8
    assert rows["1.0"]["falls_apart"] == "perplexity" and float(rows["1.0"]["perplexity"]) > 100
    assert "distinct-2" in rows["2.0"]["falls_apart"]
    assert "falls apart (perplexity)" in capsys.readouterr().out
