"""How well two sets of scores of the same answers agree."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from utils.errors import UserError
from utils.judge.score_files import Record, has_score, load_scored
from utils.settings import parse_result_name

log = logging.getLogger(__name__)

CONFIDENCE = 0.95
_FEWEST_FOR_FISHER = 3  # its standard error is 1 / sqrt(n - 3)


@dataclass(frozen=True)
class Agreement:
    """Agreement of paired scores; NaN where it is not defined (too few, or all equal)."""

    n: int
    pearson: float
    pearson_low: float
    """95% confidence interval, by Fisher's transformation; NaN for fewer than four pairs."""
    pearson_high: float
    spearman: float
    mean_difference: float
    """B - A."""
    within_1: float
    """Share of the answers whose two scores differ by at most 1."""


@dataclass
class PairedScores:
    """The scores of the answers that are in both sets."""

    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)
    n_unscored_a: int = 0
    """Answers in both sets without a score in A."""
    n_unscored_b: int = 0
    n_unmatched: int = 0
    """Records without an equal question and answer at their index in the other set."""

    def extend(self, other: "PairedScores") -> None:
        self.a += other.a
        self.b += other.b
        self.n_unscored_a += other.n_unscored_a
        self.n_unscored_b += other.n_unscored_b
        self.n_unmatched += other.n_unmatched


@dataclass
class Comparison:
    """Two folders of score files, matched by their names."""

    by_behavior: dict[str, PairedScores]
    n_files: int
    only_a: list[str]
    """Names of files without a partner."""
    only_b: list[str]


def compute_agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> Agreement:
    """Agreement of scores a [n] and b [n], paired by position."""
    n, nan = len(a), math.nan
    if n == 0:
        return Agreement(0, nan, nan, nan, nan, nan, nan)
    pearson = low = high = spearman = nan
    if n > 1 and np.ptp(a) > 0 and np.ptp(b) > 0:
        correlation = stats.pearsonr(a, b)
        pearson, spearman = float(correlation.statistic), float(stats.spearmanr(a, b).statistic)
        if n > _FEWEST_FOR_FISHER:
            low, high = map(float, correlation.confidence_interval(CONFIDENCE))
    differences = b - a
    within_1 = float(np.mean(np.abs(differences) <= 1))
    return Agreement(n, pearson, low, high, spearman, float(differences.mean()), within_1)


def compare_folders(folder_a: Path, folder_b: Path) -> Comparison:
    """Pair the scores of two folders, file by file and record by record.

    Raises:
        UserError: If one is no folder, a file cannot be read, or they have no file in common.
    """
    files_a, files_b = _score_paths(folder_a), _score_paths(folder_b)
    common = [name for name in files_a if name in files_b]
    if not common:
        raise UserError(f"{folder_a} and {folder_b} have no open-ended score file of the same name and folder")
    by_behavior: dict[str, PairedScores] = {}
    for name in common:
        pairs = pair_scores(load_scored(files_a[name]), load_scored(files_b[name]))
        by_behavior.setdefault(parse_result_name(files_a[name].name).behavior, PairedScores()).extend(pairs)
    only_a = [name for name in files_a if name not in files_b]
    only_b = [name for name in files_b if name not in files_a]
    return Comparison(by_behavior, len(common), only_a, only_b)


def pair_scores(records_a: list[Record], records_b: list[Record]) -> PairedScores:
    """Pair records by index where question and answer are equal."""
    pairs = PairedScores(n_unmatched=abs(len(records_a) - len(records_b)))
    for a, b in zip(records_a, records_b, strict=False):
        if (a["question"], a["model_output"]) != (b["question"], b["model_output"]):
            pairs.n_unmatched += 1
            continue
        pairs.n_unscored_a += not has_score(a)
        pairs.n_unscored_b += not has_score(b)
        if has_score(a) and has_score(b):
            pairs.a.append(float(a["score"]))
            pairs.b.append(float(b["score"]))
    return pairs


def table(comparison: Comparison) -> str:
    """The agreement of each behavior and of all together, as aligned text."""
    everything = PairedScores()
    for pairs in comparison.by_behavior.values():
        everything.extend(pairs)
    rows = [*sorted(comparison.by_behavior.items()), ("all", everything)]
    head = ["behavior", "n", "Pearson [95% interval]", "Spearman", "mean B-A", "within 1"]
    cells = [head, *(_row(name, compute_agreement(np.array(p.a), np.array(p.b))) for name, p in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in cells)


def counts(comparison: Comparison) -> str:
    """What was compared and what was not, in one line."""
    pairs = comparison.by_behavior.values()
    unmatched = sum(p.n_unmatched for p in pairs)
    unscored = sum(p.n_unscored_a for p in pairs), sum(p.n_unscored_b for p in pairs)
    return (
        f"{comparison.n_files} files in both; only in A {len(comparison.only_a)}, only in B {len(comparison.only_b)}; "
        f"left out: {unmatched} records without an equal one, {unscored[0]} unscored in A, {unscored[1]} unscored in B"
    )


def _row(name: str, agreement: Agreement) -> list[str]:
    interval = f" [{_number(agreement.pearson_low)}, {_number(agreement.pearson_high)}]"
    return [
        name,
        str(agreement.n),
        _number(agreement.pearson) + ("" if math.isnan(agreement.pearson_low) else interval),
        _number(agreement.spearman),
        "-" if math.isnan(agreement.mean_difference) else f"{agreement.mean_difference:+.3f}",
        "-" if math.isnan(agreement.within_1) else f"{agreement.within_1:.1%}",
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _aligned(row: list[str], widths: list[int]) -> Iterable[str]:
    yield row[0].ljust(widths[0])
    for cell, width in zip(row[1:], widths[1:], strict=True):
        yield cell.rjust(width)


def _score_paths(folder: Path) -> dict[str, Path]:
    """Open-ended score files in a folder and two levels below it, links followed, by their path in it."""
    if not folder.is_dir():
        raise UserError(f"--agreement {folder} is not a folder; name one with score files")
    paths = {}
    for path in sorted(path for level in ("", "*/", "*/*/") for path in folder.glob(f"{level}results_*.json")):
        try:
            is_open_ended = parse_result_name(path.name).type == "open_ended"
        except UserError as err:
            log.warning("left out %s: %s", path.parent, err)
            continue
        if is_open_ended:
            paths[path.relative_to(folder).as_posix()] = path
    return paths
