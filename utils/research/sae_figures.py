"""Figures of vectors read by SAEs: share explained and top latents; effect against KL of filtered vectors."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from utils.figures.lines import MARKERS, PALETTE
from utils.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    VERMILLION,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table, save_table, with_suffix
from utils.inside.figures import drawn_text
from utils.research.decompose_request import describe_vector
from utils.research.sae_filters import CONTROLS
from utils.research.sae_results import SaeDone
from utils.research.sae_tradeoff import LEVELS
from utils.research.vector_effects import WHOLE

_GREY = "0.55"
_N_BARS, _N_WORDS, _WORD_CHARACTERS = 10, 3, 12


def _named(done: SaeDone) -> str:
    return f"{describe_vector(done.request, done.behavior, done.read.sae.layer)}, SAE {done.read.sae.name}"


# --- what it consists of ---------------------------------------------------------------------------


def plot_latents(done: SaeDone, stem: Path) -> None:
    with figure_style():
        figure, (left, right) = new_figure(PAGE_WIDTH, 3.6, ncols=2, width_ratios=(1, 1.1))
        _draw_shares(left, done)
        _draw_top(right, done)
        off = done.distribution
        set_title(
            figure,
            f"What the vector consists of: {_named(done)}",
            f"encode(v) is off the SAE's inputs: |v| {off.vector_norm:.3g}, tokens {off.token_norm:.3g}; "
            f"{off.vector_l0} latents on, tokens {off.token_l0:.0f}. Right: largest of the signed pursuit, density in "
            "brackets; orange: dropped as irrelevant",
        )
        log_written(save_figure(figure, stem, latent_table(done)))
    save_table(with_suffix(stem, "_readings"), reading_table(done))


def _draw_shares(ax: Any, done: SaeDone) -> None:
    readings, controls = done.read.readings, done.controls
    for word, colour, marker in (("signed", BLUE, "o"), ("nonnegative", ORANGE, "s")):
        names = [name for name in readings if name.startswith(word)]
        sizes = [int(name.split()[1]) for name in names]
        ax.plot(
            sizes, [readings[name].explained for name in names], color=colour, marker=marker, label=f"{word} pursuit"
        )
        if word == "signed":
            for of, dash, label in (
                (controls.random_vector, "--", "random vectors (signed)"),
                (controls.random_dictionary, ":", "random dictionaries (signed)"),
            ):
                ax.plot(sizes, [of[name] for name in names], color=_GREY, linestyle=dash, label=label)
    for name, colour, marker, label in (
        ("encoding", VERMILLION, "X", "encode(v), off distribution"),
        ("difference", GREEN, "D", "difference of encodings"),
    ):
        n = max(1, len(readings[name].latents))
        ax.plot(
            [n], [readings[name].explained], color=colour, marker=marker, linestyle="none", markersize=5, label=label
        )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("latents")
    ax.set_ylabel("share of |v|\N{SUPERSCRIPT TWO} explained, at the best scale")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=2)


def _draw_top(ax: Any, done: SaeDone) -> None:
    n = min(_N_BARS, len(done.listed))
    rows = [done.latent_json(place) for place in range(n)]
    colours = [ORANGE if row["dropped_as"] else BLUE for row in rows]
    ax.barh(range(n), [row["coefficient"] for row in rows], color=colours, height=0.7)
    ticks = []
    for row in rows:
        words = row["promoted"] if row["coefficient"] > 0 else row["suppressed"]
        shown = " ".join(drawn_text(word, _WORD_CHARACTERS) for word in words[:_N_WORDS])
        ticks.append(f"{row['latent']} ({row['density']:.1%})\n{shown}")
    ax.set_yticks(range(n), ticks)
    ax.set_ylim(n - 0.4, -0.6)
    ax.axvline(0, color="0.5", linewidth=0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("coefficient (norm of the latent's part)")


def latent_table(done: SaeDone) -> Table:
    rows = []
    for place in range(len(done.listed)):
        one = done.latent_json(place)
        words = [" ".join(repr(text)[1:-1] for text in one.pop(side)) for side in ("promoted", "suppressed")]
        examples = " | ".join(one.pop("examples")) or "-"
        rows.append((*("-" if value in (None, "") else value for value in one.values()), *words, examples))
    columns = [name for name in done.latent_json(0) if name not in ("promoted", "suppressed", "examples")]
    return Table(
        (*columns, "promoted", "suppressed", "examples"),
        rows,
        (
            _named(done),
            "coefficient: of the signed pursuit, for decoder rows of length 1; density: share of the text's tokens",
            "matching_minus_other: mean activation; agreeing_pairs: share of the pairs that differ in which the "
            "matching half has more; p_side: sign test",
            f"dropped_as: dense (above {done.read.filters.max_density:g}), first token, non-discriminating (p_side of "
            "0.05 or more, or the other way than the coefficient), named",
        ),
    )


def reading_table(done: SaeDone) -> Table:
    rows = []
    for name in done.read.readings:
        one = done.as_json()["readings"][name]
        top = " ".join(f"{latent}:{amount:+.3g}" for latent, amount in one.pop("top"))
        rows.append((name, *("-" if value is None else value for value in one.values()), top or "-"))
    columns = [name for name in done.as_json()["readings"]["encoding"] if name != "top"]
    off = done.distribution
    return Table(
        ("reading", *columns, "top"),
        rows,
        (
            _named(done),
            "sums of latents without b_dec; unexplained: |v - sum|^2 / |v|^2; top: latent:coefficient",
            f"encoding: encode(v), {'off' if off.is_off else 'within'} the SAE's input distribution: |v| "
            f"{off.vector_norm:.4g}, a token's median {off.token_norm:.4g}; {off.vector_l0} latents on, a token's "
            f"{off.token_l0:.1f}; it cannot show negative amounts",
            f"..._of_random_vectors, ..._in_random_dictionaries: means over {done.request.n_random} draws",
        ),
    )


# --- effect against KL -----------------------------------------------------------------------------


def _style(done: SaeDone, row: int) -> tuple[str, str]:
    name = done.variants.made[row].name
    if name == WHOLE:
        return "black", "o"
    if name in CONTROLS:
        return _GREY, "x" if name == CONTROLS[0] else "+"
    return PALETTE[(row - 1) % (len(PALETTE) - 1)], MARKERS[(row - 1) % len(MARKERS)]


def plot_tradeoff(done: SaeDone, stem: Path) -> None:
    with figure_style():
        n = len(done.variants.made)
        figure, (left, right) = new_figure(PAGE_WIDTH, 1.6 + 0.17 * n, ncols=2, width_ratios=(1, 0.8))
        for row in range(n):
            _draw_variant(left, right, done, row)
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        left.xaxis.set_major_formatter("{x:g}")  # the style leaves mathematical text alone
        left.xaxis.set_minor_formatter(NullFormatter())
        left.axhline(0, color="0.7", linewidth=0.6)
        left.set_xlabel("KL to the unsteered model,\n95th percentile over tokens (nats)")
        left.set_ylabel("preference for matching answers,\n+ minus \N{MINUS SIGN} (nats per token)")
        right.axvline(0, color="black", linewidth=0.8)
        right.set_yticks(range(n), [_tick(done, row) for row in range(n)])
        right.set_ylim(n - 0.5, -0.5)
        right.grid(visible=False, axis="y")
        right.set_xlabel("effect minus the whole vector's,\nat equal KL (nats per token)")
        strengths = " and ".join(f"{level * done.request.strength:g}" for level in LEVELS)
        set_title(
            figure,
            f"Effect against KL: {_named(done)}",
            f"{done.tradeoffs[0].levels[0].effect.n} held-out items; every vector at strength {strengths}; bars: 95% "
            f"intervals over items, right paired; controls: mean of {done.request.n_random} draws; ~ beyond what was "
            "measured",
        )
        log_written(save_figure(figure, stem, tradeoff_table(done)))


def _tick(done: SaeDone, row: int) -> str:
    one = done.variants.made[row]
    n = "" if one.n_latents is None else f" ({one.n_latents})"
    return f"{one.name}{n}{' ~' if done.tradeoffs[row].beyond else ''}"


def _draw_variant(left: Any, right: Any, done: SaeDone, row: int) -> None:
    colour, marker = _style(done, row)
    traded = done.tradeoffs[row]
    effects = [level.effect for level in traded.levels]
    y = [one.value for one in effects]
    spread = np.array([[one.value - one.low for one in effects], [one.high - one.value for one in effects]])
    left.errorbar(
        traded.kl,
        y,
        yerr=np.maximum(spread, 0),
        color=colour,
        marker=marker,
        markersize=3.5,
        linewidth=0.9,
        elinewidth=0.5,
        capsize=1.5,
        alpha=0.9,
    )
    equal = traded.equal.difference
    if np.isfinite(equal.value):
        away = [[max(0.0, equal.value - equal.low)], [max(0.0, equal.high - equal.value)]]
        right.errorbar([equal.value], [row], xerr=away, color=colour, fmt=marker, markersize=4, capsize=2)
    elif done.variants.made[row].name == WHOLE:
        right.plot([0], [row], color=colour, marker=marker, markersize=4)


def tradeoff_table(done: SaeDone) -> Table:
    rows: list[tuple[object, ...]] = []
    for row in range(len(done.variants.made)):
        one = done.variant_json(row)
        about = [one[key] for key in ("vector", "n_latents", "n_dropped", "cosine_with_whole")]
        for level in one["levels"]:
            rows.append((*about, *level.values()))
        equal = one["at_equal_kl"]
        shown = "equal, extrapolated" if equal.pop("extrapolated") else "equal"
        rows.append((*about, shown, "-", *equal.values()))
    cleaned = [["-" if value is None else value for value in row] for row in rows]
    level_columns = list(done.variant_json(0)["levels"][0])
    absent = [f"{name}: {why}" for name, why in done.variants.absent.items()]
    return Table(
        ("vector", "n_latents", "n_dropped", "cosine_with_whole", *level_columns),
        cleaned,
        (
            _named(done),
            "effect: preference for the matching answer at +strength minus at -strength, nats per token, mean over "
            "held-out items, 95% bootstrap interval; kl_95: 95th percentile of the per-token KL on neutral answers",
            "difference: from the whole vector, paired by item, at the same norm; rows `equal`: where both have the KL "
            "of the whole vector between its strengths",
            f"controls (mean of {done.request.n_random} draws): {', '.join(CONTROLS)}",
            f"single best latent: {done.best[0]}, by its effect on validation items ({done.best_effect:+.3f})",
            *([f"not made: {'; '.join(absent)}"] if absent else []),
        ),
    )
