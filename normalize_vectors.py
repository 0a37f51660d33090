#!/usr/bin/env python3
"""Scale the steering vectors of all behaviors to one norm per layer, so that multipliers compare.

Every vector of a layer and model gets the mean norm over the behaviors.

Reads:   vectors/<behavior>/vec_layer_<layer>_<model>.pt
Writes:  normalized_vectors/<behavior>/vec_layer_<layer>_<model>.pt
Example: ./normalize_vectors.py
         ./normalize_vectors.py --behaviors sycophancy --model_size 135m
"""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.cli.flags import add_behaviors, add_layers, add_model_filter, data_paths, make_parser, model_filter
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.paths import DataPaths, vector_name
from utils.vectors.files import find_vectors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser, default="those that are there")
    add_model_filter(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    paths = data_paths(args)
    layers_of = {behavior: find_vectors(paths, behavior) for behavior in args.behaviors}
    labels = _labels_asked_for(args, paths, layers_of)
    n_complete, counts = 0, Counter[str]()
    for label in labels:
        layers = sorted(set().union(*(found.get(label, set()) for found in layers_of.values())))
        layers = [layer for layer in layers if args.layers is None or layer in args.layers]
        if missing := _describe_missing(layers_of, label, layers):
            log.warning("%s: not normalised, missing: %s", label, missing)
            continue
        n_complete += 1
        for layer in progress(layers, desc=label, unit="layer"):
            counts += normalize_layer(paths, args, layer, label)
    if counts["differ"]:
        log.warning(
            "%d normalised vectors differ from what today's vectors give (made from others, or for other "
            "--behaviors); they were kept, --overwrite replaces them",
            counts["differ"],
        )
    log.info("wrote %d normalised vectors, skipped %d", counts["wrote"], counts["skipped"] + counts["differ"])
    if not n_complete:
        raise UserError(f"nothing normalised: no model has vectors for all of {', '.join(args.behaviors)}")
    return EXIT_DONE


def normalize_layer(paths: DataPaths, args: argparse.Namespace, layer: int, label: str) -> Counter[str]:
    """Write one layer's normalised vectors; counts those that it "wrote", "skipped" and (kept, unequal) "differ"."""
    from utils.files.reading import load_vector
    from utils.files.writing import save_tensor
    from utils.vectors.estimators import normalize_to_mean_norm

    vectors = {
        behavior: load_vector(paths.vector(behavior, layer, label, normalized=False)) for behavior in args.behaviors
    }
    widths = {behavior: len(vector) for behavior, vector in vectors.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"the layer-{layer} vectors of {label} have different widths: {widths}; make them again")
    normalized = normalize_to_mean_norm(vectors)
    counts = Counter[str]()
    for behavior, vector in normalized.items():
        path = paths.vector(behavior, layer, label, normalized=True)
        if path.exists() and not args.overwrite:
            counts["skipped" if _equal(load_vector(path), vector) else "differ"] += 1
            continue
        _record(paths, args, behavior, layer, label)
        save_tensor(path, vector)
        counts["wrote"] += 1
    return counts


def _equal(kept: "Tensor", computed: "Tensor") -> bool:
    return kept.shape == computed.shape and bool((kept - computed).abs().max() <= 1e-6 * computed.abs().max())


def _record(paths: DataPaths, args: argparse.Namespace, behavior: str, layer: int, label: str) -> None:
    from utils.files.provenance import record_provenance

    run = {"command": args.command, "behaviors": args.behaviors, "scaled_to": "mean norm over the behaviors"}
    record_provenance(paths.vectors_dir(behavior, normalized=True), [vector_name(layer, label)], run)


def _labels_asked_for(
    args: argparse.Namespace, paths: DataPaths, layers_of: dict[str, dict[str, set[int]]]
) -> list[str]:
    if choice := model_filter(args):
        return [choice.label]
    labels = sorted(set().union(*layers_of.values()))
    if not labels:
        raise UserError(f"there are no vectors yet; run: {paths.command('generate_vectors')}")
    return labels


def _describe_missing(layers_of: dict[str, dict[str, set[int]]], label: str, layers: Sequence[int]) -> str:
    """What a model lacks for normalising, in words; empty where nothing is missing."""
    parts = []
    for behavior, found in layers_of.items():
        lacking = sorted(set(layers) - found.get(label, set()))
        if label not in found or not layers:
            parts.append(behavior)
        elif lacking:
            parts.append(f"{behavior} (layers {', '.join(map(str, lacking))})")
    return ", ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
