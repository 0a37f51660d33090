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
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import get_behavior
from utils.cli import (
    EXIT_DONE,
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_multipliers,
    check_layers,
    data_paths,
    exit_with,
    make_parser,
    model_choice,
    progress,
    run_main,
)
from utils.errors import UserError
from utils.models import ModelChoice, checkpoint_label
from utils.paths import DataPaths
from utils.settings import RESULT_TYPES, SteeringSettings

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper
    from utils.chat_format import PromptTokens
    from utils.contrast_data import ChoiceItem
    from utils.journal import Journal
    from utils.steering import Steering

log = logging.getLogger(__name__)

Combination = tuple[int, float]  # layer, multiplier


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_behaviors(parser)
    add_layers(parser)
    add_multipliers(parser, [-1.0, 0.0, 1.0], "-1 0 1")
    parser.add_argument("--type", choices=RESULT_TYPES, default="ab", help="what is asked (default: ab)")
    add_model(parser)
    add_compute(parser)
    parser.add_argument(
        "--system_prompt", choices=["pos", "neg"],
        help="system prompt that asks for (pos) or against (neg) the behavior (default: none)",
    )  # fmt: skip
    parser.add_argument("--override_vector", type=int, metavar="LAYER", help="use this layer's vector at every layer")
    parser.add_argument("--override_vector_model", metavar="NAME", help="use the vectors of another model")
    parser.add_argument(
        "--override_model_weights_path", type=Path, metavar="FILE", help="evaluate these fine-tuned weights"
    )
    parser.add_argument(
        "--steer_positions", choices=["end_of_prompt", "all"], default="end_of_prompt",
        help="steer from the end of the user's turn on, or every token (default: end_of_prompt)",
    )  # fmt: skip
    parser.add_argument(
        "--max_new_tokens", type=_positive, default=100, metavar="N", help="open_ended: tokens an answer (default: 100)"
    )
    return parser


@dataclass(frozen=True)
class Sweep:
    """One behavior's evaluation over layers and multipliers."""

    settings: SteeringSettings
    """Of its first combination; `at` gives the others."""
    combinations: tuple[Combination, ...]
    dataset: Path
    vectors: dict[int, Path]
    """Vector file for each steered layer."""
    items: list[Any]
    """ChoiceItems, or questions as text for open_ended."""


def run(args: argparse.Namespace) -> int:
    from utils.loading import load_config

    paths, choice = data_paths(args), model_choice(args)
    _check_arguments(args)
    config = load_config(choice)
    layers = check_layers(args.layers, config.num_hidden_layers, choice.label)
    sweeps = [plan_sweep(args, paths, choice, behavior, layers) for behavior in args.behaviors]
    n_all = sum(len(sweep.combinations) for sweep in sweeps)
    waiting = [sweep for sweep in sweeps if missing_combinations(sweep, paths, args.overwrite)]
    n_waiting = sum(len(missing_combinations(sweep, paths, args.overwrite)) for sweep in waiting)
    if not waiting:
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_all)
        return EXIT_DONE
    vectors = {sweep.settings.behavior: load_sweep_vectors(sweep, choice, config.hidden_size) for sweep in waiting}

    from llama_wrapper import LlamaWrapper

    model = LlamaWrapper.load(choice, args.device, args.dtype, args.override_model_weights_path)
    for sweep in waiting:
        run_sweep(model, sweep, vectors[sweep.settings.behavior], paths, args)
    log.info("wrote %d result files, skipped %d, failed 0", n_waiting, n_all - n_waiting)
    return EXIT_DONE


def plan_sweep(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, behavior: str, layers: Sequence[int]
) -> Sweep:
    """Read and check what one behavior's evaluation needs.

    Raises:
        UserError: If its test set is missing or broken.
    """
    from utils.contrast_data import load_choice_items, load_open_ended_questions

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
    )
    dataset = paths.test_dataset(behavior, args.type)
    hint = f"run: ./process_raw_datasets.py --behaviors {behavior}"
    items: list[Any] = (
        load_open_ended_questions(dataset, hint)
        if args.type == "open_ended"
        else load_choice_items(dataset, args.type, hint)
    )
    label = settings.override_vector_model or choice.label
    vectors = {
        layer: paths.vector(
            behavior, layer if args.override_vector is None else args.override_vector, label, normalized=True
        )
        for layer, multiplier in combinations
        if multiplier != 0
    }
    return Sweep(settings, combinations, dataset, vectors, items)


def missing_combinations(sweep: Sweep, paths: DataPaths, overwrite: bool) -> list[Combination]:
    """The combinations whose result file is not there yet."""
    return [at for at in sweep.combinations if overwrite or not paths.result(sweep.settings.at(*at)).exists()]


def load_sweep_vectors(sweep: Sweep, choice: ModelChoice, d_model: int) -> "dict[int, Tensor]":
    """The steering vector for each layer.

    Raises:
        UserError: If one is missing (names the commands that make it), broken, or of another width.
    """
    from utils.artifact_io import load_vector

    behavior = sweep.settings.behavior
    flags = choice.command_flags
    hint = f"run: ./generate_vectors.py --behaviors {behavior} {flags}, then: ./normalize_vectors.py"
    return {layer: load_vector(path, d_model, hint) for layer, path in sweep.vectors.items()}


def run_sweep(
    model: "LlamaWrapper", sweep: Sweep, vectors: "dict[int, Tensor]", paths: DataPaths, args: argparse.Namespace
) -> None:
    """Evaluate one behavior; finished items are kept in a journal until the result files are written."""
    from utils.artifact_io import record_provenance
    from utils.journal import open_journal

    results_dir = paths.results_dir / sweep.settings.behavior
    run_record = _run_record(model, sweep, args)
    identity = hashlib.sha256(json.dumps([run_record, sweep.combinations], sort_keys=True).encode()).hexdigest()[:16]
    header = {"combinations": missing_combinations(sweep, paths, args.overwrite)}
    with open_journal(results_dir / f".sweep_{identity}.jsonl", header) as journal:
        if not missing_combinations(sweep, paths, args.overwrite):
            journal.remove()  # another process has written them meanwhile
            return
        combinations: list[Combination] = [(layer, multiplier) for layer, multiplier in journal.header["combinations"]]
        names = [sweep.settings.at(*at).result_name for at in combinations]
        record_provenance(results_dir, names, run_record)
        steerings = _distinct_steerings(combinations, vectors)
        if sweep.settings.type == "open_ended":
            answer_questions(model, sweep, steerings, journal, paths, args)
        else:
            score_choices(model, sweep, steerings, journal, paths, args)
        journal.remove()
    log.info("wrote %s: %d result files, %d items each", results_dir, len(combinations), len(sweep.items))


def score_choices(
    model: "LlamaWrapper",
    sweep: Sweep,
    steerings: "list[DistinctSteering]",
    journal: "Journal",
    paths: DataPaths,
    args: argparse.Namespace,
) -> None:
    """Probabilities of the answer letters of every item under every steering."""
    items: list[ChoiceItem] = sweep.items
    system_prompt = _system_prompt(sweep)
    prompts = [_placed(model.chat_format.encode_choice(item.question, system_prompt), args) for item in items]
    letters = [[model.chat_format.letter_id(letter) for letter in item.letters] for item in items]
    done = {int(key) for key in journal.entries}
    score = model.score_plainly if args.no_packing else model.score
    scores = score(prompts, [s.steering for s in steerings], letters, _batch_size(args), done)
    with progress(total=len(items), initial=len(done), desc=f"{sweep.settings.behavior}: questions") as bar:
        for index, probabilities in scores:  # [n_steerings, n_letters]
            journal.append(str(index), probabilities.tolist())
            bar.update()
    for place, distinct in enumerate(steerings):
        records = []
        for index, item in enumerate(items):
            of_letters = dict(zip(item.letters, journal.entries[str(index)][place], strict=True))
            records.append(item.result_record(of_letters))
        _write_results(sweep, distinct, records, paths)


def answer_questions(
    model: "LlamaWrapper",
    sweep: Sweep,
    steerings: "list[DistinctSteering]",
    journal: "Journal",
    paths: DataPaths,
    args: argparse.Namespace,
) -> None:
    """Free answers to every question under every steering; a combination is written when it is complete."""
    from utils.generation import GenerationRow

    questions: list[str] = sweep.items
    system_prompt = _system_prompt(sweep)
    prompts = [_placed(model.chat_format.encode(question, None, system_prompt), args) for question in questions]
    rows = [GenerationRow(prompt, distinct.steering) for distinct in steerings for prompt in prompts]
    done = {int(key) for key in journal.entries}
    n_left = [
        sum(place * len(questions) + i not in done for i in range(len(questions))) for place in range(len(steerings))
    ]

    def write(place: int) -> None:
        answers = [journal.entries[str(place * len(questions) + i)] for i in range(len(questions))]
        records = [
            {"question": question, "model_output": text, "raw_model_output": raw}
            for question, (text, raw) in zip(questions, answers, strict=True)
        ]
        _write_results(sweep, steerings[place], records, paths)

    for place, left in enumerate(n_left):
        if left == 0:
            write(place)
    generations = model.generate(rows, args.max_new_tokens, batch_size=_batch_size(args), skip=done)
    with progress(total=len(rows), initial=len(done), desc=f"{sweep.settings.behavior}: answers") as bar:
        for index, generation in generations:
            journal.append(str(index), [generation.text, generation.raw_text])
            bar.update()
            place = index // len(questions)
            n_left[place] -= 1
            if n_left[place] == 0:
                write(place)


@dataclass(frozen=True)
class DistinctSteering:
    """A steering, and the combinations for which it stands (several for multiplier 0)."""

    steering: "Steering | None"
    combinations: tuple[Combination, ...]


def _distinct_steerings(combinations: Sequence[Combination], vectors: "dict[int, Tensor]") -> list[DistinctSteering]:
    from utils.steering import Steering

    unsteered = tuple(at for at in combinations if at[1] == 0)
    distinct = [DistinctSteering(None, unsteered)] if unsteered else []
    for layer, multiplier in combinations:
        if multiplier != 0:
            steering = Steering(layer, multiplier, vectors[layer])
            distinct.append(DistinctSteering(steering, ((layer, multiplier),)))
    return distinct


def _write_results(sweep: Sweep, distinct: DistinctSteering, records: list[dict], paths: DataPaths) -> None:
    from utils.artifact_io import write_json

    for at in distinct.combinations:
        write_json(paths.result(sweep.settings.at(*at)), records)


def _system_prompt(sweep: Sweep) -> str | None:
    return get_behavior(sweep.settings.behavior).system_prompt(sweep.settings.system_prompt)


def _placed(prompt: "PromptTokens", args: argparse.Namespace) -> "PromptTokens":
    return replace(prompt, steer_start=0) if args.steer_positions == "all" else prompt


def _batch_size(args: argparse.Namespace) -> int | None:
    return None if args.batch_size == "auto" else args.batch_size


def _run_record(model: "LlamaWrapper", sweep: Sweep, args: argparse.Namespace) -> dict[str, Any]:
    from utils.artifact_io import sha256_of

    record = {
        **model.provenance(),
        "command": args.command,
        "dataset_sha256": sha256_of(sweep.dataset),
        "n_items": len(sweep.items),
        "vectors_sha256": {str(layer): sha256_of(path) for layer, path in sorted(sweep.vectors.items())},
        "steered_from": args.steer_positions,
        "packed": not args.no_packing,
    }
    if sweep.settings.type == "open_ended":
        record["max_new_tokens"] = args.max_new_tokens
    if args.override_model_weights_path is not None:
        record["weights_sha256"] = sha256_of(args.override_model_weights_path)
    return record


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
    if args.override_vector is not None and args.override_vector < 0:
        raise UserError(f"--override_vector {args.override_vector} is negative; layers are counted from 0")
    if args.override_model_weights_path is not None and not args.override_model_weights_path.is_file():
        raise UserError(f"--override_model_weights_path {args.override_model_weights_path}: there is no such file")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
