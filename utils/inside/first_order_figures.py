"""Figure and table of what vectors do to the last layer, to first order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.data.estimates import Estimate
from utils.figures.lines import LineStyle, draw_line, layer_axis
from utils.figures.style import BLUE, GREEN, ORANGE, PAGE_WIDTH, new_figure, set_title
from utils.files.tables import Table

_GREY = "0.55"
_OWN, _RANDOM = LineStyle(BLUE, "o"), LineStyle(_GREY, "s", "--")
NO_RANGE = "under the smallest step"


@dataclass(frozen=True)
class RandomRow:
    """A random vector of the layer."""

    gain: float
    cosine: float
    linear_up_to: float | None


@dataclass(frozen=True)
class FirstOrderRow:
    """One layer's vector v and its first-order effect J v."""

    layer: int
    gain: Estimate
    """|J v| / |v|"""
    cosine: Estimate
    """Of J v with v."""
    agreement: float
    """Mean cosine of two texts' J v."""
    linear_up_to: float | None
    """The largest strength (added norm as a share of the residual norm) at which the mean change is still linear."""
    linear_up_to_by_token: float | None
    """The same for the changes of all tokens."""
    multiplier: float | None
    """Of the vector, at that strength."""
    largest_logits: tuple[float, ...]
    """Of the most promoted token: logit lens, J-lens, J-lens of a random vector."""
    random: tuple[RandomRow, ...]
    random_agreement: float

    def as_json(self) -> dict[str, Any]:
        logits = dict(zip(("logit_lens", "jlens", "jlens_of_random"), self.largest_logits, strict=True))
        return {
            "layer": self.layer,
            "gain": _json(self.gain),
            "cosine": _json(self.cosine),
            "agreement_between_texts": _number(self.agreement),
            "linear_up_to_strength": self.linear_up_to,
            "linear_up_to_multiplier": self.multiplier,
            "linear_up_to_strength_by_token": self.linear_up_to_by_token,
            "largest_logit": logits,
            "random": [vars(one) for one in self.random],
            "random_agreement_between_texts": _number(self.random_agreement),
        }


def _json(one: Estimate) -> dict[str, float | None]:
    return {"value": one.value, "low": _number(one.low), "high": _number(one.high)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def draw_first_order(rows: Sequence[FirstOrderRow], title: str, n_texts: int) -> Figure:
    """Four panels over layers: gain, cosine with the vector, linear range, largest logits."""
    layers = [row.layer for row in rows]
    figure, axes = new_figure(PAGE_WIDTH, 4.4, nrows=2, ncols=2)
    gain, cosine, linear, logits = axes.flat
    for ax, of_own, of_random, label in (
        (gain, [row.gain for row in rows], [_spread([r.gain for r in row.random]) for row in rows], "|J v| / |v|"),
        (
            cosine,
            [row.cosine for row in rows],
            [_spread([r.cosine for r in row.random]) for row in rows],
            "cosine of J v with v",
        ),
    ):
        draw_line(ax, layers, of_random, "random vectors (range)", _RANDOM)
        draw_line(ax, layers, of_own, "vector (95% over texts)", _OWN)
        ax.set_ylabel(label)
    if max(row.gain.value for row in rows) > 10 * min(row.gain.value for row in rows):
        gain.set_yscale("log")
        gain.yaxis.set_major_formatter("{x:g}")
        gain.yaxis.set_minor_formatter("")
    else:
        gain.set_ylim(bottom=0)
    _steps(linear, layers, [[r.linear_up_to for r in row.random] for row in rows], _RANDOM)
    _steps(linear, layers, [[row.linear_up_to] for row in rows], _OWN)
    linear.set_ylabel("linear up to\n(share of the residual norm)")
    linear.set_ylim(bottom=0)
    for place, (name, style) in enumerate(
        (("logit lens", LineStyle(ORANGE, "^")), ("J-lens", LineStyle(GREEN, "D")), ("J-lens, random vector", _RANDOM))
    ):
        logits.plot(
            layers,
            [row.largest_logits[place] for row in rows],
            color=style.color,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=2.5,
            label=name,
        )
    logits.set_ylabel("logit of the most promoted token\n(vector of root mean square 1)")
    logits.set_ylim(bottom=0)
    logits.legend(loc="best")
    gain.legend(loc="best")
    for ax in axes.flat:
        layer_axis(ax, layers)
        ax.set_xlabel("layer")
    set_title(
        figure, title, f"J v: mean over {n_texts} texts; linear: the mean change's cosine with it is 0.99 or more"
    )
    return figure


def _spread(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)), min(values), max(values), len(values), len(values))


def _steps(ax: Axes, layers: Sequence[int], found: Sequence[Sequence[float | None]], style: LineStyle) -> None:
    """The mean of what there is; nothing where the change is not linear even at the smallest step."""
    there = [[one for one in values if one is not None] for values in found]
    shown = [float(np.mean(values)) if values else math.nan for values in there]
    ax.plot(layers, shown, color=style.color, linestyle=style.dashes, marker=style.marker, markersize=2.5)


def first_order_table(rows: Sequence[FirstOrderRow], notes: tuple[str, ...]) -> Table:
    columns = (
        "layer",
        "gain",
        "gain_low",
        "gain_high",
        "random_gain",
        "cosine",
        "cosine_low",
        "cosine_high",
        "random_cosine",
        "agreement",
        "random_agreement",
        "linear_up_to_strength",
        "linear_up_to_multiplier",
        "linear_up_to_strength_by_token",
        "random_linear_up_to_strength",
        "logit_lens_top",
        "jlens_top",
        "random_jlens_top",
    )
    cells = [
        (
            row.layer,
            *(row.gain.value, row.gain.low, row.gain.high, float(np.mean([r.gain for r in row.random]))),
            *(row.cosine.value, row.cosine.low, row.cosine.high, float(np.mean([r.cosine for r in row.random]))),
            row.agreement,
            row.random_agreement,
            NO_RANGE if row.linear_up_to is None else row.linear_up_to,
            NO_RANGE if row.multiplier is None else row.multiplier,
            NO_RANGE if row.linear_up_to_by_token is None else row.linear_up_to_by_token,
            ", ".join(NO_RANGE if r.linear_up_to is None else f"{r.linear_up_to:g}" for r in row.random),
            *row.largest_logits,
        )
        for row in rows
    ]
    explained = (
        "gain: |J v| / |v|; cosine: of J v with v; intervals: 95% jackknife over texts; agreement: mean cosine of two "
        "texts' J v; random: random vectors of the layer",
        "linear_up_to: the largest step up to which the last layer's mean change has a cosine of 0.99 with the "
        "first-order one, both signs, as a strength (added norm / residual norm) and as a multiplier of the vector in "
        "vectors/; by_token: the same of the changes of all tokens as one vector",
    )
    return Table(columns, cells, (*notes, *explained))
