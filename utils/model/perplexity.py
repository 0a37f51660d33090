"""How likely free answers are to the model without steering."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.files.reading import short
from utils.model.answer_scoring import score_rows
from utils.model.chat_format import AnswerTokens, ChatFormat
from utils.model.runtime import Runtime

_LARGEST = 700.0
"""Nats a token beyond which nothing is a log-probability any more; exp of it is still a float."""


@dataclass(frozen=True)
class FreeAnswer:
    """An answer in the model's own words, and what it was asked."""

    question: str
    text: str
    system_prompt: str | None = None


def perplexities(
    runtime: Runtime, chat_format: ChatFormat, answers: Sequence[FreeAnswer], batch_size: int | None = None
) -> list[float | None]:
    """exp of minus the mean log-probability of each answer's tokens behind its prompt, without steering.

    The prompt is written in the model's own format, and the answer is tokenised behind it as text; the token that
    ended it, where one did, is not counted.

    Args:
        runtime: The model.
        chat_format: Its prompts.
        answers: What was asked and answered.
        batch_size: Answers in one pass; None for as many as fit.

    Returns:
        One an answer; None where it has no token of its own, or does not fit into the model's context.

    Raises:
        UserError: If a log-probability is not finite in the model's dtype.
    """
    encoded = [chat_format.encode(answer.question, answer.text, answer.system_prompt) for answer in answers]
    tokens = [AnswerTokens(one.ids, one.steer_start, one.n_steered - 1) for one in encoded]
    measurable = [index for index, one in enumerate(tokens) if one.n_answer and runtime.fits(len(one))]
    found: list[float | None] = [None] * len(answers)
    means = mean_log_probabilities(runtime, [tokens[index] for index in measurable], batch_size)
    for index, mean in zip(measurable, means, strict=True):
        if not abs(mean) < _LARGEST:
            raise UserError(
                f"the answer {short(answers[index].text)} has a log-probability that is not finite in "
                f"{runtime.dtype}; use --dtype float32"
            )
        found[index] = math.exp(-mean)
    return found


def mean_log_probabilities(
    runtime: Runtime, answers: Sequence[AnswerTokens], batch_size: int | None = None
) -> list[float]:
    """Mean log-probability in nats of each answer's tokens, without steering, in padded batches."""
    lengths = [len(answer) for answer in answers]
    runtime.check_lengths(lengths)

    def score_batch(batch: list[int]) -> list[float]:
        return score_rows(runtime, [answers[i] for i in batch], [None] * len(batch)).tolist()

    found: dict[int, float] = {}
    for group in runtime.apart(range(len(answers)), lengths):
        widths = [lengths[i] for i in group]
        for batch, means in runtime.batcher.run(group, widths, score_batch, batch_size, shared=False):
            found.update(zip(batch, means, strict=True))
    return [found[index] for index in range(len(answers))]
