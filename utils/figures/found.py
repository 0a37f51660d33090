"""What to say where nothing was found: which models have results, and the commands that plot or make some."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.evaluation.effects import evaluation_command
from utils.evaluation.result_files import settings_of
from utils.figures.requests import PlotRequest
from utils.paths import DataPaths
from utils.settings import SteeringSettings, parse_result_name

_MOST_MODELS = 5
"""That one line names."""


def nothing_found(request: PlotRequest) -> str:
    """That the model has no such results, what there is, and how to plot or make some; in one line."""
    kind = f"{request.type} " if request.type else ""
    found = [
        f"no {kind}results of {request.choice.label} in {request.paths.results_dir}",
        *_found_of_model(request),
        *_found_of_others(request),
    ]
    return f"{'; '.join(found)}; {how_to_make(request)}"


def _found_of_model(request: PlotRequest) -> list[str]:
    """What there is of the model that was asked for: other behaviors or kinds."""
    behaviors: dict[str, set[str]] = {}
    for at, is_scored in _all_results(request.paths):
        if _model(at) == _model_asked_for(request):
            behaviors.setdefault(_kind(at, is_scored), set()).add(at.behavior)
    parts = [f"{kind} ({' '.join(sorted(behaviors[kind]))})" for kind in sorted(behaviors)]
    return [f"it has: {', '.join(parts)}"] if parts else []


def _found_of_others(request: PlotRequest) -> list[str]:
    """The other models that have results, by the flags that plot them."""
    kinds: dict[str, set[str]] = {}
    for at, is_scored in _all_results(request.paths):
        if _model(at) != _model_asked_for(request):
            kinds.setdefault(_flags(at), set()).add(_kind(at, is_scored))
    if not kinds:
        return []
    named = [f"{flags} ({', '.join(sorted(kinds[flags]))})" for flags in sorted(kinds)]
    more = [f"{len(named) - _MOST_MODELS} more"] if len(named) > _MOST_MODELS else []
    others = "another model" if len(named) == 1 else "other models"
    return [f"there are results of {others}, to plot them add {' or '.join([*named[:_MOST_MODELS], *more])}"]


def how_to_make(request: PlotRequest) -> str:
    """The command that makes what was asked for: answers that are there already only want their scores."""
    unscored = {at.behavior for at, is_scored in _all_results(request.paths) if _is_asked_for(request, at, is_scored)}
    if unscored and request.type in (None, "open_ended"):
        behaviors = [behavior for behavior in request.behaviors if behavior in unscored]
        return f"run: {request.paths.command('scoring', '--behaviors', *behaviors)}"
    like = replace(
        settings_of(
            request.choice,
            request.behaviors[0],
            request.type or "ab",
            request.steer_positions,
            request.kind,
            request.knob,
        ),
        override_vector=request.override_vector,
        override_vector_model=request.override_vector_model,
        override_model_weights_path=request.override_weights[0] if request.override_weights else None,
    )
    command = evaluation_command(
        request.behaviors, request.layers, request.multipliers, like, request.choice, request.paths
    )
    return f"run: {command}"


def _is_asked_for(request: PlotRequest, at: SteeringSettings, is_scored: bool) -> bool:
    """Whether these are answers without scores that the request is about."""
    return (
        at.type == "open_ended"
        and not is_scored
        and _model(at) == _model_asked_for(request)
        and at.behavior in request.behaviors
        and (not request.layers or at.layer in request.layers)
        and (not request.multipliers or at.multiplier in request.multipliers)
    )


def _all_results(paths: DataPaths) -> Iterator[tuple[SteeringSettings, bool]]:
    """The settings of all result files, and whether they hold what is plotted: answers need scores."""
    scored = set(_settings_in(paths.scores_dir.glob("*/results_*.json")))
    for settings in _settings_in(paths.results_dir.glob("*/results_*.json")):
        if settings.type != "open_ended" or settings not in scored:
            yield settings, settings.type != "open_ended"
    for settings in scored:
        yield settings, True


def _settings_in(files: Iterable[Path]) -> Iterator[SteeringSettings]:
    for path in files:
        try:
            yield parse_result_name(path.name)
        except UserError:
            continue  # not a result; `ResultFiles` names it where it is looked for


Model = tuple[str | None, str | None, bool]


def _model(at: SteeringSettings) -> Model:
    return at.model_size, at.model, at.use_base_model


def _model_asked_for(request: PlotRequest) -> Model:
    return _model(settings_of(request.choice, request.behaviors[0], "ab"))


def _flags(at: SteeringSettings) -> str:
    """The flags that name the model of a result."""
    words = ["--model_size", at.model_size] if at.model_size else ["--model", at.model or ""]
    return shlex.join([*words, *(["--use_base_model"] if at.use_base_model else [])])


def _kind(at: SteeringSettings, is_scored: bool) -> str:
    return at.type if is_scored else f"{at.type} without scores"
