"""The standard evaluations of several SAEs, each on its own text and crosswise on the others'."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.evaluation.words import interval_text
from utils.saes.conditions import interval
from utils.saes.dictionary import SAE, check_fits
from utils.saes.requests import write_result
from utils.saes.standard_evals import (
    StandardEvals,
    cross_entropy_with,
    density_counts,
    evaluate,
    random_control,
    read_text,
)
from utils.saes.standard_request import EvalsRequest
from utils.saes.text import TextSource, check_source, token_sequences, too_short

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One SAE on one text."""

    sae: str
    trained_on: str
    """The text it was trained on."""
    measured_on: str
    evals: StandardEvals

    @property
    def is_own(self) -> bool:
        return self.trained_on == self.measured_on


def own_source(sae: SAE) -> TextSource:
    """The text that an SAE was trained on.

    Raises:
        UserError: If its folder does not say so, or the file is not there any more.
    """
    data = str(sae.own.get("data", sae.source))
    source = TextSource(data, sae.own.get("format", "chat"), sae.own.get("system_prompt", "none"))
    try:
        check_source(source)
    except UserError as err:
        raise UserError(f"SAE {sae.name} was trained on {data}, which is not here; name a text with --data") from err
    return source


def run_evals(request: EvalsRequest, model: "LlamaWrapper") -> list[Cell]:
    """Measure every SAE on every text, and write the results.

    Raises:
        UserError: If an SAE does not fit the model, or a text is too short.
    """
    saes = [SAE.load(folder) for folder in request.folders]
    for sae in saes:
        check_fits(sae, model.label, model.d_model, model.n_layers)
        if sae.own.get("weights_fingerprint", model.fingerprint) != model.fingerprint:
            log.warning("SAE %s was trained on other weights of %s", sae.name, model.label)
    sources = request.sources or tuple(dict.fromkeys(own_source(sae) for sae in saes))
    cells = [cell for source in sources for cell in _on_text(request, model, saes, source)]
    from utils.saes.standard_figures import plot_evals

    plot_evals(cells, request)
    made = {**model.provenance(), "command": request.command}
    write_result(request.result_path, request.describe(), made, {"results": [as_json(cell) for cell in cells]})
    return cells


def _on_text(request: EvalsRequest, model: "LlamaWrapper", saes: Sequence[SAE], source: TextSource) -> list[Cell]:
    """All SAEs, and for each layer a random dictionary, on one text."""
    ids = held_out_tokens(request, model, source)
    cells = []
    for layer in sorted({sae.layer for sae in saes}):
        of_layer = [sae.to(model.device) for sae in saes if sae.layer == layer]
        text = read_text(model, ids, layer, request.batch_size)

        def measure(sae: SAE) -> StandardEvals:
            label = f"{sae.name} on {source.label}"
            ce = cross_entropy_with(model, ids, sae.layer, sae.reconstruct, request.batch_size, label)
            return evaluate(sae.to("cpu"), text, ce)  # noqa: B023

        found = [Cell(sae.name, sae.source, source.label, measure(sae)) for sae in of_layer]
        k = round(max(cell.evals.l0.value for cell in found))
        control = random_control(text, of_layer[0].d_sae, k, request.seed, layer).to(model.device)
        cells += [*found, Cell(f"random dictionary, layer {layer}", "none", source.label, measure(control))]
    return cells


def held_out_tokens(request: EvalsRequest, model: "LlamaWrapper", source: TextSource) -> Tensor:
    """Sequences of documents that no SAE of the suite is trained on, [n_sequences, context]."""
    n = max(2, -(-request.n_tokens // (request.context - 1)))
    sequences = token_sequences(source, request.paths, model.chat_format, request.context, "held_out")
    found = list(islice(sequences, n))
    if len(found) < n:
        raise too_short(source, "held_out", len(found), n, request.context)
    return torch.tensor(found)


def as_json(cell: Cell) -> dict[str, Any]:
    evals = cell.evals
    names: Mapping[str, Any] = {name: interval(value) for name, value in evals.estimates().items()}
    latents = {"dead": evals.dead, "rare": evals.rare, "density": dict(density_counts(evals.density))}
    about = {"sae": cell.sae, "trained_on": cell.trained_on, "measured_on": cell.measured_on, "own": cell.is_own}
    return {**about, "n_sequences": evals.l0.n, **names, **latents}


def table_lines(cells: Sequence[Cell]) -> list[str]:
    """The results for the terminal."""
    header = ("SAE", "text", "expl. variance", "CE score", "CE clean", "SAE", "zero", "L0", "dead")
    rows: list[tuple[str, ...]] = [header]
    for cell in cells:
        e = cell.evals
        of_text = f"{cell.measured_on}{' (own)' if cell.is_own else ''}"
        spans = [interval_text(one) for one in (e.explained_variance, e.ce_loss_score)]
        losses = [f"{x.value:.3f}" for x in (e.ce_clean, e.ce_sae, e.ce_zero)]
        rows.append((cell.sae, of_text, *spans, *losses, f"{e.l0.value:.1f}", f"{100 * e.dead:.1f}%"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
