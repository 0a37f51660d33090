"""Sums over contrast pairs, kept on disk while they grow: an extraction that is killed goes on where it was."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files.reading import load_tensor_file
from utils.files.writing import save_tensor
from utils.model import processes
from utils.settings import Side
from utils.vectors.estimators import RunningMean

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 60.0
SHARE_OF_SAVING = 0.05
"""Of the time, at most."""

SIDES: tuple[Side, ...] = get_args(Side)


class PairSums:
    """What this process has read so far: the summed differences and, where they are kept, all activations."""

    def __init__(self, path: Path, layers: Sequence[int], n_pairs: int, d_model: int, *, keep_all: bool) -> None:
        """
        Args:
            path: Where the sums are kept meanwhile; see `sums_path`.
            layers: Layers that are read, ascending.
            n_pairs: Contrast pairs.
            d_model: Width of the residual stream.
            keep_all: Keep every pair's activations.
        """
        self.path, self.layers = path, tuple(layers)
        self.mean = RunningMean(torch.zeros(len(layers), d_model, dtype=torch.float64))
        """Of positive minus negative, [n_layers, d_model]."""
        self.done: list[int] = []
        """Pairs that are in it."""
        self.sides = {side: torch.empty(len(layers), n_pairs, d_model) for side in SIDES} if keep_all else None
        """Activations of the matching and the other answer, in dataset order."""
        self._saved, self._seconds_to_save = time.monotonic(), 0.0

    def add(self, indices: Sequence[int], positive: Tensor, negative: Tensor) -> None:
        """Take in a batch, each [len(indices), n_layers, d_model]; pairs that are in it already are passed over."""
        done = set(self.done)
        fresh = [row for row, index in enumerate(indices) if index not in done]
        positive, negative = positive[fresh], negative[fresh]
        indices = [indices[row] for row in fresh]
        self.mean.add(positive, negative)
        if self.sides:
            self.sides["pos"][:, indices] = positive.transpose(0, 1)
            self.sides["neg"][:, indices] = negative.transpose(0, 1)
        self.done += indices

    def save_if_due(self) -> None:
        pause = max(SECONDS_BETWEEN_SAVES, self._seconds_to_save / SHARE_OF_SAVING)
        if time.monotonic() - self._saved < pause:
            return
        begun = time.monotonic()
        kept = {"layers": torch.tensor(self.layers), "done": torch.tensor(self.done), "total": self.mean.total}
        save_tensor(self.path, {**kept, **{side: values[:, self.done] for side, values in (self.sides or {}).items()}})
        self._saved = time.monotonic()
        self._seconds_to_save = self._saved - begun

    def restore(self) -> None:
        """Go on from what a killed run has kept, if it covers these layers."""
        if not self.path.exists():
            return
        try:
            kept = load_tensor_file(self.path)
            rows = [kept["layers"].tolist().index(layer) for layer in self.layers]
            total, done = kept["total"][rows], kept["done"].tolist()
            sides = {side: kept[side][rows] for side in self.sides or ()}
        except (UserError, KeyError, ValueError) as err:  # damaged, without activations, or of fewer layers
            log.debug("ignoring %s: %s", self.path, err)
            return
        self.mean, self.done = RunningMean(total, len(done)), done
        for side, values in (self.sides or {}).items():
            values[:, done] = sides[side]
        log.info("continuing after the %d pairs of an interrupted run", len(self.done))

    def gather(self) -> None:
        """Bring together in the main process what all have read; each sends what it has read, no more."""
        own = {side: values[:, self.done] for side, values in (self.sides or {}).items()}
        everyone = processes.gather_to_main((self.mean, self.done, own))
        if not everyone:
            return
        total = torch.stack([mean.total for mean, _, _ in everyone]).sum(dim=0)
        self.mean = RunningMean(total, sum(mean.n_pairs for mean, _, _ in everyone))
        for _, done, sides in everyone:
            for side, values in sides.items():
                if self.sides:
                    self.sides[side][:, done] = values

    def broken_layers(self) -> list[int]:
        """Layers with activations that are not finite."""
        finite = self.mean.total.isfinite().all(dim=1)
        return [layer for layer, row in zip(self.layers, finite, strict=True) if not row]

    def forget(self) -> None:
        """The vectors are written."""
        self.path.unlink(missing_ok=True)


def sums_path(folder: Path, label: str, depends_on: Mapping[str, Any]) -> Path:
    """A name for this process's sums that tells them from those of other data, models and settings.

    Args:
        folder: Of the vectors.
        label: The model's.
        depends_on: Everything that the sums depend on, but for the layers.
    """
    content = json.dumps({**depends_on, "processes": processes.count()}, sort_keys=True)
    identity = hashlib.sha256(content.encode()).hexdigest()[:16]
    return folder / f"{_prefix(label)}{identity}_{processes.index()}.pt"


def forget_finished(folder: Path, label: str, are_made: Callable[[list[int]], bool]) -> None:
    """Remove sums that were left by runs that were killed when all their vectors were written.

    Args:
        folder: Of the vectors.
        label: The model's.
        are_made: Whether all files of some layers are there.
    """
    for path in folder.glob(f"{_prefix(label)}*.pt"):
        try:
            is_over = are_made(load_tensor_file(path)["layers"].tolist())
        except (UserError, KeyError):
            is_over = True
        if is_over:
            path.unlink(missing_ok=True)


def _prefix(label: str) -> str:
    return f".sums_{label}_"
