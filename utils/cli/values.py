"""Values of flags, for argparse: what a word on the command line means, or why it means nothing."""

import argparse
import math
from typing import Any

from utils.errors import UserError
from utils.settings import Beside, check_part, known_operator


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def layers(text: str) -> list[int]:
    """One layer, or a range with both ends: `10-20`."""
    first, dash, last = text.partition("-")
    if not (first and dash):
        return [layer(text)]
    low, high = layer(first), layer(last)
    if low > high:
        raise argparse.ArgumentTypeError(f"{text} runs backwards; write {high}-{low}")
    return list(range(low, high + 1))


class Flattened(argparse.Action):
    """Keeps the values of several words, each a list, as one list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, words: Any, option: str | None = None) -> None:  # noqa: ARG002  overrides
        setattr(namespace, self.dest, [value for word in words for value in word])


def layer(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; layers are counted from 0")
    return value


def part(text: str) -> str:
    try:
        return check_part(text)
    except UserError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def batch_size(text: str) -> int | str:
    return text if text == "auto" else positive_int(text)


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 4294967295")
    return value


def finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value + 0.0  # -0.0 becomes 0.0, which names the same thing


def positive_float(text: str) -> float:
    value = finite_float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def non_negative_float(text: str) -> float:
    value = finite_float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def share(text: str) -> float:
    value = finite_float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def operator(text: str) -> str:
    try:
        return known_operator(text)
    except UserError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def beside(text: str) -> Beside:
    try:
        return Beside.parse(text)
    except UserError as err:
        raise argparse.ArgumentTypeError(str(err)) from err
