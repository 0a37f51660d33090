"""What a command of the chat turns: from settings and the command's text to other settings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from utils.behaviors import load_behavior
from utils.chat.commands import Knobs
from utils.chat.shelf import Ask, Shelf
from utils.errors import UserError
from utils.settings import known_operator

Turn = Callable[[Shelf, Knobs, str], Knobs]
"""Raises UserError where the text makes no sense, or a vector cannot be read."""


def number(text: str, kind: Callable[[str], Any], at_least: float | None = None) -> Any:
    """A finite number.

    Raises:
        UserError: If it is none, or too small.
    """
    try:
        value = kind(text)
        json.dumps(value, allow_nan=False)
    except ValueError as err:
        raise UserError(f"{text!r} is not a number") from err
    if at_least is not None and value < at_least:
        raise UserError(f"{text} is less than {at_least:g}")
    return value


def _ask(shelf: Shelf, knobs: Knobs, **changes: Any) -> Knobs:
    """The first steering, changed."""
    if not knobs.asks:
        raise UserError("nothing is steered: /behavior ID or /vector FILE names a vector")
    first, *others = knobs.asks
    changed = replace(first, **changes)
    ask = shelf.ask(changed.source, changed.layer, changed.multiplier, changed.operator)
    return replace(knobs, asks=(_readable(shelf, ask), *others))


def _readable(shelf: Shelf, ask: Ask) -> Ask:
    shelf.steering(ask)
    return ask


def _vector(shelf: Shelf, knobs: Knobs, text: str) -> Knobs:
    if text in ("off", ""):
        return replace(knobs, asks=())
    if not text.endswith(".pt"):
        raise UserError(f"{text} is not a vector file (.pt); /behavior {text} takes a behavior's")
    layer = knobs.asks[0].layer if knobs.asks else None
    return replace(knobs, asks=(_readable(shelf, shelf.ask(text, layer)),))


def _system(shelf: Shelf, knobs: Knobs, text: str) -> Knobs:
    if text not in ("pos", "neg"):
        return replace(knobs, system_prompt=None if text in ("off", "") else text)
    if not knobs.asks or knobs.asks[0].is_file:
        raise UserError(f"/system {text} is a behavior's own prompt: name one with /behavior ID")
    behavior = load_behavior(shelf.paths, knobs.asks[0].source)
    return replace(knobs, system_prompt=behavior.system_prompt("pos" if text == "pos" else "neg"))


TURNS: Mapping[str, Turn] = {
    "multiplier": lambda shelf, knobs, text: _ask(shelf, knobs, multiplier=number(text, float)),
    "layer": lambda shelf, knobs, text: _ask(shelf, knobs, layer=number(text, int)),
    "behavior": lambda shelf, knobs, text: replace(knobs, asks=(_readable(shelf, shelf.ask(text)),)),
    "vector": _vector,
    "operator": lambda shelf, knobs, text: _ask(shelf, knobs, operator=known_operator(text)),
    "system": _system,
    "temperature": lambda _, knobs, text: replace(knobs, temperature=number(text, float, at_least=0)),
    "seed": lambda _, knobs, text: replace(knobs, seed=number(text, int, at_least=0)),
    "max": lambda _, knobs, text: replace(knobs, max_new_tokens=number(text, int, at_least=1)),
}
"""By the command's name."""
