#!/usr/bin/env python3
"""Take steering vectors apart: into singular vectors of the per-pair differences, and into latents of SAEs.

The vector is exactly the sum of its components (uncentred SVD of the differences). Each is decoded into tokens and
held against signs drawn at random; vectors of the first components and without single ones are written as parts, with
which prompting_with_steering.py --part rank2 steers, and their effect on held-out answers is measured here at one norm,
beside random vectors and vectors of drawn signs.

Reads:   activations/<behavior>/ (generate_vectors.py --save_activations), vectors/, normalized_vectors/,
         datasets/test/...
Writes:  analysis/research/<behavior>/singular_vectors_layer=<layer>_<model>...   .json, .txt, .png, .pdf
         analysis/research/<behavior>/effect_by_rank_layer=<layer>_<model>...     .txt, .png, .pdf
         {vectors,normalized_vectors}/<behavior>/parts/vec_layer_<layer>_<model>..._part=<part>.pt
Example: ./research/decompose_vectors.py --behaviors refusal --read answer --layers 16 --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.model import processes
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.research.decompose_request import DEFAULT_RANKS, DecomposeRequest

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser)
    add_vector_kind(parser)
    add_model(parser)
    add_compute(parser)
    usual = " ".join(map(str, DEFAULT_RANKS))
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=values.positive_int,
        metavar="N",
        help=f"write and measure vectors of the first N components (default: {usual}, as far as there are so many)",
    )
    parser.add_argument(
        "--leave_out",
        type=values.count,
        default=3,
        metavar="N",
        help="write and measure vectors without component 1, without component 2, ... up to N (default: 3)",
    )
    parser.add_argument(
        "--strength",
        type=values.positive_float,
        default=0.15,
        metavar="S",
        help="at which vectors are measured: the added norm as a share of the layer's residual norm (default: 0.15)",
    )
    parser.add_argument(
        "--n_flips", type=values.positive_int, default=500, metavar="N", help="draws of random signs (default: 500)"
    )
    parser.add_argument(
        "--n_random",
        type=values.positive_int,
        default=3,
        metavar="N",
        help="draws of each control whose effect is measured (default: 3)",
    )
    parser.add_argument(
        "--limit", type=values.positive_int, metavar="N", help="measure on the first N test items (default: all)"
    )
    return parser


def build_request(args: argparse.Namespace) -> DecomposeRequest:
    choice = model_choice(args)
    return DecomposeRequest(
        paths=data_paths(args),
        choice=choice,
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(check_layers(args.layers, model_shape(choice).n_layers, choice.label)),
        kind=vector_kind(args),
        ranks=None if args.ranks is None else tuple(args.ranks),
        leave_out=args.leave_out,
        strength=args.strength,
        n_flips=args.n_flips,
        n_random=args.n_random,
        limit=args.limit,
        seed=args.seed,
        overwrite=args.overwrite,
        command=args.command,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        plainly=args.no_packing,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    waiting = request.waiting()
    n_jobs = len(list(request.jobs))
    if not waiting:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_jobs)
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.research.svd_run import run_decomposition

    model = LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    for behavior, layer in waiting:
        done = run_decomposition(request, model, behavior, layer)
        if processes.is_main():
            sys.stdout.write(f"{done.line()}\n")
    log.info("took %d vectors apart, skipped %d", len(waiting), n_jobs - len(waiting))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
