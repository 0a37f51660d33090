"""What layer and strength are to be chosen for, and what was chosen, as it is kept; needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import list_behaviors
from utils.errors import UserError
from utils.files.reading import read_json, sha256_of
from utils.files.writing import write_json
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import VectorKind
from utils.vectors.plan import pairs_path

if TYPE_CHECKING:
    from utils.evaluation.metrics import FloatArray


@dataclass(frozen=True)
class ChoiceRequest:
    """What to choose for."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    kind: VectorKind
    kl: float
    """Budget: 95th percentile of the per-token KL on neutral prompts, in nats."""
    seed: int
    overwrite: bool
    command: str
    batch_size: int | None = None

    def output(self, behavior: str) -> Path:
        return self.paths.chosen_steering(behavior, self.choice.label, self.kind)

    @property
    def waiting(self) -> list[str]:
        """Behaviors without a choice under this budget and seed."""
        return [b for b in self.behaviors if self.overwrite or not self._is_chosen(b)]

    def _is_chosen(self, behavior: str) -> bool:
        path = self.output(behavior)
        if not path.exists():
            return False
        known = read_json(path)
        asked = {"kl_budget": self.kl, "seed": self.seed, "layers": list(self.layers)}
        if differing := [key for key, value in asked.items() if known.get(key) != value]:
            raise UserError(f"{path} was chosen with another {', '.join(differing)}; --overwrite chooses again")
        return True


@dataclass(frozen=True)
class LayerChoice:
    """One layer at one strength, on the validation items."""

    layer: int
    strength: float
    kl_95: float
    effect: float
    """Preference for the matching answer at +strength minus at -strength, in nats per token."""
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """The effect of what was chosen on the test items."""

    n: int
    effect: float
    """At +strength minus at -strength, in nats per token."""
    low: float
    high: float
    p_value: float
    at_minus: float
    """Change from no steering at -strength."""
    at_plus: float
    moved_right: float
    """Share of items that the steering moves its way."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for one behavior."""

    behavior: str
    by_layer: tuple[LayerChoice, ...]
    chosen: LayerChoice
    n_validation: int
    linear_up_to: float | None
    """Largest strength up to which the last layer's change keeps its direction."""
    multiplier: float
    """Of the normalised vector, at the chosen strength."""
    test: Outcome
    controls: Mapping[str, Outcome]
    """The same of other vectors at the chosen layer and norm: `random`, and `letter` where there is a letter vector."""


@dataclass(frozen=True)
class ChosenSteering:
    """What `choose_steering.py` found, as other scripts read it."""

    layer: int
    strength: float


def load_chosen(paths: DataPaths, behavior: str, model_label: str, kind: VectorKind) -> ChosenSteering:
    """
    Raises:
        UserError: If nothing was chosen, or the file is broken; it is never guessed.
    """
    path = paths.chosen_steering(behavior, model_label, kind)
    words = ["--behaviors", behavior, *kind.command_words]
    content = read_json(
        path, f"no validated choice; run: {paths.command('choose_steering', *words)} with the model's flags"
    )
    try:
        layer, strength = content["layer"], content["strength"]
    except (KeyError, TypeError) as err:
        raise UserError(f"{path}: keys 'layer' and 'strength' are missing; choose again with --overwrite") from err
    if type(layer) is not int or not isinstance(strength, float) or layer < 0:
        raise UserError(f"{path}: layer {layer!r}, strength {strength!r}: not a choice; choose again with --overwrite")
    return ChosenSteering(layer, strength)


def save_choice(choice: Choice, request: ChoiceRequest, record: Mapping[str, Any]) -> Path:
    """Write what was chosen, and how it was found."""
    path = request.output(choice.behavior)
    dataset = pairs_path(request.paths, choice.behavior, request.kind.reading)
    write_json(
        path,
        {
            "behavior": choice.behavior,
            "model": request.choice.label,
            "read": request.kind.reading,
            "method": request.kind.method,
            "layer": choice.chosen.layer,
            "strength": choice.chosen.strength,
            "multiplier": choice.multiplier,
            "linear_up_to_strength": choice.linear_up_to,
            "kl_budget": request.kl,
            "seed": request.seed,
            "layers": list(request.layers),
            "n_validation": choice.n_validation,
            "validation": [asdict(one) for one in choice.by_layer],
            "test": asdict(choice.test),
            "controls": {name: asdict(outcome) for name, outcome in choice.controls.items()},
            "made": {
                **record,
                "command": request.command,
                "generate_sha256": sha256_of(dataset),
                "test_sha256": sha256_of(request.paths.test_dataset(choice.behavior, "answer_text")),
            },
        },
    )
    return path


def load_choice(path: Path) -> tuple[Choice, float]:
    """What `save_choice` wrote, and the budget of KL.

    Raises:
        UserError: If the file is not one that it wrote.
    """
    content = read_json(path)
    try:
        by_layer = tuple(LayerChoice(**one) for one in content["validation"])
        [chosen] = [one for one in by_layer if (one.layer, one.strength) == (content["layer"], content["strength"])]
        choice = Choice(
            content["behavior"],
            by_layer,
            chosen,
            content["n_validation"],
            content["linear_up_to_strength"],
            content["multiplier"],
            Outcome(**content["test"]),
            {name: Outcome(**outcome) for name, outcome in content["controls"].items()},
        )
        return choice, content["kl_budget"]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise UserError(f"{path} is not a choice as the suite writes it; choose again with --overwrite") from err


@dataclass(frozen=True)
class TestedChoice:
    """A choice among those of other behaviors."""

    choice: Choice
    p_holm: float
    """Of its effect on the test items, corrected over the behaviors beside it."""


def tested_choices(request: ChoiceRequest) -> list[TestedChoice]:
    """Every behavior's choice for this model and kind of vectors, the largest effect first.

    Raises:
        UserError: If a file is not one that `save_choice` wrote.
    """
    files = [path for behavior in list_behaviors(request.paths) if (path := request.output(behavior)).exists()]
    choices = [load_choice(path)[0] for path in files]
    corrected = holm([choice.test.p_value for choice in choices])
    tested = [TestedChoice(choice, p) for choice, p in zip(choices, corrected, strict=True)]
    return sorted(tested, key=lambda one: -one.choice.test.effect)


def holm(p_values: "Sequence[float] | FloatArray") -> list[float]:
    """Family-wise p-values of independent or dependent tests (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
