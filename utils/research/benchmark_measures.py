"""What is measured of a subject: a model, with or without steering, asked in one framing or another."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.data.records import ChoiceItem, TextPair, load_records, record_text
from utils.evaluation.answer_metrics import DISTINCT_2, measure_text, measures_of
from utils.evaluation.preferences import answer_pair
from utils.evaluation.preferences import preferences as answer_preferences
from utils.model import processes
from utils.model.answer_scoring import score_rows
from utils.model.chat_format import AnswerTokens
from utils.model.conditions import opened
from utils.model.generation import GenerationRow
from utils.model.pairs import encode_answer
from utils.model.side_effects import measure_kl
from utils.model.steering import Steerings
from utils.research.benchmark_methods import PLAIN, Framing
from utils.vectors.norms import neutral_texts_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.behaviors import Metric
    from utils.paths import DataPaths

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
ROWS = 8
"""Neutral texts in one pass."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is asked."""

    model: "LlamaWrapper"
    steering: Steerings = None
    framing: Framing = PLAIN

    def is_plain(self, base: "LlamaWrapper") -> bool:
        """Whether it is the base model as it is."""
        return self.model is base and self.steering is None and self.framing == PLAIN

    def answer(self, question: str, answer: str) -> AnswerTokens:
        """Question and answer as this subject is asked."""
        framing = self.framing
        return encode_answer(self.model.chat_format, framing.before + question, answer, framing.system_prompt)


def _together(subjects: Sequence[Subject]) -> Iterator[list[int]]:
    """Places of the subjects that differ in their steering only."""
    groups: dict[tuple[int, Framing], list[int]] = {}
    for place, subject in enumerate(subjects):
        groups.setdefault((id(subject.model), subject.framing), []).append(place)
    yield from groups.values()


def _collected(scores: Iterator[tuple[int, Tensor]]) -> dict[int, Tensor]:
    """Of all processes."""
    return {index: one for part in processes.gather(list(scores)) for index, one in part}


def preferences(subjects: Sequence[Subject], items: Sequence[TextPair], batch_size: int | None = None) -> FloatArray:
    """Log-probability per token of each item's matching answer minus that of the other, [n_subjects, n_items]."""
    found = np.empty((len(subjects), len(items)))
    for places in _together(subjects):
        one = subjects[places[0]]
        framing = one.framing
        pairs = [answer_pair(one.model.chat_format, item, framing.before, framing.system_prompt) for item in items]
        found[places] = answer_preferences(one.model, pairs, [subjects[place].steering for place in places], batch_size)
    return found


def log_odds(subjects: Sequence[Subject], items: Sequence[ChoiceItem], *, both_orders: bool = False) -> FloatArray:
    """Log-odds of each item's target letter against the other, [n_subjects, n_items]; in both orders: their mean."""
    asked = [*items, *(item.exchanged() for item in items)] if both_orders else list(items)
    found = np.empty((len(subjects), len(asked)))
    for places in _together(subjects):
        one = subjects[places[0]]
        encode, letter_id = one.model.chat_format.encode_choice, one.model.chat_format.letter_id
        prompts = [encode(one.framing.before + item.question, one.framing.system_prompt) for item in asked]
        letters = [[letter_id(item.target_letter), letter_id(item.other_letter)] for item in asked]
        steerings = [subjects[place].steering for place in places]
        for index, scores in _collected(one.model.score(prompts, steerings, letters)).items():
            logs = scores.double().clamp(min=1e-30).log()
            found[places, index] = (logs[:, 0] - logs[:, 1]).numpy()
    return (found[:, : len(items)] + found[:, len(items) :]) / 2 if both_orders else found


@torch.no_grad()
def kl_per_token(
    base: "LlamaWrapper", subject: Subject, questions: Sequence[str], answers: Sequence[AnswerTokens]
) -> Tensor:
    """KL(base || subject) of the next-token distributions at every token of the base's answers, [n_tokens], nats."""
    if subject.model is base and subject.framing == PLAIN:
        return measure_kl(base, answers, [subject.steering]).kl[0]
    parts = []
    framing = subject.framing
    for question, answer in zip(questions, answers, strict=True):
        own = answer.ids[len(answer) - answer.n_answer :]
        prompt = subject.model.chat_format.encode(framing.before + question, None, framing.system_prompt)
        expected = _log_probabilities(base, answer.ids, answer.n_answer)
        found = _log_probabilities(subject.model, (*prompt.ids, *own), answer.n_answer)
        parts.append((expected.exp() * (expected - found)).sum(-1).clamp(min=0))
    return torch.cat(parts)


def _log_probabilities(model: "LlamaWrapper", ids: Sequence[int], n: int) -> Tensor:
    logits = model.model(
        input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=n + 1
    ).logits[0, :-1]
    return logits.float().log_softmax(-1).cpu()


def neutral_texts(paths: "DataPaths") -> list[tuple[str, str]]:
    """Question and answer of each."""
    path = neutral_texts_path(paths)
    return [
        (record_text(record, "question", path, index), record_text(record, "answer", path, index))
        for index, record in enumerate(load_records(path, ""))
    ]


def text_log_probabilities(subjects: Sequence[Subject], paths: "DataPaths", n: int) -> FloatArray:
    """Mean log-probability per token of the neutral texts' answers, [n_subjects, n_texts], in nats."""
    texts = neutral_texts(paths)[:n]
    starts = [(place, start) for place in range(len(subjects)) for start in range(0, len(texts), ROWS)]
    own: dict[tuple[int, int], FloatArray] = {}
    for number, (place, start) in enumerate(starts):
        if processes.is_mine(number):
            subject = subjects[place]
            some = [subject.answer(question, answer) for question, answer in texts[start : start + ROWS]]
            steerings = [opened(subject.model, answer, [subject.steering])[0] for answer in some]
            own[place, start] = score_rows(subject.model.runtime, some, steerings).double().numpy()
    found = np.empty((len(subjects), len(texts)))
    for share in processes.gather(own):
        for (place, start), scores in share.items():
            found[place, start : start + len(scores)] = scores
    return found


@dataclass(frozen=True)
class FreeAnswers:
    """Answers of one subject in its own words."""

    questions: list[str]
    texts: list[str]
    metric: list[float | None]
    """The behavior's own measure of each; empty where it has none."""
    distinct_2: list[float | None]
    tokens_per_second: float


def free_answers(subject: Subject, questions: Sequence[str], n_tokens: int, metric: "Metric | None") -> FreeAnswers:
    """Answer open-ended questions, greedily."""
    encode, framing = subject.model.chat_format.encode, subject.framing
    prompts = [encode(framing.before + question, None, framing.system_prompt) for question in questions]
    started = time.perf_counter()
    rows = [GenerationRow(prompt, subject.steering) for prompt in prompts]
    parts = processes.gather(list(subject.model.generate(rows, n_tokens)))
    answers = {index: answer for part in parts for index, answer in part}
    seconds = time.perf_counter() - started
    texts = [answers[index].text for index in range(len(questions))]
    measured = [measure_text(text, metric) for text in texts]
    own = measures_of(metric)[:1]
    return FreeAnswers(
        list(questions),
        texts,
        [_number(own[0].of(one)) for one in measured] if own else [],
        [_number(DISTINCT_2.of(one)) for one in measured],
        sum(len(answer.token_ids) for answer in answers.values()) / seconds,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
