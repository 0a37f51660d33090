"""Fidelity of several SAEs: their numbers, controls and differences, as lines, a result and a figure."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from utils.data.estimates import Estimate
from utils.figures.style import (
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
from utils.saes.conditions import interval, number
from utils.saes.direction_evals import EvalRequest, Read, describe_sae, labels_of, read_all
from utils.saes.fidelity import (
    Fidelity,
    Range,
    jackknife,
    measure_fidelity,
    random_dictionaries_fidelity,
    random_directions_fidelity,
    range_of,
)
from utils.saes.requests import write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

MOST_PRINTED = 6
"""Differences between pairs of SAEs."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One SAE's fidelity beside its controls."""

    read: Read
    fidelity: Fidelity
    random_directions: tuple[Range, Range]
    """Cosine and relative error of random directions of r's norm, through this SAE."""
    random_dictionaries: tuple[Range, Range]
    """Of r, through random dictionaries of this SAE's size."""

    def as_json(self) -> dict[str, Any]:
        one = self.fidelity
        return {
            **describe_sae(self.read.sae),
            "norm_of_r": float(self.read.sides.difference.norm()),
            "cosine": one.cosine,
            "relative_mse": one.relative_mse,
            "corrected_cosine": interval(one.corrected_cosine),
            "corrected_relative_mse": interval(one.corrected_mse),
            "random_directions": {
                "cosine": as_range(self.random_directions[0]),
                "relative_mse": as_range(self.random_directions[1]),
            },
            "random_dictionaries": {
                "cosine": as_range(self.random_dictionaries[0]),
                "relative_mse": as_range(self.random_dictionaries[1]),
            },
        }


def as_range(found: Range) -> dict[str, float | int | None]:
    return {"mean": number(found.mean), "low": number(found.low), "high": number(found.high), "n": found.n}


def measure(read: Read, request: EvalRequest) -> Measured:
    controls = [
        draw(read.sides, read.sae, request.seed, request.n_random)
        for draw in (random_directions_fidelity, random_dictionaries_fidelity)
    ]
    ranges = [(range_of([one.cosine for one in c]), range_of([one.relative_mse for one in c])) for c in controls]
    return Measured(read, measure_fidelity(read.sides, read.sae), *ranges)


def differences(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Paired differences of the corrected cosine between SAEs of one layer: the same prompts are left out of both."""
    found = []
    kept = {id(one): jackknife(one.read.sides, one.read.sides.through(one.read.sae)) for one in measured}
    for one, other in combinations(measured, 2):
        if one.read.sae.layer == other.read.sae.layer:
            cosine, mse = kept[id(one)].minus(kept[id(other)])
            found.append(
                {
                    "of": one.read.sae.name,
                    "minus": other.read.sae.name,
                    "corrected_cosine": interval(cosine),
                    "corrected_relative_mse": interval(mse),
                }
            )
    return found


def evaluate_fidelity(model: "LlamaWrapper", request: EvalRequest) -> Iterator[str]:
    """Measure, write and draw; yields what is printed."""
    measured = [measure(read, request) for read in read_all(model, request)]
    paired = differences(measured)
    with figure_style():
        log_written(save_figure(_draw(measured, request), request.stem, fidelity_table(measured)))
    record = {**model.provenance(), "command": request.command}
    content = {"saes": [one.as_json() for one in measured], "differences": paired}
    write_result(request.result_path, {**request.settings()}, record, {"results": content})
    for one in measured:
        yield fidelity_line(one)
    if len(paired) > MOST_PRINTED:
        log.info("%d differences between SAEs are in %s", len(paired), request.result_path)
        return
    for row in paired:
        cosine = row["corrected_cosine"]
        if cosine["value"] is not None:
            yield (
                f"{row['of']} minus {row['minus']}: corrected cosine {cosine['value']:+.3f} "
                f"[{cosine['low']:+.3f}, {cosine['high']:+.3f}], on the same prompts"
            )


def fidelity_line(one: Measured) -> str:
    found, sae = one.fidelity, one.read.sae
    cosine = "undefined" if found.cosine is None else f"{found.cosine:.3f}"
    error = "undefined" if found.relative_mse is None else f"{found.relative_mse:.3f}"
    return (
        f"{sae.name}: cosine {cosine} (corrected {estimate_text(found.corrected_cosine)}), relative MSE {error} "
        f"(corrected {estimate_text(found.corrected_mse)}); random directions {one.random_directions[0].mean:.3f}, "
        f"random dictionaries {one.random_dictionaries[0].mean:.3f}"
    )


def estimate_text(estimate: Estimate) -> str:
    if not estimate.exists:
        return "undefined"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _draw(measured: Sequence[Measured], request: EvalRequest) -> "Figure":
    figure, axes = new_figure(PAGE_WIDTH, 1.2 + 0.5 * len(measured), ncols=2, sharey=True)
    labels = labels_of([one.read.sae for one in measured])
    for row, one in enumerate(measured):
        plain = (one.fidelity.cosine, one.fidelity.relative_mse)
        corrected = (one.fidelity.corrected_cosine, one.fidelity.corrected_mse)
        for ax, value, estimate, direction, dictionary in zip(
            axes, plain, corrected, one.random_directions, one.random_dictionaries, strict=True
        ):
            ax.barh(row, value or 0.0, height=0.5, color=ORANGE)
            if estimate.exists:
                ax.plot([estimate.low, estimate.high], [row - 0.1] * 2, color="black", linewidth=1)
                ax.plot([estimate.value], [row - 0.1], "D", color="black", markersize=3)
            draw_range(ax, row + 0.12, direction, BLUE, "s")
            draw_range(ax, row + 0.27, dictionary, SKY, "^")
    axes[0].set_yticks(range(len(measured)), labels)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("cosine of reconstructed and true r")
    axes[1].set_xlabel("relative error |r_hat - r|\N{SUPERSCRIPT TWO} / |r|\N{SUPERSCRIPT TWO}")
    axes[1].axvline(1, color="0.5", linestyle=":", linewidth=0.8)
    n = len(measured[0].read.sides.harmful)
    set_title(
        figure,
        f"{request.model.name}: harmful minus harmless direction r in SAEs ({n} + {n} prompts)",
        "bar: published formula; diamond: corrected for the noise of few prompts, 95% jackknife; blue square: random "
        f"directions of r's norm; light triangle: r through random dictionaries (95% of {request.n_random} draws); "
        "dotted: a dictionary of zeros",
    )
    return figure


def draw_range(ax: Any, row: float, found: Range, colour: str, marker: str) -> None:
    if math.isfinite(found.mean):
        ax.plot([found.low, found.high], [row, row], color=colour, linewidth=1)
        ax.plot([found.mean], [row], marker, color=colour, markersize=3)


def fidelity_table(measured: Sequence[Measured]) -> Table:
    columns = ["sae", "trained_on_model", "trained_on_data", "layer"]
    for name in ("cosine", "relative_mse"):
        columns += [
            name,
            f"corrected_{name}",
            "low",
            "high",
            f"random_directions_{name}",
            f"random_dictionaries_{name}",
        ]
    rows = []
    for one in measured:
        sae, found = one.read.sae, one.fidelity
        row: list[Any] = [sae.name, sae.trained_on_model, sae.source, sae.layer]
        parts = zip(
            (found.cosine, found.relative_mse),
            (found.corrected_cosine, found.corrected_mse),
            one.random_directions,
            one.random_dictionaries,
            strict=True,
        )
        for value, estimate, direction, dictionary in parts:
            row += ["undefined" if value is None else value, estimate.value, estimate.low, estimate.high]
            row += [direction.mean, dictionary.mean]
        rows.append(row)
    return Table(
        tuple(columns),
        rows,
        (
            "cosine, relative_mse: published formulas; corrected: without the noise of means over few prompts, with "
            "the 95% jackknife interval; random_...: means over draws",
        ),
    )
