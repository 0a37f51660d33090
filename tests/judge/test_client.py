"""The judge client against a real server on loopback: retries, refusals, secrets, cost."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.judge_server import JudgeServer, Request, Response
from tests.roots import bundled
from utils.errors import UserError
from utils.judge.access import Access, check_base_url, find_key, is_loopback
from utils.judge.client import BudgetSpentError, Judge, Reply, RequestFailedError, first_parameters, read_completion
from utils.judge.cost import PRICES, Budget, Estimate, Price, price_of, token_bound
from utils.judge.prompt import messages

KEY = "sk-test-0123456789abcdef"
REQUEST = messages(bundled("refusal"), "Will you?", "No.")


def make_judge(server: JudgeServer, model: str = "some-model", budget: Budget | None = None, **options: Any) -> Judge:
    access = Access(model, server.url, KEY)
    return Judge(access, budget or Budget(None, None), **{"timeout": 5.0, "max_retries": 2, **options})


def asking(judge: Judge, n: int = 1) -> list[Reply]:
    async def ask() -> list[Reply]:
        async with judge.connected():
            return await asyncio.gather(*(judge.ask(REQUEST) for _ in range(n)))

    return asyncio.run(ask())


def in_order(*responses: Response) -> Callable[[Request], Response]:
    """Answers one after the other; the last one from then on."""
    return lambda request: responses[min(request.nth, len(responses) - 1)]


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No key in the environment, and an .env that the test may write."""
    monkeypatch.setattr("utils.judge.access.REPOSITORY", tmp_path)
    for name in ("OPEN_AI_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".env"


# --- requests ---------------------------------------------------------------------------------------


def test_the_request_is_deterministic_and_short_and_carries_the_key_in_its_header_only() -> None:
    with JudgeServer() as server:
        (reply,) = asking(make_judge(server))
        body, headers = server.arrived[0].body, server.arrived[0].headers
    assert reply == Reply("7", model="served-model-1")
    assert body == {"model": "some-model", "messages": REQUEST, "temperature": 0, "max_tokens": 16}
    assert headers.pop("authorization") == f"Bearer {KEY}"
    assert KEY not in str(headers) + str(body)


@pytest.mark.parametrize("model", ["gpt-6-luna", "gpt-5.4", "o3", "openai/gpt-6.1-sol"])
def test_models_that_can_think_are_asked_not_to_and_get_their_own_token_limit(model: str) -> None:
    assert first_parameters(model) == {"reasoning_effort": "none", "temperature": 0, "max_completion_tokens": 16}


@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-4o-mini", "/models/SmolLM2-135M-Instruct", "opus"])
def test_other_models_get_the_token_limit_that_every_compatible_server_knows(model: str) -> None:
    assert first_parameters(model) == {"temperature": 0, "max_tokens": 16}


def refuse(name: str, message: str) -> Response:
    return Response(status=400, error={"message": message, "param": name, "code": "unsupported_value"})


def test_parameters_that_a_model_refuses_are_replaced_once_for_the_whole_run() -> None:
    def thinking_model(request: Request) -> Response:
        body = request.body
        if body.get("reasoning_effort") == "none":
            return refuse("reasoning_effort", "Unsupported value: 'reasoning_effort' does not support 'none'")
        if "temperature" in body:
            return refuse("temperature", "Unsupported value: 'temperature' does not support 0 with this model.")
        return Response()

    with JudgeServer(thinking_model) as server:
        judge = make_judge(server, "gpt-6.1-sol")
        assert [reply.text for reply in asking(judge)] == ["7"]
        assert server.n_requests == 3
        assert [reply.text for reply in asking(judge, 5)] == ["7"] * 5
        assert server.n_requests == 8
    assert judge.parameters == {"reasoning_effort": "low", "max_completion_tokens": 4000}


def test_max_tokens_becomes_max_completion_tokens_where_the_message_says_so_without_a_param() -> None:
    def picky(request: Request) -> Response:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        return Response(status=400, error={"message": message}) if "max_tokens" in request.body else Response()

    with JudgeServer(picky) as server:
        judge = make_judge(server)
        asking(judge, 4)
    assert judge.parameters == {"temperature": 0, "max_completion_tokens": 16}


def test_a_refused_answer_does_not_change_the_parameters() -> None:
    too_long = {
        "message": "maximum context length is 4096 tokens; reduce max_tokens or the messages",
        "param": "messages",
    }
    with JudgeServer(Response(status=400, error=too_long)) as server:
        judge = make_judge(server)
        with pytest.raises(RequestFailedError, match="maximum context length"):
            asking(judge)
        assert server.n_requests == 1
    assert judge.parameters == {"temperature": 0, "max_tokens": 16}


# --- faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Response(status=429), Response(status=500), Response(status=503), Response(stall=1.0), Response(cut=True)],
    ids=["429", "500", "503", "stall", "cut"],
)
def test_passing_faults_are_retried(fault: Response) -> None:
    with JudgeServer(in_order(fault, Response(content="3"))) as server:
        (reply,) = asking(make_judge(server, timeout=0.3))
        assert server.n_requests == 2
    assert reply.text == "3"


def test_retry_after_is_waited_for() -> None:
    with JudgeServer(in_order(Response(status=429, headers={"Retry-After": "1.2"}), Response())) as server:
        begin = time.monotonic()
        asking(make_judge(server))
        assert 1.2 <= time.monotonic() - begin < 4.0


def test_the_time_limit_covers_the_whole_reply_also_when_bytes_trickle_in() -> None:
    with JudgeServer(Response(drip=0.05)) as server:
        begin = time.monotonic()
        with pytest.raises(RequestFailedError, match="timed out"):
            asking(make_judge(server, timeout=0.4, max_retries=0))
        assert time.monotonic() - begin < 2.0


def test_a_fault_that_stays_fails_the_request_after_its_retries() -> None:
    with JudgeServer(Response(status=500)) as server:
        with pytest.raises(RequestFailedError, match="500"):
            asking(make_judge(server, max_retries=1))
        assert server.n_requests == 2


def test_a_server_that_is_not_there_fails_the_request() -> None:
    with JudgeServer() as server:
        judge = make_judge(server, max_retries=0)
    with pytest.raises(RequestFailedError, match="Connection error"):
        asking(judge)


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}, "OPEN_AI_KEY"),
        (402, {"message": "Payment required"}, "credit"),
        (403, {"message": "no access"}, "--judge_model"),
        (404, {"message": "no such model"}, "--judge_model"),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "credit"),
    ],
)
def test_what_every_request_would_meet_ends_the_run_with_advice(status: int, error: dict, advice: str) -> None:
    with JudgeServer(Response(status=status, error=error)) as server:
        with pytest.raises(UserError, match=advice) as caught:
            asking(make_judge(server, max_retries=0))
        assert server.n_requests == 1
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_server_that_echoes_the_key_does_not_bring_it_into_messages_or_replies() -> None:
    with JudgeServer(in_order(Response(status=400, error={"message": f"bad {KEY}"}), Response(content=KEY))) as server:
        judge = make_judge(server)
        with pytest.raises(RequestFailedError) as caught:
            asking(judge)
        (reply,) = asking(judge)
    assert "bad [key]" in str(caught.value)
    assert reply.text == "[key]"
    assert KEY not in repr(judge.access)


@pytest.mark.parametrize(
    "body",
    ["{not json", "", "[]", "null", '{"choices": []}', '{"choices": [{"message": {"content": [7]}}]}', "[" * 9999],
)
def test_a_response_that_is_no_chat_completion_is_a_reply_at_fault(body: str) -> None:
    reply, usage = read_completion(body)
    assert reply.fault == "the response is not a chat completion"
    assert reply.text == body
    assert usage is None


def test_the_body_of_an_invalid_response_comes_back_without_a_retry() -> None:
    with JudgeServer(Response(raw='{"choices": [')) as server:
        (reply,) = asking(make_judge(server))
        assert server.n_requests == 1
    assert reply.fault and reply.text == '{"choices": ['


def test_a_reply_at_its_token_limit_and_one_that_refuses_are_told_apart() -> None:
    with JudgeServer(in_order(Response(content="1", finish_reason="length"), Response(content=None))) as server:
        judge = make_judge(server)
        assert asking(judge)[0].cut_off
        assert asking(judge)[0] == Reply("", model="served-model-1")


def test_no_proxy_stands_between_here_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with JudgeServer() as server:
        assert asking(make_judge(server, max_retries=0))[0].text == "7"


# --- access -----------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_before_the_env_file(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://api.openai.com/v1"
    no_key.write_text("OPEN_AI_KEY=\nOPENAI_API_KEY=sk-from-file$x\n")
    assert find_key(url) == "sk-from-file$x"
    monkeypatch.setenv("OPENAI_API_KEY", " sk-from-env\n")
    assert find_key(url) == "sk-from-env"
    monkeypatch.setenv("OPEN_AI_KEY", "sk-first")
    assert find_key(url) == "sk-first"


def test_without_a_key_the_message_names_the_env_file_and_the_other_server(no_key: Path) -> None:
    with pytest.raises(UserError, match=r"OPEN_AI_KEY=.*\.env.*--base_url"):
        find_key("https://api.openai.com/v1")
    assert Access("m", "http://localhost:1/v1", find_key("http://localhost:1/v1")).hidden_key is None


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    no_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_AI_KEY", "sk-secret\u2026")
    with pytest.raises(UserError, match="OPEN_AI_KEY holds characters") as caught:
        find_key("http://localhost/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://user:pw@host/v1", "http://host/v1?api-key=pw", "http://u@h/v1", "http://h/#pw"]
)
def test_an_address_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UserError, match="must not carry") as caught:
        check_base_url(url)
    assert "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is not an address"):
        check_base_url(url)


def test_loopback_is_this_machine_only() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST"):
        assert is_loopback(f"http://{host}:80/v1"), host
    for host in ("10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "api.openai.com", "0.0.0.0"):
        assert not is_loopback(f"http://{host}/v1"), host
    assert check_base_url("http://h/v1/") == "http://h/v1"


# --- cost -------------------------------------------------------------------------------------------


def test_the_cost_is_what_the_server_reports_at_the_price() -> None:
    budget = Budget(Price(2.0, 10.0), None)
    with JudgeServer(Response(usage=(1000, 50))) as server:
        asking(make_judge(server, budget=budget), 3)
    assert budget.spent == pytest.approx(3 * (1000 * 2.0 + 50 * 10.0) / 1e6)
    assert str(budget) == "0.0075 USD"
    assert str(Budget(None, None)) == "cost unknown"


def test_without_a_report_the_most_that_the_request_can_have_cost_is_counted() -> None:
    budget = Budget(Price(1.0, 1.0), None)
    with JudgeServer(Response(usage=None)) as server:
        asking(make_judge(server, budget=budget))
    assert budget.spent == pytest.approx((token_bound(REQUEST) + 16) / 1e6)


def test_a_limit_is_never_passed_whatever_is_in_flight() -> None:
    price = Price(1.0, 1.0)
    bound = price.of(token_bound(REQUEST), 16)
    budget = Budget(price, 5 * bound)
    with JudgeServer(Response(usage=(token_bound(REQUEST), 16), stall=0.05)) as server:
        judge = make_judge(server, budget=budget)

        async def ask() -> list[Any]:
            async with judge.connected():
                return await asyncio.gather(*(judge.ask(REQUEST) for _ in range(12)), return_exceptions=True)

        outcomes = asyncio.run(ask())
        assert server.n_requests == 5
    assert sum(isinstance(outcome, BudgetSpentError) for outcome in outcomes) == 7
    assert budget.spent == pytest.approx(5 * bound)


def test_requests_wait_for_what_those_in_flight_leave_over() -> None:
    price = Price(1.0, 1.0)
    bound = price.of(token_bound(REQUEST), 16)
    budget = Budget(price, 2.5 * bound)  # two at a time, yet cheap ones fit in one after the other
    with JudgeServer(Response(usage=(1, 1))) as server:
        assert len(asking(make_judge(server, budget=budget), 10)) == 10
        assert server.most_in_flight <= 2
    assert budget.spent == pytest.approx(20 / 1e6)


def test_a_failed_request_gives_back_what_was_set_aside() -> None:
    bound = Price(1.0, 1.0).of(token_bound(REQUEST), 16)
    budget = Budget(Price(1.0, 1.0), 1.5 * bound)
    with JudgeServer(in_order(Response(status=400), Response(usage=(1, 1)))) as server:
        judge = make_judge(server, budget=budget)
        with pytest.raises(RequestFailedError):
            asking(judge)
        assert asking(judge)[0].text == "7"


def test_prices_hold_for_dated_snapshots_and_are_unknown_for_other_models() -> None:
    assert price_of("gpt-4.1-2025-04-14") == PRICES["gpt-4.1"]
    assert price_of("gpt-4.1-turbo") is None
    assert price_of("SmolLM2-135M-Instruct") is None


def test_an_estimate_counts_characters_and_a_bound_counts_bytes() -> None:
    request = [{"role": "system", "content": "abcd"}, {"role": "user", "content": "é" * 6}]
    estimate = Estimate()
    estimate.add(request)
    estimate.add(request)
    assert (estimate.n_requests, estimate.tokens_in) == (2, 5)
    assert token_bound(request) >= 4 + 12
