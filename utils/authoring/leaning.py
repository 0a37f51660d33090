"""How far an answer leans towards a behavior, without a judge: which of two system prompts it is likelier under.

    leaning(a) = log p(a | q, prompt for) - log p(a | q, prompt against)         nats per token of a

under the model without steering. It is a likelihood ratio: above 0 the answer looks as if the prompt for the behavior
had led to it. It does not depend on any vector, so that it may say what a vector does.
"""

import math
from collections.abc import Sequence

import numpy as np

from utils.behaviors import SystemPrompts
from utils.evaluation.metrics import FloatArray
from utils.model.chat_format import ChatFormat
from utils.model.perplexity import FreeAnswer, perplexities
from utils.model.runtime import Runtime


def leanings(
    runtime: Runtime,
    chat_format: ChatFormat,
    answered: Sequence[tuple[str, str]],
    prompts: Sequence[SystemPrompts],
    batch_size: int | None = None,
) -> FloatArray:
    """Of each question with its answer, under its own pair of system prompts.

    Args:
        runtime: The model.
        chat_format: Its prompts.
        answered: Questions and answers.
        prompts: One pair an answer.
        batch_size: Answers in one pass; None for as many as fit.

    Returns:
        [n_answers] nats per token; NaN for an answer without text.
    """
    sides = [[FreeAnswer(q, a, one.pos) for (q, a), one in zip(answered, prompts, strict=True)]]
    sides.append([FreeAnswer(q, a, one.neg) for (q, a), one in zip(answered, prompts, strict=True)])
    found = perplexities(runtime, chat_format, [*sides[0], *sides[1]], batch_size)
    logs = np.array([math.nan if one is None else -math.log(one) for one in found])
    return logs[: len(answered)] - logs[len(answered) :]
