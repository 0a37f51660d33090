"""Measuring free answers without a judge: what there is to do, and doing it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import Behavior, load_behavior
from utils.errors import UserError
from utils.evaluation.answer_metrics import ALL_KEYS
from utils.evaluation.metric_files import MetricFile, find_differences, is_readable, is_whole
from utils.files.provenance import Differences, describe_differences
from utils.judge.score_files import find_answers, load_answers
from utils.model.checkpoints import ModelChoice, checkpoint_label, choose_model
from utils.paths import DataPaths
from utils.settings import SteeringSettings

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.model.perplexity import FreeAnswer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricsRequest:
    """Which answers to measure, and how."""

    paths: DataPaths
    behaviors: tuple[str, ...]
    wanted: Callable[[SteeringSettings], bool] = lambda _: True
    """Whether answers are asked for."""
    model: str | None = None
    """Name or folder of the checkpoint whose label answers bear that were not made by a --model_size."""
    with_perplexity: bool = True
    overwrite: bool = False
    command: str = ""
    """The command line, for the provenance records."""


@dataclass
class MetricPlan:
    """What there is and what is to be made."""

    request: MetricsRequest
    found: list[SteeringSettings] = field(default_factory=list)
    """Of all result files asked for."""
    waiting: list[MetricFile] = field(default_factory=list)
    done: list[MetricFile] = field(default_factory=list)
    """There before this run, and made as this run would make them."""
    stale: dict[Path, Differences] = field(default_factory=dict)
    """There and left alone, but made otherwise; with what differs."""
    n_failed: int = 0
    """Result files that cannot be measured."""
    written: list[MetricFile] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        """Result files that this run leaves without numbers of its kind."""
        return self.n_failed + len(self.stale)

    def summary(self) -> str:
        """The last line of a run."""
        return (
            f"wrote {len(self.written)} files of measured answers, skipped {len(self.done)} that are there, "
            f"failed {self.n_left}"
        )


# --- planning --------------------------------------------------------------------------------------


def plan_metrics(request: MetricsRequest) -> MetricPlan:
    """Look at all answers asked for; what is off is logged and counted.

    Raises:
        UserError: If a behavior is unknown or its file broken.
    """
    plan = MetricPlan(request)
    for behavior in request.behaviors:
        about = load_behavior(request.paths, behavior)
        found = []
        for answers_path, settings in find_answers(request.paths, behavior):
            if settings.behavior != behavior:
                plan.n_failed += 1
            elif request.wanted(settings):
                found.append(settings)
                _place(plan, about, answers_path, settings)
        if found and about.metric is None:
            log.info('%s defines no "metric": length, distinct-2 and perplexity alone are measured', about.path)
        plan.found += found
    _name_unknown_models(plan)
    return plan


def _place(plan: MetricPlan, about: Behavior, answers_path: Path, settings: SteeringSettings) -> None:
    request = plan.request
    try:
        records = tuple(
            {key: value for key, value in record.items() if key not in ALL_KEYS}
            for record in load_answers(answers_path)
        )
    except UserError as err:
        log.error("left out: %s", err)
        plan.n_failed += 1
        return
    choice = _choice_of(settings, request.model)
    file = MetricFile(answers_path, request.paths.metrics(settings), settings, about, records, choice)
    if request.overwrite or not is_readable(file.path):
        plan.waiting.append(file)
    elif differing := find_differences(file, file.facts()):
        plan.stale[file.path] = differing
    elif not is_whole(file, request.with_perplexity):
        plan.waiting.append(file)
    else:
        plan.done.append(file)


def _choice_of(settings: SteeringSettings, model: str | None) -> ModelChoice | None:
    """The checkpoint whose answers these are, without fine-tuned weights: the yardstick is the same for all of them."""
    if settings.model_size is not None:
        return choose_model(settings.model_size, None, settings.use_base_model, settings.quantize)
    if model is not None and settings.model == checkpoint_label(model):
        return choose_model("", model, settings.use_base_model, settings.quantize)
    return None


def _name_unknown_models(plan: MetricPlan) -> None:
    """Take out what waits for a model that cannot be loaded, since only its label is known."""
    if not plan.request.with_perplexity:
        return
    unknown = [file for file in plan.waiting if file.choice is None]
    for label in sorted({str(file.settings.model) for file in unknown}):
        log.error(
            "left out the answers of %s: say which checkpoint that is with --model NAME_OR_PATH, "
            "or measure the texts alone with --no_perplexity",
            label,
        )
    plan.n_failed += len(unknown)
    plan.waiting = [file for file in plan.waiting if file.choice is not None]


# --- measuring -------------------------------------------------------------------------------------


def write_metrics(plan: MetricPlan, load: "Callable[[ModelChoice], LlamaWrapper]") -> None:
    """Make what waits, each file as soon as its answers are measured; a model is loaded once, and only if needed.

    Raises:
        UserError: If a model cannot be had.
    """
    warned = warn_of_stale(plan, frozenset())
    if not plan.request.with_perplexity:
        for file in plan.waiting:
            _write(plan, file, None, {})
    else:
        for choice in dict.fromkeys(file.choice for file in plan.waiting):
            assert choice is not None
            model = load(choice)
            run = model.provenance()
            for file in [file for file in plan.done if file.choice == choice]:
                if differing := find_differences(file, run):
                    plan.stale[file.path] = differing
                    plan.done.remove(file)
            known: dict[FreeAnswer, float | None] = {}
            for file in [file for file in plan.waiting if file.choice == choice]:
                _write(plan, file, _perplexities(model, file.asked(), known), run)
            del model  # before the next one is loaded
    warn_of_stale(plan, warned)


def _perplexities(
    model: "LlamaWrapper", answers: "Sequence[FreeAnswer]", known: "dict[FreeAnswer, float | None]"
) -> list[float | None]:
    """Of answers that are not `known` yet; those of multiplier 0 come again at every layer."""
    from utils.model.perplexity import perplexities

    new = [answer for answer in dict.fromkeys(answers) if answer not in known]
    known.update(zip(new, perplexities(model.runtime, model.chat_format, new), strict=True))
    return [known[answer] for answer in answers]


def _write(
    plan: MetricPlan, file: MetricFile, perplexities: Sequence[float | None] | None, run: Mapping[str, Any]
) -> None:
    file.write(perplexities, {**run, "command": plan.request.command})
    plan.written.append(file)
    log.info("wrote %s", file.path)


def warn_of_stale(plan: MetricPlan, said: frozenset[Path]) -> frozenset[Path]:
    """Say once of each file that it was made otherwise; those of which it has been said."""
    new = {path: differing for path, differing in plan.stale.items() if path not in said}
    if new:
        log.warning(
            "%d files of measured answers were made with other settings and are left out of tables and figures: %s; "
            "e.g. %s; --overwrite makes them again",
            len(new),
            describe_differences(new.values()),
            next(iter(new)),
        )
    return said | frozenset(new)
