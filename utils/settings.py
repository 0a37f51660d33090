"""What one result file was computed under, and the file name that says so.

`parse_result_name(settings.result_name) == settings` for every valid setting: file names are
always built and read here, never matched by substrings.

A key is declared once, as a field of `SteeringSettings` with its `Key`. Names and their parsing, descriptions,
the flags of the command that makes a result, and what counts at multiplier 0 follow from that.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from utils.errors import UserError

ResultType = Literal["ab", "open_ended", "truthful_qa", "mmlu", "answer_text"]
RESULT_TYPES: tuple[ResultType, ...] = get_args(ResultType)
Side = Literal["pos", "neg"]
"""For (pos) or against (neg) the behavior."""
StartPosition = Literal["end_of_prompt", "all"]
Reading = Literal["letter", "answer", "last", "prompt", "prompt_mean"]
"""Where activations are read: at the answer's letter, over all tokens of its text, at its last token, at the last
token of the prompt, or over the prompt's tokens from where both prompts part."""
Origin = Literal["pairs", "answers"]
"""Whose answers a vector is made from: those of the contrast pairs, or the model's own under two system prompts."""
ADDING_OPERATORS = ("add", "add_keep_norm", "clamp")
"""Operators that put in multiplier x vector, which a strength may measure."""
OPERATORS = (*ADDING_OPERATORS, "ablate", "cap", "rotate", "rotate_by")
"""What may be done with a vector (`utils.model.operators`); of the others the multiplier is a share (1: wholly)."""
METHODS = ("mean", "pca", "pca_pairs", "probe", "lda")
"""The estimators that a vector may be made by (`utils.vectors.estimators`)."""
Knob = Literal["multiplier", "strength"]
"""How much is added: so many times the vector, or a norm as a share of the layer's residual norm."""
Orders = Literal["given", "both"]
"""Whether lettered answers stand as the set gives them, or an item is asked twice, its two answers exchanged."""

Quantization = Literal["int8", "nf4"]
"""Weights in 8-bit integers, or in 4-bit NormalFloat."""

_PART = re.compile(r"[a-z][a-z0-9-]{0,59}")
BEHAVIOR_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# separators, control characters, and what is not Unicode or breaks a line
_UNSAFE_IN_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Key:
    """How one setting is read from a name, and what it is about."""

    read: Callable[[str], Any]
    """The value that a text stands for; ValueError or UserError where it stands for none."""
    swept: bool = False
    """One command makes results at several values: its flag is the plural, `--layers` for `layer`."""
    steers: bool = False
    """About what is added and where: without a meaning at multiplier 0."""
    of_model: bool = False
    """Names the model, as the flags of a `ModelChoice` do."""
    is_file: bool = False
    """Stands for a file, whose path the flag takes."""
    always_named: bool = False
    """Stands in a name at its default too, as in the published names."""
    word: str | None = None
    """What it is called in names and as a flag, where a field cannot be called so."""
    names_another: bool = False
    """Is the name under which another setting stands, and stands nowhere itself."""


def _one_of(what: str, allowed: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            near = get_close_matches(text, list(allowed), 1)
            meant = f"did you mean {near[0]}? Else " if near else ""
            raise UserError(f"unknown {what} {text!r}; {meant}choose from: {', '.join(allowed)}")
        return text

    return read


known_operator = _one_of("operator", OPERATORS)
"""An operator's name; UserError, with the nearest one, where it is none."""
_BESIDE = re.compile(
    r"(?P<behavior>[A-Za-z0-9][A-Za-z0-9-]{0,63})@(?P<layer>\d{1,4})(?:x(?P<weight>[+-]?\d+(?:\.\d+)?))?"
)


@dataclass(frozen=True)
class Beside:
    """A behavior's vector that is used together with the one that is swept."""

    behavior: str
    layer: int
    weight: float = 1.0
    """Its multiplier (or strength) as a multiple of the swept one."""

    @classmethod
    def parse(cls, text: str) -> "Beside":
        """
        Raises:
            UserError: If it is not `BEHAVIOR@LAYER` or `BEHAVIOR@LAYERxWEIGHT`.
        """
        if not (match := _BESIDE.fullmatch(text)):
            raise UserError(f"{text!r} does not name a vector; write BEHAVIOR@LAYER or BEHAVIOR@LAYERxWEIGHT")
        return cls(match["behavior"], int(match["layer"]), float(match["weight"] or 1.0))

    def __str__(self) -> str:
        return f"{self.behavior}@{self.layer}" + (f"x{self.weight:g}" if self.weight != 1.0 else "")


def parse_beside(text: str) -> str:
    """Several of them, joined by '+', as a result's name has them."""
    return "+".join(str(Beside.parse(part)) for part in text.split("+"))


def _method(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", text):
        raise UserError(f"{text!r} is not an estimator's name: small letters, digits and single underscores")
    return text


def check_part(text: str) -> str:
    """The name of a part of vectors as it stands.

    Raises:
        UserError: If it is none.
    """
    if not _PART.fullmatch(text):
        raise UserError(f"{text!r} does not name a part of a vector: small letters, digits and hyphens, e.g. rank2")
    return text


def _behavior_id(text: str) -> str:
    if not BEHAVIOR_ID.fullmatch(text):
        raise UserError(f"{text!r} is not a behavior's id: letters, digits and hyphens, at most 64")
    return text


def _truth(text: str) -> bool:
    return _one_of("truth value", ("True", "False"))(text) == "True"


@dataclass(frozen=True)
class SteeringSettings:
    """The conditions of one result file. Keys stand in its name in this order, those at their default left out."""

    layer: Annotated[int, Key(int, swept=True, steers=True)]
    """Steered decoder block, counted from 0."""
    multiplier: Annotated[float, Key(float, swept=True, steers=True)]
    """Of the vector; where `knob` says so, the strength instead."""
    behavior: Annotated[str, Key(_behavior_id, swept=True)]
    type: Annotated[ResultType, Key(_one_of("result type", RESULT_TYPES))]
    _: KW_ONLY
    system_prompt: Annotated[Side | None, Key(_one_of("system prompt", get_args(Side)))] = None
    override_vector: Annotated[int | None, Key(int, steers=True)] = None
    """Layer whose vector is used instead of the steered layer's own."""
    override_vector_model: Annotated[str | None, Key(str, steers=True)] = None
    """Label of the model whose vectors are used."""
    use_base_model: Annotated[bool, Key(_truth, of_model=True, always_named=True)] = False
    model_size: Annotated[str | None, Key(str, of_model=True)] = None
    """Exactly one of model_size and model is set."""
    model: Annotated[str | None, Key(str, of_model=True)] = None
    """Label of the checkpoint."""
    quantize: Annotated[Quantization | None, Key(_one_of("quantization", get_args(Quantization)), of_model=True)] = None
    """How the model's weights were kept; None for floating point."""
    override_model_weights_path: Annotated[str | None, Key(str, is_file=True)] = None
    """Fine-tuned weights, with path separators written as '-'."""
    steer_positions: Annotated[StartPosition, Key(_one_of("position", get_args(StartPosition)), steers=True)] = (
        "end_of_prompt"
    )
    vector_behavior: Annotated[str | None, Key(_behavior_id, steers=True)] = None
    """Behavior whose vectors are used, where it is not the evaluated one."""
    temperature: Annotated[float, Key(float)] = 0.0
    """Of sampled answers; 0 is greedy decoding."""
    num_samples: Annotated[int, Key(int)] = 1
    """Answers to each question."""
    seed: Annotated[int, Key(int)] = 0
    """Of sampled answers."""
    read: Annotated[Reading, Key(_one_of("reading", get_args(Reading)), steers=True)] = "letter"
    """Where the vector was read."""
    method: Annotated[str, Key(_method, steers=True)] = "mean"
    """The estimator that made it."""
    origin: Annotated[Origin, Key(_one_of("origin", get_args(Origin)), steers=True, word="from")] = "pairs"
    """Whose answers it was made from."""
    part: Annotated[str | None, Key(check_part, steers=True)] = None
    """Which part of the vector is used, where it is not the whole (`research/decompose_vectors.py` writes parts)."""
    vector: Annotated[str | None, Key(str, steers=True)] = None
    """Names of the vector files that are used, joined by '+', where they are not a behavior's."""
    questions: Annotated[str | None, Key(str)] = None
    """Name of the file whose questions are asked, where they are not the behavior's test set."""
    limit: Annotated[int | None, Key(int)] = None
    """How many items of the test set are asked, the first ones; None for all."""
    orders: Annotated[Orders, Key(_one_of("orders", get_args(Orders)))] = "given"
    operator: Annotated[str, Key(known_operator, steers=True)] = "add"
    """What is done with the vector."""
    quantile: Annotated[float, Key(float, steers=True)] = 0.75
    """Of the vector's component in neutral answers: where the operator `cap` cuts."""
    beside: Annotated[str | None, Key(parse_beside, steers=True)] = None
    """Vectors that are used together with the swept one, joined by '+': BEHAVIOR@LAYERxWEIGHT."""
    condition: Annotated[str | None, Key(str, steers=True)] = None
    """Name of the pairs of prompts between which a gate was fitted; only prompts that open it are steered."""
    knob: Annotated[Knob, Key(_one_of("knob", get_args(Knob)), steers=True, names_another=True)] = "multiplier"

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in KEYS}
        for name, value in values.items():
            if isinstance(value, str):
                KEYS[name].read(value)
        if (self.model_size is None) == (self.model is None):
            raise UserError("a result belongs to either a model_size or a model; give exactly one")
        if self.layer < 0:
            raise UserError(f"layer {self.layer} is negative; layers are counted from 0")
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise UserError(f"{name} {value} is not a finite number")

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
        return f"results_{self.describe()}.json"

    def describe(self, *leave_out: str) -> str:
        """The settings as they stand in a file name, without the keys named (for figures over them)."""
        named = [name for name, key in KEYS.items() if key.always_named or not self._is_default(name)]
        named = [name for name in named if name not in leave_out and not KEYS[name].names_another]
        return "_".join(f"{self._name_of(name)}={self._written(name)}" for name in named)

    def _name_of(self, key: str) -> str:
        return self.knob if key == "multiplier" else _WORDS[key]

    def differing(self) -> str:
        """The settings beyond what every command names (what is swept, type and model), in words."""
        names = [name for name in self._particular() if _DEFAULTS[name] is not MISSING]
        return ", ".join(f"{_WORDS[name]}={self._written(name)}" for name in names)

    def command_words(self, path_of: Callable[[str], str]) -> list[str]:
        """The flags that ask for these settings, but for what is swept over and the model.

        Args:
            path_of: From a file as it stands in the name to the path that its flag takes.
        """
        words = []
        for name in self._particular():
            text = self._written(name)
            words += [f"--{_WORDS[name]}", path_of(text) if KEYS[name].is_file else text]
        return words

    def _particular(self) -> list[str]:
        """The keys, not swept nor of the model, that are not at their default."""
        left_out = [name for name, key in KEYS.items() if key.swept or key.of_model or key.names_another]
        return [name for name in KEYS if name not in left_out and not self._is_default(name)]

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == _DEFAULTS[name])

    def _written(self, name: str) -> str:
        value = getattr(self, name)
        return str(value + 0.0 if isinstance(value, float) else value)  # -0.0 is 0.0

    def at(self, layer: int, multiplier: float) -> "SteeringSettings":
        """The same settings at another layer and multiplier."""
        return replace(self, layer=layer, multiplier=float(multiplier))

    def unsteered(self) -> "SteeringSettings":
        """What is left of the settings when nothing is added (at layer 0, multiplier 0)."""
        steering = [name for name, key in KEYS.items() if key.steers and _DEFAULTS[name] is not MISSING]
        return replace(self.at(0, 0.0), **{name: _DEFAULTS[name] for name in steering})

    @property
    def vector_kind(self) -> "VectorKind":
        """Of the vectors that are added."""
        return VectorKind(self.read, self.method, self.origin, self.part)

    def same_model(self, other: "SteeringSettings") -> bool:
        """Whether both name the same model."""
        return all(getattr(self, name) == getattr(other, name) for name, key in KEYS.items() if key.of_model)


KEYS: dict[str, Key] = {field.name: field.type.__metadata__[0] for field in fields(SteeringSettings)}  # type: ignore[union-attr]
"""Every setting's key by its name, in the order of file names."""
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SteeringSettings)}
_WORDS = {name: key.word or name for name, key in KEYS.items()}
_NAMES = [*(_WORDS[name] for name, key in KEYS.items() if not key.names_another), "strength"]
_KEY_AT = re.compile(r"(?:^results_|_)(" + "|".join(_NAMES) + r")=")


@dataclass(frozen=True)
class VectorKind:
    """What tells vectors of one behavior, model and layer apart. File names bear what differs from the default."""

    reading: Reading = "letter"
    method: str = "mean"
    """The estimator's name."""
    origin: Origin = "pairs"
    part: str | None = None
    """Of what was taken apart, the name of a part, such as rank2; None for the whole vector."""

    @property
    def suffix(self) -> str:
        """What a file name bears, e.g. `_read=answer_method=pca`; empty for the published kind."""
        return "".join(f"_{word}={value}" for word, value in self._particular())

    @property
    def command_words(self) -> list[str]:
        """The flags that name this kind."""
        return [part for word, value in self._particular() for part in (f"--{word}", value)]

    def _particular(self) -> list[tuple[str, str]]:
        """What differs from the published kind."""
        named = {"read": self.reading, "method": self.method, "from": self.origin, "part": self.part}
        published = {"read": VectorKind.reading, "method": VectorKind.method, "from": VectorKind.origin, "part": None}
        return [(word, value) for word, value in named.items() if value is not None and value != published[word]]


def parse_result_name(name: str) -> SteeringSettings:
    """Read the settings back from a result file name.

    Raises:
        UserError: If the name is not one that the suite writes.
    """
    texts = _split_name(name)
    try:
        if "strength" in texts and "multiplier" not in texts:
            texts |= {"multiplier": texts.pop("strength"), "knob": "strength"}
        fields_of = {word: name for name, word in _WORDS.items()}
        values = {fields_of[word]: KEYS[fields_of[word]].read(text) for word, text in texts.items()}
        settings = SteeringSettings(**values)
    except (TypeError, ValueError, UserError) as err:  # TypeError: a key is missing
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
