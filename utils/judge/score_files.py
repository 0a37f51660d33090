"""Score files: which open-ended answers have scores, which want some, and how scores are written.

A score file holds the records of its result file plus `score`, a float from 0 to 10. Where the judge
gave none, `score` is null and `judge_reply` and `unscored_reason` say why; that never means 0.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.data.records import load_records
from utils.errors import UserError
from utils.files.provenance import read_provenance, record_provenance
from utils.files.reading import read_json, sha256_of
from utils.files.writing import write_json
from utils.judge.prompt import MAX_SCORE
from utils.paths import DataPaths
from utils.settings import SteeringSettings, parse_result_name

log = logging.getLogger(__name__)

Record = dict[str, Any]
Purpose = Literal["score", "overwrite", "retry"]
"""Why a score file is made: there is none, it is made again, or its unscored answers are asked again."""

_SCORE_KEYS = ("score", "judge_reply", "unscored_reason")


@dataclass(frozen=True)
class ScoreFile:
    """A score file to make."""

    answers_path: Path
    path: Path
    settings: SteeringSettings
    purpose: Purpose
    records: tuple[Record, ...]
    """Of the result file, without scores."""
    kept: Mapping[int, Record] = field(default_factory=dict)
    """Records with their scores, by index, that stay as they are (retry)."""

    def open_answers(self) -> dict[str, Record]:
        """The answers to be scored, by key; equal ones count once."""
        return {answer_key(record): record for index, record in enumerate(self.records) if index not in self.kept}

    def is_missing(self) -> bool:
        """Whether it is still to be made: another process may have scored it meanwhile."""
        return self.purpose != "score" or _load_if_scored(self.path, quiet=True) is None

    def write(self, entries: Mapping[str, Record], run: Mapping[str, Any]) -> None:
        """Write the file and its provenance.

        Args:
            entries: Score fields of every open answer, by key.
            run: Who judged how.
        """
        records = [
            dict(self.kept[index]) if index in self.kept else {**record, **_score_fields(entries[answer_key(record)])}
            for index, record in enumerate(self.records)
        ]
        n_unscored = sum(record["score"] is None for record in records)
        models = sorted({entries[key]["model"] for key in self.open_answers() if entries[key].get("model")})
        made = {
            **run,
            "judge_answered_as": models,
            "results_sha256": sha256_of(self.answers_path),
            "n_answers": len(records),
            "n_scored": len(records) - n_unscored,
            "n_unscored": n_unscored,
        }
        record_provenance(self.path.parent, [self.path.name], made)
        write_json(self.path, records)


def answer_key(record: Record) -> str:
    """Names question and answer: equal ones (multiplier 0 at every layer) are judged once."""
    said = json.dumps([record["question"], record["model_output"]])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _score_fields(entry: Record) -> Record:
    return {key: entry[key] for key in _SCORE_KEYS if key in entry}


@dataclass
class ScorePlan:
    """What there is to do for one behavior."""

    behavior: str
    wanted: list[ScoreFile] = field(default_factory=list)
    others: list[ScoreFile] = field(default_factory=list)
    """Without scores as well, but not asked for this time."""
    n_done: int = 0
    """Score files that are there already."""
    n_other_judge: int = 0
    """Of those, files that are known to be scored by another judge."""
    n_unscored: int = 0
    """Unscored answers in them."""
    n_left: int = 0
    """Score files that do not fit what was asked for and were left alone."""
    n_broken: int = 0
    """Result files that cannot be read."""
    found: list[SteeringSettings] = field(default_factory=list)
    """Of all result files asked for."""


@dataclass(frozen=True)
class Planner:
    """Decides for each result file whether it is to be scored."""

    scores_dir: Path
    overwrite: bool
    retry_unscored: bool
    wanted: Callable[[SteeringSettings], bool]
    judge_of: Callable[[str], Mapping[str, Any]]
    """behavior -> the part of a run's record that tells this judge from others."""

    def plan(self, paths: DataPaths, behavior: str) -> ScorePlan:
        """Look at all open-ended results of a behavior; what is off is logged and counted."""
        plan = ScorePlan(behavior)
        for answers_path, settings in find_answers(paths, behavior):
            if settings.behavior != behavior:
                plan.n_broken += 1
                continue
            asked_for = self.wanted(settings)
            if asked_for:
                plan.found.append(settings)
            try:
                self._place(plan, answers_path, settings, asked_for)
            except UserError as err:
                if asked_for:
                    log.error("left out: %s", err)
                    plan.n_broken += 1
        return plan

    def _place(self, plan: ScorePlan, answers_path: Path, settings: SteeringSettings, asked_for: bool) -> None:
        path = self.scores_dir / settings.behavior / answers_path.name
        scored = _load_if_scored(path, quiet=not asked_for)
        if not asked_for:
            if scored is None:
                records = load_answers(answers_path)
                plan.others.append(ScoreFile(answers_path, path, settings, "score", records))
            return
        records = load_answers(answers_path)
        if scored is None:
            plan.wanted.append(ScoreFile(answers_path, path, settings, "score", records))
        elif self.overwrite:
            plan.wanted.append(ScoreFile(answers_path, path, settings, "overwrite", records))
        elif [answer_key(record) for record in records] != [answer_key(record) for record in scored]:
            log.warning("left %s as it is: it scores other answers than there are now; --overwrite scores these", path)
            plan.n_left += 1
        else:
            self._place_scored(plan, ScoreFile(answers_path, path, settings, "retry", records, _with_score(scored)))

    def _place_scored(self, plan: ScorePlan, file: ScoreFile) -> None:
        made = read_provenance(file.path)
        same_judge = made is not None and self.judge_of(plan.behavior).items() <= made.items()
        n_unscored = len(file.records) - len(file.kept)
        if n_unscored and self.retry_unscored and same_judge:
            plan.wanted.append(file)
        elif n_unscored and self.retry_unscored:
            log.warning(
                "left %s as it is: another judge scored it, or it is not known which; use --overwrite", file.path
            )
            plan.n_left += 1
        else:
            plan.n_done += 1
            plan.n_unscored += n_unscored
            plan.n_other_judge += made is not None and not same_judge


def find_answers(paths: DataPaths, behavior: str) -> Iterator[tuple[Path, SteeringSettings]]:
    """The open-ended result files in a behavior's folder; one that names another behavior is logged."""
    folder = paths.results_dir / behavior
    for path in sorted(folder.glob("results_*.json")):
        try:
            settings = parse_result_name(path.name)
        except UserError as err:
            log.warning("left out %s: %s", folder, err)
            continue
        if settings.type == "open_ended":
            if settings.behavior != behavior:
                log.warning("left out %s: it names another behavior than its folder", path)
            yield path, settings


def load_answers(path: Path) -> tuple[Record, ...]:
    """The records of an open-ended result file, without scores that they may carry.

    Raises:
        UserError: If it is missing, or a record has no question or no answer (which may be empty).
    """
    records = load_records(path, "run: ./prompting_with_steering.py --type open_ended")
    for index, record in enumerate(records):
        for key in ("question", "model_output"):
            if not isinstance(record.get(key), str):
                raise UserError(f"{path}, item {index}: key {key!r} is missing or not text")
    return tuple({key: value for key, value in record.items() if key not in _SCORE_KEYS} for record in records)


def has_score(record: Record) -> bool:
    score = record.get("score")
    return isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= MAX_SCORE


def _with_score(records: list[Record]) -> dict[int, Record]:
    return {index: record for index, record in enumerate(records) if has_score(record)}


def load_scored(path: Path) -> list[Record]:
    """The records of a score file.

    Raises:
        UserError: As `load_answers`.
    """
    load_answers(path)
    records: list[Record] = read_json(path)
    return records


def _load_if_scored(path: Path, quiet: bool = False) -> list[Record] | None:
    """The records of a score file; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return load_scored(path)
    except UserError as err:
        if not quiet:
            log.warning("%s; it is scored again", err)
        return None
