"""Work shared by several processes, as `accelerate launch` starts them; alone, everything here does nothing.

Every process forms the same batches and runs its share of them, so that the numbers are those of one
process. What they found is gathered, and the main process alone writes files and shows progress.
"""

import os
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

T = TypeVar("T")


def count() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files."""
    return index() == 0


def is_mine(ordinal: int) -> bool:
    """Whether a piece of work, numbered the same in every process, is this process's."""
    return ordinal % count() == index()


def device() -> "torch.device | None":
    """The device that is this process's own; None where there is only one process."""
    return _state().device if count() > 1 else None


def gather(value: T) -> list[T]:
    """The values of all processes, in their order; every process must call it."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    _state()
    return gather_object([value])


def gather_to_main(value: T) -> list[T]:
    """The values of all processes in the main one, nothing in the others; every process must call it."""
    if count() == 1:
        return [value]
    from torch import distributed

    _state()
    values: list[T | None] | None = [None] * count() if is_main() else None
    distributed.gather_object(value, values)
    return list(values or [])  # type: ignore[arg-type]  # all are filled in


def from_main(value: T) -> T:
    """The main process's value; every process must call it."""
    return gather(value)[0]


@cache
def _state() -> "PartialState":
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != count():
        raise UserError(
            f"{count()} processes were started, but they do not find each other ({state.num_processes} did); "
            "start them with: accelerate launch, or torchrun"
        )
    return state
