#!/usr/bin/env python3
"""Function vectors: the few attention heads that carry a task which examples in the prompt show.

After Todd et al. 2024 (Function Vectors in Large Language Models): mean head outputs over prompts with right
examples; the effect of putting each head's mean into prompts whose examples are shuffled; the sum of what the most
effective heads add to the residual stream. The vector is then added at the last token of prompts without examples, and
with shuffled ones, layer by layer, beside the contrast vector of the same prompts (right minus shuffled examples) and
vectors of random heads of equal norm. With --behaviors lettered questions are tasks too, answered with the matching
letter, and their vectors are compared with the behavior's steering vectors.

Reads:   datasets/concepts/tasks/<task>.json; vectors/ for cosines with behaviors; --behaviors: their datasets
Writes:  analysis/research/function_vectors/<task>_<model>.pt               the function vector, [d_model]
         analysis/research/function_vectors/<task>_<model>.json             accuracies, heads, cosines
         analysis/research/function_vectors/layers_<task>_<model>           accuracy and cosines (.png, .pdf, .txt)
         analysis/research/function_vectors/heads_<task>_<model>            every head's effect
         analysis/research/function_vectors/tasks_<model>                   all tasks at one layer
Example: ./research/function_vectors.py --model_size 135m
         ./research/function_vectors.py --model_size 135m --tasks none --behaviors refusal sycophancy
         ./prompting_with_steering.py --model_size 135m --behaviors refusal --layers 9 \\
             --vector analysis/research/function_vectors/antonyms_SmolLM2-135M-Instruct.pt

A task whose result is there is skipped, so that a run which was broken off goes on with the next task.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_device, add_layers, add_model, check_layers, data_paths, make_parser, model_choice
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.model.shapes import model_shape
from utils.paths import REPOSITORY
from utils.research.function_request import FunctionRequest
from utils.saes.requests import is_done

log = logging.getLogger(__name__)

TASKS_DIR = REPOSITORY / "datasets" / "concepts" / "tasks"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    bundled = sorted(path.stem for path in TASKS_DIR.glob("*.json"))
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=bundled,
        metavar="NAME_OR_FILE",
        help=f"bundled tasks or files of pairs, or none (default: {', '.join(bundled)})",
    )
    parser.add_argument(
        "--behaviors",
        nargs="+",
        default=[],
        metavar="ID",
        help="behaviors to run as tasks: lettered questions in the prompt (default: none)",
    )
    add_layers(parser, default="about ten, evenly spaced")
    parser.add_argument(
        "--layer",
        type=values.layer,
        metavar="N",
        help="of the numbers that stand for all (default: the one of --layers that is nearest to a third of the depth)",
    )
    for flag, default, what in (
        ("n_shots", 10, "examples in a prompt"),
        ("behavior_shots", 4, "the same for behaviors, whose questions are long"),
        ("n_prompts", 20, "prompts of each kind that means are taken over"),
        ("n_trials", 10, "shuffled prompts in which every head is tried"),
        ("n_heads", 10, "heads of the function vector"),
        ("n_test", 20, "test items of each task, at most"),
    ):
        parser.add_argument(
            f"--{flag}", type=values.positive_int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--multiplier",
        type=values.finite_float,
        default=1.0,
        metavar="X",
        help="of every vector (default: 1, as published)",
    )
    add_model(parser, quantize=False)
    add_device(parser)
    return parser


def build_request(args: argparse.Namespace) -> FunctionRequest:
    choice = model_choice(args)
    n_layers = model_shape(choice).n_layers
    given = args.layers or range(0, n_layers, max(1, n_layers // 10))
    layers = check_layers(list(given), n_layers, choice.label)
    layer = min(layers, key=lambda one: abs(one - n_layers / 3)) if args.layer is None else args.layer
    if layer not in layers:
        raise UserError(f"--layer {layer} is not among --layers {' '.join(map(str, layers))}")
    sizes = {name: getattr(args, name) for name in ("n_shots", "behavior_shots", "n_prompts", "n_trials", "n_heads")}
    return FunctionRequest(
        paths=data_paths(args),
        choice=choice,
        tasks=tuple(task_file(name) for name in ([] if args.tasks == ["none"] else args.tasks)),
        behaviors=tuple(args.behaviors),
        layers=tuple(layers),
        layer=layer,
        **sizes,
        n_test=args.n_test,
        multiplier=args.multiplier,
        seed=args.seed,
        command=args.command,
    )


def task_file(name: str) -> Path:
    """
    Raises:
        UserError: If there is no such task.
    """
    for path in (Path(name), TASKS_DIR / f"{name}.json"):
        if path.is_file():
            return path
    raise UserError(
        f"--tasks {name}: neither a file nor one of {', '.join(sorted(p.stem for p in TASKS_DIR.glob('*')))}"
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    request.check()
    waiting = [
        name
        for name in request.names
        if not is_done(request.result_path(name), request.describe(name), overwrite=args.overwrite)
    ]
    if not waiting:
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.research.function_run import finish, run_tasks

    model = LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    run_tasks(request, model, waiting)
    sys.stdout.write("\n".join(finish(request)) + "\n")
    log.info("ran %d tasks, skipped %d that are there already", len(waiting), len(request.names) - len(waiting))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
