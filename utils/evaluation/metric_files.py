"""Measured answers: one file, how it is written and read, and in what it was made otherwise.

A file holds the records of its result file plus the keys of `utils.evaluation.answer_metrics` and `perplexity`.
What is not defined for an answer is null.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.behaviors import Behavior
from utils.errors import UserError
from utils.evaluation.answer_effects import AnswerValues
from utils.evaluation.answer_metrics import (
    ALL_KEYS,
    DISTINCT_2,
    N_WORDS,
    PERPLEXITY_KEY,
    keys_of,
    measure_text,
    measures_of,
    metric_facts,
)
from utils.files.provenance import Differences, differences, read_provenance, record_provenance
from utils.files.reading import read_json, sha256_of, short
from utils.files.writing import write_json
from utils.judge.score_files import answer_key, load_answers
from utils.model.checkpoints import ModelChoice
from utils.settings import SteeringSettings

if TYPE_CHECKING:
    from utils.model.perplexity import FreeAnswer

log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class MetricFile:
    """A file of measured answers, there or to be made."""

    answers_path: Path
    path: Path
    settings: SteeringSettings
    about: Behavior
    records: tuple[Record, ...]
    """Of the result file."""
    choice: ModelChoice | None
    """The model whose answers they are; None where it is not known which checkpoint that is."""

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on, as far as it is known without the model."""
        prompt = self.about.system_prompt(self.settings.system_prompt)
        label = {"model": self.choice.label} if self.choice else {}
        return {
            **label,
            **metric_facts(self.about.metric),
            **({"system_prompt": prompt} if prompt else {}),
            "results_sha256": sha256_of(self.answers_path),
        }

    def asked(self) -> "list[FreeAnswer]":
        """The answers with their prompts."""
        from utils.model.perplexity import FreeAnswer

        prompt = self.about.system_prompt(self.settings.system_prompt)
        return [FreeAnswer(record["question"], record["model_output"], prompt) for record in self.records]

    def write(self, perplexities: Sequence[float | None] | None, run: Mapping[str, Any]) -> None:
        """Measure the texts; write the file and its provenance.

        Args:
            perplexities: One an answer; None where no model was asked, and then the records have no such key.
            run: The model's provenance and the command.
        """
        measured: list[Record] = [
            {**record, **measure_text(record["model_output"], self.about.metric)} for record in self.records
        ]
        for record, perplexity in zip(measured, perplexities or (), strict=perplexities is not None):
            record[PERPLEXITY_KEY] = perplexity
        made = {
            **run,
            **self.facts(),
            "n_answers": len(measured),
            "n_empty": sum(not record["model_output"].strip() for record in measured),
        }
        record_provenance(self.path.parent, [self.path.name], made)
        write_json(self.path, measured)


# --- what is there ---------------------------------------------------------------------------------


def is_readable(path: Path) -> bool:
    """Whether there is a file that holds answers."""
    if not path.exists():
        return False
    try:
        load_answers(path)
    except UserError as err:
        log.warning("%s; it is measured again", err)
        return False
    return True


def find_differences(file: MetricFile, facts: Mapping[str, Any]) -> Differences:
    """In what a file that is there was made otherwise."""
    if found := differences(facts, read_provenance(file.path) or {}):
        return found
    measured = [answer_key(record) for record in read_json(file.path)]
    is_same = measured == [answer_key(record) for record in file.records]
    return {} if is_same else {"answers": ("others", "those of the result file")}


def is_whole(file: MetricFile, with_perplexity: bool) -> bool:
    """Whether a file has every number that is wanted."""
    try:
        records = _load_records(file.path, file.about)
    except UserError as err:
        log.warning("%s; it is measured again", err)
        return False
    return not with_perplexity or all(PERPLEXITY_KEY in record for record in records)


# --- reading ---------------------------------------------------------------------------------------


def load_measured(file: MetricFile) -> AnswerValues:
    """Read a file of measured answers.

    Raises:
        UserError: If it is missing or broken, or lacks what the behavior's metric asks for.
    """
    records = _load_records(file.path, file.about)
    measures = (N_WORDS, DISTINCT_2, *measures_of(file.about.metric))
    return AnswerValues(
        file.settings,
        _keys(records),
        {measure.name: _column(map(measure.of, records)) for measure in measures},
        _column(record.get(PERPLEXITY_KEY) for record in records),
        sum(not record["model_output"].strip() for record in records),
    )


def _load_records(path: Path, about: Behavior) -> list[Record]:
    load_answers(path)
    records: list[Record] = read_json(path)
    for index, record in enumerate(records):
        for key in keys_of(about.metric):
            if key not in record:
                raise UserError(f"{path}, item {index}: key {key!r} is missing")
        for key in ALL_KEYS & set(record):
            if not _is_number_or_null(record[key]):
                raise UserError(f"{path}, item {index}, key {key!r}: expected a number, found {short(record[key])}")
    return records


def _is_number_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _column(values: Iterator[Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.array([math.nan if value is None else float(value) for value in values])


def _keys(records: Sequence[Record]) -> tuple[str, ...]:
    """Each question, numbered where it was answered more than once."""
    seen: dict[str, int] = {}
    keys = []
    for record in records:
        question = record["question"]
        seen[question] = seen.get(question, 0) + 1
        keys.append(f"{question}\0{seen[question]}")
    return tuple(keys)
