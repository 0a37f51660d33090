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
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import load_behavior, published_behaviors
from utils.cli import values as flag_values
from utils.cli.flags import add_behaviors, add_device, add_layers, add_multipliers, data_paths, make_parser
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.judge.cost import CHARS_PER_TOKEN, DEFAULT_JUDGE, Budget, Estimate, Price, price_of
from utils.model.checkpoints import MODEL_SIZES, checkpoint_label, choose_model
from utils.paths import DataPaths

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.judge.client import Judge
    from utils.judge.score_files import Purpose, ScorePlan
    from utils.judge.tally import Tally
    from utils.model.checkpoints import ModelChoice
    from utils.settings import SteeringSettings

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
JUDGE_FLAGS = (
    *("judge_model", "base_url", "concurrency", "timeout", "max_retries", "price", "max_cost"),
    *("retry_unscored", "scores_dir", "dry_run", "agreement"),
)
METRICS_FLAGS = ("no_perplexity", "device", "device_map", "dtype", "seed")
PURPOSES: "tuple[Purpose, ...]" = ("score", "overwrite", "retry")


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


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Flags that name the judge and say how it is asked."""
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge_model", default=DEFAULT_JUDGE, metavar="NAME", help=f"model that judges (default: {DEFAULT_JUDGE})"
    )
    judge.add_argument(
        "--base_url",
        metavar="URL",
        help=f"an OpenAI-compatible server; on loopback no key is needed (default: OPENAI_BASE_URL or {OPENAI_URL})",
    )
    judge.add_argument(
        "--concurrency", type=flag_values.positive_int, default=10, metavar="N", help="requests at a time (default: 10)"
    )
    judge.add_argument(
        "--timeout",
        type=flag_values.positive_float,
        default=60.0,
        metavar="S",
        help="seconds for one request (default: 60)",
    )
    judge.add_argument(
        "--max_retries",
        type=flag_values.count,
        default=6,
        metavar="N",
        help="repeats of a request after a 429, a 5xx, a time-out or a cut connection, with back-off (default: 6)",
    )
    judge.add_argument(
        "--price",
        nargs=2,
        type=flag_values.non_negative_float,
        metavar=("IN", "OUT"),
        help="US dollars per million tokens in and out (default: the list price of models that are known)",
    )
    judge.add_argument(
        "--max_cost",
        type=flag_values.non_negative_float,
        metavar="USD",
        help="stop before this run costs more, by the tokens that the server reports (default: no limit)",
    )


def run(args: argparse.Namespace) -> int:
    check_flags(args)
    if args.metrics:
        return measure(args)
    if args.agreement:
        return compare(*args.agreement)

    from utils.judge.access import check_base_url

    paths = data_paths(args)
    args.base_url = check_base_url(args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
    args.scores_dir = args.scores_dir or paths.scores_dir
    price = Price(*args.price) if args.price else price_of(args.judge_model)
    if args.max_cost is not None and price is None:
        raise UserError(f"--max_cost: the price of {args.judge_model!r} is not known; give it with --price IN OUT")
    plans = plan_all(args)
    if args.dry_run:
        return estimate(plans, price, args)
    return score_all(plans, Budget(price, args.max_cost), args)


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

    paths = data_paths(args)
    request = MetricsRequest(
        paths=paths,
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        wanted=lambda settings: is_wanted(settings, args, with_unsteered=True),
        model=args.model,
        with_perplexity=not args.no_perplexity,
        overwrite=args.overwrite,
        command=args.command,
    )
    plan = plan_metrics(request)
    check_found([settings for settings in plan.found if is_wanted(settings, args)], args, paths)
    write_metrics(plan, lambda choice: load_model(choice, args))
    for text in report_metrics(plan, args.seed):
        print(text, end="\n\n")  # noqa: T201
    log.info("%s", plan.summary())
    return EXIT_FAILED if plan.n_left else EXIT_DONE


def load_model(choice: "ModelChoice", args: argparse.Namespace) -> "LlamaWrapper":
    from llama_wrapper import LlamaWrapper

    return LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")


def score_all(plans: "list[ScorePlan]", budget: Budget, args: argparse.Namespace) -> int:
    from utils.judge.tally import Tally

    tally = Tally()
    for plan in plans:
        forget_finished(plan, args)
    if any(plan.wanted for plan in plans):
        from utils.judge.access import Access, find_key
        from utils.judge.client import Judge

        access = Access(args.judge_model, args.base_url, find_key(args.base_url))
        log.info("judge: %s at %s", access.model, access.base_url)
        judge = Judge(access, budget, timeout=args.timeout, max_retries=args.max_retries)
        for plan in plans:
            for purpose in PURPOSES:
                score_files(judge, plan, purpose, tally, args)
    return summarise(plans, tally, budget, args)


def plan_all(args: argparse.Namespace) -> "list[ScorePlan]":
    """What there is to do.

    Raises:
        UserError: If there are no open-ended results of the kind asked for.
    """
    from utils.judge.score_files import Planner

    paths = data_paths(args)
    for behavior in args.behaviors:
        load_behavior(paths, behavior).judge_rubric()  # said before anything is planned
    planner = Planner(
        args.scores_dir,
        args.overwrite,
        args.retry_unscored,
        lambda settings: is_wanted(settings, args),
        lambda behavior: judge_record(behavior, args),
    )
    plans = [planner.plan(paths, behavior) for behavior in args.behaviors]
    check_found([settings for plan in plans for settings in plan.found], args, paths)
    return plans


def check_found(found: "Sequence[SteeringSettings]", args: argparse.Namespace, paths: DataPaths) -> None:
    """Name what was asked for and is not there.

    Raises:
        UserError: If nothing is.
    """
    if not found:
        raise UserError(f"no such open-ended results under {paths.results_dir}; run: {how_to_answer(args, paths)}")
    for flag, asked, there in (
        (
            "--behaviors",
            args.behaviors if set(args.behaviors) != set(published_behaviors()) else [],
            {settings.behavior for settings in found},
        ),
        ("--layers", args.layers or [], {settings.layer for settings in found}),
        ("--multipliers", args.multipliers or [], {settings.multiplier for settings in found}),
        ("--strengths", args.strengths or [], {settings.multiplier for settings in found}),
    ):
        if missing := [value for value in asked if value not in there]:
            log.warning("no such open-ended results for %s %s", flag, " ".join(map(str, missing)))


def how_to_answer(args: argparse.Namespace, paths: DataPaths) -> str:
    """The command that makes the answers that the flags ask for."""
    words: list[object] = ["--behaviors", *args.behaviors] if set(args.behaviors) != set(published_behaviors()) else []
    words += ["--layers", *args.layers] if args.layers else []
    words += ["--multipliers", *args.multipliers] if args.multipliers else []
    words += ["--strengths", *args.strengths] if args.strengths else []
    if args.model or args.model_size:
        words += choose_model(args.model_size or "", args.model, args.use_base_model).command_words
    return paths.command("prompting_with_steering", *words, "--type", "open_ended")


def is_wanted(settings: "SteeringSettings", args: argparse.Namespace, *, with_unsteered: bool = False) -> bool:
    """Whether the flags ask for these answers, or they are those at multiplier 0 `with_unsteered`."""
    return (
        (args.layers is None or settings.layer in args.layers)
        and (is_wanted_amount(settings, args) or (with_unsteered and settings.multiplier == 0))
        and (args.model_size is None or settings.model_size == args.model_size)
        and (args.model is None or settings.model == checkpoint_label(args.model))
        and (settings.use_base_model or not args.use_base_model)
    )


def is_wanted_amount(settings: "SteeringSettings", args: argparse.Namespace) -> bool:
    """Whether --multipliers or --strengths, where one is given, names what is added."""
    asked = args.multipliers if settings.knob == "multiplier" else args.strengths
    return settings.multiplier in asked if asked else not (args.multipliers or args.strengths)


def judge_record(behavior: str, args: argparse.Namespace) -> dict[str, Any]:
    """What tells one judge from another in provenance records."""
    from utils.judge.prompt import prompt_fingerprint

    about = load_behavior(DataPaths(args.root), behavior)
    return {"judge_model": args.judge_model, "base_url": args.base_url, **prompt_fingerprint(about)}


def journal_path(behavior: str, purpose: "Purpose", args: argparse.Namespace) -> Path:
    judge = hashlib.sha256(json.dumps(judge_record(behavior, args), sort_keys=True).encode()).hexdigest()[:16]
    folder: Path = args.scores_dir / behavior
    return folder / f".{purpose}_{judge}.jsonl"


def score_files(
    judge: "Judge", plan: "ScorePlan", purpose: "Purpose", tally: "Tally", args: argparse.Namespace
) -> None:
    """Score a behavior's files of one purpose; replies are kept in a journal until the files are written."""
    from utils.files.journal import open_journal
    from utils.judge.score_run import ScoreRun

    if not any(file.purpose == purpose for file in plan.wanted):
        return
    record = judge_record(plan.behavior, args)
    with open_journal(journal_path(plan.behavior, purpose, args), record) as journal:
        asked_for = [file for file in plan.wanted if file.purpose == purpose]
        files = [file for file in asked_for if file.is_missing()]
        plan.n_done += len(asked_for) - len(files)  # another process has scored them meanwhile
        about = load_behavior(DataPaths(args.root), plan.behavior)
        scoring = ScoreRun(judge, about, files, journal, {**record, "command": args.command}, tally)
        scoring.work(args.concurrency)
        if n_written := len(files) - len(scoring.unfinished):
            log.info("wrote %s: %d score files", args.scores_dir / plan.behavior, n_written)
        still_open = [files[index] for index in scoring.unfinished] + (plan.others if purpose == "score" else [])
        if not any(key in journal.entries for file in still_open for key in file.open_answers()):
            journal.remove()


def forget_finished(plan: "ScorePlan", args: argparse.Namespace) -> None:
    """Remove the journal of a run that was killed when all its score files were written."""
    is_open = any(file.purpose == "score" for file in (*plan.wanted, *plan.others))
    if not (is_open or plan.n_left or plan.n_broken):
        journal_path(plan.behavior, "score", args).unlink(missing_ok=True)


def estimate(plans: "list[ScorePlan]", price: Price | None, args: argparse.Namespace) -> int:
    """Print what a run would take; answers that an interrupted run has kept are not counted."""
    from utils.files.journal import read_entries
    from utils.judge.prompt import messages

    total = Estimate()
    for plan in plans:
        about = load_behavior(DataPaths(args.root), plan.behavior)
        for purpose in PURPOSES:
            kept = read_entries(journal_path(plan.behavior, purpose, args))
            answers = {
                key: record
                for file in plan.wanted
                if file.purpose == purpose
                for key, record in file.open_answers().items()
            }
            for key, record in answers.items():
                if "score" not in kept.get(key, {}):
                    total.add(messages(about, record["question"], record["model_output"]))
    cost = f"{price.of(total.tokens_in, total.tokens_out):.4f} USD" if price else "unknown cost (give --price IN OUT)"
    n_files = sum(len(plan.wanted) for plan in plans)
    print(  # noqa: T201
        f"{n_files} files to score: {total.n_requests} requests to {args.judge_model}, "
        f"about {total.tokens_in} tokens in (characters / {CHARS_PER_TOKEN}) and {total.tokens_out} out, roughly {cost}"
    )
    return EXIT_DONE


def summarise(plans: "list[ScorePlan]", tally: "Tally", budget: Budget, args: argparse.Namespace) -> int:
    """Say what was done and what was not; the exit code."""
    n_done = sum(plan.n_done for plan in plans)
    if n_other := sum(plan.n_other_judge for plan in plans):
        log.info("%d of the files that have scores were scored by another judge; --overwrite replaces them", n_other)
    if n_unscored := sum(plan.n_unscored for plan in plans):
        log.info("%d answers there are unscored; --retry_unscored asks again", n_unscored)
    for reason, count in tally.failures.most_common(3):
        log.error("%d requests failed: %s", count, reason)
    if tally.stopped:
        log.error("stopped: %s", tally.stopped)
    if tally.n_missing:
        log.error("%d answers are left; to go on, run: %s", tally.n_missing, args.command)
    n_failed = tally.n_unfinished + sum(plan.n_left + plan.n_broken for plan in plans)
    log.info(
        "wrote %d score files, skipped %d that have scores, failed %d; %d answers scored, %d unscored; %s",
        tally.n_written,
        n_done,
        n_failed,
        tally.n_scored,
        tally.n_unscored,
        budget,
    )
    return EXIT_FAILED if n_failed else EXIT_DONE


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
