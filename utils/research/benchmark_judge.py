"""Scores of the benchmark's free answers by a judge model, in files of their own: the units stay as they are.

They are kept by question and answer. A unit that is made again asks only for answers that are new.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.behaviors import Behavior, load_behavior
from utils.files.journal import open_journal
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.judge.cost import Budget
from utils.judge.score_files import Record, answer_key
from utils.judge.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

    from utils.judge.client import Judge
    from utils.judge.requests import JudgeFlags
    from utils.research.benchmark_results import Results, Unit

log = logging.getLogger(__name__)
Scores = Mapping[str, float | None]
"""By `answer_key`; None where the judge gave none."""


@dataclass(frozen=True)
class OpenAnswers:
    """A behavior's answers that this judge has not scored (a `ToScore`)."""

    path: "Path"
    waiting: Mapping[str, Record]
    scored: Scores
    """The others; they are kept."""

    def open_answers(self) -> dict[str, Record]:
        return dict(self.waiting)

    def write(self, entries: Mapping[str, Record], run: Mapping[str, Any]) -> None:
        new = {key: entries[key]["score"] for key in self.waiting}
        write_json(self.path, {"judge": dict(run), "scores": {**self.scored, **new}})


def judge_answers(results: "Results", flags: "JudgeFlags", command: str) -> bool:
    """Score every unit's free answers; whether nothing is left.

    Raises:
        UserError: If every request would fail.
    """
    request = results.request
    judge = None
    tally, budget = Tally(), Budget(flags.price, flags.max_cost)
    for behavior in results.behaviors():
        about = load_behavior(request.paths, behavior)
        if about.rubric is None:
            log.warning('%s has no "rubric"; the answers on %s are not judged', about.path, behavior)
            continue
        units = [unit for (one, _), unit in results.units.items() if one == behavior]
        answers = open_answers(request.scores_path(behavior), flags.record(about), units)
        if answers.waiting:
            judge = judge or _judge(flags, budget)
            _score(judge, about, answers, flags, command, tally)
    for reason, count in tally.failures.most_common(3):
        log.error("%d requests failed: %s", count, reason)
    if tally.n_missing:
        why = f"stopped: {tally.stopped}; " if tally.stopped else ""
        log.error("%s%d answers have no score yet; to go on, run: %s", why, tally.n_missing, command)
    if judge is not None:
        log.info("%d answers scored, %d unscored; %s", tally.n_scored, tally.n_unscored, budget)
    return not tally.n_missing


def open_answers(path: "Path", record: Mapping[str, str], units: "list[Unit]") -> OpenAnswers:
    """What this judge has not scored; the scores of another one are replaced."""
    there = read_json(path) if path.exists() else {"judge": {}, "scores": {}}
    is_same = record.items() <= there["judge"].items()
    if there["scores"] and not is_same:
        log.warning("%s: the scores are another judge's, or of another rubric; all answers are scored again", path)
    scored: Scores = there["scores"] if is_same else {}
    wanted = {answer_key(one): one for unit in units for side in answers_of(unit) for one in side}
    return OpenAnswers(path, {key: one for key, one in wanted.items() if key not in scored}, scored)


def answers_of(unit: "Unit") -> list[list[Record]]:
    """Question and free answer of each side, [n_sides][n_questions]."""
    return [
        [{"question": question, "model_output": text} for question, text in zip(unit["questions"], side, strict=True)]
        for side in unit["answers"]
    ]


def _judge(flags: "JudgeFlags", budget: Budget) -> "Judge":
    from utils.judge.client import Judge  # the SDK: only where there is something to ask

    return Judge.of(flags, budget)


def _score(
    judge: "Judge", about: Behavior, answers: OpenAnswers, flags: "JudgeFlags", command: str, tally: Tally
) -> None:
    from utils.judge.score_run import ScoreRun

    record = flags.record(about)
    name = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    with open_journal(answers.path.with_name(f".{about.id}_{name}.jsonl"), record) as journal:
        scoring = ScoreRun(judge, about, [answers], journal, {**record, "command": command}, tally)
        scoring.work(flags.concurrency)
        if not scoring.unfinished:
            journal.remove()
