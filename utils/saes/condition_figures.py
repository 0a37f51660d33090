"""Conditions as lines, records and a figure: refusal rates and the metric's change, harmful beside harmless."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.data.estimates import Estimate
from utils.figures.style import (
    BLACK,
    BLUE,
    ORANGE,
    PAGE_WIDTH,
    SKY,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.saes.conditions import Outcome, Summary
from utils.saes.prompts import SIDES, Prompts
from utils.saes.refusal import MATCHERS

BEGINNING = 60
"""Characters of an answer that are kept where not all of it is."""
_COLOURS = {"unedited": BLACK, "random": SKY}


def condition_lines(summaries: Sequence[Summary]) -> Iterator[str]:
    """A line each: refusal rate, its change, the metric's."""
    for one in summaries:
        rate = one.rates["starts"]
        line = f"{one.condition.side}, {one.condition.name}: refused {_count(rate)} {_interval(rate)}"
        if one.condition.edit != "none":
            line += f", McNemar p {one.p_mcnemar['starts']:.2g}; metric {_signed(one.change)}; KL {one.kl:.3f}"
        yield line


def _count(rate: Estimate) -> str:
    return f"{round(rate.value * rate.n)} of {rate.n}"


def _interval(estimate: Estimate) -> str:
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def completion_records(outcomes: Sequence[Outcome], prompts: Prompts, *, whole: bool) -> list[dict[str, Any]]:
    """What was answered under each condition: refused or not, and the answer's beginning, or all of it."""
    records = []
    for one in outcomes:
        asked = getattr(prompts, one.condition.side)
        refused = {matcher: one.answers.refused(matcher) for matcher in MATCHERS}
        for index, (prompt, text) in enumerate(zip(asked, one.answers.texts, strict=True)):
            records.append(
                {
                    "condition": one.condition.name,
                    "side": one.condition.side,
                    "prompt": prompt,
                    **{f"refused_{matcher}": bool(refused[matcher][index]) for matcher in MATCHERS},
                    "answer" if whole else "answer_begins": text if whole else text[:BEGINNING],
                }
            )
    return records


def plot_conditions(summaries: Sequence[Summary], stem: Path, title: str) -> None:
    """Two rows of panels (refusal rate; change of the metric), a column a side, with the table beside them."""
    sides = [side for side in SIDES if any(one.condition.side == side for one in summaries)]
    longest = max(sum(one.condition.side == side for one in summaries) for side in sides)
    with figure_style():
        height = 1.1 + max(0.9, 0.22 * longest) * len(sides)
        figure, axes = new_figure(PAGE_WIDTH, height, nrows=len(sides), ncols=2, sharey="row", squeeze=False)
        for row, side in enumerate(sides):
            of_side = [one for one in summaries if one.condition.side == side]
            _draw_rows(axes[row][0], of_side, [one.rates["starts"] for one in of_side])
            _draw_rows(axes[row][1], of_side, [one.change for one in of_side])
            axes[row][0].set_yticks(range(len(of_side)), [_label(one) for one in of_side])
            axes[row][0].set_ylim(len(of_side) - 0.5, -0.5)
            axes[row][0].set_ylabel(side)
            axes[row][0].set_xlim(-0.02, 1.02)
            axes[row][1].axvline(0, color="0.6", linewidth=0.6)
        axes[-1][0].set_xlabel("share of answers\nthat begin with a refusal\n(95% Wilson)")
        axes[-1][1].set_xlabel("change of log p / (1 - p)\nof a refusal's first token,\nnats (95% bootstrap)")
        n = summaries[0].metric.n
        set_title(
            figure,
            title,
            f"{n} prompts a condition; orange: ablated; blue: added; light blue: random controls of that size",
        )
        log_written(save_figure(figure, stem, condition_table(summaries)))


def _draw_rows(ax: Any, summaries: Sequence[Summary], estimates: Sequence[Estimate]) -> None:
    for row, (one, estimate) in enumerate(zip(summaries, estimates, strict=True)):
        kind = "unedited" if one.condition.edit == "none" else "random" if "random" in one.condition.what else ""
        colour = _COLOURS.get(kind, ORANGE if one.condition.edit == "ablated" else BLUE)
        if estimate.low == estimate.low:  # not NaN
            ax.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=1.2)
        ax.plot([estimate.value], [row], marker="o", color=colour, markersize=4)


def _label(one: Summary) -> str:
    return one.condition.name


def condition_table(summaries: Sequence[Summary]) -> Table:
    columns = ["side", "condition", "n"]
    for matcher in MATCHERS:
        columns += [f"refused_{matcher}", f"low_{matcher}", f"high_{matcher}", f"p_mcnemar_{matcher}"]
    columns += ["metric", "metric_change", "change_low", "change_high", "p_change", "kl"]
    rows = []
    for one in summaries:
        row: list[Any] = [one.condition.side, one.condition.name, one.metric.n]
        for matcher in MATCHERS:
            rate = one.rates[matcher]
            row += [rate.value, rate.low, rate.high, one.p_mcnemar[matcher]]
        row += [one.metric.value, one.change.value, one.change.low, one.change.high, one.p_change, one.kl]
        rows.append(row)
    return Table(
        tuple(columns),
        rows,
        (
            "refused_starts: the answer begins with a refusal phrase; refused_anywhere: one stands anywhere in it; "
            "95% Wilson intervals; p_mcnemar: exact, against unedited",
            "metric: log p - log(1 - p) of a refusal's first token, mean over prompts; change from unedited with its "
            "95% bootstrap interval; kl: mean KL of the first answer token to unedited",
        ),
    )
