"""What single latents of an SAE do: where they fire in a text, what they write, and how they stand to a direction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.saes.dictionary import SAE

FloatArray = NDArray[np.float64]

BEFORE, AFTER = 20, 12
"""Tokens shown around the one that is the example."""
N_TOP, N_LOWER = 20, 5
"""Examples: the strongest, and of each lower band."""
BANDS = ((0.75, 0.9), (0.5, 0.75), (0.25, 0.5))
"""Quantiles of the latent's activations above 0."""
N_BINS = 20
N_TOKENS, N_NEIGHBOURS = 10, 5
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class SideBySide:
    """All latents beside a direction, [d_sae] each."""

    cosine: FloatArray
    """Of the decoder row with the direction."""
    on_harmful: FloatArray
    """Mean activation at the prompts' read position."""
    on_harmless: FloatArray
    density: FloatArray
    """Share of the text's tokens on which it fires."""

    @property
    def delta(self) -> FloatArray:
        return self.on_harmful - self.on_harmless

    def orders(self) -> dict[str, list[int]]:
        """All latents, by what they can be sorted by: the most of it first."""
        keys = {"cosine": self.cosine, "delta": np.abs(self.delta), "density": self.density}
        return {name: np.argsort(-key, kind="stable").tolist() for name, key in keys.items()}


@dataclass(frozen=True)
class Example:
    """A stretch of text around a token on which a latent fires."""

    sequence: int
    position: int
    """In the sequence, of the token that is the example."""
    start: int
    """Of the window, in the sequence."""
    token_ids: tuple[int, ...]
    activations: tuple[float, ...]
    """Of each token; NaN for the first of a sequence, which is not read."""

    @property
    def peak(self) -> float:
        """The activation at the token that is the example."""
        return self.activations[self.position - self.start]


@dataclass(frozen=True)
class LatentView:
    """What is shown of one latent."""

    latent: int
    largest: float
    """Its largest activation in the text; 0 where it does not fire."""
    top: tuple[Example, ...]
    lower: tuple[tuple[str, tuple[Example, ...]], ...]
    """By the band of quantiles."""
    histogram: tuple[tuple[float, int], ...]
    """Lower edges and counts of the activations above 0."""
    neighbours: tuple[tuple[int, float], ...]
    """Latents with the most similar decoder rows, and the cosine."""


@torch.no_grad()
def encoded(sae: SAE, rows: Tensor) -> Iterator[Tensor]:
    """Latent activations of rows [n, d_model], some at a time, [some, d_sae]."""
    for part in rows.split(ROWS_AT_ONCE):
        yield sae.encode(part.float())


def beside_direction(sae: SAE, rows: Tensor, harmful: Tensor, harmless: Tensor, direction: Tensor) -> SideBySide:
    """Every latent beside a direction.

    Args:
        sae: The SAE.
        rows: The text's activations, [n_tokens, d_model].
        harmful: Activations at the read position of harmful prompts, [n, d_model].
        harmless: Of harmless ones.
        direction: [d_model]
    """
    fired = torch.zeros(sae.d_sae, dtype=torch.float64)
    for f in encoded(sae, rows):
        fired += (f > 0).sum(dim=0)
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec.double(), direction.double()[None], dim=-1)
    means = [sae.encode(x.float()).double().mean(dim=0).numpy() for x in (harmful, harmless)]
    return SideBySide(cosine.numpy(), means[0], means[1], (fired / len(rows)).numpy())


def choose_latents(beside: SideBySide, top: int) -> list[int]:
    """`top` latents, taken in turn from the three orders."""
    orders = list(beside.orders().values())
    in_turn = (order[place] for place in range(len(orders[0])) for order in orders)
    return list(dict.fromkeys(in_turn))[:top]


def view_latents(sae: SAE, rows: Tensor, token_ids: Tensor, latents: Sequence[int]) -> list[LatentView]:
    """Examples, histogram and neighbours of some latents.

    Args:
        sae: The SAE.
        rows: Activations of the kept tokens, [n_sequences * (context - 1), d_model].
        token_ids: [n_sequences, context]
        latents: Which.
    """
    n_sequences, context = token_ids.shape
    columns = torch.tensor(list(latents))
    found = torch.cat([f[:, columns] for f in encoded(sae, rows)])  # [n_tokens, n_latents]
    kept = found.T.reshape(len(latents), n_sequences, context - 1)
    first = torch.full((len(latents), n_sequences, 1), torch.nan)
    values = torch.cat([first, kept], dim=2).numpy()  # [n_latents, n_sequences, context]
    unit = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    views = []
    for place, latent in enumerate(latents):
        similar = unit @ unit[latent]
        similar[latent] = -torch.inf
        nearest = similar.topk(min(N_NEIGHBOURS, sae.d_sae - 1))
        neighbours = list(zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True))
        views.append(_view(latent, values[place], token_ids.numpy(), neighbours))
    return views


def _view(
    latent: int, values: NDArray[np.float32], token_ids: NDArray[np.int64], neighbours: list[tuple[int, float]]
) -> LatentView:
    fires = np.nan_to_num(values) > 0
    amounts = values[fires].astype(np.float64)
    places = np.argwhere(fires)  # [n_fired, 2], in the order of `amounts`
    by_strength = np.argsort(-amounts, kind="stable")
    counts, edges = np.histogram(amounts, N_BINS, (0, amounts.max())) if len(amounts) else (np.array([]),) * 2
    taken: set[tuple[int, ...]] = set()
    top = _examples(values, token_ids, places[by_strength], N_TOP, taken)
    lower = []
    for low, high in BANDS:
        start, end = (round((1 - share) * len(amounts)) for share in (high, low))
        band = by_strength[start:end]
        spread = band[np.linspace(0, len(band) - 1, min(len(band), 4 * N_LOWER)).astype(int)] if len(band) else band
        lower.append((f"{low:.0%} to {high:.0%}", _examples(values, token_ids, places[spread], N_LOWER, taken)))
    return LatentView(
        latent=latent,
        largest=float(amounts.max()) if len(amounts) else 0.0,
        top=top,
        lower=tuple(lower),
        histogram=tuple((float(edge), int(count)) for edge, count in zip(edges, counts, strict=False)),
        neighbours=tuple(neighbours),
    )


def _examples(
    values: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    places: NDArray[np.int64],
    n: int,
    taken: set[tuple[int, ...]],
) -> tuple[Example, ...]:
    """The first n places with other text around them than any before; `taken` grows."""
    found: list[Example] = []
    shown: set[tuple[int, int]] = set()
    for sequence, position in places.tolist():
        if len(found) == n:
            break
        start, end = max(0, position - BEFORE), min(values.shape[1], position + AFTER + 1)
        ids = tuple(token_ids[sequence, start:end].tolist())
        near = token_ids[sequence, max(0, position - 4) : position + 1].tolist()
        if tuple(near) in taken or (sequence, position) in shown:
            continue
        taken.add(tuple(near))
        shown.update((sequence, other) for other in range(start, end))  # one example shows its neighbours too
        found.append(Example(sequence, position, start, ids, tuple(values[sequence, start:end].tolist())))
    return tuple(found)
