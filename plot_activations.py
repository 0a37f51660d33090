#!/usr/bin/env python3
"""Plot the saved activations of contrast pairs on their principal components, layer by layer.

Colour says which side of the pair a point is, the marker which letter was read. Each figure also
says how well the steering vector tells the sides apart, as the area under the ROC curve (AUC): 0.5
is chance, 1 perfect; on pairs that the vector was not made from, among answers with the same letter.

Reads:   activations/<behavior>/activations_{pos,neg}_<layer>_<model>.pt
         datasets/generate/<behavior>/generate_dataset.json
Writes:  analysis/<behavior>/pca_layer=<layer>_<model>: .png, .pdf, and the points as .txt
         analysis/<behavior>/pca_all_layers_<model>: all layers on one sheet, and a table of layers
Example: ./plot_activations.py --behaviors sycophancy --layers $(seq 0 31) --model_size 7b

A figure that is older than its data is made again.
"""

import argparse
import logging
from collections.abc import Sequence

from utils.cli.flags import add_behaviors, add_layers, add_model, data_paths, make_parser, model_choice
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.figures.activation_plans import plan_figures
from utils.figures.requests import ActivationsRequest

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="those with saved activations")
    add_model(parser, quantize=False)
    return parser


def activations_request(args: argparse.Namespace) -> ActivationsRequest:
    return ActivationsRequest(
        paths=data_paths(args),
        choice=model_choice(args),
        behaviors=tuple(args.behaviors),
        layers=tuple(args.layers or ()),
        overwrite=args.overwrite,
        seed=args.seed,
    )


def run(args: argparse.Namespace) -> int:
    request = activations_request(args)
    plans = plan_figures(request)
    wanted = [plan for plan in plans if plan.layers or plan.sheet]
    n_written = 0
    if wanted:
        from utils.figures.activation_run import draw  # matplotlib and scipy: only where there is something to draw

        n_written = draw(request, wanted)
    n_skipped = sum(plan.n_skipped for plan in plans)
    log.info("wrote %d figures, skipped %d that are there already (--overwrite makes them again)", n_written, n_skipped)
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
