"""From result files to the numbers of a figure: means, changes, tests and steerability by layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np

from utils.data.estimates import Estimate
from utils.evaluation.metrics import (
    Bounds,
    FloatArray,
    Steerability,
    item_slopes,
    letter_bias,
    mean_estimates,
    steerabilities,
)
from utils.evaluation.paired_tests import paired_tests
from utils.evaluation.result_files import ResultFiles
from utils.evaluation.results import MAX_SCORE, ItemValues, align
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import ResultType, SteeringSettings

ALPHA = 0.05


@dataclass(frozen=True)
class Condition:
    """One line of a figure: how the model was run, whatever the layer and multiplier."""

    label: str
    settings: SteeringSettings


@dataclass(frozen=True)
class Point:
    """The effect at one layer and multiplier under one condition."""

    condition: Condition
    layer: int
    multiplier: float
    items: ItemValues
    mean: Estimate
    """p(matching or correct answer), or the judge's score."""
    change: Estimate
    """Mean difference to multiplier 0 on the same items; NaN at 0 or where that is missing."""
    p_value: float
    """That the change is 0, paired by item (see `utils.evaluation.paired_tests`)."""
    p_family: float
    """The same, corrected for all layers and multipliers of the condition."""

    @property
    def behavior(self) -> str:
        return self.condition.settings.behavior

    @property
    def holds(self) -> bool:
        """Whether it differs from multiplier 0, corrected for all layers and multipliers of the condition."""
        return self.p_family < ALPHA


@dataclass
class Missing:
    """Results that are not there, to be named with the command that makes them."""

    choice: ModelChoice
    paths: DataPaths
    wanted: set[SteeringSettings] = field(default_factory=set)

    def add(self, settings: SteeringSettings) -> None:
        self.wanted.add(settings)

    def lines(self) -> list[str]:
        """One line for each command that is to be run."""
        layers: dict[tuple[SteeringSettings, float], set[int]] = {}
        for settings in self.wanted:
            layers.setdefault((settings.at(0, 0.0), settings.multiplier), set()).add(settings.layer)
        multipliers: dict[tuple[SteeringSettings, tuple[int, ...]], set[float]] = {}
        for (like, multiplier), found in layers.items():
            multipliers.setdefault((like, tuple(sorted(found))), set()).add(multiplier)
        lines = []
        for (like, of_layers), of_multipliers in sorted(multipliers.items(), key=str):
            command = evaluation_command(
                [like.behavior], of_layers, sorted(of_multipliers), like, self.choice, self.paths
            )
            differing = f" ({words})" if (words := like.differing()) else ""
            where = f"layer {_listed(of_layers)}, multiplier {_listed(sorted(of_multipliers))}"
            lines.append(f"missing: {like.behavior}, {where}{differing}; run: {command}")
        return lines


def _listed(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def evaluation_command(
    behaviors: Sequence[str],
    layers: Sequence[int],
    multipliers: Sequence[float],
    like: SteeringSettings,
    choice: ModelChoice,
    paths: DataPaths,
) -> str:
    """The command that makes these results; no layers or multipliers stand for the script's defaults."""
    swept: list[object] = ["--behaviors", *behaviors]
    swept += ["--layers", *layers] if layers else []
    amounts = list(map(_typed, multipliers))
    added = [f"--{like.knob}s", *amounts] if amounts else []
    like_this = like.command_words(lambda name: str(paths.weights_of_name(name)))
    command = paths.command("prompting_with_steering", *swept, *added, *like_this, *choice.command_words)
    if like.type != "open_ended":
        return command
    scored = ["--multipliers", *amounts] if amounts else []
    return f"{command} && {paths.command('scoring', *swept, *scored, *choice.name_words)}"


def _typed(number: float) -> str:
    """A number as a command line takes it: exact, and without an exponent, which would be taken for a flag."""
    text = f"{number:g}"
    return text if float(text) == number and "e" not in text else f"{Decimal(repr(number)):f}"


def measure(
    files: ResultFiles,
    condition: Condition,
    layers: Sequence[int],
    multipliers: Iterable[float],
    seed: int,
    missing: Missing,
) -> list[Point]:
    """The points of a condition that have results; the others are noted in `missing`.

    Multiplier 0 is looked for as well, since the changes are against it.
    """
    found: dict[tuple[int, float], ItemValues] = {}
    for layer in layers:
        at_layer = _results_at(files, condition.settings, layer, sorted({*multipliers, 0.0}))
        for multiplier, items in at_layer.items():
            if items is None:
                missing.add(condition.settings.at(layer, multiplier))
            else:
                found[layer, multiplier] = items
    if not found:
        return []
    aligned = dict(zip(found, align(list(found.values())), strict=True))
    values = np.stack([items.values for items in aligned.values()])  # [n_points, n_items]
    differences = np.stack([_difference(at, aligned) for at in aligned])
    tests = paired_tests(differences, seed)
    lowest, highest = _bounds(condition.settings.type)
    rows = zip(
        aligned.items(),
        mean_estimates(values, seed, (lowest, highest)),
        mean_estimates(differences, seed, (lowest - highest, highest - lowest)),
        tests.p_value,
        tests.p_family,
        strict=True,
    )
    return [
        Point(condition, *at, items, _of(mean, len(found[at])), change, float(p), float(p_family))
        for (at, items), mean, change, p, p_family in rows
    ]


def _bounds(result_type: ResultType) -> Bounds:
    """What an item's value can be: a probability, or the judge's score."""
    return (0.0, MAX_SCORE) if result_type == "open_ended" else (0.0, 1.0)


def _results_at(
    files: ResultFiles, like: SteeringSettings, layer: int, multipliers: Sequence[float]
) -> dict[float, ItemValues | None]:
    """A layer's results by multiplier. Another layer's multiplier 0 serves only beside steered results."""
    found: dict[float, ItemValues | None] = {}
    for multiplier in multipliers:
        items = files.get(like.at(layer, multiplier))
        found[multiplier] = items if items is not None and items.n_scored else None
    steered = any(items is not None for multiplier, items in found.items() if multiplier != 0)
    if not steered and like.at(layer, 0.0) not in files.paths:
        found[0.0] = None
    return found


def _difference(at: tuple[int, float], aligned: Mapping[tuple[int, float], ItemValues]) -> FloatArray:
    layer, multiplier = at
    items, unsteered = aligned[at], aligned.get((layer, 0.0))
    if multiplier == 0 or unsteered is None:
        return np.full(len(items), np.nan)
    difference: FloatArray = items.values - unsteered.values
    return difference


def _of(estimate: Estimate, n_total: int) -> Estimate:
    """The estimate with the file's own number of items, where other files have more."""
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, n_total)


# --- steerability and letters ----------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSteerability:
    """Steerability at one layer over the multipliers that have results there."""

    layer: int
    multipliers: tuple[float, ...]
    steerability: Steerability


def layer_steerabilities(points: Sequence[Point], seed: int) -> list[LayerSteerability]:
    """Steerability for each layer of one condition that has results at two multipliers or more."""
    by_layer: dict[int, list[Point]] = {}
    for point in points:
        by_layer.setdefault(point.layer, []).append(point)
    kept = {layer: at for layer, at in sorted(by_layer.items()) if len(at) > 1}
    if not kept:
        return []
    multipliers = {layer: tuple(point.multiplier for point in at) for layer, at in kept.items()}
    slopes = np.stack(
        [item_slopes(np.stack([p.items.log_odds for p in at]), multipliers[layer]) for layer, at in kept.items()]
    )
    return [
        LayerSteerability(layer, multipliers[layer], steerability)
        for layer, steerability in zip(kept, steerabilities(slopes, seed), strict=True)
    ]


@dataclass(frozen=True)
class LetterUse:
    """How one point treats the answer letters."""

    point: Point
    mass: Estimate
    """Mean probability on the item's two answer letters together."""
    bias: Estimate
    """See `utils.evaluation.metrics.letter_bias`."""


def letter_uses(points: Sequence[Point], seed: int) -> list[LetterUse]:
    """Letter mass and letter bias of points of one condition."""
    if not points:
        return []
    masses = mean_estimates(np.stack([point.items.letter_mass for point in points]), seed, bounds=(0.0, 1.0))
    shares = np.stack([point.items.share_of_a for point in points])
    biases = letter_bias(shares, points[0].items.a_matches, seed)
    return [LetterUse(*parts) for parts in zip(points, masses, biases, strict=True)]
