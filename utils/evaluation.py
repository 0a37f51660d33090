"""One behavior's evaluation over layers and multipliers, from loaded model to result files.

Finished items go into a journal until the result files are written, so that a run that is killed
loses at most what was in flight.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.artifact_io import read_folder_provenance, record_provenance, sha256_of, write_json
from utils.behaviors import get_behavior
from utils.chat_format import PromptTokens
from utils.cli import progress
from utils.contrast_data import ChoiceItem
from utils.generation import GenerationRow
from utils.journal import Journal, open_journal
from utils.paths import DataPaths
from utils.settings import SteeringSettings
from utils.steering import Steering

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

Combination = tuple[int, float]  # layer, multiplier


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


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is run; what it computes is in the sweep's settings."""

    command: str
    """The command line, for the provenance record."""
    overwrite: bool = False
    plainly: bool = False
    """One full sequence a combination instead of packed passes and shared prefixes."""
    batch_size: int | None = None
    """Questions or answers at once; None for as many as fit."""
    max_new_tokens: int = 100
    weights_path: Path | None = None


def missing_combinations(sweep: Sweep, paths: DataPaths, overwrite: bool) -> list[Combination]:
    """The combinations whose result file is not there yet."""
    return [at for at in sweep.combinations if overwrite or not paths.result(sweep.settings.at(*at)).exists()]


def warn_of_other_inputs(sweep: Sweep, paths: DataPaths) -> None:
    """Name the result files that are there but were made from another test set or other vectors."""
    runs = read_folder_provenance(paths.results_dir / sweep.settings.behavior)
    dataset = sha256_of(sweep.dataset)
    vectors = {layer: sha256_of(path) for layer, path in sweep.vectors.items() if path.exists()}
    others = []
    for layer, multiplier in sweep.combinations:
        name = sweep.settings.at(layer, multiplier).result_name
        run = runs.get(name, {})
        other_dataset = run.get("dataset_sha256", dataset) != dataset
        made_with = run.get("vectors_sha256", {}).get(str(layer))
        other_vector = multiplier != 0 and None not in (made_with, vectors.get(layer)) and made_with != vectors[layer]
        if other_dataset or other_vector:
            others.append(name)
    if others:
        log.warning(
            "%s: %d result files that are there were made from other data or vectors, e.g. %s; "
            "--overwrite makes them again",
            sweep.settings.behavior, len(others), others[0],
        )  # fmt: skip


def run_sweep(
    model: "LlamaWrapper", sweep: Sweep, vectors: dict[int, Tensor], paths: DataPaths, options: EvaluationOptions
) -> None:
    """Evaluate one behavior; finished items are kept in a journal until the result files are written."""
    results_dir = paths.results_dir / sweep.settings.behavior
    run_record = _run_record(model, sweep, options)
    identity = _identity(sweep, run_record)
    header = {"combinations": missing_combinations(sweep, paths, options.overwrite)}
    with open_journal(results_dir / f".sweep_{identity}.jsonl", header) as journal:
        if not missing_combinations(sweep, paths, options.overwrite):
            journal.remove()  # another process has written them meanwhile
            return
        combinations: list[Combination] = [(layer, multiplier) for layer, multiplier in journal.header["combinations"]]
        names = [sweep.settings.at(*at).result_name for at in combinations]
        record_provenance(results_dir, names, run_record)
        steerings = _distinct_steerings(combinations, vectors)
        if sweep.settings.type == "open_ended":
            answer_questions(model, sweep, steerings, journal, paths, options)
        else:
            score_choices(model, sweep, steerings, journal, paths, options)
        journal.remove()
    log.info("wrote %s: %d result files, %d items each", results_dir, len(combinations), len(sweep.items))


def _identity(sweep: Sweep, run_record: dict[str, Any]) -> str:
    """Tells this sweep's journal from others: everything that its numbers depend on, but not how it was typed."""
    settings = sweep.settings.describe("layer", "multiplier")
    depends_on = {key: value for key, value in run_record.items() if key != "command"}
    content = json.dumps([settings, sweep.combinations, depends_on], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def score_choices(
    model: "LlamaWrapper",
    sweep: Sweep,
    steerings: "list[DistinctSteering]",
    journal: Journal,
    paths: DataPaths,
    options: EvaluationOptions,
) -> None:
    """Probabilities of the answer letters of every item under every steering."""
    items: list[ChoiceItem] = sweep.items
    system_prompt = _system_prompt(sweep)
    prompts = [_placed(model.chat_format.encode_choice(item.question, system_prompt), sweep) for item in items]
    letters = [[model.chat_format.letter_id(letter) for letter in item.letters] for item in items]
    done = {int(key) for key in journal.entries}
    score = model.score_plainly if options.plainly else model.score
    scores = score(prompts, [s.steering for s in steerings], letters, options.batch_size, done)
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
    journal: Journal,
    paths: DataPaths,
    options: EvaluationOptions,
) -> None:
    """Free answers to every question under every steering; a combination is written when it is complete."""
    questions: list[str] = [question for question in sweep.items for _ in range(sweep.settings.num_samples)]
    system_prompt = _system_prompt(sweep)
    prompts = [_placed(model.chat_format.encode(question, None, system_prompt), sweep) for question in questions]
    rows = [
        GenerationRow(prompt, distinct.steering, seed=_row_seed(sweep.settings.seed, *distinct.combinations[0], i))
        for distinct in steerings
        for i, prompt in enumerate(prompts)
    ]
    done = {int(key) for key in journal.entries}

    def write_if_complete(place: int) -> None:
        """Write a steering's result files once all of its answers are there."""
        keys = [str(place * len(questions) + i) for i in range(len(questions))]
        if all(key in journal.entries for key in keys):
            answers = [journal.entries[key] for key in keys]
            records = [
                {"question": question, "model_output": text, "raw_model_output": raw}
                for question, (text, raw) in zip(questions, answers, strict=True)
            ]
            _write_results(sweep, steerings[place], records, paths)

    for place in sorted({index // len(questions) for index in done}):
        write_if_complete(place)
    generations = model.generate(
        rows, options.max_new_tokens, temperature=sweep.settings.temperature, batch_size=options.batch_size, skip=done,
        use_cache=not options.plainly,
    )  # fmt: skip
    with progress(total=len(rows), initial=len(done), desc=f"{sweep.settings.behavior}: answers") as bar:
        for index, generation in generations:
            journal.append(str(index), [generation.text, generation.raw_text])
            bar.update()
            write_if_complete(index // len(questions))


def _row_seed(seed: int, layer: int, multiplier: float, index: int) -> int:
    """A seed of its own for each answer, the same in every run."""
    at = (seed, layer if multiplier else 0, multiplier, index)
    return int.from_bytes(hashlib.sha256(repr(at).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class DistinctSteering:
    """A steering, and the combinations for which it stands (several for multiplier 0)."""

    steering: Steering | None
    combinations: tuple[Combination, ...]


def _distinct_steerings(combinations: Sequence[Combination], vectors: dict[int, Tensor]) -> list[DistinctSteering]:
    from utils.steering import Steering

    unsteered = tuple(at for at in combinations if at[1] == 0)
    distinct = [DistinctSteering(None, unsteered)] if unsteered else []
    for layer, multiplier in combinations:
        if multiplier != 0:
            steering = Steering(layer, multiplier, vectors[layer])
            distinct.append(DistinctSteering(steering, ((layer, multiplier),)))
    return distinct


def _write_results(sweep: Sweep, distinct: DistinctSteering, records: list[dict], paths: DataPaths) -> None:
    for at in distinct.combinations:
        write_json(paths.result(sweep.settings.at(*at)), records)


def _system_prompt(sweep: Sweep) -> str | None:
    return get_behavior(sweep.settings.behavior).system_prompt(sweep.settings.system_prompt)


def _placed(prompt: PromptTokens, sweep: Sweep) -> PromptTokens:
    return replace(prompt, steer_start=0) if sweep.settings.steer_positions == "all" else prompt


def _run_record(model: "LlamaWrapper", sweep: Sweep, options: EvaluationOptions) -> dict[str, Any]:
    record = {
        **model.provenance(),
        "command": options.command,
        "dataset_sha256": sha256_of(sweep.dataset),
        "n_items": len(sweep.items),
        "vectors_sha256": {str(layer): sha256_of(path) for layer, path in sorted(sweep.vectors.items())},
        "steered_from": sweep.settings.steer_positions,
        "packed": not options.plainly,
    }
    if sweep.settings.type == "open_ended":
        record["max_new_tokens"] = options.max_new_tokens
    if options.weights_path is not None:
        record["weights_sha256"] = sha256_of(options.weights_path)
    return record
