"""The open-ended answers of one model, scored or not, arranged so that a page can put them side by side."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evaluation.result_files import settings_of
from utils.evaluation.words import PLAIN, behavior_label, behavior_meaning, condition_label
from utils.figures.requests import PlotRequest
from utils.judge.score_files import Record, answer_key, has_score, load_answers, load_scored
from utils.paths import DataPaths
from utils.settings import SteeringSettings, parse_result_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerFile:
    """The answers under one setting; `records` as in score files, without `score` where nothing was scored."""

    settings: SteeringSettings
    path: Path
    records: Sequence[Record]

    @property
    def n_scored(self) -> int:
        return sum(has_score(record) for record in self.records)


@dataclass
class Answers:
    """All answers of one model."""

    files: list[AnswerFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be shown, or not as one would expect."""
    n_unreadable: int = 0

    @property
    def distinct_files(self) -> list[AnswerFile]:
        """Without those that stand for another layer's multiplier 0."""
        return list({file.path: file for file in self.files}.values())

    @property
    def n_answers(self) -> int:
        return sum(len(file.records) for file in self.distinct_files)

    @property
    def n_scored(self) -> int:
        return sum(file.n_scored for file in self.distinct_files)

    def page_data(self) -> dict[str, Any]:
        """What the page's script needs: texts once each, answers as indices into them, missing scores as null."""
        texts: dict[str, int] = {}
        behaviors = list(dict.fromkeys(file.settings.behavior for file in self.files))
        questions: dict[str, dict[str, int]] = {behavior: {} for behavior in behaviors}
        return {
            "sets": [_page_set(file, questions[file.settings.behavior], texts) for file in self.files],
            "texts": list(texts),
            "behaviors": [
                {
                    "id": behavior,
                    "label": behavior_label(behavior),
                    "meaning": behavior_meaning(behavior),
                    "questions": list(of_behavior),
                }
                for behavior, of_behavior in questions.items()
            ],
        }


def _page_set(file: AnswerFile, questions: dict[str, int], texts: dict[str, int]) -> dict[str, Any]:
    """One setting; `answers` are [question, text, score or null, why there is none]."""
    answers: list[list[Any]] = []
    for record in file.records:
        place = questions.setdefault(record["question"], len(questions))
        text = texts.setdefault(record["model_output"], len(texts))
        if has_score(record):
            answers.append([place, text, record["score"]])
        else:
            reason = record.get("unscored_reason")
            answers.append([place, text, None, *([reason] if isinstance(reason, str) and reason else [])])
    at = file.settings
    return {
        "behavior": at.behavior,
        "layer": at.layer,
        "multiplier": at.multiplier,
        "condition": condition_label(at),
        "answers": answers,
    }


def collect_answers(request: PlotRequest) -> Answers:
    """Scored answers, and results that nobody scored yet; narrowed down by the request."""
    answers, paths = Answers(), request.paths
    if "open_ended" not in request.types:
        return answers
    for behavior in request.behaviors:
        named = _named_files(paths, behavior, settings_of(request.choice, behavior, "open_ended"))
        for at, name in sorted(_choose(named, request).items(), key=lambda entry: _order(entry[0])):
            _collect_file(answers, at, paths.scores_dir / behavior / name, paths.results_dir / behavior / name)
    return answers


def _named_files(paths: DataPaths, behavior: str, like: SteeringSettings) -> dict[SteeringSettings, str]:
    """Names of the score and result files of a model's answers; names that say nothing are left to `ResultFiles`."""
    named = {}
    for folder in (paths.scores_dir / behavior, paths.results_dir / behavior):
        for path in sorted(folder.glob("results_*.json")):
            try:
                at = parse_result_name(path.name)
            except UserError:
                continue
            own = replace(like, model_size=at.model_size, model=at.model, use_base_model=at.use_base_model)
            if own == like and (at.behavior, at.type) == (behavior, "open_ended"):
                named[at] = path.name
    return named


def _choose(named: Mapping[SteeringSettings, str], request: PlotRequest) -> dict[SteeringSettings, str]:
    """Those that are asked for. Where a layer has no multiplier 0, another's serves: it means no steering."""
    baselines: dict[SteeringSettings, str] = {}
    for at in sorted(named, key=_order):
        if at.multiplier == 0:
            baselines.setdefault(at.unsteered(), named[at])
    chosen = {}
    for at, name in named.items():
        if request.layers and at.layer not in request.layers:
            continue
        zero = at.at(at.layer, 0.0)
        for one, file in ((at, name), (zero, named.get(zero) or baselines.get(zero.unsteered()))):
            if file and (not request.multipliers or one.multiplier in request.multipliers):
                chosen[one] = file
    return chosen


def _order(at: SteeringSettings) -> tuple[bool, str, int, float]:
    label = condition_label(at)
    return label != PLAIN, label, at.layer, at.multiplier


def _collect_file(answers: Answers, at: SteeringSettings, scored_path: Path, path: Path) -> None:
    try:
        if not scored_path.exists():
            answers.files.append(AnswerFile(at, path, load_answers(path)))
            return
        records = load_scored(scored_path)
        answers.files.append(AnswerFile(at, scored_path, records))
        if path.exists() and [answer_key(r) for r in load_answers(path)] != [answer_key(r) for r in records]:
            answers.notes.append(f"{path.name}: its answers were made again after scoring; the scored ones are shown")
    except UserError as err:
        log.warning("left out: %s", err)
        answers.notes.append(f"left out: {err}")
        answers.n_unreadable += 1
