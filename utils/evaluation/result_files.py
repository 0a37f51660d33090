"""Result files of one behavior and type, found by their settings and loaded once."""

import logging
from pathlib import Path

from utils.errors import UserError
from utils.evaluation.results import ItemValues, load_items
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import Knob, ResultType, StartPosition, SteeringSettings, VectorKind, parse_result_name

log = logging.getLogger(__name__)


def settings_of(
    choice: ModelChoice,
    behavior: str,
    result_type: ResultType,
    steer_positions: StartPosition = "end_of_prompt",
    kind: VectorKind = VectorKind(),
    knob: Knob = "multiplier",
) -> SteeringSettings:
    """Plain steering of a behavior: no system prompt, own vector, own weights (at layer 0, multiplier 0)."""
    return SteeringSettings(
        layer=0,
        multiplier=0.0,
        behavior=behavior,
        type=result_type,
        use_base_model=choice.use_base_model,
        model_size=choice.size,
        model=None if choice.size else choice.label,
        quantize=choice.quantize,
        steer_positions=steer_positions,
        read=kind.reading,
        method=kind.method,
        origin=kind.origin,
        part=kind.part,
        knob=knob,
    )


class ResultFiles:
    """The result files of one behavior and type, found by their settings and loaded once.

    A file that cannot be read is reported in one line, counted in `n_unreadable`, and left out.
    """

    def __init__(self, paths: DataPaths, behavior: str, result_type: ResultType) -> None:
        scored = result_type == "open_ended"
        self.folder = (paths.scores_dir if scored else paths.results_dir) / behavior
        self.result_type = result_type
        self.paths: dict[SteeringSettings, Path] = {}
        self.n_unreadable = 0
        self._loaded: dict[Path, ItemValues | None] = {}
        for path in sorted(self.folder.glob("results_*")) if self.folder.is_dir() else ():
            self._add(path, behavior)

    def _add(self, path: Path, behavior: str) -> None:
        try:
            settings = parse_result_name(path.name)
        except UserError as err:
            log.warning("left out %s: %s", path.parent, err)
            return
        if settings.behavior != behavior:
            log.warning(
                "left out %s: it names behavior %s but is in the folder of %s", path, settings.behavior, behavior
            )
        elif settings.type == self.result_type:
            self.paths[settings] = path

    def get(self, settings: SteeringSettings) -> ItemValues | None:
        """The result under exactly these settings, or None where there is none that can be read.

        Multiplier 0 means no steering, so there any layer and any vector serve.
        """
        if settings in self.paths and (found := self._load(settings)) is not None:
            return found
        if settings.multiplier != 0:
            return None
        same = (at for at in self.paths if at.multiplier == 0 and at.unsteered() == settings.unsteered())
        return next((found for at in same if (found := self._load(at)) is not None), None)

    @property
    def read_paths(self) -> list[Path]:
        """The files that were read, in order of their names."""
        return sorted(path for path, items in self._loaded.items() if items is not None)

    def _load(self, settings: SteeringSettings) -> ItemValues | None:
        path = self.paths[settings]
        if path not in self._loaded:
            try:
                self._loaded[path] = load_items(path, self.result_type, settings.num_samples)
            except UserError as err:
                log.warning("left out: %s", err)
                self.n_unreadable += 1
                self._loaded[path] = None
        return self._loaded[path]

    def of_model(self, like: SteeringSettings) -> list[SteeringSettings]:
        """All settings with results of the model that `like` names."""
        return [at for at in self.paths if at.same_model(like)]

    def layers(self, like: SteeringSettings) -> list[int]:
        """Layers with a result that differs from `like` in layer and multiplier only."""
        return sorted({at.layer for at in self.paths if at.at(like.layer, like.multiplier) == like})

    def multipliers(self, like: SteeringSettings, layer: int) -> list[float]:
        """Multipliers with a result at that layer that otherwise is like `like`."""
        return sorted(at.multiplier for at in self.paths if at == like.at(layer, at.multiplier))
