"""Figures of vectors taken apart: the spectrum beside its null, what components decode to, and effect against rank."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.figures.lines import legend_below
from utils.figures.style import (
    BLUE,
    ORANGE,
    PAGE_WIDTH,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.inside.figures import drawn_text
from utils.research.decompose_request import describe_vector
from utils.research.svd_components import FloatArray
from utils.research.svd_results import Done, PartEffect
from utils.research.vector_effects import WHOLE

EFFECT_LABEL = "preference for matching answers,\n+ minus \N{MINUS SIGN} (nats per token)"
_N_BARS, _N_WORDS, _WORD_CHARACTERS = 8, 3, 12
_GREY = "0.55"


def _named(done: Done) -> str:
    return describe_vector(done.request, done.behavior, done.layer)


# --- components ------------------------------------------------------------------------------------


def plot_decomposition(done: Done) -> Path:
    """Returns the stem of its files, as `plot_effects` does."""
    stem = done.request.stem("singular_vectors", done.behavior, done.layer)
    with figure_style():
        figure, (left, right) = new_figure(PAGE_WIDTH, 2.9, ncols=2, width_ratios=(1, 1.15))
        _draw_spectrum(left, done)
        _draw_shares(right, done)
        apart = done.apart
        set_title(
            figure,
            f"Singular vectors of the pairs' differences: {_named(done)}",
            f"{apart.n_real} of {apart.parts.rank} components above the null (entries' signs drawn, "
            f"{done.request.n_flips} times); * the pairs agree on its side (pairs' signs drawn, family-wise 5%; "
            f"components: {apart.n_consistent})",
        )
        log_written(save_figure(figure, stem, component_table(done)))
    return stem


def _draw_spectrum(ax: Any, done: Done) -> None:
    parts, spectra = done.apart.parts, done.apart.spectra[:, : done.apart.parts.rank]
    places = np.arange(1, parts.rank + 1)
    low, middle, high = np.quantile(spectra, [0.05, 0.5, 0.95], axis=0)
    ax.fill_between(places, low, high, color=_GREY, alpha=0.4, linewidth=0)
    ax.plot(places, middle, color=_GREY, label="signs drawn (5% to 95%)")
    ax.plot(places, parts.singular_values, color=BLUE, marker="o", markersize=2, linewidth=0.8, label="the pairs")
    ax.axvline(done.apart.n_real + 0.5, color="black", linestyle=":", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("component")
    ax.set_ylabel("singular value")
    ax.legend(loc="lower left")


def _draw_shares(ax: Any, done: Done) -> None:
    apart = done.apart
    parts, n = apart.parts, min(_N_BARS, apart.n_listed)
    places = np.arange(n)
    ax.barh(places - 0.18, parts.share_of_vector[:n], height=0.36, color=BLUE, label="of the vector")
    ax.barh(places + 0.18, parts.share_of_differences[:n], height=0.36, color=ORANGE, label="of the differences")
    ax.set_yticks(places, [_tick(done, k) for k in range(n)])
    ax.set_ylim(n - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("share of the squared norm")
    ax.legend(loc="lower right")


def _tick(done: Done, k: int) -> str:
    """A component with what it promotes and suppresses most."""
    star = "*" if done.apart.consistency.p_family[k] < 0.05 else ""
    ends = [" ".join(drawn_text(one, _WORD_CHARACTERS) for one in some) for some in done.apart.tokens(k, _N_WORDS)]
    return f"{k + 1}{star}  + {ends[0]}\n\N{MINUS SIGN} {ends[1]}"


def component_table(done: Done) -> Table:
    """The listed components; the numbers of all stand in the JSON file."""
    rows: list[tuple[object, ...]] = []
    limits = np.quantile(done.apart.spectra, 0.95, axis=0)
    for k in range(done.apart.n_listed):
        one = done.component_json(k)
        words = [" ".join(repr(text)[1:-1] for text in one.pop(side)) for side in ("promoted", "suppressed")]
        rows.append((*one.values(), float(limits[k]), *words))
    columns = [name for name in done.component_json(0) if name not in ("promoted", "suppressed")]
    apart = done.apart
    return Table(
        (*columns, "singular_value_null_95", "promoted", "suppressed"),
        rows,
        (
            _named(done),
            f"uncentred SVD of the differences of {len(apart.parts.projections)} pairs; the vector is the sum of "
            "weight x component; components are turned so that the pairs' mean projection is 0 or more",
            f"{apart.n_real} of {apart.parts.rank} components are above the 95% quantile of the singular values with "
            f"the sign of every entry drawn ({done.request.n_flips} times), counted from the first",
            f"p_family: the pairs have no side on the component (pairs' signs drawn; all components); below 0.05: "
            f"{apart.n_consistent}",
            f"first centred component (repeng's pca_diff): cosine {apart.centred_with_first:+.3f} with component 1, "
            f"{apart.centred_with_vector:+.3f} with the vector",
        ),
    )


# --- effect against rank ---------------------------------------------------------------------------


def plot_effects(done: Done) -> Path:
    stem = done.request.stem("effect_by_rank", done.behavior, done.layer)
    with figure_style():
        figure, (left, right) = new_figure(PAGE_WIDTH, 2.9, ncols=2, width_ratios=(1.5, 1), sharey=True)
        _draw_ranks(left, done)
        _draw_left_out(right, done)
        legend_below(figure, left)
        n = done.effects[0].compared.effect.n
        set_title(
            figure,
            f"Effect against rank: {_named(done)}",
            f"{n} held-out items; every vector at strength {done.request.strength:g}; bars and bands: 95% intervals "
            f"over items; controls: mean of {done.request.n_random} draws",
        )
        log_written(save_figure(figure, stem, effect_table(done)))
    return stem


def _draw_ranks(ax: Any, done: Done) -> None:
    of = {one.name: one for one in done.effects}
    ranked = [one for one in done.effects if one.rank is not None]
    _band(ax, of[WHOLE], BLUE, "whole vector")
    _band(ax, of["drawn signs"], ORANGE, "pairs' signs drawn")
    _band(ax, of["random"], _GREY, "random vector")
    _points(ax, [float(one.rank or 0) for one in ranked], ranked, "the first components")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("components in the vector, rescaled")
    ax.set_ylabel(EFFECT_LABEL)


def _draw_left_out(ax: Any, done: Done) -> None:
    of = {one.name: one for one in done.effects}
    shown = [one for one in done.effects if one.name.startswith("without")]
    for name, colour in ((WHOLE, BLUE), ("drawn signs", ORANGE), ("random", _GREY)):
        _band(ax, of[name], colour, "")
    places = list(range(len(shown)))
    _points(ax, [float(place) for place in places], shown, "")
    ax.set_xticks(places, [one.name.removeprefix("without") for one in shown])
    ax.set_xlim(-0.6, len(shown) - 0.4)
    ax.set_xlabel("component left out, rescaled")


def _band(ax: Any, one: PartEffect, colour: str, label: str) -> None:
    effect = one.compared.effect
    ax.axhline(effect.value, color=colour, linewidth=0.9, linestyle="--", label=label or None)
    if np.isfinite(effect.low):
        ax.axhspan(effect.low, effect.high, color=colour, alpha=0.15, linewidth=0)


def _points(ax: Any, x: list[float], shown: list[PartEffect], label: str) -> None:
    effects = [one.compared.effect for one in shown]
    y = np.array([one.value for one in effects])
    spread: FloatArray = np.array([[one.value - one.low for one in effects], [one.high - one.value for one in effects]])
    ax.errorbar(x, y, yerr=np.maximum(spread, 0), color="black", fmt="o", markersize=3, capsize=2, label=label or None)


def effect_table(done: Done) -> Table:
    rows = [
        (one.name, one.cosine, *("-" if value is None else value for value in one.compared.as_json().values()))
        for one in done.effects
    ]
    request = done.request
    return Table(
        ("vector", "cosine_with_whole", *done.effects[0].compared.as_json()),
        rows,
        (
            _named(done),
            f"effect: preference for the matching answer at +strength minus at -strength ({request.strength:g} of the "
            "layer's residual norm, whatever the vector), nats per token, mean over held-out items, 95% bootstrap "
            "interval",
            "difference: from the whole vector, paired by item; p: bootstrap-t over items, not corrected",
            f"random, drawn signs: each item's mean over {request.n_random} draws",
        ),
    )
