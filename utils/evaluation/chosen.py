"""What layer and strength were chosen for, and what was chosen; needs no model."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files.reading import read_json
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import VectorKind


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
