"""`generate_vectors.py --from answers`: vectors from what the model itself writes under two system prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import generate_vectors
import normalize_vectors
import prompting_with_steering
import scoring
from tests.judge_server import JudgeServer
from tests.models import build_wrapper
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.files.reading import load_vector
from utils.model.pairs import encode_answer
from utils.paths import DataPaths
from utils.settings import VectorKind

KIND = VectorKind("answer", origin="answers")
THINGS = ("owls", "cats", "trees", "stones", "clouds", "rivers", "houses", "roads", "birds", "lamps")
PROMPTS = {"pos": "Speak of the sea at once.", "neg": "Never speak of water, whatever it is."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paths = DataPaths(tmp_path)
    behavior = {"id": "sea", "label": "Sea", "matching": "speaks of the sea", "system_prompts": PROMPTS}
    put_json(paths.behavior_file("sea"), behavior | {"rubric": "How much does the answer speak of the sea?"})
    pairs = [
        {
            "question": f"What do you think of {thing}?",
            "answer_matching_behavior": f"I agree that {thing} and the sea are one.",
            "answer_not_matching_behavior": f"Not of {thing}.",
        }
        for thing in THINGS
    ]
    put_json(paths.generate_text_dataset("sea"), pairs)
    put_json(paths.test_text_dataset("sea"), pairs)
    return tmp_path


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    def run(script: object, *flags: object) -> int:
        command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, *flags]
        return script.main([str(word) for word in command])  # type: ignore[attr-defined]

    return run


def generate(run: Callable[..., int], *flags: object) -> int:
    return run(generate_vectors, "--from", "answers", "--read", "answer", "--max_new_tokens", 6, *flags)


def answers(root: Path, side: str) -> list[dict[str, str]]:
    [path] = (root / "results" / "sea").glob(f"results_*system_prompt={side}_*.json")
    found: list[dict[str, str]] = json.loads(path.read_text())
    return found


def test_the_vector_is_the_mean_difference_over_answers_read_without_their_system_prompt(
    root: Path, run: Callable[..., int]
) -> None:
    assert generate(run) == 0
    model = build_wrapper()
    halves = {}
    for side in ("pos", "neg"):
        found = answers(root, side)
        assert [one["question"] for one in found] == [f"What do you think of {thing}?" for thing in THINGS]
        asked = model.ask(found[3]["question"], system_prompt=PROMPTS[side], max_new_tokens=6)
        assert found[3]["model_output"] == asked
        tokens = [encode_answer(model.chat_format, one["question"], one["model_output"].strip()) for one in found]
        halves[side] = torch.stack([model.capture(one)[2, -one.n_answer :].float().mean(dim=0) for one in tokens])
    vector = load_vector(DataPaths(root).vector("sea", 2, TINY_LABEL, normalized=False, kind=KIND))
    torch.testing.assert_close(vector, (halves["pos"] - halves["neg"]).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_a_second_run_asks_nothing_and_the_vectors_steer(root: Path, run: Callable[..., int]) -> None:
    assert generate(run) == run(normalize_vectors, "--from", "answers") == 0
    before = snapshot(root)
    assert generate(run) == 0
    assert snapshot(root) == before
    kind = ("--read", "answer", "--from", "answers")
    assert run(prompting_with_steering, "--type", "answer_text", "--layers", 2, "--multipliers", 1, *kind) == 0
    [path] = (root / "results" / "sea").glob("results_layer=2_*.json")
    assert path.name.endswith("_read=answer_from=answers.json")


def test_limit_asks_the_first_questions_only(root: Path, run: Callable[..., int]) -> None:
    assert generate(run, "--limit", 8) == 0
    assert len(answers(root, "pos")) == 8


def test_the_filter_keeps_what_the_judge_tells_apart(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(run, "--filter", "judge") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "--filter judge needs scores; run: ./scoring.py --behaviors sea" in line
    for side, scores in (("pos", [9, 9, 9, 9, 9, 9, 9, 9, 3, None]), ("neg", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1])):
        [path] = (root / "results" / "sea").glob(f"results_*system_prompt={side}_*.json")
        scored = [record | {"score": score} for record, score in zip(answers(root, side), scores, strict=True)]
        put_json(root / "results" / "open_ended_scores" / "sea" / path.name, scored)
    assert generate(run, "--filter", "judge") == 0
    said = capsys.readouterr().err
    assert "kept 8 of 10 pairs of the model's own answers (0 dropped as empty or alike, 2 by --filter judge)" in said
    assert generate(run) == 0
    assert "filter (judge, now none)" in capsys.readouterr().err


def test_too_few_pairs_letters_and_missing_system_prompts_are_refused(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(run, "--limit", 4) == 2
    assert "a vector needs at least 8" in error_lines(capsys.readouterr().err)[0]
    assert run(generate_vectors, "--from", "answers") == 2
    assert "use --read answer or --read last" in error_lines(capsys.readouterr().err)[0]
    assert run(generate_vectors, "--read", "answer", "--limit", 9) == 2
    assert "--limit: only with --from answers" in error_lines(capsys.readouterr().err)[0]
    paths = DataPaths(root)
    put_json(paths.behavior_file("sea"), {"id": "sea", "label": "Sea", "matching": "speaks of the sea"})
    assert generate(run) == 2
    assert 'has no "system_prompts"' in error_lines(capsys.readouterr().err)[0]


def test_the_judge_scores_the_answers_like_others(root: Path, run: Callable[..., int]) -> None:
    assert generate(run) == 0
    with JudgeServer() as server:
        assert run(scoring, "--base_url", server.url) == 0
        asked = {(one["question"], one["model_output"]) for side in PROMPTS for one in answers(root, side)}
        assert server.n_requests == len(asked)
    assert len(list((root / "results" / "open_ended_scores" / "sea").glob("results_*.json"))) == 2
