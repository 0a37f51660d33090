"""Which results there are to draw: of one model, by kind and by how answers were sampled."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.evaluation.effects import Condition, Missing, Point, evaluation_command, measure
from utils.evaluation.result_files import ResultFiles, settings_of
from utils.evaluation.words import PLAIN, sampling_words, with_sampling
from utils.figures.requests import PlotRequest
from utils.settings import ResultType, SteeringSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How answers were decoded; as in `SteeringSettings`."""

    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0


def sampling_of(at: SteeringSettings) -> Sampling:
    return Sampling(at.temperature, at.num_samples, at.seed)


@dataclass(frozen=True)
class ResultSet:
    """The results of one model, kind and sampling, and which of them are asked for."""

    request: PlotRequest
    result_type: ResultType
    sampling: Sampling
    files: Mapping[str, ResultFiles]
    """By behavior; only behaviors with results."""
    missing: Missing
    """What was asked for and not found; figures fill it."""
    _measured: dict[object, tuple[list[Point], Missing]] = field(default_factory=dict, repr=False, compare=False)

    def plain(self, behavior: str) -> SteeringSettings:
        """Steering with the model's own vector and weights and no system prompt (at layer 0, multiplier 0)."""
        like = settings_of(
            self.request.choice,
            behavior,
            self.result_type,
            self.request.steer_positions,
            self.request.kind,
            self.request.knob,
        )
        return replace(
            like,
            temperature=self.sampling.temperature,
            num_samples=self.sampling.num_samples,
            seed=self.sampling.seed,
        )

    def condition(self, label: str, settings: SteeringSettings) -> Condition:
        return Condition(with_sampling(label, settings), settings)

    def plain_condition(self, behavior: str) -> Condition:
        return self.condition(PLAIN, self.plain(behavior))

    @property
    def how(self) -> str:
        """How answers were sampled, in words; empty for greedy decoding."""
        return ", ".join(sampling_words(self.plain(next(iter(self.files)))))

    def layers(self, *settings: SteeringSettings) -> list[int]:
        """The layers asked for, or else those found under any of these settings."""
        if self.request.layers:
            return sorted(set(self.request.layers))
        return sorted({layer for like in settings for layer in self.files[like.behavior].layers(like)})

    def multipliers(self, layers: Sequence[int], *settings: SteeringSettings, shared: bool = True) -> list[float]:
        """The multipliers asked for, or else those found.

        Where `shared`, those that a sweep over these layers is made of: found at two layers at least, and at half as
        many as the most frequent one. A stronger multiplier that was tried at a layer or two is none of them.
        """
        if self.request.multipliers:
            return sorted(set(self.request.multipliers))
        at_layers: dict[float, set[int]] = {}
        for like in settings:
            for layer in layers:
                for multiplier in self.files[like.behavior].multipliers(like, layer):
                    at_layers.setdefault(multiplier, set()).add(layer)
        most = max(map(len, at_layers.values()), default=0)
        n_needed = min(len(layers), max(2, math.ceil(most / 2))) if shared else 1
        return sorted(m for m, found in at_layers.items() if len(found) >= n_needed)

    def measure(
        self, condition: Condition, layers: Sequence[int], multipliers: Sequence[float], note_missing: bool = True
    ) -> list[Point]:
        """The points of a condition that have results; the others are noted as missing. Measured once."""
        key = (condition, tuple(layers), tuple(multipliers))
        if key not in self._measured:
            missing = Missing(self.request.choice, self.request.paths)
            files = self.files[condition.settings.behavior]
            points = measure(files, condition, layers, multipliers, self.request.seed, missing)
            self._measured[key] = points, missing
        points, missing = self._measured[key]
        if note_missing:
            self.missing.wanted.update(missing.wanted)
        return points

    def plain_points(self, behavior: str) -> list[Point]:
        """Plain steering over the layers that share multipliers, or else at the first single layer with results."""
        condition = self.plain_condition(behavior)
        layers = self.layers(condition.settings)
        multipliers = self.multipliers(layers, condition.settings)
        points = self.measure(condition, layers, multipliers) if len(layers) > 1 else []
        if at(points, multipliers):
            return points
        for layer in layers:
            multipliers = self.multipliers([layer], condition.settings)
            points = self.measure(condition, [layer], multipliers)
            if at(points, multipliers):
                return points
        return []

    def every_point(self, behavior: str) -> list[Point]:
        """Plain steering at every layer and multiplier with results; nothing is missing here."""
        condition = self.plain_condition(behavior)
        layers = self.layers(condition.settings)
        multipliers = self.multipliers(layers, condition.settings, shared=False)
        points = self.measure(condition, layers, multipliers, note_missing=False)
        return points if at(points, multipliers) else []

    def stem(self, settings: SteeringSettings, *leave_out: str, prefix: str = "") -> Path:
        """A figure's path without suffix; in the behavior's folder unless it is about several."""
        folder = self.request.paths.analysis_dir
        if "behavior" not in leave_out:
            folder = folder / settings.behavior
        return folder / f"{prefix}{settings.describe(*leave_out)}"

    def title(self, *parts: str) -> str:
        return self.request.title or ", ".join((*parts, self.request.choice.label, *([self.how] if self.how else [])))


def at(points: Iterable[Point], multipliers: Iterable[float]) -> list[Point]:
    """The points at these multipliers: `measure` adds multiplier 0, which may not have been asked for."""
    wanted = set(multipliers)
    return [point for point in points if point.multiplier in wanted]


def find_result_sets(request: PlotRequest) -> list[ResultSet]:
    """Everything that there is of the model; behaviors without results of a kind that others have are named."""
    return [found for result_type in request.types for found in _sets_of_type(request, result_type)]


def _sets_of_type(request: PlotRequest, result_type: ResultType) -> list[ResultSet]:
    files = {behavior: ResultFiles(request.paths, behavior, result_type) for behavior in request.behaviors}
    sampled = {
        behavior: {sampling_of(at) for at in of.of_model(settings_of(request.choice, behavior, result_type))}
        for behavior, of in files.items()
    }
    samplings = sorted(set().union(*sampled.values()), key=lambda one: (one.temperature, one.num_samples, one.seed))
    sets = [
        ResultSet(
            request,
            result_type,
            sampling,
            {behavior: files[behavior] for behavior, found in sampled.items() if sampling in found},
            Missing(request.choice, request.paths),
        )
        for sampling in samplings
    ]
    without = [behavior for behavior, found in sampled.items() if not found]
    if sets and without:
        like = replace(sets[0].plain(next(iter(sets[0].files))), behavior=without[0])
        command = evaluation_command(without, request.layers, request.multipliers, like, request.choice, request.paths)
        log.warning("no %s results: %s; run: %s", result_type, " ".join(without), command)
    return sets
