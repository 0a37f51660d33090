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
         analysis/clusters_layer=<layer>_<model>             with --cluster: the tree of cosines beside the heatmap
         analysis/<behavior>/decoded_tokens_<model>          with --decode: .png, .pdf, .txt; logit lens and J-lens
         analysis/<behavior>/first_order_<model>             with --decode, also .json: effect on the last layer
         analysis/<behavior>/stability_<model>               with --stability: .png, .pdf, .txt, .json
         analysis/similarity_of_behaviors_<model>            with --stability, the same; needs --save_activations
         analysis/<behavior>/tokens_layer=<layer>_<model>_<prompt>  with --prompt: .html, .txt
Example: ./analyze_vectors.py
         ./analyze_vectors.py --model_size 135m --layers 10 15 20
         ./analyze_vectors.py --model_size 135m --cluster --read answer --layers 14
         ./analyze_vectors.py --model_size 135m --decode --read answer --layers 16
         ./analyze_vectors.py --model_size 135m --stability --read answer --layers 16
         ./analyze_vectors.py --model_size 135m --inner_product causal
         ./analyze_vectors.py --model_size 135m --prompt "Is the earth flat?" --layer 13 --behavior sycophancy

A figure is made again when its numbers are no longer those of the text beside it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from utils.cli import values as flag_values
from utils.cli.flags import (
    add_behaviors,
    add_device,
    add_layers,
    add_model_filter,
    add_quantize,
    add_vector_kind,
    data_paths,
    make_parser,
    model_filter,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.figures.requests import InnerProduct, VectorsRequest
from utils.inside.requests import DEFAULT_NEW_TOKENS, DEFAULT_TEXTS, InsideRequest, TokenPageRequest
from utils.model.checkpoints import ModelChoice
from utils.saes.formats import check_sae_folders
from utils.vectors.files import choice_of_label

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.figures.vector_run import RootOf
    from utils.vectors.similarity import FloatArray

log = logging.getLogger(__name__)

_OF_THE_PROMPT = ("layer", "behavior", "multiplier", "max_new_tokens")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="those that are there")
    add_vector_kind(parser)
    add_model_filter(parser)
    add_clusters(parser)
    parser.add_argument(
        "--stability",
        action="store_true",
        help="instead: how much each vector depends on its pairs (split halves, bootstrap, number of pairs), and how "
        "alike behaviors are beyond that; needs activations saved by generate_vectors.py --save_activations",
    )
    parser.add_argument(
        "--inner_product",
        choices=get_args(InnerProduct),
        default="euclidean",
        help="under which every cosine is taken; causal: of directions that the vocabulary tells apart (Park et al. "
        "2024), which loads the model (default: euclidean)",
    )
    inside = parser.add_argument_group(
        "looking inside the model", "These load one model (--model_size or --model) and make only what they name."
    )
    inside.add_argument(
        "--decode",
        action="store_true",
        help="the tokens that each vector promotes most and least, layer by layer, by itself (logit lens) and by what "
        "it does to the last layer (J-lens); and up to which strength that is linear",
    )
    inside.add_argument(
        "--n_texts",
        type=flag_values.positive_int,
        metavar="N",
        help=f"with --decode: neutral prompts that the J-lens is averaged over (default: {DEFAULT_TEXTS})",
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


def add_clusters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="instead of the comparisons: which vectors lie near each other at --layers (default: the middle one)",
    )
    parser.add_argument(
        "--saes",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="with --cluster: among the latents of these SAEs that are nearest to them, at the SAEs' layers",
    )


def draw_clusters(args: argparse.Namespace) -> int:
    from utils.research.cluster_run import plot_clusters

    if args.decode or args.prompt is not None:
        raise UserError("--cluster needs no model: leave out --decode and --prompt")
    if args.stability or args.inner_product != "euclidean":
        raise UserError("--cluster stands alone: leave out --stability and --inner_product")
    check_sae_folders(args.saes)
    counts = plot_clusters(vectors_request(args), args.saes)
    log.info("wrote %d figures, skipped %d that show these numbers already (--overwrite makes them again)", *counts)
    return EXIT_DONE


def vectors_request(args: argparse.Namespace) -> VectorsRequest:
    return VectorsRequest(
        paths=data_paths(args),
        choice=model_filter(args),
        behaviors=tuple(args.behaviors),
        layers=tuple(args.layers or ()),
        overwrite=args.overwrite,
        kind=vector_kind(args),
        inner_product=args.inner_product,
    )


def inside_request(args: argparse.Namespace) -> InsideRequest | None:
    """What the flags ask to be looked into; None where they ask for the comparisons of vectors."""
    page = token_page_request(args)
    if args.n_texts is not None and not args.decode:
        raise UserError("--n_texts: only with --decode")
    if not args.decode and page is None:
        return None
    if args.stability:
        raise UserError("--stability is a run of its own, without --decode and --prompt")
    return InsideRequest(
        paths=data_paths(args),
        choice=model_filter(args),
        behaviors=tuple(args.behaviors),
        layers=tuple(args.layers or ()),
        decode=args.decode,
        page=page,
        overwrite=args.overwrite,
        kind=vector_kind(args),
        inner_product=args.inner_product,
        n_texts=args.n_texts or DEFAULT_TEXTS,
        seed=args.seed,
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
    if args.saes and not args.cluster:
        raise UserError("--saes: only with --cluster")
    if args.cluster:
        return draw_clusters(args)
    request = inside_request(args)
    if request is not None:
        return look(args, request)

    if args.stability:
        return judge_stability(args)

    from utils.figures.vector_run import plot_vectors

    n_models, counts = plot_vectors(vectors_request(args), root_of(args))
    log.info(
        "models: %d; wrote %d figures, skipped %d that show these numbers already (--overwrite makes them again)",
        n_models,
        *counts,
    )
    return EXIT_DONE


def judge_stability(args: argparse.Namespace) -> int:
    """Say how much vectors depend on their pairs."""
    from utils.figures.stability_run import plot_stability

    lines, counts = plot_stability(vectors_request(args), args.seed, root_of(args))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    log.info("wrote %d figures, skipped %d that show these numbers already (--overwrite makes them again)", *counts)
    return EXIT_DONE


def root_of(args: argparse.Namespace) -> "RootOf | None":
    """What gives each model's inner product; None for the usual one."""
    if args.inner_product == "euclidean":
        return None

    def of_model(label: str) -> "FloatArray":
        from utils.inside.inner_product import causal_root

        return causal_root(load_model(args, model_filter(args) or choice_of_label(label))).numpy()

    return of_model


def load_model(args: argparse.Namespace, choice: ModelChoice) -> "LlamaWrapper":
    from llama_wrapper import LlamaWrapper

    chosen = replace(choice, quantize=args.quantize)
    return LlamaWrapper.load(chosen, args.device, args.dtype, over_all_devices=args.device_map == "auto")


def look(args: argparse.Namespace, request: InsideRequest) -> int:
    """Make the reports for which the model itself is needed."""
    from utils.inside.run import look_inside

    counts = look_inside(request, lambda choice: load_model(args, choice))
    log.info("wrote %d reports, skipped %d that show these vectors already (--overwrite makes them again)", *counts)
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
