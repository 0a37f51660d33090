#!/usr/bin/env python3
"""Compare steering vectors: between layers, between behaviors, between chat and base model; and their norms.

Without flags: every model that has vectors. A chat and a base model are compared where the vectors
of both are there (names that differ by -chat, -Instruct or -it).

Reads:   vectors/<behavior>/vec_layer_<layer>_<model>.pt, and the same in normalized_vectors/
Writes:  analysis/<behavior>/cosine_between_layers_<model>
         analysis/cosine_between_layers_<model>              the same, all behaviors on one sheet
         analysis/cosine_between_behaviors_<model>           a panel for each layer
         analysis/cosine_between_behaviors_by_layer_<model>  every two behaviors, over the layers
         analysis/cosine_chat_and_base_<model>_<base model>
         analysis/vector_norms_<model>                       before and after normalisation
         each as .png, .pdf, and its numbers as .txt; with --layers or --behaviors these are in the name
         analysis/<behavior>/decoded_tokens_<model>          with --decode: .png, .pdf, .txt
         analysis/<behavior>/tokens_layer=<layer>_<model>_<prompt>  with --prompt: .html, .txt
Example: ./analyze_vectors.py
         ./analyze_vectors.py --model_size 135m --layers 10 15 20
         ./analyze_vectors.py --model_size 135m --decode
         ./analyze_vectors.py --model_size 135m --prompt "Is the earth flat?" --layer 13 --behavior sycophancy

A figure is made again when its numbers are no longer those of the text beside it.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from utils.cli import values as flag_values
from utils.cli.flags import (
    add_behaviors,
    add_device,
    add_layers,
    add_model_filter,
    add_quantize,
    data_paths,
    make_parser,
    model_filter,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.figures.requests import VectorsRequest
from utils.inside.requests import DEFAULT_NEW_TOKENS, InsideRequest, TokenPageRequest
from utils.model.checkpoints import ModelChoice

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

_OF_THE_PROMPT = ("layer", "behavior", "multiplier", "max_new_tokens")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser, default="those that are there")
    add_model_filter(parser)
    inside = parser.add_argument_group(
        "looking inside the model", "These load one model (--model_size or --model) and make only what they name."
    )
    inside.add_argument(
        "--decode", action="store_true", help="the tokens that each vector promotes most and least, layer by layer"
    )
    inside.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a page with this prompt and the model's answer, each token coloured by its cosine with a vector",
    )
    inside.add_argument(
        "--layer", type=flag_values.layer, metavar="N", help="with --prompt: the layer that is shown first"
    )
    inside.add_argument("--behavior", metavar="ID", help="with --prompt: the behavior that is shown first")
    inside.add_argument(
        "--multiplier",
        type=flag_values.finite_float,
        metavar="X",
        help="with --prompt: steer the answer with that layer's and behavior's vector (default: 0, no steering)",
    )
    inside.add_argument(
        "--max_new_tokens",
        type=flag_values.positive_int,
        metavar="N",
        help=f"with --prompt: longest answer, in tokens (default: {DEFAULT_NEW_TOKENS})",
    )
    add_device(inside)
    add_quantize(inside)
    return parser


def vectors_request(args: argparse.Namespace) -> VectorsRequest:
    return VectorsRequest(
        paths=data_paths(args),
        choice=model_filter(args),
        behaviors=tuple(args.behaviors),
        layers=tuple(args.layers or ()),
        overwrite=args.overwrite,
    )


def inside_request(args: argparse.Namespace) -> InsideRequest | None:
    """What the flags ask to be looked into; None where they ask for the comparisons of vectors."""
    page = token_page_request(args)
    if not args.decode and page is None:
        return None
    return InsideRequest(
        paths=data_paths(args),
        choice=model_filter(args),
        behaviors=tuple(args.behaviors),
        layers=tuple(args.layers or ()),
        decode=args.decode,
        page=page,
        overwrite=args.overwrite,
    )


def token_page_request(args: argparse.Namespace) -> TokenPageRequest | None:
    """The page that --prompt asks for.

    Raises:
        UserError: If the flags do not belong together.
    """
    if args.prompt is None:
        if stray := [f"--{flag}" for flag in _OF_THE_PROMPT if getattr(args, flag) is not None]:
            raise UserError(
                f"{', '.join(stray)}: only with --prompt (figures are narrowed down with --layers, --behaviors)"
            )
        return None
    if args.layer is None or args.behavior is None:
        raise UserError("--prompt needs --layer and --behavior: what the page shows first")
    return TokenPageRequest(
        args.prompt, args.layer, args.behavior, args.multiplier or 0.0, args.max_new_tokens or DEFAULT_NEW_TOKENS
    )


def run(args: argparse.Namespace) -> int:
    request = inside_request(args)
    if request is not None:
        return look(args, request)

    from utils.figures.vector_run import plot_vectors

    n_models, counts = plot_vectors(vectors_request(args))
    log.info(
        "models: %d; wrote %d figures, skipped %d that show these numbers already (--overwrite makes them again)",
        n_models,
        *counts,
    )
    return EXIT_DONE


def look(args: argparse.Namespace, request: InsideRequest) -> int:
    """Make the reports for which the model itself is needed."""
    from utils.inside.run import look_inside

    def load(choice: ModelChoice) -> "LlamaWrapper":
        from llama_wrapper import LlamaWrapper

        chosen = replace(choice, quantize=args.quantize)
        return LlamaWrapper.load(chosen, args.device, args.dtype, over_all_devices=args.device_map == "auto")

    counts = look_inside(request, load)
    log.info("wrote %d reports, skipped %d that show these vectors already (--overwrite makes them again)", *counts)
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
