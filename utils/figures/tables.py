"""Results as tables: what stands beside a figure as text, and rows for LaTeX."""

import math
from collections.abc import Mapping, Sequence

from utils.data.estimates import Estimate
from utils.evaluation.effects import LayerSteerability, LetterUse, Point
from utils.evaluation.words import EFFECT_NOTES, INTERVAL_METHOD, SHARE_INTERVAL_METHOD, behavior_label, count_note
from utils.figures.style import latex_text
from utils.files.tables import Table


def effects_table(points: Sequence[Point], *notes: str) -> Table:
    columns = (
        "behavior",
        "condition",
        "layer",
        "multiplier",
        "mean",
        "ci_low",
        "ci_high",
        "n",
        "n_total",
        "change",
        "change_low",
        "change_high",
        "n_paired",
        "p",
        "p_family",
        "holds",
    )
    rows = [
        (
            p.behavior,
            p.condition.label,
            p.layer,
            p.multiplier,
            *bounds(p.mean),
            p.mean.n,
            p.mean.n_total,
            *bounds(p.change),
            p.change.n,
            p.p_value,
            p.p_family,
            p.holds,
        )
        for p in points
    ]
    return Table(columns, rows, (*(note for note in notes if note), *EFFECT_NOTES))


def bounds(estimate: Estimate) -> tuple[float, float, float]:
    """Value, low, high."""
    return estimate.value, estimate.low, estimate.high


def steerability_table(of_behaviors: Mapping[str, Sequence[LayerSteerability]]) -> Table:
    columns = (
        "behavior",
        "layer",
        "multipliers",
        "slope",
        "slope_low",
        "slope_high",
        "n",
        "n_total",
        "anti_share",
        "anti_share_low",
        "anti_share_high",
    )
    rows = []
    for behavior, layers in of_behaviors.items():
        for at in layers:
            slope, anti = at.steerability.slope, at.steerability.anti_share
            used = " ".join(f"{multiplier:g}" for multiplier in at.multipliers)
            rows.append((behavior, at.layer, used, *bounds(slope), slope.n, slope.n_total, *bounds(anti)))
    notes = (
        "slope: mean over items of the least-squares slope of the matching answer's log-odds against the "
        f"multiplier, with its {INTERVAL_METHOD}",
        f"anti_share: share of items with a slope below 0, with its {SHARE_INTERVAL_METHOD}",
    )
    return Table(columns, rows, notes)


def letters_table(uses: Sequence[LetterUse]) -> Table:
    columns = (
        "behavior",
        "condition",
        "layer",
        "multiplier",
        "letter_mass",
        "mass_low",
        "mass_high",
        "letter_bias",
        "bias_low",
        "bias_high",
        "n_bias",
        "n",
        "n_total",
    )
    rows = [
        (
            use.point.behavior,
            use.point.condition.label,
            use.point.layer,
            use.point.multiplier,
            *bounds(use.mass),
            *bounds(use.bias),
            use.bias.n,
            use.mass.n,
            use.mass.n_total,
        )
        for use in uses
    ]
    notes = (
        "letter_mass: mean probability on the item's two answer letters together",
        "letter_bias: mean p(A)/(p(A)+p(B)) where (A) matches, plus the same where (B) matches, minus 1; "
        "0: only the answers count, 1: always (A), -1: always (B); over the n_bias items with answers A and B",
    )
    return Table(columns, rows, notes)


def latex_rows(points: Sequence[Point], label: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a row for each behavior and condition, a column a multiplier."""
    multipliers = sorted({point.multiplier for point in points})
    by_row: dict[tuple[str, str], dict[float, Point]] = {}
    for point in points:
        by_row.setdefault((point.behavior, point.condition.label), {})[point.multiplier] = point
    rows = []
    for (behavior, condition), cells in by_row.items():
        numbers = [_latex_estimate(cells[m].mean) if m in cells else "--" for m in multipliers]
        count = count_note([point.mean for point in cells.values()]).removeprefix("n=")
        rows.append([latex_text(behavior_label(behavior)), latex_text(condition), *numbers, count])
    return ["behavior", label, *(f"multiplier {m:g}" for m in multipliers), "n"], rows


def _latex_estimate(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"${estimate.value:.2f}$"
    return f"${estimate.value:.2f}$ [${estimate.low:.2f}$, ${estimate.high:.2f}$]"
