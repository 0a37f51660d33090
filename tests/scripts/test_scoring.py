"""scoring.py from the command line against a judge on loopback: what it scores, writes and leaves alone."""

import json
import re
from pathlib import Path

import pytest

import scoring
from tests.answers import left_over, put_answers, read_scores, run_on, score_in_answer, scores_path, use_test_key
from tests.judge_server import JudgeServer, Response
from tests.reference import reference_path
from tests.roots import put_json, snapshot
from utils.files.provenance import read_provenance


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_test_key(monkeypatch, tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


# --- what is written --------------------------------------------------------------------------------


def test_every_answer_of_every_behavior_is_scored_without_arguments(root: Path) -> None:
    first = put_answers(root, "sycophancy", ["answer 7", "answer 0", "answer 2.5"])
    second = put_answers(root, "refusal", ["answer 10"], layer=0, multiplier=-1.5)
    put_json(root / "results" / "refusal" / first.replace("open_ended", "ab").replace("sycophancy", "refusal"), [])
    with JudgeServer(score_in_answer) as server:
        assert run_on(root, server) == 0
    written = json.loads(scores_path(root, "sycophancy", first).read_text())
    answers = json.loads((root / "results" / "sycophancy" / first).read_text())
    assert written == [{**record, "score": score} for record, score in zip(answers, [7.0, 0.0, 2.5], strict=True)]
    assert all(isinstance(record["score"], float) for record in written)
    assert list(written[0]) == ["question", "model_output", "raw_model_output", "score"]
    assert scores_path(root, "sycophancy", first).read_text() == json.dumps(written, indent=4)
    assert read_scores(root, "refusal", second) == [10.0]
    assert left_over(root) == []


def test_each_behavior_is_judged_by_its_own_rubric(root: Path) -> None:
    put_answers(root, "survival-instinct", ["Goodbye."])
    put_answers(root, "refusal", ["No."])
    with JudgeServer() as server:
        run_on(root, server)
        systems = {request.answer: request.body["messages"][0]["content"] for request in server.arrived}
    assert "shut down" in systems["Goodbye."] and "decline" in systems["No."]


def test_the_record_of_the_run_stands_beside_the_scores(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer 7", "none"])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server, "--judge_model", "my-judge")
        url = server.url
    made = read_provenance(scores_path(root, "sycophancy", name))
    assert made is not None
    assert (made["judge_model"], made["judge_answered_as"], made["base_url"]) == ("my-judge", ["served-model-1"], url)
    assert (made["n_answers"], made["n_scored"], made["n_unscored"]) == (2, 1, 1)
    assert made["parameters"] == {"temperature": 0, "max_tokens": 16}
    assert re.fullmatch("[0-9a-f]{64}", made["rubric_sha256"])


def test_the_default_judge_is_asked_without_thinking(root: Path) -> None:
    put_answers(root, "sycophancy", ["answer 7"])
    with JudgeServer() as server:
        run_on(root, server)
        body = server.arrived[0].body
    assert (body["model"], body["temperature"], body["reasoning_effort"]) == ("gpt-6-luna", 0, "none")


def test_an_unscored_answer_is_null_with_its_reply_and_reason(root: Path, capsys: pytest.CaptureFixture) -> None:
    replies = {"a": "", "b": "eleven", "c": "x" * 10_000, "d": "3 or 4", "e": "12"}
    name = put_answers(root, "sycophancy", ["answer 7", *replies])
    with JudgeServer(lambda request: Response(content=replies.get(request.answer, "7"))) as server:
        assert run_on(root, server) == 0
        assert server.n_requests == 1 + 2 * len(replies)
        assert all(request.is_second == (request.nth == 1) for request in server.arrived)
    scored, *unscored = json.loads(scores_path(root, "sycophancy", name).read_text())
    assert scored["score"] == 7.0 and "judge_reply" not in scored
    assert [record["score"] for record in unscored] == [None] * 5
    assert [record["judge_reply"] for record in unscored] == [reply[:500] for reply in replies.values()]
    assert [record["unscored_reason"] for record in unscored] == [
        "empty reply",
        "no number",
        "reply longer than 500 characters",
        "more than one number",
        "not from 0 to 10",
    ]
    assert "1 answers scored, 5 unscored" in capsys.readouterr().err


def test_a_bad_reply_is_asked_again_once_and_the_second_reply_counts(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer"])
    with JudgeServer(lambda request: Response(content="4" if request.is_second else "four")) as server:
        assert run_on(root, server) == 0
        assert server.n_requests == 2
    assert read_scores(root, "sycophancy", name) == [4.0]


def test_a_response_that_is_no_json_is_unscored_after_two_tries_and_kept(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer"])
    with JudgeServer(Response(raw="<html>" + "x" * 1000)) as server:
        assert run_on(root, server) == 0
        assert server.n_requests == 2
    (record,) = json.loads(scores_path(root, "sycophancy", name).read_text())
    assert record["score"] is None
    assert record["judge_reply"] == "<html>" + "x" * 494
    assert record["unscored_reason"] == "the response is not a chat completion"


def test_equal_answers_are_asked_once_and_written_everywhere(root: Path) -> None:
    names = [put_answers(root, "sycophancy", ["answer 7", "answer 3"], layer, 0.0) for layer in (1, 2, 3)]
    other = put_answers(root, "sycophancy", ["answer 7", "answer 3", "answer 3"])
    with JudgeServer(score_in_answer) as server:
        assert run_on(root, server) == 0
        assert server.n_requests == 3
    assert [read_scores(root, "sycophancy", name) for name in names] == [[7.0, 3.0]] * 3
    assert read_scores(root, "sycophancy", other) == [7.0, 3.0, 3.0]


def test_scores_that_the_answers_carry_already_are_replaced(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer 7"])
    path = root / "results" / "sycophancy" / name
    put_json(path, [{**record, "score": 1.0, "judge_reply": "old"} for record in json.loads(path.read_text())])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server)
    (record,) = json.loads(scores_path(root, "sycophancy", name).read_text())
    assert record["score"] == 7.0 and "judge_reply" not in record


# --- what is left out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], {"a", "b", "c", "d", "e", "f"}),
        (["--behaviors", "refusal"], {"f"}),
        (["--layers", "14"], {"b"}),
        (["--multipliers", "-1"], {"c"}),
        (["--layers", "13", "--multipliers", "1", "0.5"], {"a", "d", "e", "f"}),
        (["--model_size", "7b"], {"a", "b", "c", "d", "f"}),
        (["--model", "some/where/tiny-chat/"], {"e"}),
        (["--use_base_model"], {"d"}),
    ],
)
def test_flags_narrow_what_is_scored(root: Path, flags: list[str], asked: set[str]) -> None:
    put_answers(root, "sycophancy", ["a"])
    put_answers(root, "sycophancy", ["b"], layer=14)
    put_answers(root, "sycophancy", ["c"], multiplier=-1.0)
    put_answers(root, "sycophancy", ["d"], use_base_model=True)
    put_answers(root, "sycophancy", ["e"], model="tiny-chat")
    put_answers(root, "refusal", ["f"])
    with JudgeServer() as server:
        assert run_on(root, server, *flags) == 0
        assert {request.answer for request in server.arrived} == asked


def test_a_second_run_asks_for_nothing_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture) -> None:
    put_answers(root, "sycophancy", ["answer 7", "none"])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server)
        n_requests, before = server.n_requests, snapshot(root)
        assert run_on(root, server) == 0
        assert server.n_requests == n_requests
    assert snapshot(root) == before
    err = capsys.readouterr().err
    assert "wrote 0 score files, skipped 1 that have scores" in err
    assert "1 answers there are unscored; --retry_unscored" in err


def test_overwrite_scores_again_and_goes_on_where_it_was_interrupted(root: Path) -> None:
    names = [put_answers(root, "sycophancy", ["answer 7", "answer 8"], layer) for layer in (1, 2)]
    with JudgeServer(Response(content="1")) as server:
        run_on(root, server)
        server.respond = lambda r: Response(status=500) if r.answer == "answer 8" else Response(content="2")
        assert run_on(root, server, "--overwrite", "--max_retries", "0") == 1
        assert [read_scores(root, "sycophancy", name) for name in names] == [[1.0, 1.0]] * 2
        server.respond = Response(content="3")
        assert run_on(root, server, "--overwrite") == 0
        # layers 1 and 2 hold the same answers: two at first, two of which one failed, then that one
        assert server.n_requests == 5
        assert [read_scores(root, "sycophancy", name) for name in names] == [[2.0, 3.0]] * 2
        assert left_over(root) == []
        assert run_on(root, server, "--overwrite") == 0
        assert server.n_requests == 7
    assert [read_scores(root, "sycophancy", name) for name in names] == [[3.0, 3.0]] * 2


def test_only_unscored_answers_are_retried_and_only_when_asked_to(root: Path) -> None:
    name = put_answers(root, "sycophancy", ["answer 7", "answer x", "answer y"])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server)
        server.respond = lambda request: Response(content="5" if request.answer == "answer x" else "still not")
        n_before = server.n_requests
        assert run_on(root, server, "--retry_unscored") == 0
        assert [request.answer for request in server.arrived[n_before:]].count("answer x") == 1
        assert "answer 7" not in {request.answer for request in server.arrived[n_before:]}
    records = json.loads(scores_path(root, "sycophancy", name).read_text())
    assert [record["score"] for record in records] == [7.0, 5.0, None]
    assert "judge_reply" not in records[1] and records[2]["judge_reply"] == "still not"


def test_another_judge_does_not_fill_gaps_in_a_file(root: Path, capsys: pytest.CaptureFixture) -> None:
    name = put_answers(root, "sycophancy", ["answer 7", "answer x"])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server, "--judge_model", "one")
        before, n_before = snapshot(root), server.n_requests
        assert run_on(root, server, "--judge_model", "two", "--retry_unscored") == 1
        assert (snapshot(root), server.n_requests) == (before, n_before)
        assert f"{name} as it is: another judge scored it" in capsys.readouterr().err
        assert run_on(root, server, "--judge_model", "two") == 0
    assert "1 of the files that have scores were scored by another judge" in capsys.readouterr().err


def test_scores_of_answers_that_have_changed_are_named_and_left_alone(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    name = put_answers(root, "sycophancy", ["answer 7"])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server)
        put_answers(root, "sycophancy", ["answer 9"])
        assert run_on(root, server) == 1
        assert read_scores(root, "sycophancy", name) == [7.0]
        assert "it scores other answers than there are now; --overwrite" in capsys.readouterr().err
        assert run_on(root, server, "--overwrite") == 0
    assert read_scores(root, "sycophancy", name) == [9.0]


@pytest.mark.parametrize("damage", ["", "[", '[{"question": "q"}]'])
def test_a_score_file_that_was_left_empty_or_torn_is_made_again(root: Path, damage: str) -> None:
    name = put_answers(root, "sycophancy", ["answer 7"])
    scores_path(root, "sycophancy", name).parent.mkdir(parents=True)
    scores_path(root, "sycophancy", name).write_text(damage)
    with JudgeServer(score_in_answer) as server:
        assert run_on(root, server) == 0
    assert read_scores(root, "sycophancy", name) == [7.0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("[", "not valid JSON"),
        ("[]", "the list is empty"),
        ('[{"question": "q"}]', "item 0: key 'model_output'"),
        ('[{"question": 1, "model_output": "a"}]', "item 0: key 'question'"),
    ],
)
def test_a_broken_result_file_is_named_and_the_others_are_scored(
    root: Path, capsys: pytest.CaptureFixture, damage: str, said: str
) -> None:
    broken = put_answers(root, "sycophancy", ["answer 1"], layer=1)
    whole = put_answers(root, "sycophancy", ["answer 2"], layer=2)
    (root / "results" / "sycophancy" / broken).write_text(damage)
    with JudgeServer(score_in_answer) as server:
        assert run_on(root, server) == 1
    assert read_scores(root, "sycophancy", whole) == [2.0]
    assert not scores_path(root, "sycophancy", broken).exists()
    err = capsys.readouterr().err
    assert broken in err and said in err and "failed 1" in err


def test_what_was_asked_for_and_is_not_there_is_named(root: Path, capsys: pytest.CaptureFixture) -> None:
    put_answers(root, "sycophancy", ["answer 1"])
    with JudgeServer() as server:
        assert run_on(root, server, "--behaviors", "sycophancy", "refusal", "--layers", "13", "15") == 0
        err = capsys.readouterr().err
        assert "no such open-ended results for --behaviors refusal" in err
        assert "no such open-ended results for --layers 15" in err
        assert run_on(root, server, "--layers", "15") == 2
        command = f"./prompting_with_steering.py --layers 15 --type open_ended --root {root}"
        assert f"run: {command}\n" in capsys.readouterr().err


def test_published_scores_are_recognised_and_their_gaps_counted(root: Path, capsys: pytest.CaptureFixture) -> None:
    n_missing = n_files = 0
    for path in sorted(reference_path("caa", "results", "open_ended_scores").rglob("results_*.json")):
        records = json.loads(path.read_text())
        n_missing += sum("score" not in record for record in records)
        n_files += 1
        for folder in ("results", "results/open_ended_scores"):
            put_json(root / folder / path.parent.name / path.name, records)
    assert n_missing == 6
    with JudgeServer() as server:
        assert run_on(root, server) == 0
        assert server.n_requests == 0
    err = capsys.readouterr().err
    assert f"skipped {n_files} that have scores" in err and "6 answers there are unscored" in err


def test_help_names_every_flag(capsys: pytest.CaptureFixture) -> None:
    assert scoring.main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in (
        "--judge_model",
        "--base_url",
        "--max_cost",
        "--dry_run",
        "--agreement",
        "--retry_unscored",
        "--layers",
    ):
        assert flag in text


def test_agreement_needs_no_key_and_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPEN_AI_KEY")
    folder = root.parent / "scores" / "sycophancy"
    put_json(
        folder
        / "results_layer=3_multiplier=1.0_behavior=sycophancy_type=open_ended_use_base_model=False_model_size=7b.json",
        [{"question": f"q{score}", "model_output": "a", "score": float(score)} for score in range(8)],
    )
    assert scoring.main(["--root", str(root), "--agreement", str(folder), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "1.000 [1.000, 1.000]" in out and "100.0%" in out
    assert snapshot(root) == {}
    assert scoring.main(["--agreement", str(folder), str(root)]) == 2
    assert "no open-ended score file of the same name" in capsys.readouterr().err
    assert scoring.main(["--agreement", str(folder), str(root / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_second_judge_scores_into_a_folder_of_its_own(root: Path, capsys: pytest.CaptureFixture) -> None:
    name = put_answers(root, "sycophancy", [f"answer {index}" for index in range(6)])
    with JudgeServer(score_in_answer) as server:
        run_on(root, server)
        server.respond = lambda request: Response(content=str(min(10, int(request.answer[-1]) + 2)))
        assert run_on(root, server, "--judge_model", "two", "--scores_dir", str(root / "second")) == 0
    assert read_scores(root, "sycophancy", name) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert (root / "second" / "sycophancy" / name).exists()
    first = root / "results" / "open_ended_scores"
    assert scoring.main(["--agreement", str(first), str(root / "second")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sycophancy"))
    assert line.split()[1:] == ["6", "1.000", "[1.000,", "1.000]", "1.000", "+2.000", "0.0%"]
