#!/usr/bin/env python3
"""Plot what steering did, with 95% intervals, tests and steerability, from the result files.

Makes every figure for which there are results (the flags narrow that down):
  one layer       effect of the multiplier, with and without system prompts; all behaviors together
  several layers  effect by layer; steerability by layer; the sweep over behaviors
  transfer        vectors of another layer or model against the model's own
  fine-tuned      fine-tuned weights against the original ones
  cross-behavior  vectors of one behavior on the A/B questions of the others
  TruthfulQA and MMLU also by category; open-ended answers by the judge's score
Multiplier 0 is no steering and so is shared by all layers.

Reads:   results/<behavior>/results_....json, results/open_ended_scores/<behavior>/results_....json
Writes:  analysis/ and analysis/<behavior>/: figures (.png, .pdf), their data (.txt), LaTeX rows (.tex)
         with --report also analysis/report_....html: all of that and the answers side by side, in one page
Example: ./plot_results.py --layers $(seq 0 31) --multipliers 1 --type ab
         ./plot_results.py --layers 13 --multipliers -1 -0.5 0 0.5 1 --behaviors sycophancy --type ab
         ./plot_results.py --report
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.cli.flags import add_behaviors, add_layers, add_model, add_multipliers, data_paths, make_parser, model_choice
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import RESULT_TYPES, ResultType

if TYPE_CHECKING:
    from utils.figures.results import Task
    from utils.report.answers import Answers

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, seed=True)
    add_behaviors(parser)
    add_layers(parser, default="those found")
    add_multipliers(parser, None, "those found")
    parser.add_argument("--type", choices=RESULT_TYPES, help="kind of results (default: every kind found)")
    add_model(parser)
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


def run(args: argparse.Namespace) -> int:
    paths, choice = data_paths(args), model_choice(args)
    check_arguments(args)
    tasks = [
        task
        for kind in ([args.type] if args.type else RESULT_TYPES)
        if (task := find_results(args, paths, choice, kind))
    ]
    answers = find_answers(args, paths, choice)
    if not tasks and not answers:
        raise UserError(
            f"no {f'{args.type} ' if args.type else ''}results of {choice.label} in {paths.results_dir}; "
            + how_to_make(args, paths, choice)
        )
    for task in tasks:
        plot(task)
    if not any(task.n_written for task in tasks) and not answers:
        raise UserError(
            f"nothing to plot: no results of {choice.label} as asked for; " + how_to_make(args, paths, choice)
        )
    log.info("wrote %d figures and tables to %s", sum(task.n_written for task in tasks), paths.analysis_dir)
    if args.report:
        write_page(args, paths, choice, tasks, answers)
    n_unreadable = sum(files.n_unreadable for task in tasks for files in task.files.values())
    return EXIT_FAILED if n_unreadable else EXIT_DONE


def check_arguments(args: argparse.Namespace) -> None:
    if args.override_vector is not None and args.override_vector < 0:
        raise UserError(f"--override_vector {args.override_vector} is negative; layers are counted from 0")
    if args.override_weights and (args.override_vector is not None or args.override_vector_model):
        raise UserError("--override_weights and --override_vector... are different comparisons; give one of them")


def find_results(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, result_type: ResultType
) -> "Task | None":
    """What there is of one kind; None where there is nothing. Behaviors without results are named."""
    from utils.evaluation.effects import Missing, evaluation_command
    from utils.evaluation.results import ResultFiles, settings_of
    from utils.figures.results import Task

    found, without = {}, []
    for behavior in args.behaviors:
        files = ResultFiles(paths, behavior, result_type)
        if files.of_model(settings_of(choice, behavior, result_type)):
            found[behavior] = files
        else:
            without.append(behavior)
    if found and without:
        like = settings_of(choice, without[0], result_type, args.steer_positions)
        command = evaluation_command(without, args.layers or (), args.multipliers or (), like, choice, paths)
        log.warning("no %s results: %s; run: %s", result_type, " ".join(without), command)
    return Task(args, paths, choice, result_type, found, Missing(choice, paths)) if found else None


def find_answers(args: argparse.Namespace, paths: DataPaths, choice: ModelChoice) -> "Answers | None":
    """The open-ended answers for the page, scored or not; None where there are none or no page is wanted."""
    if not args.report:
        return None
    from utils.report.answers import collect_answers

    answers = collect_answers(args, paths, choice)
    return answers if answers.files else None


def write_page(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, tasks: "Sequence[Task]", answers: "Answers | None"
) -> None:
    from utils.report.answers import Answers
    from utils.report.page import write_report

    write_report(args, paths, choice, tasks, answers or Answers())


def how_to_make(args: argparse.Namespace, paths: DataPaths, choice: ModelChoice) -> str:
    from dataclasses import replace

    from utils.evaluation.effects import evaluation_command
    from utils.evaluation.results import settings_of

    like = replace(
        settings_of(choice, args.behaviors[0], args.type or "ab", args.steer_positions),
        override_vector=args.override_vector,
        override_vector_model=args.override_vector_model,
        override_model_weights_path=args.override_weights[0] if args.override_weights else None,
    )
    command = evaluation_command(args.behaviors, args.layers or (), args.multipliers or (), like, choice, paths)
    return f"run: {command}"


def plot(task: "Task") -> None:
    """Every figure of one kind of results, or those that the flags ask for; then the summary."""
    from utils.figures.kept import keep_figures

    with keep_figures(task.figures if task.args.report else None):
        draw(task)
    for line in task.missing.lines():
        log.warning("%s", line)
    if task.headline:
        summarise(task)


def draw(task: "Task") -> None:
    from utils.figures import cross_behavior
    from utils.figures import results as result_plots
    from utils.figures import variations as variation_plots

    if task.args.override_weights:
        variation_plots.plot_finetuned(task)
    elif task.args.override_vector is not None or task.args.override_vector_model:
        variation_plots.plot_transfers(task)
    else:
        result_plots.plot_over_layers(task)
        result_plots.plot_single_layers(task)
        if task.result_type == "ab":
            result_plots.plot_steerabilities(task)
            cross_behavior.plot_cross_behavior(task)
        variation_plots.plot_transfers(task)
        variation_plots.plot_finetuned(task)


def summarise(task: "Task") -> None:
    """Print each behavior's numbers at its best layer, and save them as text."""
    from utils.evaluation.headline import headline_lines, headline_of
    from utils.figures.effects import effects_table
    from utils.figures.style import save_table

    headline = headline_of(task)
    settings = task.plain(headline.behaviors[0].behavior.id)
    stem = task.stem(settings, "layer", "multiplier", "behavior", prefix="headline_")
    task.wrote([save_table(stem, effects_table(headline.points))])
    sys.stdout.write("\n".join(headline_lines(headline)) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
