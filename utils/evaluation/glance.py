"""A first look at what a sweep has made, for the terminal: the effect, or answers side by side."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from utils.data.estimates import Estimate
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.plan import Sweep, SweepPlan
from utils.evaluation.results import ItemValues, load_items
from utils.files.reading import read_json
from utils.paths import DataPaths
from utils.settings import ResultType

N_ANSWERS = 3
MOST_COLUMNS = 5
WIDEST = 160
VALUES: dict[ResultType, str] = {
    "ab": "p(matching)",
    "truthful_qa": "p(correct)",
    "mmlu": "p(correct)",
    "answer_text": "preference for the matching answer, nats per token",
}


def glance(plan: SweepPlan, seed: int = 0) -> Iterator[str]:
    """The lines to show behind a run; nothing for what is not there (another run may still be writing it)."""
    for sweep in plan.sweeps:
        if sweep.missing(plan.request.paths, overwrite=False):
            continue
        if plan.request.type == "open_ended":
            yield from _answers(sweep, plan.request.paths)
        else:
            yield from _effect(sweep, plan.request.paths, seed)


def _effect(sweep: Sweep, paths: DataPaths, seed: int) -> Iterator[str]:
    """The means at the layer where the outer amounts differ most, with the changes from 0."""
    settings, result_type = sweep.settings, sweep.settings.type
    found = {at: load_items(paths.result(settings.at(*at)), result_type) for at in sweep.combinations}
    layers = sorted({layer for layer, _ in found})
    amounts = sorted({amount for _, amount in found})

    def spread(layer: int) -> float:
        return _mean(found[layer, amounts[-1]]) - _mean(found[layer, amounts[0]])

    best = max(layers, key=spread)
    values = np.stack([found[best, amount].values for amount in amounts])
    unsteered = found[best, 0.0].values if 0.0 in amounts else np.full(values.shape[1], np.nan)
    changes = mean_estimates(values - unsteered, seed)
    chosen = f" (of {len(layers)} the one with the largest difference, on these very items)" if len(layers) > 1 else ""
    yield f"{settings.behavior}, layer {best}{chosen}: {VALUES[result_type]}, mean [95% interval], n={values.shape[1]}"
    for amount, mean, change in zip(amounts, mean_estimates(values, seed), changes, strict=True):
        moved = "" if amount == 0 or not change.exists else f"   change from 0: {_written(change, signed=True)}"
        yield f"  {settings.knob} {amount:g}: {_written(mean)}{moved}"
    if settings.orders == "both":
        shares = np.stack([found[best, amount].share_of_a for amount in amounts])
        biases = mean_estimates(shares - 0.5, seed)
        listed = ", ".join(f"{_written(bias, signed=True)} at {at:g}" for at, bias in zip(amounts, biases, strict=True))
        yield f"  share of (A) over both orders, less a half (letter bias): {listed}"


def _mean(items: ItemValues) -> float:
    return float(np.nanmean(items.values)) if items.n_scored else -np.inf


def _written(estimate: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _answers(sweep: Sweep, paths: DataPaths) -> Iterator[str]:
    """Answers to the first questions at one layer, the amounts side by side."""
    settings = sweep.settings
    layer = sweep.combinations[0][0]
    amounts = _spaced(sorted({amount for at, amount in sweep.combinations if at == layer}))
    records = [read_json(paths.result(settings.at(layer, amount))) for amount in amounts]
    width = min(WIDEST, shutil.get_terminal_size((120, 24)).columns)
    yield f"{settings.behavior}, layer {layer}: answers at {settings.knob} {', '.join(f'{a:g}' for a in amounts)}"
    step = settings.num_samples
    for index in range(0, min(len(records[0]), N_ANSWERS * step), step):
        yield ""
        yield records[0][index]["question"]
        cells = [(f"{amount:+g}", of[index]["model_output"]) for amount, of in zip(amounts, records, strict=True)]
        yield from side_by_side(cells, width)


def _spaced(amounts: Sequence[float]) -> list[float]:
    """At most MOST_COLUMNS of them: both ends, 0, and what lies evenly between."""
    if len(amounts) <= MOST_COLUMNS:
        return list(amounts)
    places = np.linspace(0, len(amounts) - 1, MOST_COLUMNS).round().astype(int)
    return sorted({amounts[place] for place in places} | ({0.0} & set(amounts)))


def side_by_side(cells: Iterable[tuple[str, Any]], width: int) -> Iterator[str]:
    """Texts in columns under their headings, as wide as the terminal."""
    cells = list(cells)
    of_column = max(16, (width - 2) // len(cells) - 2)
    columns = [
        [heading, *textwrap.wrap(" ".join(str(text).split()) or "(nothing)", of_column)] for heading, text in cells
    ]
    for row in range(max(map(len, columns))):
        parts = [column[row] if row < len(column) else "" for column in columns]
        yield ("  " + "  ".join(part.ljust(of_column) for part in parts)).rstrip()
