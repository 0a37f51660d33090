"""Contrast pairs as tokens: what is run for each half, and over which tokens its activations are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model.chat_format import ChatFormat
from utils.paths import Reading

if TYPE_CHECKING:
    from utils.data.records import ContrastPair


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


def encode_pair(chat_format: ChatFormat, pair: "ContrastPair", reading: Reading = "letter") -> PairTokens:
    """The tokens of a contrast pair.

    Args:
        chat_format: The model's.
        pair: A pair in the form that the reading takes.
        reading: `letter`: the answer's letter behind `(`.

    Raises:
        UserError: If the pair's form has nothing to read there.
    """
    if reading != "letter":
        raise UserError(f"--read {reading}: not a place where pairs with lettered choices are read")
    prompt = chat_format.encode_choice(pair.question)
    letters = (chat_format.letter_id(letter) for letter in (pair.matching_letter, pair.other_letter))
    return PairTokens(*(HalfTokens((*prompt.ids, letter), len(prompt)) for letter in letters))


def read_mask(pairs: Sequence[PairTokens], tail_length: int) -> Tensor:
    """Which tail tokens of a packed batch are averaged, [batch, 2, tail_length] bool."""
    mask = torch.zeros(len(pairs), 2, tail_length, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        for half, tokens in enumerate((pair.positive, pair.negative)):
            mask[row, half, tokens.read_from - pair.n_shared : len(tokens.ids) - pair.n_shared] = True
    return mask
