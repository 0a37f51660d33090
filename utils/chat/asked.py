"""Steering as a request to the server says it: in the model's name, or in the field `steering`."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.chat.shelf import Shelf
from utils.errors import UserError
from utils.files.reading import load_vector, short
from utils.model.checkpoints import check_layers
from utils.model.steering import Steering
from utils.settings import BEHAVIOR_ID, known_operator

MAX_STEERINGS = 16
_KEYS = ("behavior", "vector", "layer", "multiplier", "operator")
_IN_NAME = re.compile(r"(?P<behavior>[A-Za-z0-9-]+)(?:@(?P<layer>\d{1,4})(?:x(?P<multiplier>[+-]?\d+(?:\.\d+)?))?)?")


def model_names(shelf: Shelf) -> list[str]:
    """The model as it is, and steered with each behavior at its default layer and multiplier."""
    label = shelf.choice.label
    asks = [shelf.ask(entry.behavior) for entry in shelf.entries()]
    return [label, *(f"{label}+{ask.source}@{ask.layer}x{ask.multiplier:g}" for ask in asks)]


def steering_of_name(shelf: Shelf, name: Any) -> tuple[Steering, ...]:
    """What `LABEL+BEHAVIOR@LAYERxMULTIPLIER+...` asks for; what is left out is at its default.

    Raises:
        UserError: If it is not the name of this model, or what follows is not a steering.
    """
    label = shelf.choice.label
    if not isinstance(name, str) or not (name == label or name.startswith(f"{label}+")):
        raise UserError(f"model {short(name)} is not served here; /v1/models lists what is")
    found = []
    for words in name[len(label) + 1 :].split("+") if name != label else ():
        match = _IN_NAME.fullmatch(words)
        if not match:
            raise UserError(f"model: {short(words)} is not a steering; write BEHAVIOR@LAYERxMULTIPLIER")
        layer = int(match["layer"]) if match["layer"] else None
        multiplier = float(match["multiplier"]) if match["multiplier"] else None
        found.append(_of_behavior(shelf, match["behavior"], layer, multiplier))
    return tuple(found)


def steering_of_field(shelf: Shelf, value: Any) -> tuple[Steering, ...]:
    """What the field `steering` asks for: a list of objects with `behavior` or `vector`, `layer`, `multiplier`,
    `operator`.

    Raises:
        UserError: If it is something else, names the entry and the key.
    """
    if not isinstance(value, list) or len(value) > MAX_STEERINGS:
        raise UserError(f"steering: expected a list of at most {MAX_STEERINGS} objects, found {short(value)}")
    return tuple(_of_entry(shelf, entry, f"steering[{index}]") for index, entry in enumerate(value))


def _of_entry(shelf: Shelf, entry: Any, where: str) -> Steering:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, found {short(entry)}")
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}")
    if ("behavior" in entry) == ("vector" in entry):
        raise UserError(f"{where}: give either 'behavior' or 'vector'")
    layer, multiplier = entry.get("layer"), entry.get("multiplier")
    if layer is not None and type(layer) is not int:
        raise UserError(f"{where}: layer {short(layer)} is not a whole number")
    if multiplier is not None and (type(multiplier) not in (int, float) or not _is_finite(multiplier)):
        raise UserError(f"{where}: multiplier {short(multiplier)} is not a finite number")
    operator = entry.get("operator", "add")
    if not isinstance(operator, str):
        raise UserError(f"{where}: operator {short(operator)} is not a name")
    try:
        known_operator(operator)
        if "behavior" in entry:
            steering = _of_behavior(shelf, entry["behavior"], layer, multiplier)
        else:
            steering = _of_vector(shelf, entry["vector"], layer, 1.0 if multiplier is None else float(multiplier))
        return replace(steering, operator=shelf.operator(operator, steering, entry.get("behavior")))
    except UserError as err:
        raise UserError(f"{where}: {err}") from err


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _of_behavior(shelf: Shelf, behavior: Any, layer: int | None, multiplier: float | None) -> Steering:
    if not isinstance(behavior, str) or not BEHAVIOR_ID.fullmatch(behavior):
        raise UserError(f"{short(behavior)} is not a behavior's id")
    return shelf.steering(shelf.ask(behavior, layer, None if multiplier is None else float(multiplier)))


def _of_vector(shelf: Shelf, vector: Any, layer: int | None, multiplier: float) -> Steering:
    """A vector as a list of numbers, or a file under the root's folders of vectors."""
    if layer is None:
        raise UserError("a vector needs its 'layer'")
    check_layers([layer], shelf.n_layers, shelf.choice.label, "layer")
    if isinstance(vector, str):
        return Steering(layer, multiplier, load_vector(_file_of(shelf, vector), shelf.d_model))
    return Steering(layer, multiplier, _tensor_of(vector, shelf.d_model))


def _file_of(shelf: Shelf, name: str) -> Path:
    """A client may read vectors, and learn of no other file."""
    root = shelf.paths.root.resolve()
    allowed = (root / "normalized_vectors", root / "vectors")
    try:
        path = (root / name).resolve()
        is_there = path.suffix == ".pt" and any(path.is_relative_to(one) for one in allowed) and path.is_file()
    except (OSError, ValueError):
        is_there = False
    if not is_there:
        raise UserError(f"vector {short(name)} is not a .pt file under normalized_vectors/ or vectors/ of the server")
    return path


def _tensor_of(values: Any, d_model: int) -> torch.Tensor:
    if not isinstance(values, Sequence) or len(values) != d_model:
        found = len(values) if isinstance(values, Sequence) else short(values)
        raise UserError(f"vector: expected {d_model} numbers, found {found}")
    if not all(type(value) in (int, float) and _is_finite(value) for value in values):
        raise UserError("vector: not all of its values are finite numbers")
    vector = torch.tensor([float(value) for value in values], dtype=torch.float64).float()
    if not bool(vector.isfinite().all()):
        raise UserError("vector: a value is beyond the range of float32")
    return vector
