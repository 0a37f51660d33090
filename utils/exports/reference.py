"""How neutral texts lie along a vector: what a projection is compared with."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from utils.exports.measuring import Measured

BAND = (0.05, 0.95)
"""The quantiles of neutral texts that figures shade and summaries count beyond."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """Values of neutral texts along one vector, ascending."""

    values: "NDArray[Any]"

    def percentiles(self, values: "NDArray[Any] | float") -> "NDArray[Any]":
        """Share of neutral values below, in percent; of equal ones half."""
        below = np.searchsorted(self.values, values, side="left")
        up_to = np.searchsorted(self.values, values, side="right")
        return 50.0 * (below + up_to) / len(self.values)

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.values, share))

    @property
    def mean(self) -> float:
        return float(self.values.mean())


@dataclass(frozen=True, eq=False)
class Reference:
    """Of every probe, over neutral texts and over their tokens."""

    texts: tuple[Distribution, ...]
    tokens: tuple[Distribution, ...]

    @cached_property
    def upper(self) -> "NDArray[Any]":
        """The band's upper end over texts, by probe."""
        return np.array([one.quantile(BAND[1]) for one in self.texts])

    @property
    def n_texts(self) -> int:
        return len(self.texts[0].values)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens[0].values)


def reference_of(measured: "list[Measured]") -> Reference:
    """The distributions of texts that were measured."""
    of_texts = np.sort(np.stack([one.means for one in measured]), axis=0)  # [n_texts, n_probes]
    of_tokens = np.sort(np.concatenate([one.values for one in measured], axis=1), axis=1)  # [n_probes, n_tokens]
    return Reference(
        tuple(Distribution(column) for column in of_texts.T), tuple(Distribution(row) for row in of_tokens)
    )
