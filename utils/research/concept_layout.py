"""Which rows of a table belong to which word, category and parent, and which are set aside to test on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.research.concept_words import CategoryTokens

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TRAINING_SHARE = 0.7


@dataclass(frozen=True, eq=False)
class Layout:
    """A hierarchy over the rows of a table [n_rows, d]."""

    parents: tuple[str, ...]
    children: tuple[str, ...]
    parent_of: IntArray
    """[n_children]: index of each child's parent."""
    child_of_row: IntArray
    """[n_rows]"""
    word_of_row: IntArray
    """[n_rows]: rows of one word (its plural, its capital letter) stay together."""
    is_training: BoolArray
    """[n_rows]"""

    @property
    def parent_of_row(self) -> IntArray:
        return self.parent_of[self.child_of_row]

    def of_child(self, child: int) -> BoolArray:
        return np.asarray(self.child_of_row == child)

    def of_parent(self, parent: int, *, without: int | None = None) -> BoolArray:
        """Rows of all children of a parent, or of all but one."""
        rows = self.parent_of_row == parent
        return rows if without is None else rows & (self.child_of_row != without)

    def siblings(self, parent: int) -> list[int]:
        """The children of a parent."""
        return np.flatnonzero(self.parent_of == parent).tolist()

    def sibling_pairs(self) -> list[tuple[int, int]]:
        """Every two children of one parent, in their order."""
        groups = [self.siblings(parent) for parent in range(len(self.parents))]
        return [(a, b) for group in groups for place, a in enumerate(group) for b in group[place + 1 :]]

    def parent_pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(len(self.parents)) for b in range(a + 1, len(self.parents))]


def lay_out(categories: Sequence[CategoryTokens], seed: int) -> tuple[Layout, IntArray]:
    """The layout of categories' tokens, and the token of each row. 70% of each category's words are for training.

    Args:
        categories: With at least two words each.
        seed: Of the split.
    """
    rng = np.random.default_rng(seed)
    parents = tuple(dict.fromkeys(one.parent for one in categories))
    token_ids: list[int] = []
    child_of_row, word_of_row, is_training = [], [], []
    n_words = 0
    for child, category in enumerate(categories):
        n = len(category.words)
        training = set(rng.permutation(n)[: min(n - 1, max(1, round(TRAINING_SHARE * n)))].tolist())
        for place, word in enumerate(category.words):
            token_ids += word.token_ids
            child_of_row += [child] * len(word.token_ids)
            word_of_row += [n_words + place] * len(word.token_ids)
            is_training += [place in training] * len(word.token_ids)
        n_words += n
    layout = Layout(
        parents,
        tuple(one.name for one in categories),
        np.array([parents.index(one.parent) for one in categories]),
        np.array(child_of_row),
        np.array(word_of_row),
        np.array(is_training),
    )
    return layout, np.array(token_ids)
