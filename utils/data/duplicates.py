"""Exact and near duplicates among questions.

Exact: the same text but for letter case and blanks.
Near: not exact, and the words of question and choices overlap by at least 80 %: with A and B the
sets of distinct words of two items (letter case, order, punctuation, the word "Choices:" and the
choices' letters left out), |A and B| / |A or B| >= 0.8 (Jaccard similarity).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

NEAR_DUPLICATE_JACCARD = 0.8

_CHOICE_MARK = re.compile(r"^[ \t]*(?:\([A-Z]\)|Choices:[ \t]*$)", re.MULTILINE)
_WORD = re.compile(r"\w+")
_ROWS_AT_ONCE = 512  # 512 x 20000 questions of overlaps are 40 MB


@dataclass(frozen=True)
class Duplicates:
    """Pairs (i, j) with i < j of positions in the list that was searched, sorted."""

    exact: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return (*self.exact, *self.near)


def fold(text: str) -> str:
    """The text with letter case and blanks levelled: equal for exact duplicates."""
    return " ".join(text.casefold().split())


def words_of(question: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_CHOICE_MARK.sub(" ", question).casefold()))


def find_duplicates(questions: Sequence[str]) -> Duplicates:
    """All exact and near duplicate pairs among `questions` (1000 long ones take well under a second)."""
    positions = defaultdict(list)
    for position, question in enumerate(questions):
        positions[fold(question)].append(position)
    exact = sorted(pair for same in positions.values() for pair in combinations(same, 2))
    alike = _pairs_with_overlapping_words([words_of(question) for question in questions])
    return Duplicates(tuple(exact), tuple(sorted(alike - set(exact))))


def _pairs_with_overlapping_words(word_sets: Sequence[frozenset[str]]) -> set[tuple[int, int]]:
    import numpy as np
    from scipy.sparse import csr_matrix

    if not any(word_sets):
        return set()
    column_of = {word: column for column, word in enumerate(sorted(frozenset().union(*word_sets)))}
    sizes = np.array([len(words) for words in word_sets], dtype=np.int32)
    columns = np.fromiter((column_of[word] for words in word_sets for word in words), dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    has_word = csr_matrix((np.ones(len(columns), np.int32), columns, starts), (len(word_sets), len(column_of)))
    found: set[tuple[int, int]] = set()
    for first in range(0, len(word_sets), _ROWS_AT_ONCE):
        block = slice(first, first + _ROWS_AT_ONCE)
        shared = (has_word[block] @ has_word.T).toarray()  # [rows, n_questions], words in common
        either = sizes[block, None] + sizes[None, :] - shared
        rows, others = np.nonzero((shared >= NEAR_DUPLICATE_JACCARD * either) & (shared > 0))
        found.update((int(i) + first, int(j)) for i, j in zip(rows, others, strict=True) if i + first < j)
    return found


def without_repeats(n_questions: int, duplicates: Duplicates) -> list[int]:
    """Positions to keep so that no pair of duplicates is left: always the first of those alike."""
    earlier = defaultdict(list)
    for i, j in duplicates.pairs:
        earlier[j].append(i)
    kept: set[int] = set()
    for position in range(n_questions):
        if not kept.intersection(earlier[position]):
            kept.add(position)
    return sorted(kept)


def count_by_split(pairs: Iterable[tuple[int, int]], n_generate: int) -> tuple[int, int, int]:
    """How many pairs lie within generate, within test, and across, where the generate items stand first."""
    within_generate = within_test = across = 0
    for i, j in pairs:
        if j < n_generate:
            within_generate += 1
        elif i >= n_generate:
            within_test += 1
        else:
            across += 1
    return within_generate, within_test, across
