#!/usr/bin/env python3
"""The geometry of categories in a model's unembedding: hierarchies as orthogonality, categories as simplices.

After Park et al. 2024 (The Geometry of Categorical and Hierarchical Concepts in Large Language Models): the
unembedding is whitened, each category of words gets a vector, and it is measured whether a child is its parent and
something orthogonal, whether words outside the vector's making lie where they should, and whether a step between
parents moves the logits of the parents' words and not those between their children. Controls: random tokens in
the place of the words, random parents, other parents, random steps.

Reads:   datasets/concepts/nouns.json, or --words FILE (the same format; see datasets/README.md)
Writes:  analysis/research/concept_geometry/<words>_<model>.json             the numbers
         analysis/research/concept_geometry/hierarchy_<words>_<model>        each child's cosines (.png, .pdf, .txt)
         analysis/research/concept_geometry/cosines_<words>_<model>          between all vectors, the tree beside
         analysis/research/concept_geometry/projections_<words>_<model>      held-out words in planes of others
         analysis/research/concept_geometry/interventions_<words>_<model>    what steps move
Example: ./research/concept_geometry.py --model_size 135m
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_device, add_model, make_parser, model_choice, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.paths import REPOSITORY
from utils.research.concept_request import GeometryRequest
from utils.saes.requests import is_done

BUNDLED_WORDS = REPOSITORY / "datasets" / "concepts" / "nouns.json"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "--words",
        type=Path,
        default=BUNDLED_WORDS,
        metavar="FILE",
        help="a hierarchy of words (default: the bundled nouns)",
    )
    parser.add_argument(
        "--n_shuffles",
        type=values.positive_int,
        default=20,
        metavar="N",
        help="draws of each control (default: 20)",
    )
    add_model(parser, quantize=False)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if not args.words.is_file():
        raise UserError(f"--words {args.words}: there is no such file; see datasets/README.md for the format")
    request = GeometryRequest(
        root_paths(args), model_choice(args), args.words, args.n_shuffles, args.seed, args.command
    )
    if is_done(request.result_path, request.describe(), overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.research.concept_run import run_geometry

    model = LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    sys.stdout.write("\n".join(run_geometry(request, model)) + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
