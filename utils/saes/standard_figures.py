"""The figure of the standard evaluations: every SAE on every text, beside a random dictionary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    PURPLE,
    SKY,
    VERMILLION,
    figure_style,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.saes.standard_request import EvalsRequest

if TYPE_CHECKING:
    from utils.saes.standard_run import Cell

_SHOWN = (("explained_variance", "explained variance"), ("ce_loss_score", "CE loss score"), ("l0", "L0"))
_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)


def plot_evals(cells: "Sequence[Cell]", request: EvalsRequest) -> None:
    """Draw explained variance, CE loss score and L0 with their intervals, and write them beside."""
    with figure_style():
        saes = list(dict.fromkeys(cell.sae for cell in cells))
        texts = list(dict.fromkeys(cell.measured_on for cell in cells))
        figure, axes = new_figure(PAGE_WIDTH, 1.2 + 0.32 * len(saes), ncols=len(_SHOWN), sharey=True)
        for ax, (name, label) in zip(axes, _SHOWN, strict=True):
            for place, text in enumerate(texts):
                shift = 0.22 * (place - (len(texts) - 1) / 2)
                of_text = [cell for cell in cells if cell.measured_on == text]
                values = [cell.evals.estimates()[name] for cell in of_text]
                spread = [[max(0.0, x.value - x.low) for x in values], [max(0.0, x.high - x.value) for x in values]]
                ax.errorbar(
                    [x.value for x in values],
                    [saes.index(cell.sae) + shift for cell in of_text],
                    xerr=spread,
                    fmt="o",
                    capsize=2,
                    markersize=3,
                    linewidth=0.9,
                    color=_COLOURS[place % len(_COLOURS)],
                    label=f"on {text}",
                )
            ax.set_xlabel(label)
            if name == "l0":
                ax.set_xlim(0, 1.1 * max(1.0, ax.get_xlim()[1]))
        axes[0].set_yticks(range(len(saes)), saes)
        axes[0].set_ylim(len(saes) - 0.5, -0.5)
        axes[-1].legend(loc="lower left")
        set_title(
            figure,
            f"Standard evaluations of SAEs on {request.model.name}",
            f"held-out text, {request.n_tokens} tokens each; bars: 95% jackknife intervals over sequences",
        )
        save_figure(figure, request.stem, _table(cells))


def _table(cells: "Sequence[Cell]") -> Table:
    names = list(cells[0].evals.estimates())
    columns = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    rows = []
    for cell in cells:
        values = [number for x in cell.evals.estimates().values() for number in (x.value, x.low, x.high)]
        rows.append((cell.sae, cell.trained_on, cell.measured_on, *values, cell.evals.dead, cell.evals.rare))
    return Table(
        ("sae", "trained_on", "measured_on", *columns, "dead", "rare"),
        rows,
        (
            "over all tokens but the first of each sequence; ce_...: nats a token; ce_loss_score: 1 is no loss, 0 is "
            "as bad as a layer output of 0",
            "random dictionary: as many random directions, centred and scaled to fit, with the same L0",
        ),
    )
