"""SAEs by the model and the text they were trained on, all read on one model: two heatmaps, and paired differences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.estimates import Estimate, student_estimate
from utils.errors import UserError
from utils.figures.style import PAGE_WIDTH, figure_style, log_written, new_figure, save_figure, set_title
from utils.files.tables import Table
from utils.saes.conditions import interval
from utils.saes.direction_evals import EvalRequest, describe_sae, read_all
from utils.saes.fidelity import Jackknife, Range, jackknife, range_of
from utils.saes.fidelity_run import Measured, as_range, estimate_text, measure
from utils.saes.requests import write_result
from utils.saes.steering_run import TopRows, top_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llama_wrapper import LlamaWrapper

PUBLISHED = (
    ("chat model", 0.849, 0.596, 0.678, 0.411),
    ("base model", 0.735, 0.502, 0.492, 0.362),
)
"""Of Qwen1.5-0.5B: cosine of the reconstructed direction for LmSys and for Pile, then largest latent cosines."""


@dataclass(frozen=True, eq=False)
class Cell:
    """The SAEs that one model and one text trained, usually of several seeds."""

    model: str
    source: str
    measured: tuple[Measured, ...]
    rows: tuple[TopRows, ...]

    @property
    def cosine(self) -> float | None:
        """Mean of the published number; None where an SAE has none."""
        values = [one.fidelity.cosine for one in self.measured]
        return None if None in values else float(np.mean(np.array(values, dtype=np.float64)))

    @property
    def corrected(self) -> Estimate:
        return mean_jackknife([_jackknife(one) for one in self.measured]).estimates()[0]

    @property
    def largest(self) -> float:
        return float(np.mean([one.latents[0][1] for one in self.rows]))

    def as_json(self) -> dict[str, Any]:
        return {
            "trained_on_model": self.model,
            "trained_on_data": self.source,
            "cosine": self.cosine,
            "corrected_cosine": interval(self.corrected),
            "max_latent_cosine": self.largest,
            "saes": [
                {
                    **describe_sae(one.read.sae),
                    "cosine": one.fidelity.cosine,
                    "corrected_cosine": interval(one.fidelity.corrected_cosine),
                    "relative_mse": one.fidelity.relative_mse,
                    "max_latent": list(rows.latents[0]),
                    "random_directions_cosine": as_range(one.random_directions[0]),
                    "random_dictionaries_cosine": as_range(one.random_dictionaries[0]),
                    "random_dictionaries_max_latent_cosine": as_range(rows.random),
                }
                for one, rows in zip(self.measured, self.rows, strict=True)
            ],
        }


def _jackknife(one: Measured) -> Jackknife:
    return jackknife(one.read.sides, one.read.sides.through(one.read.sae))


def mean_jackknife(several: Sequence[Jackknife]) -> Jackknife:
    """Of the mean over SAEs that are read on the same prompts."""
    return Jackknife(
        np.mean([one.whole for one in several], axis=0),
        np.mean([one.without_harmful for one in several], axis=0),
        np.mean([one.without_harmless for one in several], axis=0),
    )


@dataclass(frozen=True)
class Difference:
    """One text minus another, for SAEs of one model."""

    model: str
    source: str
    minus: str
    over_prompts: Estimate
    """Of the corrected cosine, these very SAEs on other prompts."""
    over_seeds: Estimate
    """Of the published cosine, other SAEs on these prompts: pairs in the order of their names; NaN below three."""
    largest_over_seeds: Estimate
    """The same of the largest latent cosine."""

    def as_json(self) -> dict[str, Any]:
        return {
            "trained_on_model": self.model,
            "of": self.source,
            "minus": self.minus,
            "corrected_cosine_over_prompts": interval(self.over_prompts),
            "cosine_over_saes": interval(self.over_seeds),
            "max_latent_cosine_over_saes": interval(self.largest_over_seeds),
        }


def compare(one: Cell, other: Cell) -> Difference:
    kept, others = (mean_jackknife([_jackknife(m) for m in cell.measured]) for cell in (one, other))
    pairs = list(zip(one.measured, other.measured, strict=False)) if len(one.measured) == len(other.measured) else []
    cosines = [_minus(a.fidelity.cosine, b.fidelity.cosine) for a, b in pairs]
    rows = zip(one.rows, other.rows, strict=False) if pairs else []
    largest = [a.latents[0][1] - b.latents[0][1] for a, b in rows]
    return Difference(
        one.model, one.source, other.source, kept.minus(others)[0], mean_of_few(cosines), mean_of_few(largest)
    )


def _minus(one: float | None, other: float | None) -> float:
    return math.nan if one is None or other is None else one - other


def mean_of_few(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval; none for fewer than three."""
    n = len(values)
    if not n or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, math.nan, 0, n)
    found = student_estimate(values)
    return found if n >= 3 else replace(found, low=math.nan, high=math.nan)


def cells_of(measured: Sequence[Measured], rows: Sequence[TopRows]) -> list[Cell]:
    """SAEs by model and text, in the order of their names within a cell.

    Raises:
        UserError: If they read different layers: their directions are not one.
    """
    layers = sorted({one.read.sae.layer for one in measured})
    if len(layers) > 1:
        raise UserError(f"these SAEs read layers {', '.join(map(str, layers))}; compare SAEs of one layer")
    together: dict[tuple[str, str], list[tuple[Measured, TopRows]]] = {}
    for pair in sorted(zip(measured, rows, strict=True), key=lambda pair: pair[0].read.sae.name):
        sae = pair[0].read.sae
        together.setdefault((sae.trained_on_model, sae.source), []).append(pair)
    return [
        Cell(model, source, tuple(m for m, _ in pairs), tuple(r for _, r in pairs))
        for (model, source), pairs in together.items()
    ]


def evaluate_transfer(model: "LlamaWrapper", request: EvalRequest) -> Iterator[str]:
    """Measure, write and draw; yields what is printed."""
    reads = read_all(model, request, other_models=True)
    measured = [measure(read, request) for read in reads]
    cells = cells_of(measured, [top_rows(read, 5, request.seed, request.n_random) for read in reads])
    paired = [compare(one, other) for one, other in combinations(cells, 2) if one.model == other.model]
    with figure_style():
        log_written(save_figure(_draw(cells, request), request.stem, transfer_table(cells, paired)))
    record = {**model.provenance(), "command": request.command}
    content = {
        "cells": [cell.as_json() for cell in cells],
        "differences": [one.as_json() for one in paired],
        "published": {"columns": ["row", "cosine LmSys", "cosine Pile", "max LmSys", "max Pile"], "rows": PUBLISHED},
    }
    write_result(request.result_path, request.settings(), record, {"results": content})
    for cell in cells:
        cosine = "undefined" if cell.cosine is None else f"{cell.cosine:.3f}"
        yield (
            f"trained on {cell.model}, {cell.source} ({len(cell.measured)} SAEs): cosine {cosine}, corrected "
            f"{estimate_text(cell.corrected)}; largest latent cosine {cell.largest:.3f}"
        )
    for one in paired:
        yield difference_line(one)


def difference_line(one: Difference) -> str:
    prompts, seeds = one.over_prompts, one.over_seeds
    line = f"{one.model}: {one.source} minus {one.minus}: corrected cosine "
    line += f"{prompts.value:+.3f} [{prompts.low:+.3f}, {prompts.high:+.3f}] over prompts"
    if math.isfinite(seeds.low):
        line += f"; cosine {seeds.value:+.3f} [{seeds.low:+.3f}, {seeds.high:+.3f}] over {seeds.n} pairs of SAEs"
    return line


def _draw(cells: Sequence[Cell], request: EvalRequest) -> "Figure":
    models, sources = list(dict.fromkeys(c.model for c in cells)), list(dict.fromkeys(c.source for c in cells))
    figure, axes = new_figure(PAGE_WIDTH, 1.6 + 0.75 * len(models), ncols=2)
    columns = [*sources, "random\ndirection", "random\ndictionary"]
    for ax, which in zip(axes, ("cosine", "largest"), strict=True):
        shown = columns if which == "cosine" else [*sources, columns[-1]]
        values = np.full((len(models), len(shown)), np.nan)
        for row, model in enumerate(models):
            of_row = [cell for cell in cells if cell.model == model]
            for cell in of_row:
                column = sources.index(cell.source)
                value = cell.cosine if which == "cosine" else cell.largest
                values[row, column] = math.nan if value is None else value
                _write(ax, column, row, values[row, column], _note(cell, which))
            for place, control in enumerate(_controls(of_row, which)):
                values[row, len(sources) + place] = control.mean
                _write(ax, len(sources) + place, row, control.mean, f"[{control.low:.2f}, {control.high:.2f}]")
        image = ax.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        ax.axvline(len(sources) - 0.5, color="white", linewidth=2)
        ax.set_xticks(range(len(shown)), shown)
        ax.set_yticks(range(len(models)), [model.replace(" (", "\n(") for model in models] if ax is axes[0] else [])
        ax.grid(visible=False)
        what = "cosine of reconstructed and true r" if which == "cosine" else "largest cosine of a latent with r"
        ax.set_title(what, fontsize=7, loc="left")
        ax.set_xlabel("text that the SAE was trained on")
    axes[0].set_ylabel("model it was trained on")
    figure.colorbar(image, ax=axes, pad=0.01)
    chat, base = PUBLISHED
    set_title(
        figure,
        f"Harmful minus harmless direction r of {request.model.name} in SAEs by model and text",
        "in brackets: cosine corrected for few prompts with its 95% interval; right of the line: controls, "
        "with 95% of their draws. Published "
        f"(Qwen1.5-0.5B; LmSys, Pile): chat {chat[1]:.2f}, {chat[2]:.2f} and {chat[3]:.2f}, {chat[4]:.2f}; base "
        f"{base[1]:.2f}, {base[2]:.2f} and {base[3]:.2f}, {base[4]:.2f}",
    )
    return figure


def _note(cell: Cell, which: str) -> str:
    if which == "cosine":
        found = cell.corrected
        return f"({found.value:.3f}\n[{found.low:.2f}, {found.high:.2f}])" if found.exists else ""
    if len(cell.rows) == 1:
        return f"latent {cell.rows[0].latents[0][0]}"
    values = [one.latents[0][1] for one in cell.rows]
    return f"{min(values):.2f} to {max(values):.2f}"


def _write(ax: Any, column: int, row: int, value: float, note: str) -> None:
    colour = "white" if not value > 0.6 else "black"
    text = "undefined" if math.isnan(value) else f"{value:.3f}"
    ax.text(column, row, f"{text}\n{note}", ha="center", va="center", color=colour, fontsize=6)


def _controls(cells: Sequence[Cell], which: str) -> list[Range]:
    """Of a row: over all SAEs in it, the mean of their controls and the widest of their ranges."""
    if which == "largest":
        return [_widest([rows.random for cell in cells for rows in cell.rows])]
    every = [one for cell in cells for one in cell.measured]
    return [
        _widest([one.random_directions[0] for one in every]),
        _widest([one.random_dictionaries[0] for one in every]),
    ]


def _widest(ranges: Sequence[Range]) -> Range:
    mean = range_of([one.mean for one in ranges]).mean
    return Range(mean, min(one.low for one in ranges), max(one.high for one in ranges), len(ranges))


def transfer_table(cells: Sequence[Cell], paired: Sequence[Difference]) -> Table:
    rows = [
        (
            one.read.sae.name,
            cell.model,
            cell.source,
            "undefined" if one.fidelity.cosine is None else one.fidelity.cosine,
            one.fidelity.corrected_cosine.value,
            one.fidelity.corrected_cosine.low,
            one.fidelity.corrected_cosine.high,
            one.random_directions[0].mean,
            one.random_dictionaries[0].mean,
            top.latents[0][0],
            top.latents[0][1],
            top.random.mean,
        )
        for cell in cells
        for one, top in zip(cell.measured, cell.rows, strict=True)
    ]
    columns = ["sae", "trained_on_model", "trained_on_data", "cosine", "corrected_cosine", "low", "high"]
    columns += ["random_directions", "random_dictionaries", "latent", "max_latent_cosine", "random_max_latent_cosine"]
    return Table(tuple(columns), rows, tuple(difference_line(one) for one in paired))
