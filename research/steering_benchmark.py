#!/usr/bin/env python3
"""Which way to steer works best, at equal side effects, and would a prompt not do better?

Every method is held to one budget of KL on neutral prompts: its strength is solved for it, its layer chosen on
validation items, and the test items are read once. Prompts and fine-tuned weights stand beside as they are. Controls:
random vectors and vectors of permuted labels, which have to come out at 0. `answer+clamp` is the vectors of `answer`
under another operator (docs/steering.md). What cannot run is listed as not run, with the command that provides what it
lacks.

Reads:   datasets/generate/..., datasets/test/..., datasets/neutral/...
Writes:  analysis/research/steering_benchmark/<model>/: results .json and .txt, pareto_<behavior> and ranks (.png, .pdf,
         .txt), units/<behavior>__<method>.json (an interrupted run goes on with the next unit)
Example: ./research/steering_benchmark.py --quick --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_device, add_layers, add_model, data_paths, make_parser, model_choice
from utils.cli.judge_flags import add_judge, judge_flags
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.model import processes
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.research.benchmark_methods import DEFAULT_METHODS, METHODS, QUICK_METHODS, method_named
from utils.research.benchmark_request import QUICK, WHOLE, BenchmarkRequest, Sizes

log = logging.getLogger(__name__)

BEHAVIORS = ("positive-sentiment", "refusal", "the-sea", "sycophancy")
QUICK_BEHAVIORS = BEHAVIORS[:2]


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "--behaviors",
        nargs="+",
        metavar="ID",
        help=f"behaviors to compare on (default: {', '.join(BEHAVIORS)}; with --quick the first two)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"of: {', '.join(METHODS)}; vectors also as NAME+OPERATOR (default: all but lora and finetuned; with "
        f"--quick {', '.join(QUICK_METHODS)})",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="two behaviors, six methods, few items")
    sizes.add_argument("--whole", action="store_true", help="all test items, and several times as many of the rest")
    parser.add_argument(
        "--transfer",
        action="store_true",
        help="also make the answer vector under each system prompt (none, for, against) and test it under each",
    )
    add_layers(parser, "three layers from 45 to 60 percent of the model's depth; with --quick two")
    parser.add_argument(
        "--kl",
        type=values.positive_float,
        default=1.0,
        metavar="NATS",
        help="budget: 95th percentile of the per-token KL to the unsteered model on neutral prompts (default: 1)",
    )
    parser.add_argument("--saes", nargs="+", type=Path, default=[], metavar="DIR", help="SAEs for the method sae")
    parser.add_argument(
        "--batch_size",
        type=values.batch_size,
        default="auto",
        metavar="N",
        help="items in one forward pass (default: auto, from the free memory)",
    )
    add_judge(parser, None)
    add_model(parser)
    add_device(parser)
    return parser


def build_request(args: argparse.Namespace) -> BenchmarkRequest:
    """
    Raises:
        UserError: If there is no such behavior, method or layer.
    """
    args.behaviors = args.behaviors or list(QUICK_BEHAVIORS if args.quick else BEHAVIORS)
    choice = model_choice(args)
    n_layers = model_shape(choice).n_layers
    methods = tuple(dict.fromkeys(args.methods or (QUICK_METHODS if args.quick else DEFAULT_METHODS)))
    for name in methods:
        method_named(name)
    if choice.use_base_model and any(METHODS[name.partition("+")[0]].kind == "framing" for name in methods):
        raise UserError("system prompts and examples need a chat model; leave --use_base_model out")
    layers = args.layers or middle_layers(n_layers, 2 if args.quick else 3)
    return BenchmarkRequest(
        paths=data_paths(args),
        choice=choice,
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        methods=methods,
        layers=tuple(check_layers(layers, n_layers, choice.label)),
        kl=args.kl,
        sizes=QUICK if args.quick else WHOLE if args.whole else Sizes(),
        seed=args.seed,
        saes=tuple(args.saes),
        judge=judge_flags(args) if args.judge_model else None,
        transfer=args.transfer,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        overwrite=args.overwrite,
        command=args.command,
    )


def middle_layers(n_layers: int, n: int) -> list[int]:
    """Evenly spaced from 45 to 60 percent of the depth."""
    low, high = 0.45 * (n_layers - 1), 0.6 * (n_layers - 1)
    return sorted({round(low + (high - low) * i / max(1, n - 1)) for i in range(n)})


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    n_waiting = len(request.waiting)
    if n_waiting:
        from llama_wrapper import LlamaWrapper
        from utils.research.benchmark_run import Benchmark

        def load(weights: Path | None = None) -> LlamaWrapper:
            over_all = args.device_map == "auto"
            return LlamaWrapper.load(request.choice, args.device, args.dtype, weights, over_all_devices=over_all)

        Benchmark(load(), request, load).run()
    if not processes.is_main():
        return EXIT_DONE
    from utils.research.benchmark_report import write_results
    from utils.research.benchmark_results import Results
    from utils.research.benchmark_tables import not_run_lines

    results = Results(request)
    if not results.units:
        raise UserError("; ".join(["no method could be run", *not_run_lines(results)]))
    is_judged = True
    if request.judge:
        from utils.research.benchmark_judge import judge_answers

        is_judged = judge_answers(results, request.judge, request.command)
    sys.stdout.write("".join(f"{line}\n" for line in write_results(results)))
    n_units = len(request.behaviors) * (len(request.methods) + request.transfer)
    log.info("measured %d units, took %d that were there", n_waiting, n_units - n_waiting)
    return EXIT_DONE if is_judged else EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
