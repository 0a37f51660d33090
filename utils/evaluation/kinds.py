"""The kinds of questions that an evaluation asks: how the model is run on them, and what is recorded of an answer.

A new kind is a new class here and its entry in `KINDS`. Nothing in this module needs torch before a model is run.
"""
# ruff: noqa: ARG002  (every kind is given the same arguments)

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.data.records import (
    MATCHING_KEY,
    OTHER_KEY,
    ChoiceItem,
    TextPair,
    load_choice_items,
    load_questions,
    load_text_pairs,
    probability_key,
)
from utils.errors import UserError
from utils.model.chat_format import PromptTokens
from utils.settings import Orders, ResultType, SteeringSettings

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper
    from utils.evaluation.plan import SweepRequest
    from utils.model.steering import Steerings

Combination = tuple[int, float]  # layer, multiplier


T = TypeVar("T", bound=PromptTokens)


@dataclass(frozen=True)
class DistinctSteering:
    """A steering, and the combinations for which it stands (several for multiplier 0)."""

    steering: "Steerings"
    combinations: tuple[Combination, ...]


@dataclass(frozen=True)
class Asked:
    """What is asked of the model: every item under every steering."""

    request: "SweepRequest"
    settings: SteeringSettings
    system_prompt: str | None
    items: Sequence[Any]
    """As the kind loads them; an item of which several answers are drawn stands there as often."""
    steerings: Sequence[DistinctSteering]

    def placed(self, prompt: T) -> T:
        """The prompt, steered from where the settings say."""
        return replace(prompt, steer_start=0) if self.settings.steer_positions == "all" else prompt


class Questions(ABC):
    """One kind. Its answers are kept as journal entries, each under a number of its own.

    Here an entry is one item's answer under all steerings, and its number the item's.
    """

    unit: str
    """What the progress line counts."""
    is_sampled = False
    """Whether its answers may be drawn at a temperature."""

    @abstractmethod
    def load(self, path: Path, hint: str) -> list[Any]:
        """The items of a test set; UserError where it is missing or broken."""

    @abstractmethod
    def answer(self, model: "LlamaWrapper", asked: Asked, done: Collection[int]) -> Iterator[tuple[int, Any]]:
        """Yield entries (values that JSON can hold) by their numbers, but for those that are done."""

    @abstractmethod
    def record(self, item: Any, entries: Sequence[Any], place: int) -> dict[str, Any]:
        """The result record of an item under the steering at `place`, from the entries of `numbers`."""

    def facts(self, request: "SweepRequest") -> dict[str, Any]:
        """What its numbers depend on beyond what all kinds depend on, for the provenance record."""
        return {}

    def n_entries(self, n_items: int, n_steerings: int) -> int:
        return n_items

    def numbers(self, item: int, place: int, n_items: int) -> list[int]:
        """The numbers of the entries from which an item's record under the steering at `place` is made."""
        return [item]

    def place_of(self, number: int, n_items: int) -> int | None:
        """The steering to which an entry belongs alone; None where it belongs to all."""
        return None


class ChoiceQuestions(Questions):
    """Questions with lettered answers, every steering in one pass over the question.

    An entry is the probabilities of the item's letters, [n_steerings, n_letters].
    """

    unit = "questions"

    def __init__(self, result_type: ResultType) -> None:
        self.result_type = result_type

    def load(self, path: Path, hint: str) -> list[Any]:
        return load_choice_items(path, self.result_type, hint)

    def answer(self, model: "LlamaWrapper", asked: Asked, done: Collection[int]) -> Iterator[tuple[int, Any]]:
        encode, letter_id = model.chat_format.encode_choice, model.chat_format.letter_id
        prompts = [asked.placed(encode(item.question, asked.system_prompt)) for item in asked.items]
        letters = [[letter_id(letter) for letter in item.letters] for item in asked.items]
        score = model.score_plainly if asked.request.plainly else model.score
        steerings = [distinct.steering for distinct in asked.steerings]
        for index, probabilities in score(prompts, steerings, letters, asked.request.batch_size, done):
            _check_finite(probabilities, asked.steerings, model)
            yield index, probabilities.tolist()

    def record(self, item: ChoiceItem, entries: Sequence[Any], place: int) -> dict[str, Any]:
        return item.result_record(_of_steering(item, entries[0], place))


class BothOrders(ChoiceQuestions):
    """Questions with lettered answers, each asked twice: as given, and with its two answers exchanged.

    A model's liking for a letter then cancels out. An entry is as that of `ChoiceQuestions`; those of the items as
    given come first, then as many of the exchanged ones.
    """

    def answer(self, model: "LlamaWrapper", asked: Asked, done: Collection[int]) -> Iterator[tuple[int, Any]]:
        both = [*asked.items, *(item.exchanged() for item in asked.items)]
        return super().answer(model, replace(asked, items=both), done)

    def record(self, item: ChoiceItem, entries: Sequence[Any], place: int) -> dict[str, Any]:
        given, exchanged = entries
        record = item.result_record(_of_steering(item, given, place))
        measured = _of_steering(item.exchanged(), exchanged, place)
        return record | {f"{probability_key(letter)}_exchanged": measured[letter] for letter in item.letters}

    def n_entries(self, n_items: int, n_steerings: int) -> int:
        return 2 * n_items

    def numbers(self, item: int, place: int, n_items: int) -> list[int]:
        return [item, n_items + item]


def _of_steering(item: ChoiceItem, entry: Any, place: int) -> dict[str, float]:
    """The probability of each of the item's letters."""
    return dict(zip(item.letters, entry[place], strict=True))


def _check_finite(probabilities: "Tensor", steerings: Sequence[DistinctSteering], model: "LlamaWrapper") -> None:
    """Refuse what is not a number: a steered residual stream has left the range of the dtype."""
    for distinct, row in zip(steerings, probabilities, strict=True):
        if not bool(row.isfinite().all()):
            layer, multiplier = distinct.combinations[0]
            raise UserError(
                f"layer {layer}, multiplier {multiplier}: the scores are not finite in {model.dtype}; "
                "use smaller --multipliers or --dtype float32"
            )


class AnswerTexts(Questions):
    """Questions with two answers in words, every steering in one pass over the question.

    An entry is the mean log-probability per token of the matching and of the other answer, [n_steerings, 2].
    """

    unit = "questions"

    def load(self, path: Path, hint: str) -> list[Any]:
        return load_text_pairs(path, hint)

    def answer(self, model: "LlamaWrapper", asked: Asked, done: Collection[int]) -> Iterator[tuple[int, Any]]:
        from utils.model.answer_rows import AnswerPair
        from utils.model.pairs import encode_answer

        pairs = []
        for item in asked.items:
            answers = (
                encode_answer(model.chat_format, item.question, answer, asked.system_prompt)
                for answer in (item.matching, item.other)
            )
            pairs.append(AnswerPair(*(asked.placed(answer) for answer in answers)))
        score = model.score_answers_plainly if asked.request.plainly else model.score_answers
        steerings = [distinct.steering for distinct in asked.steerings]
        for index, scores in score(pairs, steerings, asked.request.batch_size, done):
            _check_finite(scores, asked.steerings, model)
            yield index, scores.tolist()

    def record(self, item: TextPair, entries: Sequence[Any], place: int) -> dict[str, Any]:
        matching, other = entries[0][place]
        return {
            "question": item.question,
            MATCHING_KEY: item.matching,
            OTHER_KEY: item.other,
            "matching_logprob_per_token": matching,
            "other_logprob_per_token": other,
        }


class FreeAnswers(Questions):
    """Questions that the model answers in its own words, each under each steering for itself.

    An entry is one answer: its text, and prompt and answer with special tokens.
    """

    unit = "answers"
    is_sampled = True

    def load(self, path: Path, hint: str) -> list[Any]:
        return load_questions(path, hint)

    def facts(self, request: "SweepRequest") -> dict[str, Any]:
        return {"max_new_tokens": request.max_new_tokens}

    def answer(self, model: "LlamaWrapper", asked: Asked, done: Collection[int]) -> Iterator[tuple[int, Any]]:
        from utils.model.generation import GenerationRow

        encode, seed = model.chat_format.encode, asked.settings.seed
        prompts = [asked.placed(encode(question, None, asked.system_prompt)) for question in asked.items]
        rows = [
            GenerationRow(prompt, distinct.steering, seed=row_seed(seed, *distinct.combinations[0], index))
            for distinct in asked.steerings
            for index, prompt in enumerate(prompts)
        ]
        for number, generation in model.generate(
            rows,
            asked.request.max_new_tokens,
            temperature=asked.settings.temperature,
            use_cache=not asked.request.plainly,
            batch_size=asked.request.batch_size,
            skip=done,
        ):
            yield number, [generation.text, generation.raw_text]

    def record(self, item: str, entries: Sequence[Any], place: int) -> dict[str, Any]:
        [(text, raw_text)] = entries
        return {"question": item, "model_output": text, "raw_model_output": raw_text}

    def n_entries(self, n_items: int, n_steerings: int) -> int:
        return n_items * n_steerings

    def numbers(self, item: int, place: int, n_items: int) -> list[int]:
        return [place * n_items + item]

    def place_of(self, number: int, n_items: int) -> int | None:
        return number // n_items


def row_seed(seed: int, layer: int, multiplier: float, index: int) -> int:
    """A seed of its own for each answer, the same in every run."""
    at = (seed, layer if multiplier else 0, multiplier, index)
    return int.from_bytes(sha256(repr(at).encode()).digest()[:7], "big")


KINDS: dict[ResultType, Questions] = {
    "ab": ChoiceQuestions("ab"),
    "open_ended": FreeAnswers(),
    "truthful_qa": ChoiceQuestions("truthful_qa"),
    "mmlu": ChoiceQuestions("mmlu"),
    "answer_text": AnswerTexts(),
}


def questions_of(result_type: ResultType, orders: Orders) -> Questions:
    """The kind that asks questions of a type.

    Raises:
        UserError: If its answers have no order.
    """
    kind = KINDS[result_type]
    if orders == "given":
        return kind
    if not isinstance(kind, ChoiceQuestions):
        raise UserError(f"--orders {orders} exchanges lettered answers; --type {result_type} has none")
    return BothOrders(result_type)
