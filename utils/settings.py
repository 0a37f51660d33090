"""What one result file was computed under, and the file name that says so.

`parse_result_name(settings.result_name) == settings` for every valid setting: file names are
always built and read here, never matched by substrings.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from utils.errors import UserError

ResultType = Literal["ab", "open_ended", "truthful_qa", "mmlu"]
RESULT_TYPES: tuple[ResultType, ...] = get_args(ResultType)
Side = Literal["pos", "neg"]
"""For (pos) or against (neg) the behavior."""
StartPosition = Literal["end_of_prompt", "all"]

# in the order in which they stand in a file name; keys of the published names come first
_KEYS = (
    "layer",
    "multiplier",
    "behavior",
    "type",
    "system_prompt",
    "override_vector",
    "override_vector_model",
    "use_base_model",
    "model_size",
    "model",
    "override_model_weights_path",
    "steer_positions",
    "vector_behavior",
    "temperature",
    "num_samples",
    "seed",
)
BEHAVIOR_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_KEY_AT = re.compile(r"(?:^results_|_)(" + "|".join(_KEYS) + r")=")
# separators, control characters, and what is no Unicode or breaks a line
_UNSAFE_IN_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class SteeringSettings:
    """The conditions of one result file. Optional fields that are None stay out of its name."""

    layer: int
    """Steered decoder block, counted from 0."""
    multiplier: float
    behavior: str
    type: ResultType
    system_prompt: Side | None = None
    override_vector: int | None = None
    """Layer whose vector is used instead of the steered layer's own."""
    override_vector_model: str | None = None
    """Label of the model whose vectors are used."""
    use_base_model: bool = False
    model_size: str | None = None
    """Exactly one of model_size and model is set."""
    model: str | None = None
    """Label of the checkpoint."""
    override_model_weights_path: str | None = None
    """Fine-tuned weights, with path separators written as '-'."""
    steer_positions: StartPosition = "end_of_prompt"
    vector_behavior: str | None = None
    """Behavior whose vectors are used, where it is not the evaluated one."""
    temperature: float = 0.0
    """Of sampled answers; 0 is greedy decoding."""
    num_samples: int = 1
    """Answers to each question."""
    seed: int = 0
    """Of sampled answers."""

    def __post_init__(self) -> None:
        for behavior in (self.behavior, self.vector_behavior or self.behavior):
            if not BEHAVIOR_ID.fullmatch(behavior):
                raise UserError(f"{behavior!r} is not a behavior's id: letters, digits and hyphens, at most 64")
        if self.type not in RESULT_TYPES:
            raise UserError(f"unknown result type {self.type!r}; choose from: {', '.join(RESULT_TYPES)}")
        if (self.model_size is None) == (self.model is None):
            raise UserError("a result belongs to either a model_size or a model; give exactly one")
        if self.layer < 0:
            raise UserError(f"layer {self.layer} is negative; layers are counted from 0")
        if not (math.isfinite(self.multiplier) and math.isfinite(self.temperature)):
            raise UserError(f"multiplier {self.multiplier} or temperature {self.temperature} is not a finite number")

    @property
    def result_name(self) -> str:
        """The result's file name, e.g. `results_layer=13_multiplier=1.0_behavior=refusal_type=ab_...json`.

        Raises:
            UserError: If a value would make the name ambiguous, too long, or leave its folder.
        """
        name = self._name()
        try:
            is_faithful = not _UNSAFE_IN_NAME.search(name) and parse_result_name(name) == self
        except UserError:
            is_faithful = False
        if not is_faithful:
            raise UserError(f"these settings cannot be written as a file name: {name!r}; rename the model")
        if (n_bytes := len(name.encode())) > _MAX_NAME_BYTES:
            raise UserError(
                f"these settings give a file name of {n_bytes} bytes, which is more than file systems take "
                f"({_MAX_NAME_BYTES}): {name!r}; use shorter names for the model and its weights"
            )
        return name

    def _name(self) -> str:
        return f"results_{self._joined(_KEYS)}.json"

    def describe(self, *leave_out: str) -> str:
        """The settings as they stand in a file name, without the keys named (for figures over them)."""
        return self._joined(tuple(key for key in _KEYS if key not in leave_out))

    def _joined(self, keys: tuple[str, ...]) -> str:
        defaults = {field.name: field.default for field in fields(self)}
        parts = []
        for key in keys:
            value = getattr(self, key)
            if key == "use_base_model" or value != defaults[key]:
                parts.append(f"{key}={value + 0.0 if isinstance(value, float) else value}")  # -0.0 is 0.0
        return "_".join(parts)

    def at(self, layer: int, multiplier: float) -> "SteeringSettings":
        """The same settings at another layer and multiplier."""
        return replace(self, layer=layer, multiplier=float(multiplier))


def parse_result_name(name: str) -> SteeringSettings:
    """Read the settings back from a result file name.

    Raises:
        UserError: If the name is not one that the suite writes.
    """
    values = _split_name(name)
    try:
        settings = SteeringSettings(
            layer=int(values.pop("layer")),
            multiplier=float(values.pop("multiplier")),
            behavior=values.pop("behavior"),
            type=values.pop("type"),  # type: ignore[arg-type]  # checked by SteeringSettings
            system_prompt=_one_of(values.pop("system_prompt", None), ("pos", "neg")),  # type: ignore[arg-type]
            override_vector=_int_or_none(values.pop("override_vector", None)),
            temperature=float(values.pop("temperature", "0.0")),
            num_samples=int(values.pop("num_samples", "1")),
            seed=int(values.pop("seed", "0")),
            use_base_model=_one_of(values.pop("use_base_model"), ("True", "False")) == "True",
            steer_positions=_one_of(values.pop("steer_positions", "end_of_prompt"), ("end_of_prompt", "all")),  # type: ignore[arg-type]
            **values,  # the remaining keys are all str | None
        )
    except (KeyError, ValueError) as err:
        raise UserError(f"{name!r} is not a result file name") from err
    if settings._name() != name:  # such as layer=013, which would be a second file of layer 13
        raise UserError(f"{name!r} is not a result file name as the suite writes it: {settings._name()!r}")
    return settings


def _split_name(name: str) -> dict[str, str]:
    if not name.startswith("results_") or not name.endswith(".json"):
        raise UserError(f"{name!r} is not a result file name")
    body = name[: -len(".json")]
    marks = list(_KEY_AT.finditer(body))
    keys = [mark.group(1) for mark in marks]
    if not marks or marks[0].start() != 0 or len(set(keys)) != len(keys):
        raise UserError(f"{name!r} is not a result file name")
    ends = [mark.start() for mark in marks[1:]] + [len(body)]
    return {key: body[mark.end() : end] for key, mark, end in zip(keys, marks, ends, strict=True)}


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _one_of(text: str | None, allowed: tuple[str, ...]) -> str | None:
    if text is not None and text not in allowed:
        raise ValueError(f"{text!r} is not one of {allowed}")
    return text
