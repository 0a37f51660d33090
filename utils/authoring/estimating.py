"""What the judge model will be asked, before anything is sent: requests, tokens, dollars."""

from typing import Any

from utils.authoring import grading
from utils.authoring.asking import PairsPart, Part, QuestionsPart, parts_of
from utils.authoring.grading import ASPECTS
from utils.authoring.request import AuthoringRequest
from utils.authoring.written import N_PROMPTS, N_QUESTIONS, Written
from utils.judge.cost import CHARS_PER_TOKEN, Estimate, Price

_CHARS_AN_ITEM = 100
"""Of what is written, roughly: a question with its topic; a system prompt has about as many."""
_CHARS_A_TOKEN_ANSWERED = 4
_RUBRIC_CHARS = 600


def estimate_run(request: AuthoringRequest, written: Written | None) -> str:
    """The requests of the steps that were asked for, if each reply can be used; in lines.

    Args:
        request: What to make.
        written: What is there already; None where it is to be written.
    """
    if request.judge is None:
        return "no request: nothing here asks a judge model"
    lines = []
    price = request.judge.price
    if written is None and "write" in request.steps and not request.template:
        lines.append(_line("to write", *_writing(request), price))
    if request.filter == "judge":
        n_answers = 0
        if "answer" in request.steps:
            n_prompts = len(written.system_prompts) if written else N_PROMPTS
            n_extract, n_evaluate = (len(written.extract), len(written.evaluate)) if written else (N_QUESTIONS,) * 2
            n_answers += 2 * (n_extract * n_prompts * request.num_samples + n_evaluate)
        if "demo" in request.steps:
            n_answers += N_QUESTIONS * (len(request.multipliers) + 4)
        lines.append(_line("to grade answers, at most", *_grading(request, n_answers, written), price))
    return "\n".join(lines) or "no request: nothing here asks a judge model"


def _writing(request: AuthoringRequest) -> tuple[Estimate, int]:
    """The requests, and the characters of the replies."""
    sentence, total = request.sentence or "", Estimate()
    parts: list[Part[Any]] = [
        *parts_of(sentence, request.opposite),
        QuestionsPart("evaluate", sentence, request.opposite, N_QUESTIONS),
    ]
    for part in parts:
        total.add(part.messages())
    n_chars = _CHARS_AN_ITEM * (2 * N_PROMPTS + 2 * N_QUESTIONS) + _RUBRIC_CHARS
    if request.n_written_pairs:
        pairs = PairsPart(sentence, request.opposite, request.n_written_pairs, ())
        for _ in range(0, request.n_written_pairs, pairs.most_at_once()):
            total.add(pairs.messages())
        n_chars += 3 * _CHARS_AN_ITEM * request.n_written_pairs
    return total, n_chars


def _grading(request: AuthoringRequest, n_answers: int, written: Written | None) -> tuple[Estimate, int]:
    rubric = (written.rubric if written else None) or "x" * _RUBRIC_CHARS
    answer = "x" * (_CHARS_A_TOKEN_ANSWERED * request.max_new_tokens)
    total = Estimate()
    for aspect in ASPECTS:
        one = Estimate()
        one.add(grading.messages(aspect, rubric, "x" * _CHARS_AN_ITEM, answer))
        total.n_requests += n_answers
        total.chars_in += n_answers * one.chars_in
    return total, CHARS_PER_TOKEN * total.n_requests


def _line(what: str, asked: Estimate, chars_out: int, price: Price | None) -> str:
    tokens_out = chars_out // CHARS_PER_TOKEN
    cost = f"{price.of(asked.tokens_in, tokens_out):.4f} USD" if price else "unknown cost (give --price IN OUT)"
    return (
        f"{what}: {asked.n_requests} requests, about {asked.tokens_in} tokens in (characters / {CHARS_PER_TOKEN}) and "
        f"{tokens_out} out, roughly {cost}"
    )
