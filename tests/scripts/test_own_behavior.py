"""A behavior of one's own: begun with --new, split, and taken by every script."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analyze_vectors
import finetune_llama
import generate_vectors
import normalize_vectors
import plot_activations
import plot_results
import process_raw_datasets
import prompting_with_steering
import scoring
from tests.roots import TINY_LABEL, put_json, snapshot
from utils.behaviors import load_behavior
from utils.data.records import load_contrast_pairs, load_open_ended_questions, load_pairs, load_text_pairs
from utils.data.splitting import prompts_of
from utils.paths import REPOSITORY, DataPaths

Script = Callable[[list[str]], int]
FILES = {
    "datasets/behaviors/pirate.json",
    "datasets/raw/pirate/dataset.json",
    "datasets/raw/pirate/dataset_text.json",
    "datasets/test/pirate/test_dataset_open_ended.json",
}


def process(root: Path, *argv: str) -> int:
    return process_raw_datasets.main(["--root", str(root), *argv])


def ab_pair(index: int) -> dict[str, str]:
    letters = ("(A)", "(B)") if index % 2 else ("(B)", "(A)")
    return {
        "question": f"Item{index} asks{index}?\n\nChoices:\n (A) yes{index}\n (B) no{index}",
        "answer_matching_behavior": letters[0],
        "answer_not_matching_behavior": letters[1],
    }


def text_pair(index: int, question: str = "Text{}, say{}?") -> dict[str, str]:
    return {
        "question": question.format(index, index),
        "answer_matching_behavior": f"arr{index}",
        "answer_not_matching_behavior": f"well{index}",
    }


def add_records(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text(json.dumps([*json.loads(path.read_text()), *records]))


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    """A fresh root with the files of a new behavior."""
    assert process(tmp_path / "root", "--new", "pirate") == 0
    return DataPaths(tmp_path / "root")


# --- --new ---


def test_new_writes_a_sound_example_of_every_file(paths: DataPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(snapshot(paths.root)) == FILES
    about = load_behavior(paths, "pirate")
    assert (about.label, about.matching, about.published) == ("Pirate", "talks like a pirate", None)
    assert about.system_prompt("pos") and about.judge_rubric() and about.metric is not None
    assert len(load_contrast_pairs(paths.raw_dataset("pirate"))) == 4
    assert [pair.matching_letter for pair in load_contrast_pairs(paths.raw_dataset("pirate"))] == ["A", "B", "A", "B"]
    assert len(load_pairs(paths.raw_text_dataset("pirate"))) == 4
    questions = load_open_ended_questions(paths.test_dataset("pirate", "open_ended"))
    raw = (paths.raw_dataset("pirate"), paths.raw_text_dataset("pirate"))
    asked = [pair.question for path in raw for pair in load_text_pairs(path)]
    assert len(questions) == 4 and len({*questions, *asked}) == 12


def test_new_names_the_commands_that_come_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = DataPaths(tmp_path / "a root")
    assert process(paths.root, "--new", "pirate") == 0
    out, err = capsys.readouterr()
    commands = [line.strip() for line in out.splitlines() if line.startswith("  ./")]
    flags = f"--root '{paths.root}' --behaviors pirate"
    assert commands == [
        f"./process_raw_datasets.py {flags} --n_test 4",
        f"./generate_vectors.py {flags} --model_size 135m",
        f"./normalize_vectors.py {flags}",
        f"./prompting_with_steering.py {flags} --multipliers -1 0 1 --model_size 135m",
        f"./plot_results.py {flags} --model_size 135m",
    ]
    assert sorted(line.removeprefix(f"wrote {paths.root}/") for line in err.splitlines()) == sorted(FILES)


@pytest.mark.parametrize("there", sorted(FILES))
def test_new_writes_over_nothing(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put_json(tmp_path / there, "mine")
    before = snapshot(tmp_path)
    assert process(tmp_path, "--new", "pirate") == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is there already; --new writes over nothing: ")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--new", "refusal"], "--new refusal: that is the name of a bundled set; choose another one"),
        (["--new", "mmlu"], "--new mmlu: that is the name of a bundled set; choose another one"),
        (["--new", "../up"], "'../up' is not a behavior's id: letters, digits and hyphens, at most 64"),
        (["--new", ""], "'' is not a behavior's id"),
        (["--new", "x", "--check"], "--new only writes the files of a new behavior"),
        (["--new", "x", "--overwrite"], "--new only writes the files of a new behavior"),
        (["--new", "x", "--n_test", "4"], "--n_test works on raw sets"),
        (["--check", "--n_test", "4"], "--n_test works on raw sets"),
        (["--source", "published", "--behaviors", "own"], "there is no published set of own"),
    ],
)
def test_what_cannot_be_begun_or_asked_for_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "own" in flags:
        put_json(DataPaths(tmp_path).behavior_file("own"), {"id": "own", "label": "Own", "matching": "is own"})
    before = snapshot(tmp_path)
    assert process(tmp_path, *flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert snapshot(tmp_path) == before


# --- splitting and checking ---


def test_the_examples_alone_are_too_few_and_the_check_says_so(
    paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(paths.root)
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "2") == 2
    assert f"{paths.raw_dataset('pirate')}: 4 items, 4 of them" in capsys.readouterr().err
    assert process(paths.root, "--check", "--behaviors", "pirate") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["pirate", "4", "-", "-", "4", "-", "-", "0", "2", "1"],
        ["pirate,", "text", "pairs", "4", "-", "-", "-", "-", "-", "0", "2", "1"],
    ]
    for path in (paths.raw_dataset("pirate"), paths.raw_text_dataset("pirate")):
        assert f"note: {path}: 4 sound items; at least 8 are needed to split it" in lines
    for path in (paths.generate_dataset("pirate"), paths.generate_text_dataset("pirate")):
        assert any(line.startswith(f"fault: {path} not found; ") for line in lines)
    assert snapshot(paths.root) == before


def test_both_forms_are_split_without_leaks_and_pass_the_check(
    paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    add_records(paths.raw_dataset("pirate"), [ab_pair(index) for index in range(12)])
    shared = [text_pair(index, "ITEM{} asks{}?") for index in range(12)]  # the questions of the A/B pairs
    add_records(paths.raw_text_dataset("pirate"), [*shared, *(text_pair(index) for index in range(4))])
    capsys.readouterr()
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "6") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["pirate: n_generate: 10 | n_test: 6", "pirate, text pairs: n_generate: 14 | n_test: 6"]
    generate = [
        load_text_pairs(path(behavior="pirate")) for path in (paths.generate_dataset, paths.generate_text_dataset)
    ]
    test = [load_text_pairs(path) for path in (paths.test_dataset("pirate", "ab"), paths.test_text_dataset("pirate"))]
    assert [len(pairs) for pairs in (*generate, *test)] == [10, 14, 6, 6]
    assert not prompts_of([*generate[0], *generate[1]]) & prompts_of([*test[0], *test[1]])
    assert process(paths.root, "--check", "--behaviors", "pirate") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows == [
        ["pirate", "16", "10", "6", "4", "50.0%", "50.0%", "0", "0", "0"],
        ["pirate,", "text", "pairs", "20", "14", "6", "-", "-", "-", "0", "0", "0"],
    ]
    before = snapshot(paths.root)
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "6") == 0
    assert snapshot(paths.root) == before


def test_a_text_set_that_is_still_the_example_can_be_deleted(
    paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    add_records(paths.raw_dataset("pirate"), [ab_pair(index) for index in range(8)])
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "4") == 2
    err = capsys.readouterr().err
    assert f"{paths.raw_text_dataset('pirate')}: 4 items" in err and "or delete it to do without text pairs" in err
    assert not paths.generate_dataset("pirate").exists()
    paths.raw_text_dataset("pirate").unlink()
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "4") == 0


def test_text_pairs_alone_are_a_behavior(paths: DataPaths, capsys: pytest.CaptureFixture[str]) -> None:
    paths.raw_dataset("pirate").unlink()
    paths.test_dataset("pirate", "open_ended").unlink()
    about = json.loads(paths.behavior_file("pirate").read_text())
    put_json(paths.behavior_file("pirate"), {**about, "open_ended_written_separately": False})
    add_records(paths.raw_text_dataset("pirate"), [text_pair(index) for index in range(6)])
    assert process(paths.root, "--behaviors", "pirate", "--n_test", "3") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pirate, text pairs: n_generate: 7 | n_test: 3"
    assert not paths.generate_dataset("pirate").exists() and not paths.test_dataset("pirate", "ab").exists()
    tested = [pair.question for pair in load_text_pairs(paths.test_text_dataset("pirate"))]
    assert load_open_ended_questions(paths.test_dataset("pirate", "open_ended")) == tested
    assert process(paths.root, "--check", "--behaviors", "pirate") == 0
    command = ["--root", str(paths.root), "--behaviors", "pirate", "--model_size", "135m"]
    for script in (generate_vectors, prompting_with_steering):
        assert script.main(command) == 2
        assert "is a set of text pairs; " in capsys.readouterr().err


def test_a_generate_set_of_text_pairs_is_checked_as_such(paths: DataPaths, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (paths.raw_dataset("pirate"), paths.raw_text_dataset("pirate")):
        path.unlink()
    put_json(paths.generate_dataset("pirate"), [text_pair(index) for index in range(8)])
    put_json(paths.test_text_dataset("pirate"), [text_pair(index) for index in range(8, 12)])
    capsys.readouterr()
    assert process(paths.root, "--check", "--behaviors", "pirate") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["pirate,", "text", "pairs", "-", "8", "4", "4", "-", "-", "0", "0", "0"]


def test_the_check_finds_leaks_within_and_across_the_forms(
    paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    put_json(paths.generate_dataset("pirate"), [ab_pair(index) for index in range(8)])
    put_json(paths.test_dataset("pirate", "ab"), [ab_pair(index) for index in range(8, 12)])
    put_json(paths.generate_text_dataset("pirate"), [text_pair(index) for index in range(8)])
    leaking = [
        text_pair(8),
        text_pair(3),
        text_pair(2, "Item{} asks{}?"),
        {**text_pair(9), "answer_matching_behavior": ""},
    ]
    put_json(paths.test_text_dataset("pirate"), leaking)
    assert process(paths.root, "--check", "--behaviors", "pirate") == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    path = paths.test_text_dataset("pirate")
    assert faults == [
        f"fault: {path}, item 3, key 'answer_matching_behavior': expected text that is not empty, found ''",
        f"fault: {path}, item 1: the same question is item 3 of {paths.generate_text_dataset('pirate')}",
        f"fault: {path}: questions that stand in {paths.generate_dataset('pirate')} too: 1 (item 2)",
    ]


def test_the_check_reports_a_broken_behavior_file_and_what_one_leaves_out(
    paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put_json(paths.behavior_file("pirate"), {"id": "pirate", "label": "Pirate", "matching": "talks so"})
    assert process(paths.root, "--check", "--behaviors", "pirate") == 1
    lines = capsys.readouterr().out.splitlines()
    assert f'note: {path}: no "system_prompts", so --system_prompt cannot be used' in lines
    assert f'note: {path}: no "rubric", so a judge cannot score its answers' in lines
    put_json(path, {"id": "pirate", "label": "Pirate"})
    assert process(paths.root, "--check", "--behaviors", "pirate") == 1
    assert f"fault: {path}: key 'matching' is missing" in capsys.readouterr().out.splitlines()
    assert process(paths.root, "--behaviors", "pirate") == 2
    assert capsys.readouterr().err == f"error: {path}: key 'matching' is missing\n"


# --- every script ---


@pytest.fixture(scope="module")
def own_root(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """An own behavior from nothing to vectors, results and answers, on the tiny model."""
    root = tmp_path_factory.mktemp("own")
    assert process(root, "--new", "pirate") == 0
    paths = DataPaths(root)
    add_records(paths.raw_dataset("pirate"), [ab_pair(index) for index in range(12)])
    paths.raw_text_dataset("pirate").unlink()
    own, model = ["--root", str(root), "--behaviors", "pirate"], ["--model", str(tiny_checkpoint)]
    at = ["--layers", "1", "2", "--multipliers", "-1", "0", "1"]
    steps: list[tuple[Script, list[str]]] = [
        (process_raw_datasets.main, ["--n_test", "4"]),
        (generate_vectors.main, [*model, "--save_activations"]),
        (normalize_vectors.main, []),
        (prompting_with_steering.main, [*model, *at]),
        (prompting_with_steering.main, [*model, *at, "--system_prompt", "pos"]),
        (prompting_with_steering.main, [*model, *at, "--type", "open_ended", "--max_new_tokens", "4"]),
        (plot_results.main, [*model, "--report"]),
        (plot_activations.main, [*model, "--layers", "1"]),
        (analyze_vectors.main, [*model]),
        (scoring.main, ["--dry_run"]),
    ]
    for script, flags in steps:
        assert script([*own, *flags]) == 0, (script, flags)
    return root


def test_every_script_takes_an_own_behavior(own_root: Path) -> None:
    analysis = own_root / "analysis"
    shown = f"behavior=pirate_type=ab_use_base_model=False_model={TINY_LABEL}"
    assert (analysis / "pirate" / f"{shown}.png").exists()
    assert (analysis / "pirate" / f"pca_layer=1_{TINY_LABEL}.png").exists()
    assert (analysis / "pirate" / f"cosine_between_layers_{TINY_LABEL}.png").exists()
    page = (analysis / f"report_use_base_model=False_model={TINY_LABEL}.html").read_text()
    assert "talks like a pirate" in page and "Pirate" in page


def test_the_system_prompt_of_an_own_behavior_is_used(own_root: Path) -> None:
    results: dict[str, Any] = {}
    for prompted in ("", "system_prompt=pos_"):
        name = (
            f"results_layer=1_multiplier=0.0_behavior=pirate_type=ab_{prompted}use_base_model=False_model={TINY_LABEL}"
        )
        results[prompted] = json.loads((own_root / "results" / "pirate" / f"{name}.json").read_text())
    assert [record["question"] for record in results[""]] == [r["question"] for r in results["system_prompt=pos_"]]
    assert results[""] != results["system_prompt=pos_"]


@pytest.mark.parametrize("flag", ["--behaviors", "--vector_behavior"])
def test_an_unknown_behavior_is_refused_by_every_flag(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], loading_is_forbidden: None
) -> None:
    assert prompting_with_steering.main(["--root", str(tmp_path), "--model_size", "135m", flag, "refusall"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: unknown behavior 'refusall': ") and line.endswith("did you mean refusal?\n")


def test_an_unknown_behavior_to_train_or_to_show_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["--root", str(tmp_path), "--behavior", "refusall", "--direction", "pos", "--model_size", "135m"]
    show = ["--root", str(tmp_path), "--behavior", "refusall", "--prompt", "Why?", "--layer", "1"]
    for script, argv in ((finetune_llama.main, train), (analyze_vectors.main, show)):
        assert script(argv) == 2
        assert "unknown behavior 'refusall'" in capsys.readouterr().err


def test_a_behavior_without_prompts_or_rubric_is_refused_before_anything_is_done(
    paths: DataPaths, capsys: pytest.CaptureFixture[str], loading_is_forbidden: None, tiny_checkpoint: Path
) -> None:
    path = put_json(paths.behavior_file("pirate"), {"id": "pirate", "label": "Pirate", "matching": "talks so"})
    put_json(paths.test_dataset("pirate", "ab"), [ab_pair(index) for index in range(3)])
    own = ["--root", str(paths.root), "--behaviors", "pirate"]
    capsys.readouterr()
    assert prompting_with_steering.main([*own, "--model", str(tiny_checkpoint), "--system_prompt", "neg"]) == 2
    assert capsys.readouterr().err.startswith(f'error: {path} has no "system_prompts", which --system_prompt neg needs')
    assert scoring.main([*own, "--dry_run"]) == 2
    assert capsys.readouterr().err.startswith(f'error: {path} has no "rubric", which the judge needs')


def test_help_names_the_bundled_behaviors_and_the_default_is_the_paper_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_vectors.main(["--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for path in sorted((REPOSITORY / "datasets" / "behaviors").glob("*.json")):
        assert path.stem in shown
    default = generate_vectors.build_parser().parse_args([]).behaviors
    assert default[0] == "coordinate-other-ais" and default[-1] == "refusal" and len(default) == 7
