"""The figure of a choice of layer and strength: effect against side effects, layer by layer."""

from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.evaluation.choice import Choice
from utils.evaluation.chosen import ChoiceRequest
from utils.figures.style import figure_style, new_figure, save_figure, set_title
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
        f"{100 * test.moved_right:.0f}% of items the right way); linear {linear}"
    )
