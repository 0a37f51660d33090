#!/usr/bin/env python3
"""What a steering vector does on its way up: the residual stream behind every later layer, with and without it.

On the same tokens (the unsteered model's own answers to neutral prompts, steered from the end of the prompt on), for
each vector and layer: how large the change is beside the residual stream, how far it still points along the vector and
along every behavior's own vector there, which tokens it decodes to, how much of it is linear in the multiplier, which
logits move, and which latents of an SAE change. Random vectors of the same norm run beside it.

Reads:   normalized_vectors/<behavior>/vec_layer_<layer>_<model>...pt, datasets/neutral/prompts.json, --saes DIR...
Writes:  analysis/research/<behavior>/trace_layer=<layer>_<model>....json, and beside it, as .png, .pdf and .txt:
         ..._size, ..._behaviors, ..._tokens, ..._logits (.txt alone) and, with --saes, ..._latents_<SAE>
Example: ./research/trace_steering.py --behaviors refusal --read answer --layers 16 --model_size 135m
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
    add_device,
    add_layers,
    add_model,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.research_flags import add_optional_saes, sae_folders
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.research.trace_request import TraceRequest

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="the one that choose_steering.py chose, else the middle one")
    add_vector_kind(parser)
    parser.add_argument(
        "--multiplier",
        type=values.positive_float,
        default=1.0,
        metavar="X",
        help="of the normalised vector; added, and taken off beside it (default: 1)",
    )
    parser.add_argument(
        "--n_texts", type=values.positive_int, default=20, metavar="N", help="neutral prompts to run (default: 20)"
    )
    parser.add_argument(
        "--n_random",
        type=values.positive_int,
        default=5,
        metavar="N",
        help="random vectors of equal norm beside each vector, the control (default: 5)",
    )
    add_optional_saes(parser)
    add_model(parser)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    choice, folders = model_choice(args), sae_folders(args)
    request = TraceRequest(
        paths=data_paths(args),
        choice=choice,
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(check_layers(args.layers, model_shape(choice).n_layers, choice.label)) if args.layers else (),
        n_layers=model_shape(choice).n_layers,
        kind=vector_kind(args),
        multiplier=args.multiplier,
        n_texts=args.n_texts,
        n_random=args.n_random,
        saes=folders,
        seed=args.seed,
        overwrite=args.overwrite,
        command=args.command,
    )
    places = request.places()
    waiting = [place for place in places if not request.is_done(place)]
    if waiting:
        from llama_wrapper import LlamaWrapper
        from utils.research.trace_run import run_traces

        model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
        sys.stdout.write("".join(f"{line}\n" for line in run_traces(request, model, waiting)))
    log.info(
        "traced %d vectors, skipped %d that are traced already (--overwrite traces them again)",
        len(waiting),
        len(places) - len(waiting),
    )
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
