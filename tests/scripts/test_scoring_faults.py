"""The fault campaign: a judge that stalls, breaks off, refuses and babbles, and runs that are killed.

In the end every answer is scored once or listed as unscored with a reason, no file is half-written,
and no request whose reply was kept is sent again.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import scoring
from tests.answers import left_over, put_answers, scores_path
from tests.judge_server import JudgeServer, Pair, Request, Response
from utils.files.journal import read_entries
from utils.judge.score_files import answer_key
from utils.paths import REPOSITORY

SEED = 20
N_KILLS = int(os.environ.get("CAA_KILLS", "3"))
HUGE = "The answer " * 20_000
# what the judge says first, and what that is worth; None: asked again
FIRST_REPLIES: list[tuple[Response, float | None]] = [
    (Response(content="7"), 7.0),
    (Response(content=" 2.5 "), 2.5),
    (Response(content="0"), 0.0),
    (Response(content="8/10"), 8.0),
    (Response(content="I'd say 7"), 7.0),
    (Response(content=""), None),
    (Response(content="eleven"), None),
    (Response(content=HUGE), None),
    (Response(raw='{"choices": [{"message": {"content": "7"'), None),
    (Response(content="11"), None),
]


class UnreliableJudge:
    """Decides by seed, question, answer and number of the request, whichever thread asks when."""

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency

    def __call__(self, request: Request) -> Response:
        chance = random.Random(f"{SEED} {request.pair} {request.nth}")
        draw = chance.random()
        if draw < 0.10:
            return Response(status=429, headers={"Retry-After": chance.choice(["0", "0.1", "0.3", "1"])})
        if draw < 0.15:
            return Response(status=500)
        if draw < 0.19:
            return Response(stall=0.8)  # past the time limit
        if draw < 0.23:
            return Response(cut=True)
        time.sleep(self.latency)
        first, score = reply_to(request.pair)
        return second_reply(request.pair)[0] if score is None and request.is_second else first


def reply_to(pair: Pair) -> tuple[Response, float | None]:
    return random.Random(f"first {pair}").choice(FIRST_REPLIES)


def second_reply(pair: Pair) -> tuple[Response, float | None]:
    return random.Random(f"second {pair}").choice([(Response(content="4"), 4.0), (Response(content="four"), None)])


def true_score(pair: Pair) -> float | None:
    _, score = reply_to(pair)
    return score if score is not None else second_reply(pair)[1]


def n_asks(pair: Pair) -> int:
    return 1 if reply_to(pair)[1] is not None else 2


def put_campaign(root: Path, n_answers: int) -> dict[Path, list[Pair]]:
    """Four result files, two of them with equal answers; score file -> its answers."""
    files = {}
    for behavior, layer, multiplier in (
        ("sycophancy", 13, 0.0),
        ("sycophancy", 14, 0.0),
        ("sycophancy", 13, 1.0),
        ("refusal", 13, 1.0),
    ):
        answers = [f"answer {index} at {multiplier}" for index in range(n_answers)]
        name = put_answers(root, behavior, answers, layer, multiplier)
        pairs = [(f"{behavior} question {index}?", answer) for index, answer in enumerate(answers)]
        files[scores_path(root, behavior, name)] = pairs
    return files


def assert_all_is_settled(files: dict[Path, list[Pair]]) -> None:
    """Every answer has its true score, or is listed as unscored with the judge's reply and a reason."""
    for path, pairs in files.items():
        records = json.loads(path.read_text())
        assert [(record["question"], record["model_output"]) for record in records] == pairs
        for record, pair in zip(records, pairs, strict=True):
            assert record["score"] == true_score(pair), pair
            assert ("unscored_reason" in record and "judge_reply" in record) == (record["score"] is None)
    scores = [true_score(pair) for pairs in files.values() for pair in pairs]
    assert None in scores and 0.0 in scores and 8.0 in scores and 4.0 in scores


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("utils.judge.access.REPOSITORY", tmp_path)
    monkeypatch.setenv("OPEN_AI_KEY", "sk-test")
    return ["--root", str(tmp_path), "--timeout", "0.5", "--concurrency", "8", "--max_retries", "8"]


def test_every_answer_is_settled_and_paid_for_once_whatever_the_server_does(tmp_path: Path, flags: list[str]) -> None:
    files = put_campaign(tmp_path, 25)
    with JudgeServer(UnreliableJudge()) as server:
        assert scoring.main([*flags, "--base_url", server.url]) == 0
        kinds = {(event.response.status, event.response.stall > 0, event.response.cut) for event in server.events}
        assert {(429, False, False), (500, False, False), (200, True, False), (200, False, True)} <= kinds
        for pair in {pair for pairs in files.values() for pair in pairs}:
            assert server.n_delivered(pair) == n_asks(pair), pair
    assert_all_is_settled(files)
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_no_kept_reply_is_asked_for_again_after_kills(tmp_path: Path, flags: list[str]) -> None:
    files, concurrency = put_campaign(tmp_path, 30), 3
    every_pair = {pair for pairs in files.values() for pair in pairs}
    chance = random.Random(SEED)
    kept: dict[Pair, int] = {}
    with JudgeServer(UnreliableJudge(latency=0.02)) as server:
        command = [sys.executable, str(REPOSITORY / "scoring.py"), *flags, "--base_url", server.url]
        command += ["--concurrency", str(concurrency)]
        for n_kills in range(1, N_KILLS + 1):
            n_before = server.n_requests
            assert kill_midway(command, server, chance.randint(1, 12), chance.uniform(0, 0.1)), "finished too early"
            assert_nothing_kept_was_sent(server.arrived[n_before:], kept)
            assert_no_file_is_half_written(files)
            kept = replies_kept(files)
            n_lost = sum(server.n_delivered(pair) - kept.get(pair, 0) for pair in every_pair)
            assert 0 <= n_lost <= n_kills * concurrency  # paid for and not kept: those in flight at a kill
        assert 0 < len(kept) < len(every_pair)
        n_before = server.n_requests
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert_nothing_kept_was_sent(server.arrived[n_before:], kept)
        assert sum(server.n_delivered(pair) - n_asks(pair) for pair in every_pair) == n_lost
    assert_all_is_settled(files)
    assert not [name for name in left_over(tmp_path) if name.endswith(".jsonl")]


def kill_midway(command: list[str], server: JudgeServer, n_requests: int, seconds: float) -> bool:
    """Start a run and kill it so long after so many requests; False where it ended before."""
    aim = server.n_requests + n_requests
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while server.n_requests < aim and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    server.wait_until_idle()
    return was_running


def replies_kept(files: dict[Path, list[Pair]]) -> dict[Pair, int]:
    """How many replies of each answer are in a journal or a score file."""
    kept: dict[Pair, int] = {}
    for path, pairs in files.items():
        entries: dict[str, dict[str, Any]] = {}
        for journal in path.parent.glob(".score_*.jsonl"):
            entries |= read_entries(journal)
        for question, answer in pairs:
            entry = entries.get(answer_key({"question": question, "model_output": answer}))
            if entry is not None:
                kept[question, answer] = n_asks((question, answer)) if "score" in entry else entry["asked"]
            if path.exists():
                kept[question, answer] = n_asks((question, answer))
    return kept


def assert_nothing_kept_was_sent(requests: list[Request], kept: dict[Pair, int]) -> None:
    """Settled answers are not asked about, and those with one bad reply for their second one only."""
    for request in requests:
        n_kept = kept.get(request.pair, 0)
        assert n_kept < n_asks(request.pair), request.pair
        assert n_kept == 0 or request.is_second, request.pair


def assert_no_file_is_half_written(files: dict[Path, list[Pair]]) -> None:
    for path, pairs in files.items():
        if path.exists():
            assert len(json.loads(path.read_text())) == len(pairs)
