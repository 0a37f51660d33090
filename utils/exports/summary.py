"""What all texts of a file have in common along each vector, in sums that do not grow with their number."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.exports.reference import Reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from utils.exports.measuring import Measured


@dataclass
class Running:
    """Count, mean and variance of values as they come (Welford 1962), one column a probe."""

    n: int = 0
    mean: Any = 0.0
    _squares: Any = 0.0

    def add(self, values: "NDArray[Any]") -> None:
        self.n += 1
        before = values - self.mean
        self.mean = self.mean + before / self.n
        self._squares = self._squares + before * (values - self.mean)

    def state(self) -> list[Any]:
        """All that is known, as JSON takes it."""
        return [self.n, np.asarray(self.mean).tolist(), np.asarray(self._squares).tolist()]

    @classmethod
    def of_state(cls, state: list[Any]) -> "Running":
        n, mean, squares = state
        return cls(n, np.asarray(mean), np.asarray(squares))

    def half_width(self) -> Any:
        """Of the 95% interval of the mean (Student's t); NaN with fewer than two values."""
        if self.n < 2:
            return np.full_like(np.asarray(self.mean), math.nan)
        from scipy.stats import t

        deviation = np.sqrt(self._squares / (self.n - 1))
        return float(t.ppf(0.975, self.n - 1)) * deviation / math.sqrt(self.n)


@dataclass
class Summary:
    """Of one file of texts."""

    texts: Running = field(default_factory=Running)
    above: Any = 0
    """Texts above the band of neutral ones, by probe."""
    slopes: Running = field(default_factory=Running)
    """Change a turn of the assistant, over conversations."""
    turns: list[Running] = field(default_factory=list)
    """Of the assistant's first turn in conversations, of its second, ..."""
    paths: "list[NDArray[Any]]" = field(default_factory=list)
    """Of the first conversations, each [n_turns, n_probes], to be drawn."""
    n_failed: int = 0

    def state(self) -> dict[str, Any]:
        """All that is known, as JSON takes it."""
        return {
            "texts": self.texts.state(),
            "above": np.asarray(self.above).tolist(),
            "slopes": self.slopes.state(),
            "turns": [one.state() for one in self.turns],
            "paths": [path.tolist() for path in self.paths],
            "n_failed": self.n_failed,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Summary":
        return cls(
            texts=Running.of_state(state["texts"]),
            above=np.asarray(state["above"]),
            slopes=Running.of_state(state["slopes"]),
            turns=[Running.of_state(one) for one in state["turns"]],
            paths=[np.asarray(path) for path in state["paths"]],
            n_failed=state["n_failed"],
        )

    def add(self, measured: "Measured", reference: Reference) -> None:
        self.texts.add(measured.means)
        self.above = self.above + (measured.means > reference.upper)
        means = assistant_means(measured)
        if len(means) > 1:
            self.slopes.add(slope(means))
            for place, of_turn in enumerate(means[:MOST_TURNS]):
                if place == len(self.turns):
                    self.turns.append(Running())
                self.turns[place].add(of_turn)
            if len(self.paths) < DRAWN_CONVERSATIONS:
                self.paths.append(means[:MOST_TURNS])


MOST_TURNS = 200
DRAWN_CONVERSATIONS = 30


def assistant_means(measured: "Measured") -> "NDArray[Any]":
    """Of the assistant's turns that have tokens, [n_turns, n_probes]."""
    turns = [turn for turn in measured.encoded.measured if len(turn)]
    return np.stack([measured.turn_means(turn) for turn in turns])


def slope(means: "NDArray[Any]") -> "NDArray[Any]":
    """Least-squares change a turn, by probe, [n_probes].

    Args:
        means: [n_turns, n_probes], two turns or more.
    """
    places = np.arange(len(means)) - (len(means) - 1) / 2
    found: NDArray[Any] = places @ means / float(places @ places)
    return found
