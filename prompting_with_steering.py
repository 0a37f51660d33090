#!/usr/bin/env python3
"""Evaluate a model while steering it: every requested layer x multiplier.

Types: ab (held-out A/B questions), open_ended (free answers), truthful_qa and mmlu (side effects).
The vectors are those of normalized_vectors/. Multiplier 0 means no steering; it is computed once and
written for every layer.

Reads:   datasets/test/..., normalized_vectors/<behavior>/vec_layer_<layer>_<model>.pt
Writes:  results/<behavior>/results_layer=<layer>_multiplier=<multiplier>_behavior=..._type=...json
Example: ./prompting_with_steering.py --behaviors sycophancy --layers 13 --multipliers -1 0 1 --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from utils.cli import values as flag_values
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_multipliers,
    add_operator,
    add_part,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.evaluation.plan import SweepRequest, plan_sweeps
from utils.evaluation.sweep_vectors import load_vectors
from utils.files.redaction import printable
from utils.model import processes
from utils.settings import RESULT_TYPES, Orders

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser)
    add_multipliers(parser, [-1.0, 0.0, 1.0], "-1 0 1")
    parser.add_argument("--type", choices=RESULT_TYPES, default="ab", help="what is asked (default: ab)")
    add_model(parser)
    add_vector_kind(parser)
    add_part(parser)
    add_compute(parser)
    parser.add_argument(
        "--system_prompt",
        choices=["pos", "neg"],
        help="system prompt that asks for (pos) or against (neg) the behavior (default: none)",
    )
    parser.add_argument("--override_vector", type=int, metavar="LAYER", help="use this layer's vector at every layer")
    parser.add_argument("--override_vector_model", metavar="NAME", help="use the vectors of another model")
    parser.add_argument(
        "--override_model_weights_path", type=Path, metavar="FILE", help="evaluate these fine-tuned weights"
    )
    parser.add_argument(
        "--steer_positions",
        choices=["end_of_prompt", "all"],
        default="end_of_prompt",
        help="steer from the end of the user's turn on, or every token (default: end_of_prompt)",
    )
    parser.add_argument(
        "--vector_behavior",
        metavar="ID",
        help="steer with this behavior's vectors, whichever behavior is evaluated (default: its own)",
    )
    parser.add_argument(
        "--chosen",
        action="store_true",
        help="each behavior at the layer and strength that ./choose_steering.py chose for it, and the opposite",
    )
    parser.add_argument(
        "--vector",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="steer with this vector file (several times: with their sum), whatever the behavior has",
    )
    add_operator(parser)
    parser.add_argument(
        "--beside",
        nargs="+",
        type=flag_values.beside,
        default=[],
        metavar="BEHAVIOR@LAYERxWEIGHT",
        help="steer with these vectors, too, at WEIGHT (default: 1) times the multiplier, each at its layer",
    )
    parser.add_argument(
        "--condition",
        type=Path,
        metavar="FILE",
        help="steer only prompts like the matching ones of these pairs of prompts: a gate on the cosine with a "
        "condition vector, whose layer and threshold have the best F1 on the pairs",
    )
    parser.add_argument(
        "--condition_vector", type=Path, metavar="FILE", help="of that gate (default: every second pair makes one)"
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help='open_ended: ask these, a JSON list of {"question": ...}, instead of the behavior\'s test set',
    )
    parser.add_argument(
        "--limit", type=flag_values.positive_int, metavar="N", help="ask only the first N items (default: all)"
    )
    parser.add_argument(
        "--orders",
        choices=get_args(Orders),
        default="given",
        help="lettered answers as the set gives them, or in both orders, averaged in log-odds: a liking for a letter "
        "then cancels out (default: given)",
    )
    parser.add_argument(
        "--temperature",
        type=flag_values.non_negative_float,
        default=0.0,
        metavar="T",
        help="open_ended: sample the answers at this temperature (default: 0, the most likely token)",
    )
    parser.add_argument(
        "--num_samples",
        type=flag_values.positive_int,
        default=1,
        metavar="N",
        help="open_ended: sampled answers per question (default: 1)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=flag_values.positive_int,
        default=100,
        metavar="N",
        help="open_ended: tokens per answer (default: 100)",
    )
    return parser


def build_request(args: argparse.Namespace) -> SweepRequest:
    return SweepRequest(
        paths=data_paths(args),
        choice=model_choice(args),
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(args.layers) if args.layers else None,
        multipliers=tuple(args.multipliers if args.strengths is None else args.strengths),
        knob="multiplier" if args.strengths is None else "strength",
        type=args.type,
        system_prompt=args.system_prompt,
        override_vector=args.override_vector,
        override_vector_model=args.override_vector_model,
        weights_path=args.override_model_weights_path,
        steer_positions=args.steer_positions,
        vector_behavior=args.vector_behavior,
        vector_kind=vector_kind(args),
        chosen=args.chosen,
        vector_files=tuple(args.vector),
        questions=args.questions,
        limit=args.limit,
        orders=args.orders,
        operator=args.operator,
        quantile=args.quantile,
        beside=tuple(args.beside),
        condition=args.condition,
        condition_vector=args.condition_vector,
        temperature=args.temperature,
        num_samples=args.num_samples,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        overwrite=args.overwrite,
        device=args.device,
        dtype=args.dtype,
        over_all_devices=args.device_map == "auto",
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        plainly=args.no_packing,
        command=args.command,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    plan = plan_sweeps(request)
    if not plan.waiting:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", plan.n_skipped)
        return EXIT_DONE
    vectors = load_vectors(plan)

    from llama_wrapper import LlamaWrapper
    from utils.evaluation.glance import glance
    from utils.evaluation.sweep import run_sweeps

    model = LlamaWrapper.load(
        request.choice, request.device, request.dtype, request.weights_path, over_all_devices=request.over_all_devices
    )
    n_written = run_sweeps(model, plan, vectors)
    if processes.is_main():
        sys.stdout.write("".join(f"{printable(line)}\n" for line in glance(plan)))
    log.info("%s", plan.summary(n_written))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
