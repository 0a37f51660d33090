#!/usr/bin/env python3
"""Plot what steering did, with 95% intervals, tests and steerability, from the result files.

Makes every figure for which there are results (the flags narrow that down):
  one layer       effect of the multiplier, with and without system prompts; all behaviors together
  several layers  effect by layer; steerability by layer; the sweep over behaviors
  transfer        vectors of another layer or model against the model's own
  fine-tuned      fine-tuned weights against the original ones
  cross-behavior  vectors of one behavior on the A/B questions of the others
  TruthfulQA and MMLU also by category; open-ended answers by the judge's score, sampled ones by themselves
Multiplier 0 means no steering, so all layers share it.

Reads:   results/<behavior>/results_....json, results/open_ended_scores/<behavior>/results_....json
Writes:  analysis/ and analysis/<behavior>/: figures (.png, .pdf), their data (.txt), LaTeX rows (.tex)
         with --report also analysis/report_....html: all of that and the answers side by side, in one page
Example: ./plot_results.py --layers $(seq 0 31) --multipliers 1 --type ab
         ./plot_results.py --layers 13 --multipliers -1 -0.5 0 0.5 1 --behaviors sycophancy --type ab
         ./plot_results.py --report
"""

import argparse
import sys
from collections.abc import Sequence

from utils.cli.flags import (
    add_behaviors,
    add_layers,
    add_model,
    add_multipliers,
    add_part,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.figures.requests import PlotRequest
from utils.report.requests import ReportRequest
from utils.settings import RESULT_TYPES


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="those found")
    add_multipliers(parser, None, "those found")
    parser.add_argument("--type", choices=RESULT_TYPES, help="kind of results (default: every kind found)")
    add_model(parser)
    add_vector_kind(parser)
    add_part(parser)
    parser.add_argument("--title", help="title of the figures (default: what they show)")
    parser.add_argument(
        "--override_vector", type=int, metavar="LAYER", help="plot only the transfer of this layer's vector"
    )
    parser.add_argument(
        "--override_vector_model", metavar="NAME", help="plot only the transfer of this model's vectors"
    )
    parser.add_argument(
        "--override_weights",
        nargs=2,
        metavar=("POS", "NEG"),
        help="plot only these fine-tuned weights (files, or as in result names) against the original ones",
    )
    parser.add_argument(
        "--steer_positions",
        choices=["end_of_prompt", "all"],
        default="end_of_prompt",
        help="results steered from the end of the user's turn on, or at every token (default: end_of_prompt)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write one HTML page to send around: numbers, figures with their data, open-ended answers side by "
        "side, token positions, provenance (analysis/report_....html; opens from disk, needs no network)",
    )
    return parser


def plot_request(args: argparse.Namespace) -> PlotRequest:
    return PlotRequest(
        paths=data_paths(args),
        choice=model_choice(args),
        behaviors=tuple(args.behaviors),
        type=args.type,
        layers=tuple(args.layers or ()),
        multipliers=tuple((args.multipliers if args.strengths is None else args.strengths) or ()),
        title=args.title or "",
        override_vector=args.override_vector,
        override_vector_model=args.override_vector_model,
        override_weights=tuple(args.override_weights) if args.override_weights else None,
        steer_positions=args.steer_positions,
        kind=vector_kind(args),
        knob="multiplier" if args.strengths is None else "strength",
        seed=args.seed,
    )


def run(args: argparse.Namespace) -> int:
    request = plot_request(args)

    from utils.report.run import plot_results

    plotted = plot_results(request, ReportRequest(request, args.command) if args.report else None)
    if plotted.summary:
        sys.stdout.write("\n".join(plotted.summary) + "\n")
    return EXIT_FAILED if plotted.n_unreadable else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
