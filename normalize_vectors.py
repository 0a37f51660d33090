#!/usr/bin/env python3
"""Scale the steering vectors of all behaviors to one norm per layer, so that multipliers compare.

Every vector of a layer, model and kind gets the mean norm over all behaviors that have one, whichever of them
--behaviors asks to be written.

Reads:   vectors/<behavior>/vec_layer_<layer>_<model>.pt
Writes:  normalized_vectors/<behavior>/vec_layer_<layer>_<model>.pt
Example: ./normalize_vectors.py
         ./normalize_vectors.py --behaviors sycophancy --model_size 135m
"""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence

from utils.cli.flags import (
    add_behaviors,
    add_layers,
    add_model_filter,
    add_vector_kind,
    data_paths,
    make_parser,
    model_filter,
)
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.vectors.normalizing import Normalizer, NormalizeRequest, VectorSet, find_sets

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser, default="those that are there")
    add_model_filter(parser)
    add_vector_kind(parser, "every one that is there")
    return parser


def build_request(args: argparse.Namespace) -> NormalizeRequest:
    choice = model_filter(args)
    return NormalizeRequest(
        paths=data_paths(args),
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(args.layers) if args.layers else None,
        label=choice.label if choice else None,
        reading=args.read,
        method=args.method,
        origin=args.origin,
        overwrite=args.overwrite,
        command=args.command,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    sets = find_sets(request)
    if not sets and request.label is None:
        raise UserError(f"there are no vectors yet; run: {request.paths.command('generate_vectors')}")
    n_complete, counts = 0, Counter[str]()
    for vectors in sets:
        layers = layers_of(request, vectors)
        if missing := vectors.missing(request.behaviors, layers):
            log.warning("%s: not normalised, missing: %s", vectors, missing)
            continue
        n_complete += 1
        normalizer = Normalizer(request, vectors)
        for layer in progress(layers, desc=str(vectors), unit="layer"):
            counts += normalizer.normalize(layer)
    if counts["differ"]:
        log.warning(
            "%d normalised vectors differ from what today's vectors give (made from others, or when fewer behaviors "
            "had any); they were kept, --overwrite replaces them",
            counts["differ"],
        )
    log.info("wrote %d normalised vectors, skipped %d", counts["wrote"], counts["skipped"] + counts["differ"])
    if not n_complete:
        raise UserError(f"nothing normalised: no model has vectors for all of {', '.join(request.behaviors)}")
    return EXIT_DONE


def layers_of(request: NormalizeRequest, vectors: VectorSet) -> list[int]:
    """The layers to write: those asked for, of those that a behavior asked for has."""
    there = frozenset[int]().union(*(vectors.layers_of.get(behavior, ()) for behavior in request.behaviors))
    return sorted(there if request.layers is None else there & set(request.layers))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
