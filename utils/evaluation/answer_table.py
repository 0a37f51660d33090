"""The effects on free answers as aligned text, for the terminal."""

import math
from collections.abc import Sequence

from utils.behaviors import Behavior
from utils.data.estimates import Estimate
from utils.evaluation.answer_effects import AnswerPoint, MeasuredEffect
from utils.evaluation.answer_metrics import measures_of
from utils.evaluation.words import P_HEADING, condition_label

_HEAD_OF_MEASURE = ("mean [95% interval]", "change from 0", "p", P_HEADING)
_HEAD_OF_FLUENCY = ("perplexity", "distinct-2", "words", "text")


def heading(about: Behavior, points: Sequence[AnswerPoint]) -> str:
    """Whose answers these are: behavior, conditions and model."""
    settings = points[0].settings
    like = condition_label(settings)
    model = settings.model or settings.model_size
    base = " (base model)" if settings.use_base_model else ""
    return ", ".join(part for part in (about.label, like, f"{model}{base}", _counts(points)) if part)


def answers_text(about: Behavior, points: Sequence[AnswerPoint]) -> str:
    """The points of one condition: a block for each measure of the behavior's metric, fluency beside it."""
    blocks = [heading(about, points)]
    at = ("layer", points[0].settings.knob)
    for place, measure in enumerate(measures_of(about.metric)):
        rows = [_row(point, point.effects[place]) for point in points]
        blocks += [f"  {measure.label}", _aligned([(*at, *_HEAD_OF_MEASURE, *_HEAD_OF_FLUENCY), *rows])]
    if about.metric is None:
        blocks.append(_aligned([(*at, *_HEAD_OF_FLUENCY), *(_row(point, None) for point in points)]))
    return "\n".join(blocks)


def _row(point: AnswerPoint, effect: MeasuredEffect | None) -> tuple[str, ...]:
    fluency = point.fluency
    of_effect: tuple[str, ...] = ()
    if effect is not None:
        of_effect = (
            interval(effect.mean),
            interval(effect.change, sign="+"),
            _p_value(effect.p_value),
            _p_value(effect.p_family),
        )
    return (
        str(point.settings.layer),
        f"{point.settings.multiplier:g}",
        *of_effect,
        _number(fluency.perplexity, 1),
        _number(fluency.distinct_2, 2),
        _number(fluency.n_words, 0),
        state(point),
    )


def state(point: AnswerPoint) -> str:
    """Whether the text holds together, in words."""
    if point.range is None:
        return "no multiplier 0 beside it"
    empty = f"{point.fluency.n_empty} empty" if point.fluency.n_empty else ""
    broken = f"falls apart ({', '.join(point.faults)})" if point.faults else ""
    return ", ".join(part for part in (broken, empty) if part) or "-"


def interval(estimate: Estimate, sign: str = "") -> str:
    """E.g. `0.66 [0.52, 0.78]`; `-` where there is no value, the value alone where there is no interval."""
    if not estimate.exists:
        return "-"
    value, low, high = (f"{number:{sign}.2f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]" if math.isfinite(estimate.low) else value


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _p_value(value: float) -> str:
    return "<0.0001" if value < 0.0001 else _number(value, 4)


def _counts(points: Sequence[AnswerPoint]) -> str:
    counts = sorted({point.fluency.n_answers for point in points})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{several} answers"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)] + [row[-1]] for row in rows)
    return "\n".join("  " + "  ".join(row).rstrip() for row in padded)
