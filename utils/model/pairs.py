"""Contrast pairs as tokens: what is run for each half, and over which tokens its activations are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.data.records import AnyPair, ContrastPair, PromptPair, TextPair
from utils.errors import UserError
from utils.files.reading import short
from utils.model.chat_format import AnswerTokens, ChatFormat
from utils.settings import Reading


@dataclass(frozen=True)
class HalfTokens:
    """One half of a contrast pair."""

    ids: tuple[int, ...]
    read_from: int
    """Activations are averaged from this token to the last one."""


@dataclass(frozen=True)
class PairTokens:
    """Both halves; what they share from the beginning on runs once."""

    positive: HalfTokens
    negative: HalfTokens

    @property
    def n_shared(self) -> int:
        """Tokens before anything that is read, and before the first that differs."""
        first_read = min(self.positive.read_from, self.negative.read_from)
        both = zip(self.positive.ids[:first_read], self.negative.ids[:first_read], strict=True)
        return next((place for place, (one, other) in enumerate(both) if one != other), first_read)

    @property
    def prefix(self) -> tuple[int, ...]:
        return self.positive.ids[: self.n_shared]

    @property
    def tails(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        n_shared = self.n_shared
        return self.positive.ids[n_shared:], self.negative.ids[n_shared:]

    @property
    def longest(self) -> int:
        return max(len(self.positive.ids), len(self.negative.ids))

    @property
    def shortest(self) -> int:
        return min(len(self.positive.ids), len(self.negative.ids))

    @property
    def packed_length(self) -> int:
        """Tokens of its row in a packed pass, alone."""
        return self.n_shared + 2 * (self.longest - self.n_shared)


def encode_pair(
    chat_format: ChatFormat, pair: AnyPair, reading: Reading = "letter", system_prompt: str | None = None
) -> PairTokens:
    """The tokens of a contrast pair.

    Args:
        chat_format: The model's.
        pair: In the form that the reading takes: lettered choices for `letter`, answers in words for `answer` and
            `last`, two prompts for `prompt` and `prompt_mean`.
        reading: Where it is read. An answer in words stands as the assistant's turn.
        system_prompt: Before both halves; prompts that have one of their own keep it.

    Raises:
        UserError: If the pair is of another form, or an answer has no token of its own.
    """
    match reading, pair:
        case "letter", ContrastPair():
            prompt = chat_format.encode_choice(pair.question, system_prompt)
            letters = (chat_format.letter_id(letter) for letter in (pair.matching_letter, pair.other_letter))
            return PairTokens(*(HalfTokens((*prompt.ids, letter), len(prompt)) for letter in letters))
        case "answer" | "last", TextPair():
            texts = (pair.matching, pair.other)
            answers = (encode_answer(chat_format, pair.question, answer, system_prompt) for answer in texts)
            return PairTokens(*(_half(answer, whole=reading == "answer") for answer in answers))
        case "prompt" | "prompt_mean", PromptPair():
            asked = ((pair.matching, pair.matching_system), (pair.other, pair.other_system))
            prompts = [chat_format.encode(prompt, None, system or system_prompt) for prompt, system in asked]
            halves = [HalfTokens(one.ids[: one.steer_start + 1], one.steer_start) for one in prompts]
            if reading == "prompt":
                return PairTokens(*halves)
            # what both share would count by its share of either prompt's length, and the first token, an attention
            # sink a hundred times as large as others, would be all that is left
            start = PairTokens(*halves).n_shared
            return PairTokens(*(HalfTokens(half.ids, start) for half in halves))
    raise UserError(f"--read {reading} does not take pairs of the form {type(pair).__name__}")


def encode_answer(
    chat_format: ChatFormat, question: str, answer: str, system_prompt: str | None = None
) -> AnswerTokens:
    """Question and answer as tokens, steered from the last token of the question's turn on.

    Raises:
        UserError: If the answer has no token of its own.
    """
    tokens = chat_format.encode(question, answer, system_prompt)
    if tokens.n_steered < 2:
        raise UserError(f"the answer {short(answer)} has no token of its own behind the question {short(question)}")
    return AnswerTokens(tokens.ids, tokens.steer_start, tokens.n_steered - 1)


def _half(answer: AnswerTokens, *, whole: bool) -> HalfTokens:
    return HalfTokens(answer.ids, len(answer) - answer.n_answer if whole else len(answer) - 1)


def read_mask(pairs: Sequence[PairTokens], tail_length: int) -> Tensor:
    """Which tail tokens of a packed batch are averaged, [batch, 2, tail_length] bool."""
    mask = torch.zeros(len(pairs), 2, tail_length, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        for half, tokens in enumerate((pair.positive, pair.negative)):
            mask[row, half, tokens.read_from - pair.n_shared : len(tokens.ids) - pair.n_shared] = True
    return mask
