#!/usr/bin/env python3
"""Take steering vectors apart: into singular vectors of the per-pair differences, and into latents of SAEs.

The vector is exactly the sum of its components (uncentred SVD of the differences). Each is decoded into tokens and
held against signs drawn at random; vectors of the first components and without single ones are written as parts, with
which prompting_with_steering.py --part rank2 steers, and their effect on held-out answers is measured here at one norm,
beside random vectors and vectors of drawn signs.

With --saes the vector is read by SAEs in four ways, and filtered by its latents; filtered vectors are written as parts,
and compared by their effect on held-out answers against their KL on neutral ones.

Reads:   activations/<behavior>/ (generate_vectors.py --save_activations), vectors/, normalized_vectors/,
         datasets/test/...
Writes:  analysis/research/<behavior>/singular_vectors_layer=<layer>_<model>...   .json, .txt, .png, .pdf
         analysis/research/<behavior>/effect_by_rank_layer=<layer>_<model>...     .txt, .png, .pdf
         {vectors,normalized_vectors}/<behavior>/parts/vec_layer_<layer>_<model>..._part=<part>.pt
         with --saes also, in analysis/research/<behavior>/:
         sae_latents_<SAE>_layer=<layer>_<model>...   .json, .txt, .png, .pdf, and ..._readings.txt
         sae_tradeoff_<SAE>_layer=<layer>_<model>...  .txt, .png, .pdf
Example: ./research/decompose_vectors.py --behaviors refusal --read answer --layers 16 --model_size 135m
         ./research/decompose_vectors.py --behaviors refusal --read answer --layers 16 --model_size 135m \
             --saes saes_trained/SmolLM2-135M-Instruct_chat
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import chain
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
from utils.cli.sae_flags import add_system_prompt, add_text, text_source
from utils.model import processes
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.research.decompose_request import DEFAULT_RANKS, DecomposeRequest
from utils.research.sae_request import SaeRequest

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
        default=2,
        metavar="N",
        help="write and measure vectors without component 1, without component 2, ... up to N (default: 2)",
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
        default=2,
        metavar="N",
        help="draws of each control whose effect is measured (default: 2)",
    )
    parser.add_argument(
        "--limit",
        type=values.count,
        default=24,
        metavar="N",
        help="measure on the first N test items; 0 for all (default: 24)",
    )
    add_latents(parser)
    return parser


def add_latents(parser: argparse.ArgumentParser) -> None:
    """Flags of the SAE readings."""
    parser.add_argument(
        "--saes",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of SAEs to read the vectors by: this suite's (saes_trained/...) or sae-lens' (default: none)",
    )
    add_text(parser)
    add_system_prompt(parser)
    parser.add_argument(
        "--tokens",
        type=values.positive_int,
        default=8192,
        metavar="N",
        help="of text on which densities and examples of latents are read (default: 8192)",
    )
    parser.add_argument(
        "--max_density",
        type=values.positive_float,
        default=0.1,
        metavar="X",
        help="latents that fire on a larger share of tokens are dropped as dense; 0.01 was published, for SAEs with a "
        "hundred times fewer latents on than there are (default: 0.1)",
    )
    parser.add_argument(
        "--drop_latents",
        nargs="+",
        type=values.count,
        default=[],
        metavar="ID",
        help="latents to drop by name (default: none)",
    )
    parser.add_argument(
        "--obvious",
        type=values.positive_int,
        default=5,
        metavar="N",
        help="latents of the vector of obvious ones alone: the largest that no filter drops (default: 5)",
    )


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
        limit=args.limit or None,
        seed=args.seed,
        overwrite=args.overwrite,
        command=args.command,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        plainly=args.no_packing,
    )


def sae_request(args: argparse.Namespace, vectors: DecomposeRequest) -> SaeRequest:
    """
    Raises:
        UserError: If an SAE does not fit what is asked for.
    """
    return SaeRequest(
        vectors,
        tuple(args.saes),
        source=text_source(args) if args.data else None,
        n_tokens=args.tokens,
        max_density=args.max_density,
        drop_latents=tuple(args.drop_latents),
        obvious=args.obvious,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    readings = sae_request(args, request)
    waiting, unread = request.waiting(), readings.waiting()
    n_there = len(list(request.jobs)) + len(list(readings.jobs)) - len(waiting) - len(unread)
    if not waiting and not unread:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_there)
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.research.pair_activations import check_inputs
    from utils.research.sae_run import check_saes, run_sae
    from utils.research.svd_run import run_decomposition

    shape = model_shape(request.choice)
    check_inputs(request, shape.d_model)
    check_saes(readings, shape)
    model = LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    lines = (run_decomposition(request, model, *job).line() for job in waiting)
    read = (run_sae(readings, model, *job).line() for job in unread)
    for line in chain(lines, read):
        if processes.is_main():
            sys.stdout.write(f"{line}\n")
    log.info("took %d vectors apart, read %d by SAEs, skipped %d", len(waiting), len(unread), n_there)
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
