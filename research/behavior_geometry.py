#!/usr/bin/env python3
"""A hierarchy of behaviors: is it in the activations, and do a parent and its children steer apart?

The statistics of concept_geometry.py on the per-pair differences of contrast pairs (matching minus other answer, read
over the answer's tokens at one layer): a parent is all pairs of its behaviors. Three controls: behaviors under other
parents, pairs with random signs, pairs under other behaviors' names. Then two knobs, a parent's vector and a child's
minus its parent's, each scaled to the same norm: what each does to the preference for the matching answer of every
behavior on held-out items, and both together in a grid.

Reads:   datasets/concepts/behaviors.json, or --hierarchy FILE; the behaviors' generate and test sets
Writes:  analysis/research/behavior_geometry/<hierarchy>_<model>.json           the numbers
         analysis/research/behavior_geometry/hierarchy_<hierarchy>_<model>      beside the controls (.png, .pdf, .txt)
         analysis/research/behavior_geometry/knobs_<hierarchy>_<model>          every knob on every behavior
         analysis/research/behavior_geometry/grids_<hierarchy>_<model>          both knobs together
Example: ./research/behavior_geometry.py --model_size 135m
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_device, add_model, check_layers, make_parser, model_choice, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.model.shapes import model_shape
from utils.paths import REPOSITORY
from utils.research.behavior_request import BehaviorsRequest, Estimator, InnerProduct, load_tree
from utils.saes.requests import is_done

BUNDLED_TREE = REPOSITORY / "datasets" / "concepts" / "behaviors.json"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "--hierarchy",
        type=Path,
        default=BUNDLED_TREE,
        metavar="FILE",
        help="which behaviors belong together, with signs (default: the bundled one)",
    )
    parser.add_argument("--layer", type=values.layer, metavar="N", help="read and steered (default: half of the depth)")
    parser.add_argument(
        "--inner_product",
        choices=get_args(InnerProduct),
        default="euclidean",
        help="causal: in the whitened unembedding's (default: euclidean)",
    )
    parser.add_argument(
        "--knobs",
        choices=get_args(Estimator),
        default="concept",
        help="what is steered with: concept vectors, whose statistics are measured, or mean differences "
        "(default: concept)",
    )
    parser.add_argument(
        "--strength",
        type=values.positive_float,
        default=0.1,
        metavar="S",
        help="of each knob, as a share of the layer's median residual norm (default: 0.1)",
    )
    for flag, default, what in (
        ("n_pairs", 80, "pairs of each behavior, at most"),
        ("n_items", 10, "held-out items of each behavior, at most"),
        ("n_draws", 20, "draws of each control"),
    ):
        parser.add_argument(
            f"--{flag}", type=values.positive_int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    add_model(parser, quantize=False)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    choice = model_choice(args)
    n_layers = model_shape(choice).n_layers
    [layer] = check_layers([n_layers // 2 if args.layer is None else args.layer], n_layers, choice.label)
    if not args.hierarchy.is_file():
        raise UserError(f"--hierarchy {args.hierarchy}: there is no such file; see datasets/README.md for the format")
    request = BehaviorsRequest(
        paths=root_paths(args),
        choice=choice,
        hierarchy=args.hierarchy,
        layer=layer,
        inner_product=args.inner_product,
        estimator=args.knobs,
        strength=args.strength,
        n_pairs=args.n_pairs,
        n_items=args.n_items,
        n_draws=args.n_draws,
        seed=args.seed,
        command=args.command,
    )
    tree = load_tree(request.hierarchy, request.paths)
    if is_done(request.result_path, request.describe(tree), overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.research.behavior_run import run_behaviors

    model = LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    sys.stdout.write("\n".join(run_behaviors(request, tree, model)) + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
