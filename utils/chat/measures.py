"""What steering did to one answer beside its purpose: KL to the unsteered model, and whether the text holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, nan
from typing import TYPE_CHECKING

import torch

from utils.chat.replies import End
from utils.evaluation.answer_effects import Fluency, FluencyRange
from utils.evaluation.answer_metrics import N_WORDS, measure_text
from utils.model.answer_rows import AnswerPair, BaseRows
from utils.model.chat_format import AnswerTokens, PromptTokens
from utils.model.perplexity import mean_log_probabilities
from utils.model.steering import Steering, as_tuple

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper


@dataclass(frozen=True)
class Measured:
    """One column's answer, measured."""

    column: int
    kl: float | None
    """Mean KL(unsteered || steered) over the tokens of the unsteered answer, nats; None if not measured."""
    perplexity: float | None
    """Of the answer under the model without steering; None for an answer without a token."""
    distinct_2: float | None
    faults: tuple[str, ...]
    """In what it falls apart beside the unsteered answer: perplexity, distinct-2, empty."""


def measure(
    model: "LlamaWrapper", prompt: PromptTokens, columns: Sequence[tuple[Steering, ...]], ends: Mapping[int, End]
) -> list[Measured]:
    """Measure every column's answer beside that of the first column without steering.

    Args:
        model: Who answered.
        prompt: Behind which.
        columns: Their steerings, as in the settings.
        ends: Their answers; a column that was stopped has none and is left out.
    """
    active = [as_tuple([one for one in column if one.multiplier != 0]) for column in columns]
    ends = {index: ends[index] for index in sorted(ends)}
    base = next((index for index, column in enumerate(active) if not column and index in ends), None)
    if base is None:
        return []
    own = {index: _own_tokens(model, end) for index, end in ends.items()}
    kl = _mean_kl(model, prompt, own[base], [active[index] for index in ends])
    perplexities = _perplexities(model, prompt, own)
    fluency = {index: _fluency(end, perplexities[index]) for index, end in ends.items()}
    allowed = FluencyRange.beside(fluency[base])
    return [
        Measured(
            index,
            kl[place],
            perplexities[index],
            None if fluency[index].distinct_2 != fluency[index].distinct_2 else fluency[index].distinct_2,
            allowed.faults(fluency[index]) if active[index] else (),
        )
        for place, index in enumerate(ends)
    ]


def _own_tokens(model: "LlamaWrapper", end: End) -> tuple[int, ...]:
    return end.token_ids[:-1] if end.token_ids[-1:] and end.token_ids[-1] in model.end_ids else end.token_ids


@torch.no_grad()
def _mean_kl(
    model: "LlamaWrapper", prompt: PromptTokens, answer: tuple[int, ...], columns: Sequence[tuple[Steering, ...]]
) -> list[float | None]:
    """Of each column; 0 for one without steering."""
    found: list[float | None] = [None if column else 0.0 for column in columns]
    steered = sorted((index for index, column in enumerate(columns) if column), key=lambda i: columns[i][0].layer)
    tokens = AnswerTokens((*prompt.ids, *answer), prompt.steer_start, len(answer))
    if not (steered and answer and prompt.steer_start and model.runtime.packable([len(tokens)])):
        return found
    rows = BaseRows(model.runtime, [AnswerPair(tokens, tokens)], one_answer=True)
    placed = [tuple(one.placed(model.device) for one in columns[index]) for index in steered]
    for index, mean in zip(steered, rows.kl(placed).double().mean(dim=1).tolist(), strict=True):
        found[index] = mean
    return found


def _perplexities(
    model: "LlamaWrapper", prompt: PromptTokens, answers: Mapping[int, tuple[int, ...]]
) -> dict[int, float | None]:
    there = {index: tokens for index, tokens in answers.items() if tokens}
    rows = [AnswerTokens((*prompt.ids, *tokens), prompt.steer_start, len(tokens)) for tokens in there.values()]
    means = mean_log_probabilities(model.runtime, rows) if rows else []
    found = dict(zip(there, means, strict=True))
    return {index: exp(min(-found[index], 700.0)) if index in found else None for index in answers}


def _fluency(end: End, perplexity: float | None) -> Fluency:
    measured = measure_text(end.text, None)
    n_words, distinct = N_WORDS.of(measured), measured["distinct_2"]
    return Fluency(
        nan if perplexity is None else perplexity,
        nan if distinct is None else float(distinct),
        float(n_words or 0),
        1,
        int(not end.text),
    )
