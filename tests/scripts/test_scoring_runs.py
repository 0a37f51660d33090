"""scoring.py when things go wrong or cost money: failures, keys, limits, signals, two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import scoring
from tests.answers import TEST_KEY as KEY
from tests.answers import left_over, put_answers, read_scores, run_on, score_in_answer, scores_path, use_test_key
from tests.judge_server import JudgeServer, Request, Response
from tests.roots import bundled, snapshot
from utils.judge.prompt import messages
from utils.paths import REPOSITORY


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_test_key(monkeypatch, tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


# --- failures -----------------------------------------------------------------------------------------


def test_a_request_that_fails_for_good_leaves_its_file_unwritten_and_the_rest_goes_on(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = put_answers(root, "sycophancy", ["answer 1", "doomed", "answer 3"], layer=1)
    good = put_answers(root, "sycophancy", ["answer 4"], layer=2)

    def respond(request: Request) -> Response:
        return Response(status=500) if request.answer == "doomed" else score_in_answer(request)

    with JudgeServer(respond) as server:
        assert run_on(root, server, "--max_retries", "0") == 1
        assert read_scores(root, "sycophancy", good) == [4.0]
        assert not scores_path(root, "sycophancy", bad).exists()
        err = capsys.readouterr().err
        assert "1 requests failed: Error code: 500" in err
        assert "1 answers are left; to go on, run: ./scoring.py" in err
        server.respond, n_before = Response(content="6"), server.n_requests
        assert run_on(root, server, "--max_retries", "0") == 0
        assert [request.answer for request in server.arrived[n_before:]] == ["doomed"]
    assert read_scores(root, "sycophancy", bad) == [1.0, 6.0, 3.0]
    assert left_over(root) == []


def test_a_first_reply_that_was_no_score_is_kept_when_the_second_request_fails(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer"])
    with JudgeServer(lambda r: Response(status=500) if r.is_second else Response(content="seven")) as server:
        assert run_on(root, server, "--max_retries", "0") == 1
        server.respond = Response(content="nine")
        assert run_on(root, server) == 0
        assert [request.is_second for request in server.arrived] == [False, True, True]
    (record,) = json.loads(scores_path(root, "sycophancy", name).read_text())
    assert (record["score"], record["judge_reply"]) == (None, "nine")


def test_replies_of_other_layers_survive_a_run_that_is_narrower(root: Path) -> None:
    first = put_answers(root, "sycophancy", ["answer 1", "doomed"], layer=1)
    put_answers(root, "sycophancy", ["answer 4"], layer=2)

    def respond(request: Request) -> Response:
        return Response(status=500) if request.answer == "doomed" else score_in_answer(request)

    with JudgeServer(respond) as server:
        assert run_on(root, server, "--max_retries", "0", "--layers", "1") == 1
        assert run_on(root, server, "--max_retries", "0", "--layers", "2") == 0
        server.respond = Response(content="6")
        assert run_on(root, server) == 0
        assert [request.answer for request in server.arrived].count("answer 1") == 1
    assert read_scores(root, "sycophancy", first) == [1.0, 6.0]
    assert left_over(root) == []


def test_after_many_failures_in_a_row_the_server_is_taken_to_be_gone(root: Path, capsys: pytest.CaptureFixture) -> None:
    put_answers(root, "refusal", [f"answer {index}" for index in range(100)])
    put_answers(root, "sycophancy", ["answer"])
    with JudgeServer(Response(status=500)) as server:
        assert run_on(root, server, "--max_retries", "0", "--concurrency", "4") == 1
        assert 20 <= server.n_requests <= 24
    err = capsys.readouterr().err
    assert "stopped: 20 requests in a row failed" in err and "101 answers are left" in err


def test_a_refused_key_ends_the_run_in_one_line_and_is_not_shown(root: Path, capfd: pytest.CaptureFixture) -> None:
    put_answers(root, "sycophancy", [f"answer {index}" for index in range(100)])
    refusal = Response(status=401, error={"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"})
    with JudgeServer(refusal) as server:
        assert run_on(root, server, "--concurrency", "3", "--verbose") == 2
        assert server.n_requests <= 3
        assert run_on(root, server, "--concurrency", "3") == 2
    out, err = capfd.readouterr()
    assert KEY not in out + err and KEY[-8:] not in out + err
    assert "error: " in err.splitlines()[-1] and "check OPEN_AI_KEY" in err.splitlines()[-1]
    assert not any(KEY.encode() in content for content in snapshot(root).values())


def test_the_key_is_in_no_log_and_no_file_even_when_everything_is_logged(
    root: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_answers(root, "sycophancy", ["answer 7", "answer 8", "echo"])
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with JudgeServer(Response(content=f"your key is {KEY}")) as server:
        run_on(root, server, "--verbose")
        assert server.arrived[0].headers["authorization"] == f"Bearer {KEY}"
    out, err = capfd.readouterr()
    assert KEY not in out + err
    assert not any(KEY.encode() in content for content in snapshot(root).values())


def test_without_a_key_nothing_is_sent_and_the_ways_out_are_named(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_answers(root, "sycophancy", ["answer"])
    monkeypatch.delenv("OPEN_AI_KEY")
    before = snapshot(root)
    assert scoring.main(["--root", str(root)]) == 2
    err = capsys.readouterr().err
    assert ".env" in err and "--base_url" in err
    assert snapshot(root) == before
    with JudgeServer() as server:
        assert run_on(root, server) == 0
        assert server.arrived[0].headers["authorization"] == "Bearer none-needed"


def test_the_disk_being_full_is_one_line(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_answers(root, "sycophancy", ["answer 7"])

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "scores.json")

    monkeypatch.setattr("utils.judge.score_files.write_json", full)
    with JudgeServer(score_in_answer) as server:
        assert run_on(root, server) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: scores.json: No space left")
        monkeypatch.undo()
        monkeypatch.setenv("OPEN_AI_KEY", KEY)
        assert run_on(root, server) == 0
        assert server.n_requests == 1


# --- cost ---------------------------------------------------------------------------------------------


def test_a_dry_run_counts_requests_tokens_and_cost_and_sends_and_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_answers(root, "sycophancy", ["a" * 4000, "b"], layer=1, multiplier=0.0)
    put_answers(root, "sycophancy", ["a" * 4000, "b"], layer=2, multiplier=0.0)
    monkeypatch.delenv("OPEN_AI_KEY")
    before = snapshot(root)
    with JudgeServer() as server:
        assert run_on(root, server, "--dry_run", "--price", "1000", "0") == 0
        out = capsys.readouterr().out
        assert server.n_requests == 0
    assert snapshot(root) == before
    n_files, n_requests, tokens_in, cost = re.search(  # type: ignore[union-attr]
        r"(\d+) files to score: (\d+) requests .* about (\d+) tokens in \(characters / 4\).* roughly ([\d.]+) USD", out
    ).groups()
    said = "".join(
        message["content"]
        for index, answer in enumerate(["a" * 4000, "b"])
        for message in messages(bundled("sycophancy"), f"sycophancy question {index}?", answer)
    )
    assert (int(n_files), int(n_requests), int(tokens_in)) == (2, 2, round(len(said) / 4))
    assert float(cost) == pytest.approx(len(said) / 4 / 1000, abs=1e-3)


def test_a_dry_run_leaves_out_what_an_interrupted_run_has_kept(root: Path, capsys: pytest.CaptureFixture) -> None:
    put_answers(root, "sycophancy", ["answer 1", "doomed", "answer 3"])

    def respond(request: Request) -> Response:
        return Response(status=500) if request.answer == "doomed" else score_in_answer(request)

    with JudgeServer(respond) as server:
        run_on(root, server, "--max_retries", "0")
        before = snapshot(root)
        assert run_on(root, server, "--dry_run") == 0
        assert snapshot(root) == before
    assert "1 files to score: 1 requests" in capsys.readouterr().out


def test_a_run_stops_before_its_cost_passes_the_limit_and_goes_on_later(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    name = put_answers(root, "sycophancy", [f"answer {index % 10}" for index in range(40)])
    price = ["--price", "1", "1"]
    with JudgeServer(lambda request: Response(content=request.answer[-1], usage=(400, 2), stall=0.02)) as server:
        assert run_on(root, server, *price, "--max_cost", "0.01", "--concurrency", "4") == 1
        cost = 402e-6 * server.n_requests
        assert 0.007 < cost <= 0.01
        assert server.most_in_flight > 1
        err = capsys.readouterr().err
        assert "stopped: another request could pass --max_cost" in err
        assert f"{40 - server.n_requests} answers are left" in err
        assert f"unscored; {cost:.4f} USD" in err
        assert run_on(root, server, *price, "--max_cost", "1") == 0
        assert server.n_requests == 40
    assert read_scores(root, "sycophancy", name) == [float(index % 10) for index in range(40)]


def test_a_limit_without_a_price_is_refused(root: Path, capsys: pytest.CaptureFixture) -> None:
    put_answers(root, "sycophancy", ["answer 1"])
    with JudgeServer() as server:
        assert run_on(root, server, "--judge_model", "mine", "--max_cost", "1") == 2
        assert "--price IN OUT" in capsys.readouterr().err
        assert run_on(root, server, "--judge_model", "mine", "--dry_run") == 0
        assert "unknown cost" in capsys.readouterr().out
        assert run_on(root, server, "--judge_model", "mine") == 0
        assert "cost unknown" in capsys.readouterr().err
        assert server.n_requests == 1


def test_as_many_requests_are_in_flight_as_asked_for_and_no_more(root: Path) -> None:
    put_answers(root, "sycophancy", [f"answer {index}" for index in range(30)])
    with JudgeServer(Response(stall=0.05)) as server:
        run_on(root, server, "--concurrency", "6")
        assert server.most_in_flight == 6


# --- processes ----------------------------------------------------------------------------------------


def start(root: Path, server: JudgeServer, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "scoring.py"), "--root", str(root), "--base_url", server.url, *flags]
    environment = {**os.environ, "OPEN_AI_KEY": KEY}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_ctrl_c_ends_the_run_at_once_and_what_was_scored_is_kept(root: Path) -> None:
    name = put_answers(root, "sycophancy", [f"answer {index}" for index in range(8)])

    def respond(request: Request) -> Response:
        return score_in_answer(request) if request.answer < "answer 4" else Response(stall=30)

    with JudgeServer(respond) as server:
        process = start(root, server, "--concurrency", "2")
        while server.n_requests < 6:
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert time.monotonic() - begin < 2.0
        assert process.returncode == 130
        assert "to go on, run: ./scoring.py" in err and "Traceback" not in err and KEY not in err
        server.respond, n_before = score_in_answer, server.n_requests
        assert run_on(root, server) == 0
        assert {request.answer for request in server.arrived[n_before:]} == {f"answer {index}" for index in range(4, 8)}
    assert read_scores(root, "sycophancy", name) == [float(index) for index in range(8)]


def test_two_processes_at_once_ask_for_nothing_twice(root: Path) -> None:
    name = put_answers(root, "sycophancy", [f"answer {index}" for index in range(10)])
    second_waits = threading.Event()

    def respond(request: Request) -> Response:
        second_waits.wait(20)
        return score_in_answer(request)

    with JudgeServer(respond) as server:
        first = start(root, server, "--concurrency", "2")
        while server.n_requests < 2:
            time.sleep(0.01)
        second = start(root, server, "--concurrency", "2")
        assert second.stderr is not None
        waited = any("another process is at work on this" in line for line in second.stderr)
        second_waits.set()
        _, err = second.communicate(timeout=30)
        first.communicate(timeout=30)
        assert waited
        assert (first.returncode, second.returncode) == (0, 0)
        assert server.n_requests == 10
    assert "wrote 0 score files, skipped 1" in err
    assert read_scores(root, "sycophancy", name) == [float(index) for index in range(10)]
    assert left_over(root) == []
