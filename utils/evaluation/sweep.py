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

from utils.behaviors import load_behavior
from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.journal import Journal, open_journal, read_header
from utils.files.provenance import read_folder_provenance, record_provenance
from utils.files.reading import sha256_of
from utils.files.writing import write_json
from utils.model import processes
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.model.steering import Steering
from utils.paths import DataPaths
from utils.settings import SteeringSettings

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

Combination = tuple[int, float]  # layer, multiplier

_JOURNAL_PREFIX, _JOURNAL_SUFFIX = ".sweep_", ".jsonl"


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
            sweep.settings.behavior,
            len(others),
            others[0],
        )


def run_sweep(
    model: "LlamaWrapper", sweep: Sweep, vectors: dict[int, Tensor], paths: DataPaths, options: EvaluationOptions
) -> None:
    """Evaluate one behavior; finished items are kept in a journal until the result files are written.

    Of several processes each keeps its own journal, and the main one writes the files.
    """
    results_dir = paths.results_dir / sweep.settings.behavior
    run_record = _run_record(model, sweep, options)
    header = {
        "settings": _shared_settings(sweep),
        "overwrite": options.overwrite,
        "combinations": missing_combinations(sweep, paths, options.overwrite),
    }
    name = f"{_JOURNAL_PREFIX}{_identity(sweep, run_record)}_{processes.index()}{_JOURNAL_SUFFIX}"
    with open_journal(results_dir / name, header) as journal:
        if not processes.from_main(missing_combinations(sweep, paths, options.overwrite)):
            journal.remove()  # another run has written them meanwhile
            return
        combinations = [
            (layer, multiplier) for layer, multiplier in processes.from_main(journal.header)["combinations"]
        ]
        evaluation = _Evaluation(model, sweep, combinations, vectors, journal, paths, options)
        if processes.is_main():
            names = [sweep.settings.at(*at).result_name for at in combinations]
            record_provenance(results_dir, names, run_record)
        if sweep.settings.type == "open_ended":
            evaluation.answer_questions()
        else:
            evaluation.score_choices()
        evaluation.write_complete()
        processes.gather(None)  # nobody forgets before all is written
        journal.remove()
    log.info("wrote %s: %d result files, %d items each", results_dir, len(combinations), len(sweep.items))


def _identity(sweep: Sweep, run_record: dict[str, Any]) -> str:
    """Tells this sweep's journal from others: everything that its numbers depend on, but not how it was typed."""
    depends_on = {key: value for key, value in run_record.items() if key != "command"}
    content = json.dumps([_shared_settings(sweep), sweep.combinations, depends_on], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _shared_settings(sweep: Sweep) -> str:
    """What all combinations have in common."""
    return sweep.settings.describe("layer", "multiplier")


def forget_finished(sweep: Sweep, paths: DataPaths) -> None:
    """Remove the journals of runs that were killed when all their result files were written.

    Journals of runs with --overwrite stay: the result files that are there may be older ones.
    """
    results_dir = paths.results_dir / sweep.settings.behavior
    for path in results_dir.glob(f"{_JOURNAL_PREFIX}*{_JOURNAL_SUFFIX}"):
        header = read_header(path)
        is_ours = header.get("settings") == _shared_settings(sweep) and header.get("overwrite") is False
        if is_ours and all(paths.result(sweep.settings.at(*at)).exists() for at in header["combinations"]):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _DistinctSteering:
    """A steering, and the combinations for which it stands (several for multiplier 0)."""

    steering: Steering | None
    combinations: tuple[Combination, ...]


class _Evaluation:
    """A sweep at work: the model, what is asked, and the journal of what has been answered.

    A journal entry is an item's probabilities [n_steerings, n_letters], or one answer [text, raw text].
    """

    def __init__(
        self,
        model: "LlamaWrapper",
        sweep: Sweep,
        combinations: Sequence[Combination],
        vectors: dict[int, Tensor],
        journal: Journal,
        paths: DataPaths,
        options: EvaluationOptions,
    ) -> None:
        self.model, self.sweep, self.journal, self.paths, self.options = model, sweep, journal, paths, options
        self.steerings = _distinct_steerings(combinations, vectors)
        behavior = load_behavior(paths, sweep.settings.behavior)
        self.system_prompt = behavior.system_prompt(sweep.settings.system_prompt)
        self.items: list[Any] = [item for item in sweep.items for _ in range(sweep.settings.num_samples)]
        self._written: set[int] = set()  # places in `steerings`
        self._collect()

    def score_choices(self) -> None:
        """Probabilities of the answer letters of every item under every steering."""
        encode, letter_id = self.model.chat_format.encode_choice, self.model.chat_format.letter_id
        prompts = [self._placed(encode(item.question, self.system_prompt)) for item in self.items]
        letters = [[letter_id(letter) for letter in item.letters] for item in self.items]
        score = self.model.score_plainly if self.options.plainly else self.model.score
        steerings = [distinct.steering for distinct in self.steerings]
        with self._progress(len(self.items), "questions") as bar:
            for index, probabilities in score(prompts, steerings, letters, self.options.batch_size, self._done()):
                self._check_finite(probabilities)
                self.journal.append(str(index), probabilities.tolist())
                bar.update()

    def _check_finite(self, probabilities: Tensor) -> None:
        """Refuse what is no number: a steered residual stream has left the range of the dtype."""
        for distinct, row in zip(self.steerings, probabilities, strict=True):
            if not bool(row.isfinite().all()):
                layer, multiplier = distinct.combinations[0]
                raise UserError(
                    f"layer {layer}, multiplier {multiplier}: the probabilities are not finite in "
                    f"{self.model.dtype}; use smaller --multipliers or --dtype float32"
                )

    def answer_questions(self) -> None:
        """Free answers to every question under every steering; a combination is written when it is complete."""
        settings = self.sweep.settings
        prompts = [
            self._placed(self.model.chat_format.encode(question, None, self.system_prompt)) for question in self.items
        ]
        rows = [
            GenerationRow(prompt, distinct.steering, seed=_row_seed(settings.seed, *distinct.combinations[0], i))
            for distinct in self.steerings
            for i, prompt in enumerate(prompts)
        ]
        generations = self.model.generate(
            rows,
            self.options.max_new_tokens,
            temperature=settings.temperature,
            use_cache=not self.options.plainly,
            batch_size=self.options.batch_size,
            skip=self._done(),
        )
        with self._progress(len(rows), "answers") as bar:
            for index, generation in generations:
                self.journal.append(str(index), [generation.text, generation.raw_text])
                bar.update()
                if processes.count() == 1:
                    self._write_if_complete(index // len(self.items))

    def write_complete(self) -> None:
        """Bring together what all processes have found, and write what is not written yet."""
        self._collect()
        if processes.is_main():
            for place in range(len(self.steerings)):
                self._write_if_complete(place)

    def _collect(self) -> None:
        for entries in processes.gather(self.journal.entries):
            self.journal.entries.update(entries)

    def _write_if_complete(self, place: int) -> None:
        """Write a steering's result files, once all of its items are in the journal."""
        keys = [self._key(place, i) for i in range(len(self.items))]
        if place in self._written or not all(key in self.journal.entries for key in keys):
            return
        records = [
            self._record(item, self.journal.entries[key], place) for item, key in zip(self.items, keys, strict=True)
        ]
        for at in self.steerings[place].combinations:
            path = self.paths.result(self.sweep.settings.at(*at))
            if self.options.overwrite or not path.exists():  # a run that was killed may have written it
                write_json(path, records)
        self._written.add(place)

    def _key(self, place: int, item: int) -> str:
        return str(place * len(self.items) + item) if self.sweep.settings.type == "open_ended" else str(item)

    def _record(self, item: Any, entry: Any, place: int) -> dict[str, Any]:
        if self.sweep.settings.type == "open_ended":
            return {"question": item, "model_output": entry[0], "raw_model_output": entry[1]}
        return item.result_record(dict(zip(item.letters, entry[place], strict=True)))

    def _done(self) -> set[int]:
        return {int(key) for key in self.journal.entries}

    def _progress(self, total: int, what: str) -> Any:
        return progress(total=total, initial=len(self.journal.entries), desc=f"{self.sweep.settings.behavior}: {what}")

    def _placed(self, prompt: PromptTokens) -> PromptTokens:
        return replace(prompt, steer_start=0) if self.sweep.settings.steer_positions == "all" else prompt


def _distinct_steerings(combinations: Sequence[Combination], vectors: dict[int, Tensor]) -> list[_DistinctSteering]:
    unsteered = tuple(at for at in combinations if at[1] == 0)
    distinct = [_DistinctSteering(None, unsteered)] if unsteered else []
    for layer, multiplier in combinations:
        if multiplier != 0:
            steering = Steering(layer, multiplier, vectors[layer])
            distinct.append(_DistinctSteering(steering, ((layer, multiplier),)))
    return distinct


def _row_seed(seed: int, layer: int, multiplier: float, index: int) -> int:
    """A seed of its own for each answer, the same in every run."""
    at = (seed, layer if multiplier else 0, multiplier, index)
    return int.from_bytes(hashlib.sha256(repr(at).encode()).digest()[:7], "big")


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
