"""The judge model: an OpenAI-compatible server that is asked for scores.

Retries and their back-off are the SDK's own. What is the same for every request (a refused key, an
unknown model) ends the run as a UserError; what concerns one answer is a RequestFailedError.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx2
import openai

from utils.errors import UserError
from utils.judge.access import Access, find_key, is_loopback
from utils.judge.cost import Budget, token_bound
from utils.judge.requests import JudgeFlags

log = logging.getLogger(__name__)

_REFUSAL = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed", re.IGNORECASE
)
REPLY_TOKENS = 16  # "I'd say 7 out of 10." and some room
_THINKING_TOKENS = 4000  # of a model that cannot be kept from thinking first

Message = dict[str, str]


class RequestFailedError(Exception):
    """One request failed for good; its message is fit to be shown."""


class BudgetSpentError(Exception):
    """The next request could pass --max_cost."""


@dataclass(frozen=True)
class Reply:
    """What the judge said."""

    text: str
    cut_off: bool = False
    """It ended at the token limit."""
    model: str | None = None
    """The model that the server says it was."""
    fault: str | None = None
    """Why the server's response is no reply at all; then `text` is its body."""
    first_tokens: tuple[tuple[str, float], ...] = ()
    """Likely first tokens of the reply with their log-probabilities, the one that it took first; empty where the
    server does not tell."""


class Judge:
    """A judge model with what is learnt about it during a run."""

    def __init__(
        self,
        access: Access,
        budget: Budget,
        *,
        timeout: float,
        max_retries: int,
        reply_tokens: int = REPLY_TOKENS,
        top_logprobs: int = 0,
    ) -> None:
        """
        Args:
            access: Server, model and key.
            budget: Counts the cost.
            timeout: Seconds for one request from its start to the reply's last byte.
            max_retries: Repeats of one request by the SDK.
            reply_tokens: The longest reply.
            top_logprobs: How many likely tokens to ask for, where the server tells them.
        """
        self.access, self.budget = access, budget
        self.parameters = first_parameters(access.model, reply_tokens)
        if top_logprobs:
            self.parameters |= {"logprobs": True, "top_logprobs": top_logprobs}
        self._timeout, self._max_retries = timeout, max_retries
        self._client: openai.AsyncOpenAI | None = None

    @classmethod
    def of(
        cls, flags: JudgeFlags, budget: Budget, *, reply_tokens: int = REPLY_TOKENS, top_logprobs: int = 0
    ) -> "Judge":
        """As the command line says; for the others see `Judge`.

        Raises:
            UserError: If there is no key, and the server is not on loopback.
        """
        access = Access(flags.model, flags.base_url, find_key(flags.base_url))
        log.info("judge: %s at %s", access.model, access.base_url)
        return cls(
            access,
            budget,
            timeout=flags.timeout,
            max_retries=flags.max_retries,
            reply_tokens=reply_tokens,
            top_logprobs=top_logprobs,
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold connections open; needed around `ask`."""
        transport = _PromptClient(trust_env=not is_loopback(self.access.base_url))  # no proxy to loopback
        transport.seconds = self._timeout
        self._client = openai.AsyncOpenAI(
            api_key=self.access.key,
            base_url=self.access.base_url,
            timeout=self._timeout,
            max_retries=self._max_retries,
            http_client=transport,
        )
        async with self._client:
            yield

    async def ask(self, request: Sequence[Message]) -> Reply:
        """Send one request.

        Raises:
            RequestFailedError: If it fails for good.
            BudgetSpentError: If it could pass the limit on the cost; nothing is sent.
            UserError: If every other request would fail likewise.
        """
        while True:
            parameters = self.parameters
            bound = self.budget.cost(token_bound(request), _reply_limit(parameters))
            if not await self.budget.reserve(bound):
                raise BudgetSpentError
            cost = 0.0
            try:
                body = await self._send(request, parameters)
                reply, usage = read_completion(body)
                cost = bound if usage is None else self.budget.cost(*usage)
                model = self._without_key(reply.model) if reply.model else None
                return replace(reply, text=self._without_key(reply.text), model=model)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as err:
                self._adapt(parameters, err)
            finally:
                self.budget.settle(bound, cost)

    async def _send(self, request: Sequence[Message], parameters: dict[str, Any]) -> str:
        """The response's body. Raises like `ask`, and the SDK's errors for a refused request."""
        assert self._client is not None, "ask outside of connected()"
        create = cast(Any, self._client.chat.completions.with_raw_response.create)  # plain dicts for its typed ones
        try:
            response = await create(model=self.access.model, messages=list(request), **parameters)
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except openai.APIStatusError as err:
            self._end_run(err)
            raise RequestFailedError(self._describe(err)) from None
        except openai.APIError as err:
            raise RequestFailedError(self._describe(err)) from None
        return str(response.http_response.text)

    def _adapt(self, sent: dict[str, Any], err: openai.APIStatusError) -> None:
        """Leave out or replace the parameter that the model refuses."""
        if sent is not self.parameters:
            return  # another request has met the same refusal meanwhile
        named = [name for name in sent if re.search(rf"\b{name}\b", err.param or err.message)]
        if not named or not _REFUSAL.search(f"{err.code} {err.message}"):
            raise RequestFailedError(self._describe(err)) from None
        refused = named[0]
        self.parameters = without_refused(sent, refused)
        log.info("the judge model does not take %s=%s; continuing with %s", refused, sent[refused], self.parameters)
        if refused == "temperature":
            log.warning("the judge model takes no temperature: its scores may differ from run to run")

    def _end_run(self, err: openai.APIStatusError) -> None:
        """Raise a UserError for what every other request would meet, too."""
        where, model = self.access.base_url, self.access.model
        reasons = {
            401: "refused the API key (401); check OPEN_AI_KEY in .env or the environment",
            402: "wants more credit on the account (402); add some and run again",
            403: f"does not let this key use {model!r} (403); choose another --judge_model",
            404: f"has no model {model!r} (404); check --judge_model and --base_url",
        }
        if err.code == "insufficient_quota":
            raise UserError(f"{where} {reasons[402]}") from None
        if err.status_code in reasons:
            raise UserError(f"{where} {reasons[err.status_code]}") from None

    def _describe(self, err: openai.APIError) -> str:
        kind = f"status {err.status_code}" if isinstance(err, openai.APIStatusError) else ""
        text = " ".join(self._without_key(err.message).split())[:160]
        return f"{kind}: {text}" if kind and not text.startswith("Error code") else text

    def _without_key(self, text: str) -> str:
        return text.replace(self.access.hidden_key, "[key]") if self.access.hidden_key else text


def first_parameters(model: str, reply_tokens: int = REPLY_TOKENS) -> dict[str, Any]:
    """Deterministic and short. What a model refuses of it is left out later, see `without_refused`."""
    if re.match(r"gpt-[5-9]|o[1-9]", model.rsplit("/", 1)[-1]):
        return {"reasoning_effort": "none", "temperature": 0, "max_completion_tokens": reply_tokens}
    return {"temperature": 0, "max_tokens": reply_tokens}


def without_refused(parameters: dict[str, Any], refused: str) -> dict[str, Any]:
    """The parameters to go on with. A model that must think first gets tokens to do so."""
    gone = ("logprobs", "top_logprobs") if refused == "logprobs" else (refused,)  # the second needs the first
    left = {name: value for name, value in parameters.items() if name not in gone}
    if refused == "reasoning_effort":
        thinking = {"reasoning_effort": "low"} if parameters[refused] == "none" else {}
        return {**thinking, **left, "max_completion_tokens": _THINKING_TOKENS}
    if refused == "max_tokens":
        return {**left, "max_completion_tokens": parameters[refused]}
    return left


def _reply_limit(parameters: dict[str, Any]) -> int:
    """Tokens that a reply may have."""
    return int(parameters.get("max_tokens") or parameters.get("max_completion_tokens") or _THINKING_TOKENS)


def read_completion(body: str) -> tuple[Reply, tuple[int, int] | None]:
    """The reply in a chat completion, and the tokens in and out that it reports (None where it does not).

    Compatible servers differ in what else they send, so nothing else is required.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError("the content is not text")
        is_cut_off = choice.get("finish_reason") == "length"
        reply = Reply(
            text, is_cut_off, _text_or_none(completion.get("model")), first_tokens=first_tokens(choice.get("logprobs"))
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Reply(body, fault="the response is not a chat completion"), None
    match completion.get("usage"):
        case {"prompt_tokens": int(tokens_in), "completion_tokens": int(tokens_out)} if min(tokens_in, tokens_out) >= 0:
            return reply, (tokens_in, tokens_out)
        case _:
            return reply, None


def first_tokens(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """The first token's part of a choice's `logprobs`; empty where there is none, or it is of another form."""
    match logprobs:
        case {"content": [{"token": str(token), "logprob": int() | float() as logprob, **rest}, *_]}:
            others = rest.get("top_logprobs") or ()
        case _:
            return ()
    found = {token: float(logprob)}
    for other in others if isinstance(others, list) else ():
        match other:
            case {"token": str(name), "logprob": int() | float() as value}:
                found.setdefault(name, float(value))
    return tuple((name, value) for name, value in found.items() if value <= 0.0)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class _PromptClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client whose time limit covers the whole request, also when bytes trickle in."""

    seconds: float = 60.0

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self.seconds):
                return await super().send(request, **options)
        except TimeoutError as err:
            raise httpx2.ReadTimeout("the request took too long", request=request) from err
