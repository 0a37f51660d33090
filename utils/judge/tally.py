"""What a run of the judge has come to."""

from collections import Counter
from dataclasses import dataclass, field

from utils.judge.score_files import Record

MAX_FAILURES_IN_A_ROW = 20
"""Then the server is taken to be gone."""


@dataclass
class Tally:
    """What a run has come to."""

    n_written: int = 0
    """Score files."""
    n_unfinished: int = 0
    """Score files that lack an answer."""
    n_scored: int = 0
    """Answers that this run has asked about, equal ones counted once."""
    n_unscored: int = 0
    n_missing: int = 0
    """Answers that are neither scored nor kept as unscored, because their request failed or was not sent."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reason -> requests that failed for good."""
    stopped: str | None = None
    """Why no further request is sent."""
    _n_in_a_row: int = 0

    def count(self, entry: Record) -> None:
        self._n_in_a_row = 0
        self.n_scored += entry["score"] is not None
        self.n_unscored += entry["score"] is None

    def fail(self, reason: str) -> None:
        self.failures[reason] += 1
        self._n_in_a_row += 1
        if self._n_in_a_row >= MAX_FAILURES_IN_A_ROW and not self.stopped:
            self.stopped = f"{self._n_in_a_row} requests in a row failed"
