"""Result files that are there, but were made by a run that differs from the one that would make them now."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files.provenance import Differences, describe_differences, differences, read_folder_provenance
from utils.model.checkpoints import HALF_PRECISION_SIZES
from utils.paths import DataPaths

if TYPE_CHECKING:
    from utils.evaluation.plan import Sweep, SweepRequest

log = logging.getLogger(__name__)


def warn_of_stale_results(
    request: "SweepRequest",
    sweeps: Iterable["Sweep"],
    of_model: Mapping[str, Any],
    said: Collection[Path] = (),
) -> frozenset[Path]:
    """Say in one warning which result files that are kept were made by a run that differs from this one, and in what.

    Args:
        request: With `overwrite` nothing is kept.
        sweeps: What it sweeps.
        of_model: What is known of the model so far; without loading it that is little.
        said: Result files of which it has been said already.

    Returns:
        Those of which it has been said now.
    """
    found: dict[Path, Differences] = {}
    for sweep in () if request.overwrite else sweeps:
        found |= stale_results(sweep, request.paths, {**of_model, **sweep.facts})
    new = {path: differing for path, differing in found.items() if path not in said}
    if new:
        log.warning(
            "%d result files that are there were made with other settings: %s; e.g. %s; --overwrite makes them again",
            len(new),
            describe_differences(new.values()),
            next(iter(new)),
        )
    return frozenset(new)


def stale_results(sweep: "Sweep", paths: DataPaths, facts: Mapping[str, Any]) -> dict[Path, Differences]:
    """The result files that are there and were made by a run that differs in `facts`, each with what differs."""
    folder = paths.results_dir / sweep.settings.behavior
    runs = read_folder_provenance(folder)
    found = {}
    for at in sweep.combinations:
        path = folder / sweep.settings.at(*at).result_name
        if path.name in runs and path.exists():
            differing = differences(_facts_at(facts, *at), _facts_at(runs[path.name], *at))
            if differing:
                found[path] = differing
    return found


def _facts_at(facts: Mapping[str, Any], layer: int, multiplier: float) -> dict[str, Any]:
    """Facts of a run for one combination: of its vectors only the one that is added."""
    vectors = facts.get("vectors_sha256")
    vector = vectors.get(str(layer)) if multiplier and isinstance(vectors, Mapping) else None
    return {**{key: value for key, value in facts.items() if key != "vectors_sha256"}, "vector_sha256": vector}


def known_of_model(request: "SweepRequest") -> dict[str, Any]:
    """What the run record will say of the model, as far as it is known without loading it."""
    known = {"model": request.choice.label, "quantize": request.choice.quantize or "none"}
    if request.dtype != "auto":
        known["dtype"] = request.dtype
    elif request.choice.size not in HALF_PRECISION_SIZES:
        known["dtype"] = "float32"
    return known
