#!/usr/bin/env python3
"""Evaluate a model while steering it: every requested layer x multiplier.

Types: ab (held-out A/B questions), open_ended (free answers), truthful_qa and mmlu (side effects).
The vectors are those of normalized_vectors/. Multiplier 0 is no steering; it is computed once and
written for every layer.

Reads:   datasets/test/..., normalized_vectors/<behavior>/vec_layer_<layer>_<model>.pt
Writes:  results/<behavior>/results_layer=<layer>_multiplier=<multiplier>_behavior=..._type=...json
Example: ./prompting_with_steering.py --behaviors sycophancy --layers 13 --multipliers -1 0 1 --model_size 135m
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import load_behavior
from utils.cli import values as flag_values
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_multipliers,
    check_layers,
    data_paths,
    make_parser,
    model_choice,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.model import processes
from utils.model.checkpoints import ModelChoice, checkpoint_label
from utils.paths import DataPaths
from utils.settings import RESULT_TYPES, SteeringSettings

if TYPE_CHECKING:
    from torch import Tensor

    from utils.evaluation.sweep import Sweep

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_behaviors(parser)
    add_layers(parser)
    add_multipliers(parser, [-1.0, 0.0, 1.0], "-1 0 1")
    parser.add_argument("--type", choices=RESULT_TYPES, default="ab", help="what is asked (default: ab)")
    add_model(parser)
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
        help="open_ended: sampled answers a question (default: 1)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=flag_values.positive_int,
        default=100,
        metavar="N",
        help="open_ended: tokens an answer (default: 100)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from utils.evaluation.sweep import (
        EvaluationOptions,
        forget_finished,
        missing_combinations,
        run_sweep,
        warn_of_other_inputs,
    )
    from utils.model.loading import load_config

    paths, choice = data_paths(args), model_choice(args)
    _check_arguments(args)
    config = load_config(choice)
    layers = check_layers(args.layers, config.num_hidden_layers, choice.label)
    if args.override_vector is not None and args.override_vector_model is None:
        check_layers([args.override_vector], config.num_hidden_layers, choice.label, "--override_vector")
    sweeps = [plan_sweep(args, paths, choice, behavior, layers) for behavior in args.behaviors]
    if not args.overwrite:
        for sweep in sweeps:
            warn_of_other_inputs(sweep, paths)
            forget_finished(sweep, paths)
    n_all = sum(len(sweep.combinations) for sweep in sweeps)
    n_missing = processes.from_main([len(missing_combinations(sweep, paths, args.overwrite)) for sweep in sweeps])
    waiting = [sweep for sweep, missing in zip(sweeps, n_missing, strict=True) if missing]
    if not waiting:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_all)
        return EXIT_DONE
    vectors = {sweep.settings.behavior: load_sweep_vectors(sweep, choice, config.hidden_size) for sweep in waiting}

    from llama_wrapper import LlamaWrapper

    model = LlamaWrapper.load(
        choice, args.device, args.dtype, args.override_model_weights_path, over_all_devices=args.device_map == "auto"
    )
    options = EvaluationOptions(
        command=args.command,
        overwrite=args.overwrite,
        plainly=args.no_packing,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        max_new_tokens=args.max_new_tokens,
        weights_path=args.override_model_weights_path,
    )
    for sweep in waiting:
        run_sweep(model, sweep, vectors[sweep.settings.behavior], paths, options)
    log.info("wrote %d result files, skipped %d, failed 0", sum(n_missing), n_all - sum(n_missing))
    return EXIT_DONE


def plan_sweep(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, behavior: str, layers: Sequence[int]
) -> "Sweep":
    """Read and check what one behavior's evaluation needs.

    Raises:
        UserError: If its test set is missing or broken.
    """
    from utils.data.records import load_choice_items, load_open_ended_questions
    from utils.evaluation.sweep import Sweep

    load_behavior(paths, behavior).system_prompt(args.system_prompt)  # said before the model is loaded
    combinations = tuple((layer, multiplier) for layer in layers for multiplier in sorted(set(args.multipliers)))
    settings = SteeringSettings(
        layer=combinations[0][0],
        multiplier=combinations[0][1],
        behavior=behavior,
        type=args.type,
        system_prompt=args.system_prompt,
        override_vector=args.override_vector,
        override_vector_model=args.override_vector_model and checkpoint_label(args.override_vector_model),
        use_base_model=args.use_base_model,
        model_size=choice.size,
        model=None if choice.size else choice.label,
        override_model_weights_path=weights_name(args.override_model_weights_path, paths.root),
        steer_positions=args.steer_positions,
        vector_behavior=args.vector_behavior if args.vector_behavior != behavior else None,
        temperature=args.temperature,
        num_samples=args.num_samples,
        seed=args.seed if args.temperature else 0,
    )
    dataset = paths.test_dataset(behavior, args.type)
    hint = f"run: ./process_raw_datasets.py --behaviors {behavior}"
    items: list[Any] = (
        load_open_ended_questions(dataset, hint)
        if args.type == "open_ended"
        else load_choice_items(dataset, args.type, hint)
    )
    label = settings.override_vector_model or choice.label
    source = settings.vector_behavior or behavior
    vectors = {
        layer: paths.vector(
            source, layer if args.override_vector is None else args.override_vector, label, normalized=True
        )
        for layer, multiplier in combinations
        if multiplier != 0
    }
    return Sweep(settings, combinations, dataset, vectors, items)


def load_sweep_vectors(sweep: "Sweep", choice: ModelChoice, d_model: int) -> "dict[int, Tensor]":
    """The steering vector for each layer.

    Raises:
        UserError: If one is missing (names the commands that make it), broken, or of another width.
    """
    from utils.files.reading import load_vector

    settings = sweep.settings
    behavior = settings.vector_behavior or settings.behavior
    flags = f"--model {settings.override_vector_model}" if settings.override_vector_model else choice.command_flags
    hint = f"run: ./generate_vectors.py --behaviors {behavior} {flags}, then: ./normalize_vectors.py"
    return {layer: load_vector(path, d_model, hint) for layer, path in sweep.vectors.items()}


def weights_name(path: Path | None, root: Path) -> str | None:
    """Fine-tuned weights as they stand in a result file name: the path with '-' between its parts."""
    if path is None:
        return None
    inside = path.resolve().is_relative_to(root.resolve())
    parts = path.resolve().relative_to(root.resolve()).parts if inside else path.resolve().parts[1:]
    return "-".join(parts)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.system_prompt and args.use_base_model:
        raise UserError("--system_prompt needs a chat model; leave --use_base_model out")
    if args.type != "open_ended" and (args.temperature or args.num_samples > 1):
        raise UserError(f"--temperature and --num_samples sample free answers; --type {args.type} has none")
    if args.num_samples > 1 and not args.temperature:
        raise UserError("--num_samples needs --temperature: without it every answer to a question is the same")
    if args.override_vector is not None and args.override_vector < 0:
        raise UserError(f"--override_vector {args.override_vector} is negative; layers are counted from 0")
    if args.override_model_weights_path is not None and not args.override_model_weights_path.is_file():
        raise UserError(f"--override_model_weights_path {args.override_model_weights_path}: there is no such file")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
