"""Roots with open-ended answers for the tests of scoring, and ways to read the scores."""

import json
from pathlib import Path
from typing import Any

import pytest

import scoring
from tests.judge_server import JudgeServer, Request, Response
from tests.roots import put_json
from utils.settings import SteeringSettings

TEST_KEY = "sk-test-0123456789abcdef"


def use_test_key(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """A key for the judge; that of whoever runs the tests stays where it is."""
    monkeypatch.setattr("utils.judge.access.REPOSITORY", repository)
    monkeypatch.setenv("OPEN_AI_KEY", TEST_KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def run_on(root: Path, server: JudgeServer, *flags: str) -> int:
    """Run scoring.py in this process; its exit code."""
    return scoring.main(["--root", str(root), "--base_url", server.url, *flags])


def score_in_answer(request: Request) -> Response:
    """A judge that finds the score in the answer: "answer 7" gets 7."""
    return Response(content=request.answer.split()[-1])


def put_answers(
    root: Path, behavior: str, answers: list[str], layer: int = 13, multiplier: float = 1.0, **more: Any
) -> str:
    """Write a result file with these answers to questions 0, 1, ...; its name."""
    given = {"model_size": "7b"} if "model" not in more else {}
    settings = SteeringSettings(layer, multiplier, behavior, "open_ended", **{**given, **more})
    records = [
        {"question": f"{behavior} question {index}?", "model_output": answer, "raw_model_output": f"<s>{answer}</s>"}
        for index, answer in enumerate(answers)
    ]
    put_json(root / "results" / behavior / settings.result_name, records)
    return settings.result_name


def scores_path(root: Path, behavior: str, name: str) -> Path:
    return root / "results" / "open_ended_scores" / behavior / name


def read_scores(root: Path, behavior: str, name: str) -> list[float | None]:
    return [record["score"] for record in json.loads(scores_path(root, behavior, name).read_text())]


def left_over(root: Path) -> list[str]:
    """Journals and temporary files under the scores."""
    return [path.name for path in (root / "results").rglob(".*")]
