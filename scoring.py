#!/usr/bin/env python3
"""Score open-ended answers from 0 to 10 with a judge model, or measure them without one (--metrics).

The judge is asked through the OpenAI API or any server like it. Without arguments everything that has no
scores yet is scored. Each score is kept as soon as it comes: after an interruption the same command asks
only for what is missing. The key is OPEN_AI_KEY (or OPENAI_API_KEY) in .env or the environment; --base_url
names another server, such as one on this machine.

--metrics needs no key and no server: length, distinct-2, perplexity under the model without steering, and
what the behavior's file asks for (sentiment, listed words, how answers begin), with intervals and the
change from multiplier 0.

Reads:   results/<behavior>/results_*_type=open_ended_*.json
Writes:  results/open_ended_scores/<behavior>/<same name>: the records with a score each
         --metrics: results/open_ended_metrics/<behavior>/<same name>, analysis/<behavior>/answers_*
Example: ./scoring.py --behaviors sycophancy --layers 13 --dry_run
         ./scoring.py --behaviors sycophancy --layers 13 --max_cost 0.50
         ./scoring.py --metrics --behaviors sycophancy --layers 13
         ./scoring.py --agreement results/open_ended_scores other_scores
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli.flags import add_behaviors, add_device, add_layers, add_multipliers, data_paths, make_parser
from utils.cli.judge_flags import add_judge, judge_flags
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.judge.requests import JudgeRequest, WantedAnswers
from utils.judge.run import estimate, plan_all, score_all
from utils.model.checkpoints import MODEL_SIZES

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.model.checkpoints import ModelChoice

log = logging.getLogger(__name__)

JUDGE_FLAGS = (
    *("judge_model", "base_url", "concurrency", "timeout", "max_retries", "price", "max_cost"),
    *("retry_unscored", "scores_dir", "dry_run", "agreement"),
)
METRICS_FLAGS = ("no_perplexity", "device", "device_map", "dtype", "seed")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser, "all found")
    add_multipliers(parser, None, "all found")
    steered = parser.add_mutually_exclusive_group()
    steered.add_argument(
        "--model_size", choices=MODEL_SIZES, help="only answers of this model (default: of every model)"
    )
    steered.add_argument(
        "--model", metavar="NAME_OR_PATH", help="only answers of this checkpoint (default: of every model)"
    )
    parser.add_argument("--use_base_model", action="store_true", help="only answers of base models (default: of both)")
    add_metrics(parser)
    add_judge(parser)
    parser.add_argument(
        "--retry_unscored", action="store_true", help="ask again for answers that were kept as unscored"
    )
    parser.add_argument(
        "--scores_dir",
        type=Path,
        metavar="DIR",
        help="where scores are (default: results/open_ended_scores under --root)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="only say how many requests, tokens and dollars it takes"
    )
    parser.add_argument(
        "--agreement",
        nargs=2,
        type=Path,
        metavar=("DIR_A", "DIR_B"),
        help="only compare two folders of scores of the same answers",
    )
    return parser


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Flags of measuring without a judge."""
    metrics = parser.add_argument_group("without a judge")
    metrics.add_argument(
        "--metrics", action="store_true", help="measure the answers themselves: no judge, no key, no server"
    )
    metrics.add_argument(
        "--no_perplexity", action="store_true", help="with --metrics: leave perplexity out, so that no model is loaded"
    )
    add_device(metrics)


def run(args: argparse.Namespace) -> int:
    check_flags(args)
    if args.metrics:
        return measure(args)
    if args.agreement:
        return compare(*args.agreement)

    request = judge_request(args)
    plans = plan_all(request)
    if args.dry_run:
        print(estimate(request, plans))  # noqa: T201
        return EXIT_DONE
    return EXIT_DONE if score_all(request, plans) else EXIT_FAILED


def wanted_answers(args: argparse.Namespace) -> WantedAnswers:
    return WantedAnswers(
        paths=data_paths(args),
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(args.layers or ()),
        multipliers=tuple(args.multipliers or ()),
        strengths=tuple(args.strengths or ()),
        model_size=args.model_size,
        model=args.model,
        use_base_model=args.use_base_model,
    )


def judge_request(args: argparse.Namespace) -> JudgeRequest:
    wanted = wanted_answers(args)
    return JudgeRequest(
        wanted=wanted,
        judge=judge_flags(args),
        scores_dir=args.scores_dir or wanted.paths.scores_dir,
        overwrite=args.overwrite,
        retry_unscored=args.retry_unscored,
        command=args.command,
    )


def check_flags(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: If flags of the judge stand beside --metrics, or flags of --metrics without it.
    """
    parser = build_parser()
    foreign = JUDGE_FLAGS if args.metrics else METRICS_FLAGS
    if given := [f"--{name}" for name in foreign if getattr(args, name) != parser.get_default(name)]:
        why = "--metrics asks no judge; leave one or the other out" if args.metrics else "only with --metrics"
        raise UserError(f"{', '.join(given)}: {why}")


def measure(args: argparse.Namespace) -> int:
    """Measure answers without a judge; print a table for each behavior and condition, and draw it."""
    from utils.evaluation.metric_run import MetricsRequest, plan_metrics, write_metrics
    from utils.figures.answers import report_metrics

    wanted = wanted_answers(args)
    request = MetricsRequest(
        paths=wanted.paths,
        behaviors=wanted.behaviors,
        wanted=partial(wanted.has, with_unsteered=True),
        model=args.model,
        with_perplexity=not args.no_perplexity,
        overwrite=args.overwrite,
        command=args.command,
    )
    plan = plan_metrics(request)
    for missing in wanted.missing(filter(wanted.has, plan.found)):
        log.warning("no such open-ended results for %s", missing)
    write_metrics(plan, lambda choice: load_model(choice, args))
    for text in report_metrics(plan, args.seed):
        print(text, end="\n\n")  # noqa: T201
    log.info("%s", plan.summary())
    return EXIT_FAILED if plan.n_left else EXIT_DONE


def load_model(choice: "ModelChoice", args: argparse.Namespace) -> "LlamaWrapper":
    from llama_wrapper import LlamaWrapper

    return LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")


def compare(folder_a: Path, folder_b: Path) -> int:
    """Print how well two folders of scores agree."""
    from utils.judge.agreement import compare_folders, counts, table

    comparison = compare_folders(folder_a, folder_b)
    print(table(comparison))  # noqa: T201
    print(counts(comparison))  # noqa: T201
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
