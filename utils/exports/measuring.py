"""Projections of texts on vectors, without steering: a window of texts at a time, in the order in which they come."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from utils.errors import UserError
from utils.exports.texts import MonitoredText, Turn
from utils.exports.turns import EncodedText, TurnTokens, encode_text
from utils.model.projecting import Probe, SequenceProjections, project_sequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llama_wrapper import LlamaWrapper

WINDOW = 512
"""Texts that are in memory at once; batches are formed within them, of texts of like length."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One text along every probe."""

    index: int
    """In its file."""
    text: MonitoredText
    encoded: EncodedText
    projections: SequenceProjections
    """Of every token of the sequence."""
    values: "NDArray[Any]"
    """Of the measured tokens alone, [n_probes, n_tokens] float32."""
    means: "NDArray[Any]"
    """Over the measured tokens, [n_probes] float64."""

    @property
    def n_tokens(self) -> int:
        return self.values.shape[1]

    def turn_means(self, turn: TurnTokens) -> "NDArray[Any]":
        """Mean projection over one turn's tokens, [n_probes]; NaN where it has none."""
        if not len(turn):
            return np.full(len(self.values), np.nan)
        of_turn: NDArray[Any] = self.projections.values[:, turn.start : turn.end].double().mean(dim=1).numpy()
        return of_turn


@dataclass(frozen=True)
class Failed:
    """A text that cannot be measured."""

    index: int
    reason: str
    """Beginning with its number."""


def make_probe(layer: int, vector: Tensor) -> Probe:
    """A probe along a vector; its length does not matter.

    Raises:
        UserError: If it is all zeros.
    """
    length = float(vector.double().norm())
    if length == 0.0:
        raise UserError("a vector that is all zeros has no direction; make it again")
    return Probe(layer, (vector.double() / length).float())


def measure_texts(
    model: "LlamaWrapper",
    texts: Iterable[MonitoredText | UserError],
    probes: Sequence[Probe],
    batch_size: int | None = None,
    n_done: int = 0,
) -> Iterator[Measured | Failed]:
    """Measure texts in their order.

    Args:
        model: Runs without steering.
        texts: As `read_texts` gives them, broken records included.
        probes: Along what.
        batch_size: Texts in one pass; None for as many as fit.
        n_done: Texts that are measured already, whole windows; they are passed over.
    """
    waiting = islice(enumerate(texts), n_done, None)
    while window := list(islice(waiting, WINDOW)):
        yield from _measure_window(model, window, probes, batch_size)


def _measure_window(
    model: "LlamaWrapper",
    window: Sequence[tuple[int, MonitoredText | UserError]],
    probes: Sequence[Probe],
    batch_size: int | None,
) -> Iterator[Measured | Failed]:
    encoded: dict[int, tuple[MonitoredText, EncodedText]] = {}
    failed: dict[int, Failed] = {}
    for index, text in window:
        if isinstance(text, UserError):
            failed[index] = Failed(index, str(text))
            continue
        try:
            encoded[index] = text, _encode(model, text)
        except UserError as err:
            failed[index] = Failed(index, f"item {index}: {err}")
    order = list(encoded)
    sequences = [encoded[index][1].ids for index in order]
    found = {order[place]: one for place, one in project_sequences(model.runtime, sequences, probes, batch_size)}
    for index, _ in window:
        yield failed[index] if index in failed else _measured(index, *encoded[index], found[index])


def _encode(model: "LlamaWrapper", text: MonitoredText) -> EncodedText:
    encoded = encode_text(model.chat_format, text)
    if not model.runtime.fits(len(encoded.ids)):
        raise UserError(
            f"{len(encoded.ids)} tokens, but {model.label} takes at most "
            f"{model.config.max_position_embeddings}; shorten it"
        )
    return encoded


def _measured(
    index: int, text: MonitoredText, encoded: EncodedText, projections: SequenceProjections
) -> Measured | Failed:
    places = [place for turn in encoded.measured for place in range(turn.start, turn.end)]
    values: NDArray[Any] = projections.values[:, places].numpy()
    if not np.isfinite(values).all():
        reason = "its activations are not finite in the model's dtype; use --dtype float32 or bfloat16"
        return Failed(index, f"item {index}: {reason}")
    return Measured(index, text, encoded, projections, values, values.mean(axis=1, dtype=np.float64))


def as_bare(text: MonitoredText) -> MonitoredText:
    """A neutral question's answer as a text by itself."""
    return MonitoredText((Turn("text", text.turns[-1].text),), text.id)
