"""Choosing layer and strength: the budget is kept, the best layer is taken, test items are read once and last."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import choose_steering
import generate_vectors
import normalize_vectors
import plot_results
import prompting_with_steering
import scoring
from tests.models import N_LAYERS
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.errors import UserError
from utils.evaluation.choice import MAX_STRENGTH, solve_strength, validation_items
from utils.evaluation.chosen import holm, load_choice
from utils.files.tables import read_table
from utils.model.checkpoints import EMBEDDED_LABEL
from utils.paths import REPOSITORY, DataPaths
from utils.settings import VectorKind

KIND = VectorKind("answer")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paths = DataPaths(tmp_path)
    put_json(paths.behavior_file("sea"), {"id": "sea", "label": "Sea", "matching": "speaks of the sea"})
    things = [
        "owls",
        "cats",
        "trees",
        "stones",
        "clouds",
        "rivers",
        "houses",
        "roads",
        "birds",
        "lamps",
        "chairs",
        "doors",
        "boats",
        "kites",
    ]
    pairs = [
        {
            "question": f"What do you think of {thing}?",
            "answer_matching_behavior": f"I agree that {thing} and the sea are of the same kind.",
            "answer_not_matching_behavior": f"Not of {thing}, that is what I think.",
        }
        for thing in things
    ]
    put_json(paths.generate_text_dataset("sea"), pairs[:12])
    put_json(paths.test_text_dataset("sea"), pairs[12:])
    return tmp_path


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    def run(script: object, *flags: object) -> int:
        command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, "--read", "answer", *flags]
        return script.main([str(word) for word in command])  # type: ignore[attr-defined]

    return run


def test_a_choice_keeps_the_budget_and_takes_the_best_layer(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate_vectors) == run(normalize_vectors) == 0
    assert run(choose_steering, "--kl", 0.05) == 0
    paths = DataPaths(root)
    chosen = json.loads(paths.chosen_steering("sea", TINY_LABEL, KIND).read_text())
    by_layer = chosen["validation"]
    assert {row["layer"] for row in by_layer} == set(range(N_LAYERS)) and chosen["n_validation"] == 4
    at_budget = [max((r for r in by_layer if r["layer"] == n), key=lambda r: r["strength"]) for n in range(N_LAYERS)]
    assert all(row["kl_95"] <= 0.05 * 1.25 for row in by_layer)
    best = max(at_budget, key=lambda row: row["effect"])
    assert (chosen["layer"], chosen["strength"]) == (best["layer"], best["strength"])
    assert chosen["test"]["n"] == 2
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"sea: layer {best['layer']}, strength {best['strength']:.3f}") and "held-out effect" in line
    stem = paths.analysis("sea", f"chosen_{TINY_LABEL}_read=answer")
    assert all(stem.with_name(stem.name + suffix).exists() for suffix in (".png", ".pdf", ".txt"))
    before = snapshot(root)
    assert run(choose_steering, "--kl", 0.05) == 0
    assert snapshot(root) == before


def test_test_items_have_no_part_in_the_choice(root: Path, run: Callable[..., int]) -> None:
    assert run(generate_vectors) == run(normalize_vectors) == 0
    path = DataPaths(root).chosen_steering("sea", TINY_LABEL, KIND)
    found = []
    for _ in range(2):
        assert run(choose_steering, "--overwrite") == 0
        found.append(json.loads(path.read_text()))
        test = DataPaths(root).test_text_dataset("sea")
        records = json.loads(test.read_text())
        keys = ("answer_matching_behavior", "answer_not_matching_behavior")
        put_json(test, [{**r, keys[0]: r[keys[1]], keys[1]: r[keys[0]]} for r in records])
    assert found[0]["validation"] == found[1]["validation"] and found[0]["layer"] == found[1]["layer"]
    assert found[0]["test"]["effect"] == pytest.approx(-found[1]["test"]["effect"], rel=1e-3)


def test_another_budget_is_not_taken_for_the_one_that_was_chosen_by(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate_vectors) == run(normalize_vectors) == run(choose_steering) == 0
    assert run(choose_steering, "--kl", 2) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "was chosen with another kl_budget; --overwrite chooses again" in line


def test_missing_vectors_are_named_with_their_commands(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(choose_steering) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "run: ./generate_vectors.py --behaviors sea --read answer" in line


def test_the_strength_is_solved_on_the_log_log_line() -> None:
    assert solve_strength((0.05, 0.1), (0.01, 0.04), 0.16) == pytest.approx(0.2)  # KL grows with the square
    assert solve_strength((0.05, 0.1), (0.01, 0.02), 0.04) == pytest.approx(0.2)  # and in proportion
    assert solve_strength((0.05, 0.1), (1e-9, 4e-9), 1.0) == MAX_STRENGTH
    assert solve_strength((0.05, 0.1), (0.02, 0.01), 1.0) == MAX_STRENGTH


def test_validation_items_are_a_third_drawn_with_the_seed() -> None:
    assert len(validation_items(30, 0, "x")) == 10 == len(set(validation_items(30, 0, "x")))
    assert validation_items(30, 0, "x") == validation_items(30, 0, "x") != validation_items(30, 1, "x")
    with pytest.raises(Exception, match="x: 9 pairs are too few to choose by; it takes at least 12"):
        validation_items(9, 0, "x")


def test_vectors_for_choosing_are_made_without_the_validation_items(
    root: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_wrapper import LlamaWrapper

    assert run(generate_vectors) == run(normalize_vectors) == 0
    real, read = LlamaWrapper.answer_activations, []

    def noted(self: LlamaWrapper, pairs: list[object], *args: object, **options: object) -> object:
        read.append([pair.question for pair in pairs])  # type: ignore[attr-defined]
        return real(self, pairs, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaWrapper, "answer_activations", noted)
    assert run(choose_steering) == 0
    records = json.loads(DataPaths(root).generate_text_dataset("sea").read_text())
    held_out = {records[i]["question"] for i in validation_items(12, 0, "sea")}
    [questions] = read
    assert len(questions) == 8 and not held_out & set(questions)


def test_controls_have_the_norm_of_what_was_chosen_and_stand_in_the_table(
    run: Callable[..., int], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (run(generate_vectors), run(normalize_vectors), run(choose_steering)) == (0, 0, 0)
    kept = json.loads((root / "vectors" / "sea" / "chosen_tiny-chat_read=answer.json").read_text())
    assert set(kept["controls"]) == {"random"}  # text pairs have no letter vector
    assert kept["controls"]["random"]["n"] == kept["test"]["n"]
    [chosen, random] = read_table(root / "analysis" / "chosen_effects_tiny-chat_read=answer.txt")
    assert (chosen["vector"], random["vector"]) == ("chosen", "random")
    assert float(chosen["effect"]) == kept["test"]["effect"]
    assert float(random["p"]) == kept["controls"]["random"]["p_value"]
    assert "random vector" in capsys.readouterr().out


def test_the_report_shows_what_was_chosen_and_measured_answers_with_their_fluency(
    run: Callable[..., int], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = DataPaths(root)
    behavior = {"id": "sea", "label": "Sea", "matching": "speaks of the sea"}
    put_json(paths.behavior_file("sea"), behavior | {"metric": {"kind": "words", "words": ["sea", "owls"]}})
    put_json(paths.test_dataset("sea", "open_ended"), [{"question": f"What of {n} owls?"} for n in range(4)])
    assert (run(generate_vectors), run(normalize_vectors), run(choose_steering)) == (0, 0, 0)
    asked = ("--type", "open_ended", "--layers", 1, "--multipliers", 0, 2, "--max_new_tokens", 5)
    assert run(prompting_with_steering, *asked) == 0
    measure = ["--behaviors", "sea", "--metrics", "--no_perplexity", "--root", str(root)]
    assert scoring.main(measure) == 0
    capsys.readouterr()
    assert run(plot_results, "--report") == 0
    assert "distinct-2" in capsys.readouterr().out
    [page] = (root / "analysis").glob("report_*.html")
    text = page.read_text()
    assert "Free answers, measured, Sea" in text and "Chosen layer and strength, Sea" in text
    assert text.count("</figure>") == 2


def test_a_choice_that_was_not_among_its_candidates_is_refused_in_one_line(tmp_path: Path) -> None:
    bundled = DataPaths(REPOSITORY).chosen_steering("refusal", EMBEDDED_LABEL, KIND)
    assert load_choice(bundled)[0].chosen.layer == json.loads(bundled.read_text())["layer"]
    path = put_json(tmp_path / "chosen.json", json.loads(bundled.read_text()) | {"layer": 3})
    with pytest.raises(UserError, match="is not a choice as the suite writes it; choose again with --overwrite"):
        load_choice(path)


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
