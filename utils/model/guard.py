"""The guard of the fast paths: are packed passes exact on this model? It compares them with plain ones.

The first items of a run settle it. Later ones are compared now and then, as far as that costs no more
than a small share of the time.
"""

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model import processes
from utils.model.batching import is_out_of_memory

log = logging.getLogger(__name__)

# Largest relative difference between the packed and the plain path that is put down to rounding. In float32 that is
# the promise of the fast paths; half precision resolves a logit of 16 to 32 in steps of 0.016 (float16) or 0.125
# (bfloat16), and a step of x changes a probability by the factor e^x.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 5e-1}
SHARE_OF_TIME = 0.02
"""That comparisons during a run may take."""
# What a model raises that does not take the packed passes' mask or positions.
_FAILURES_OF_PACKING = (RuntimeError, ValueError, TypeError, IndexError)


class Guard:
    """Remembers, for each fast path of one model, whether it was found exact."""

    def __init__(self, label: str, dtype: torch.dtype) -> None:
        self.label, self.tolerance = label, TOLERANCE.get(dtype, 1e-3)
        self.seconds: dict[str, float] = {}
        """That the plain sample of a fast path took."""
        self._is_exact: dict[str, bool] = {}

    def allows(
        self, path: str, packed: Callable[[], Tensor], plain: Callable[[], Tensor], *, by_row: bool = False
    ) -> bool:
        """Whether a fast path may be used; compared once, and remembered.

        Args:
            path: Its name.
            packed: Computes a sample by the fast path.
            plain: Computes the same by the plain path.
            by_row: See `relative_difference`.

        Raises:
            RuntimeError, MemoryError: Where the memory does not suffice, which says nothing about exactness.
        """
        if path not in self._is_exact:
            begun = time.monotonic()
            expected = plain()
            self.seconds[path] = time.monotonic() - begun
            try:
                largest = relative_difference(packed(), expected, by_row=by_row)
            except _FAILURES_OF_PACKING as err:
                if is_out_of_memory(err):
                    raise
                log.debug("packed pass failed: %s", err)
                largest = math.inf
            self._settle(path, max(processes.gather(largest)))
        return self._is_exact[path]

    def _settle(self, path: str, largest: float) -> None:
        self._is_exact[path] = largest <= self.tolerance
        log.debug("%s: packed and plain passes differ by %.1e (relative)", path, largest)
        if not self._is_exact[path]:
            differ = f"do not equal plain ones here (relative difference {largest:.1e})"
            log.warning(
                "%s: packed passes %s; falling back to one pass per combination",
                self.label,
                differ if math.isfinite(largest) else "fail here or give no numbers (see --verbose)",
            )

    def watch(self, path: str) -> "Watch":
        """Comparisons during a run of a fast path."""
        return Watch(self, path)


class Watch:
    """Compares a share of a run's items with the plain path, within its share of the time."""

    def __init__(self, guard: Guard, path: str) -> None:
        self._guard, self._path = guard, path
        self._begun = time.monotonic()
        self._spent, self._longest = 0.0, guard.seconds.get(path, 0.0)
        self.n_compared = 0

    @property
    def is_due(self) -> bool:
        """Whether there is time for a comparison."""
        return self._spent + self._longest <= SHARE_OF_TIME * (time.monotonic() - self._begun)

    def compare(
        self,
        found: Tensor,
        packed: Callable[[], Tensor],
        plain: Callable[[], Tensor],
        what: str,
        *,
        by_row: bool = False,
    ) -> None:
        """Compare one item; where it differs, once more.

        Raises:
            UserError: If it differs again: earlier items may be wrong, too.
        """
        begun = time.monotonic()
        largest = relative_difference(found, plain(), by_row=by_row)
        if not largest <= self._guard.tolerance:
            log.warning("%s: packed and plain passes differ by %.1e (relative); trying again", what, largest)
            largest = relative_difference(packed(), plain(), by_row=by_row)
        seconds = time.monotonic() - begun
        self._spent, self._longest = self._spent + seconds, seconds
        self.n_compared += 1
        log.debug("%s, %s: packed and plain passes differ by %.1e (relative)", self._path, what, largest)
        if not largest <= self._guard.tolerance:
            raise UserError(
                f"{self._guard.label}: {what}: the packed pass differs from the plain one by {largest:.1e} (relative), "
                f"which is more than rounding ({self._guard.tolerance:.0e}); run again with --no_packing --overwrite"
            )


def relative_difference(found: Tensor, expected: Tensor, *, by_row: bool = False) -> float:
    """The largest |found - expected| / |expected|; infinite where an expected number is not found.

    Rows (along the last dimension) in which an expected number is not finite are left out: what overflows does
    so on every path, and is reported where it is used.

    Args:
        found: Of any shape.
        expected: Of the same shape.
        by_row: Divide by the largest |expected| of the row instead of by each entry: for activations, whose
            small entries carry the rounding of large ones.
    """
    defined = expected.isfinite().all(dim=-1)
    found, expected = found[defined].float(), expected[defined].float()
    if not expected.numel():
        return 0.0
    scale = expected.abs().amax(dim=-1, keepdim=True) if by_row else expected.abs()
    largest = float(((found - expected).abs() / scale.clamp(min=1e-12)).max())
    return largest if math.isfinite(largest) else math.inf
