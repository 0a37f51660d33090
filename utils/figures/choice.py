"""The figure of a choice of layer and strength: effect against side effects, layer by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.evaluation.chosen import Choice, ChoiceRequest, Outcome, TestedChoice
from utils.evaluation.effects import ALPHA
from utils.figures.style import BLUE, ORANGE, PAGE_WIDTH, figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EFFECT_LABEL = "preference for matching answers,\n+ minus \N{MINUS SIGN} (nats per token)"


def plot_choice(choice: Choice, request: ChoiceRequest) -> None:
    """Draw and save the figure with its data."""
    stem = request.paths.analysis(choice.behavior, f"chosen_{request.choice.label}{request.kind.suffix}")
    with figure_style():
        save_figure(_draw(choice, request), stem, choice_table(choice, request))


def _draw(choice: Choice, request: ChoiceRequest) -> "Figure":
    import matplotlib as mpl
    import matplotlib.ticker

    figure, ax = new_figure(height=3.0)
    layers = sorted({one.layer for one in choice.by_layer})
    colours = mpl.colormaps["viridis"].resampled(max(2, len(layers)))
    for place, layer in enumerate(layers):
        points = sorted((one for one in choice.by_layer if one.layer == layer), key=lambda one: one.strength)
        x, y = [one.kl_95 for one in points], [one.effect for one in points]
        ax.plot(x, y, color=colours(place), linewidth=0.8, marker="o", markersize=2.5)
    best = choice.chosen
    spread = [[best.effect - best.low], [best.high - best.effect]]
    ax.errorbar([best.kl_95], [best.effect], yerr=spread, fmt="D", color="black", markersize=5, capsize=2, zorder=3)
    ax.annotate(
        f"layer {best.layer}, strength {best.strength:.2f}",
        (best.kl_95, best.effect),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",
        fontsize="small",
    )
    ax.axvline(request.kl, color="0.5", linestyle=":", linewidth=0.8)
    ax.axhline(0, color="0.7", linewidth=0.6)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")  # the style leaves mathematical text alone
    ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ax.set_xlabel("KL to the unsteered model,\n95th percentile over tokens (nats)")
    ax.set_ylabel(EFFECT_LABEL)
    norm = mpl.colors.Normalize(min(layers), max(max(layers), min(layers) + 1))
    figure.colorbar(mpl.cm.ScalarMappable(norm, mpl.colormaps["viridis"]), ax=ax, label="layer")
    label = load_behavior(request.paths, choice.behavior).label
    set_title(
        figure,
        f"{label}, {request.choice.label}",
        f"{choice.n_validation} validation items; dotted: the budget, {request.kl:g} nat",
    )
    return figure


def choice_table(choice: Choice, request: ChoiceRequest) -> Table:
    rows = [
        (one.layer, one.strength, one.kl_95, one.effect, one.low, one.high, one == choice.chosen)
        for one in choice.by_layer
    ]
    return Table(
        ("layer", "strength", "kl_95", "effect", "ci_low", "ci_high", "chosen"),
        rows,
        (
            f"effect: preference for the matching answer at +strength minus at -strength, nats per token, mean over "
            f"{choice.n_validation} validation items with its 95% bootstrap interval",
            f"kl_95: 95th percentile of the per-token KL to the unsteered model, budget {request.kl:g}",
            choice_line(choice),
        ),
    )


def choice_line(choice: Choice) -> str:
    """What was chosen and what it does to the test items, in one line."""
    best, test = choice.chosen, choice.test
    linear = "not measurably" if choice.linear_up_to is None else f"up to strength {choice.linear_up_to:.2f}"
    return (
        f"{choice.behavior}: layer {best.layer}, strength {best.strength:.3f} (multiplier {choice.multiplier:.2f}), "
        f"KL {best.kl_95:.2f}; held-out effect, + minus -: {test.effect:+.3f} [{test.low:+.3f}, {test.high:+.3f}] nats "
        f"per token (p {test.p_value:.2g}, n {test.n}; {test.at_minus:+.3f} at -, {test.at_plus:+.3f} at +; "
        f"{100 * test.moved_right:.0f}% of items the right way); random vector: "
        f"{_short(choice.controls.get('random'))}; linear {linear}"
    )


# --- all behaviors beside each other ---------------------------------------------------------------

CONTROLS = {"letter": ("letter vector", ORANGE, "s"), "random": ("random vector", "0.55", "o")}


def plot_tested(choices: Sequence[TestedChoice], request: ChoiceRequest) -> Path:
    """Draw and save what was chosen for every behavior, on test items, beside its controls; returns the stem."""
    stem = request.paths.analysis(f"chosen_effects_{request.choice.label}{request.kind.suffix}")
    with figure_style():
        save_figure(_draw_tested(choices, request), stem, tested_table(choices))
    return stem


def _draw_tested(choices: Sequence[TestedChoice], request: ChoiceRequest) -> "Figure":
    figure, ax = new_figure(PAGE_WIDTH, 0.9 + 0.24 * len(choices))
    named = f"{request.kind.reading} vector" + (f" ({request.kind.method})" if request.kind.method != "mean" else "")
    shown = {"chosen": (named, BLUE, "D"), **CONTROLS}
    for shift, (name, (label, colour, marker)) in zip((-0.22, 0.0, 0.22), shown.items(), strict=True):
        outcomes = [_outcomes(one.choice).get(name) for one in choices]
        points = [(place, outcome) for place, outcome in enumerate(outcomes) if outcome is not None]
        if not points:
            continue
        x = [outcome.effect for _, outcome in points]
        spread = [[o.effect - o.low for _, o in points], [o.high - o.effect for _, o in points]]
        y = [place + shift for place, _ in points]
        ax.errorbar(x, y, xerr=spread, fmt=marker, color=colour, markersize=3.5, capsize=2, linewidth=1, label=label)
    ax.axvline(0, color="0.6", linewidth=0.6)
    ax.set_yticks(range(len(choices)), [_row_label(one, request) for one in choices])
    ax.set_ylim(len(choices) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("preference for the matching answer's text, + minus \N{MINUS SIGN} (nats per token)")
    ax.legend(loc="lower right")
    set_title(
        figure,
        f"What steering does to held-out answers, {request.choice.label}",
        f"95% intervals; layer and strength chosen on other items; controls of equal norm; * holds ({ALPHA:g}, Holm)",
    )
    return figure


def _outcomes(choice: Choice) -> dict[str, Outcome]:
    """What was tested: the chosen vector, and the controls."""
    return {"chosen": choice.test, **choice.controls}


def _row_label(one: TestedChoice, request: ChoiceRequest) -> str:
    star = " *" if one.p_holm <= ALPHA else ""
    return f"{load_behavior(request.paths, one.choice.behavior).label}, layer {one.choice.chosen.layer}{star}"


def tested_table(choices: Sequence[TestedChoice]) -> Table:
    """One row a behavior and vector."""
    columns = (
        "behavior",
        "layer",
        "strength",
        "vector",
        "effect",
        "ci_low",
        "ci_high",
        "n",
        "moved_right",
        "p",
        "p_holm",
    )
    rows: list[tuple[object, ...]] = []
    for one in choices:
        at = (one.choice.behavior, one.choice.chosen.layer, one.choice.chosen.strength)
        for name, outcome in _outcomes(one.choice).items():
            rows.append((*at, name, *_numbers(outcome), one.p_holm if name == "chosen" else "-"))
    return Table(
        columns,
        rows,
        (
            "effect: preference for the matching answer at +strength minus at -strength, nats per token, mean over "
            "test items with its 95% bootstrap interval; layer and strength were chosen on other items",
            "letter, random: vectors of equal norm at the same layer",
            "p_holm: corrected over the behaviors of this table",
        ),
    )


def _numbers(outcome: Outcome) -> tuple[object, ...]:
    return (outcome.effect, outcome.low, outcome.high, outcome.n, outcome.moved_right, outcome.p_value)


def tested_lines(choices: Sequence[TestedChoice]) -> list[str]:
    """The table for the terminal."""
    width = max(len(one.choice.behavior) for one in choices)
    titles = ["held-out effect, + minus -", "random vector", "letter vector"]
    lines = [f"{'':{width}}  layer  {' '.join(f'{title:26}' for title in titles)} p (Holm)"]
    for one in choices:
        outcomes = _outcomes(one.choice)
        texts = [f"{_short(outcomes.get(name)):26}" for name in ("chosen", "random", "letter")]
        at = f"{one.choice.behavior:{width}}  {one.choice.chosen.layer:5}"
        lines.append(f"{at}  {' '.join(texts)} {one.p_holm:.2g}")
    return lines


def _short(outcome: Outcome | None) -> str:
    return "-" if outcome is None else f"{outcome.effect:+.3f} [{outcome.low:+.3f}, {outcome.high:+.3f}]"
