#!/usr/bin/env python3
"""Generate one steering vector per layer from contrast pairs.

Reads:   datasets/generate/<behavior>/generate_dataset.json
Writes:  vectors/<behavior>/vec_layer_<layer>_<model>.pt
         activations/<behavior>/activations_{pos,neg}_<layer>_<model>.pt with --save_activations
         with --from answers also the answers, as results/<behavior>/results_..._questions=....json
Example: ./generate_vectors.py --behaviors sycophancy --layers 13 --model_size 135m
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from utils.cli import values
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_vector_kind,
    check_layers,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.evaluation.own_answers import FILTERS, OwnAnswers
from utils.model.shapes import model_shape
from utils.vectors.plan import ExtractionRequest, GenerateSet, load_pairs_for, plan_extraction

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.paths import DataPaths
    from utils.settings import Reading

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser)
    add_model(parser)
    add_vector_kind(parser)
    add_compute(parser)
    parser.add_argument(
        "--save_activations", action="store_true", help="also keep every pair's activations (for plot_activations.py)"
    )
    parser.add_argument(
        "--filter",
        choices=FILTERS,
        default="none",
        help="--from answers: keep the pairs that the judge's scores (./scoring.py) tell apart, or all (default: none)",
    )
    parser.add_argument(
        "--limit",
        type=values.positive_int,
        default=100,
        metavar="N",
        help="--from answers: ask the first N questions of the generate set (default: 100)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=values.positive_int,
        default=60,
        metavar="N",
        help="--from answers: tokens per answer (default: 60)",
    )
    return parser


def build_request(args: argparse.Namespace) -> ExtractionRequest:
    choice = model_choice(args)
    return ExtractionRequest(
        paths=data_paths(args),
        choice=choice,
        behaviors=tuple(args.behaviors),
        layers=tuple(check_layers(args.layers, model_shape(choice).n_layers, choice.label)),
        command=args.command,
        kind=vector_kind(args),
        save_activations=args.save_activations,
        overwrite=args.overwrite,
        plainly=args.no_packing,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    if request.kind.origin == "pairs":
        check_flags(args)
        return extract(args, request, load_pairs_for)
    answers = OwnAnswers(request, args.filter, args.limit, args.max_new_tokens)
    waiting = [plan for plans in answers.plans.values() for plan in plans if plan.waiting]
    model = None
    if waiting:
        from utils.evaluation.sweep import run_sweeps

        model = load_model(args, request)
        for plan in waiting:
            run_sweeps(model, plan, {behavior: {} for behavior in request.behaviors})
    return extract(args, request, answers.load, model)


def check_flags(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: If flags of the model's own answers stand without --from answers.
    """
    parser = build_parser()
    names = ("filter", "limit", "max_new_tokens")
    if stray := [f"--{name}" for name in names if getattr(args, name) != parser.get_default(name)]:
        raise UserError(f"{', '.join(stray)}: only with --from answers")


def extract(
    args: argparse.Namespace,
    request: ExtractionRequest,
    load: "Callable[[DataPaths, str, Reading], GenerateSet]",
    model: "LlamaWrapper | None" = None,
) -> int:
    """Make what is missing."""
    plans = plan_extraction(request, load)
    n_missing = sum(len(plan.layers) for plan in plans)
    n_there = len(plans) * len(request.layers) - n_missing
    if request.has_kept_sums():
        from utils.vectors.extraction import forget_finished_sums

        forget_finished_sums(request)
    if not n_missing:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_there)
        return EXIT_DONE

    from utils.vectors.extraction import extract_behavior

    model = model or load_model(args, request)
    for plan in plans:
        if plan.layers:
            extract_behavior(model, plan, request)
    log.info("wrote %d vectors, skipped %d, failed 0", n_missing, n_there)
    return EXIT_DONE


def load_model(args: argparse.Namespace, request: ExtractionRequest) -> "LlamaWrapper":
    from llama_wrapper import LlamaWrapper

    return LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
