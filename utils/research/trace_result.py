"""How one vector travels up: estimates over texts, controls, tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from utils.data.estimates import Estimate
from utils.evaluation.metrics import mean_estimates
from utils.inside.readings import VectorDecoding, decode_vectors
from utils.inside.token_texts import vocabulary_texts
from utils.research.trace_latents import LatentTrace
from utils.research.trace_request import Place, TraceRequest
from utils.research.trace_sums import Collected

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]

N_TOKENS = 10
N_RESAMPLES = 2000
PLUS, MINUS = 0, 1
FIRST_RANDOM = 4
"""Rows of a vector's steerings; see `trace_run.steerings_of`."""


@dataclass(frozen=True)
class Spread:
    """A number of several random vectors, each a mean over texts."""

    mean: float
    low: float
    high: float
    """Within these another random vector is in 95% (t distribution); NaN for a single one."""
    first: float
    """Of the first of them."""


@dataclass(frozen=True)
class Measured:
    """One number at every later layer, of the vector at +m and at -m, and of random vectors at +m."""

    plus: tuple[Estimate, ...]
    minus: tuple[Estimate, ...]
    random: tuple[Spread, ...]


@dataclass(frozen=True)
class LogitChanges:
    """The tokens whose logits rise and fall most, mean over the traced tokens, each with its change."""

    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Trace:
    """One vector, added to one layer and taken off it."""

    place: Place
    multiplier: float
    layers: tuple[int, ...]
    """From its own to the last."""
    n_texts: int
    n_tokens: int
    size: Measured
    """Change relative to the unsteered residual stream."""
    cosine: Measured
    """Of the change with what is added."""
    behaviors: Mapping[str, Measured]
    """The same with every behavior's own vector at the layer (times the multiplier's sign)."""
    odd: tuple[tuple[Estimate, ...], tuple[Spread, ...]]
    """Share of the change that turns with the multiplier's sign: of the vector, and of random ones."""
    linear: tuple[Estimate, ...]
    """Cosine of the change with that of a twentieth of the multiplier."""
    decoded: VectorDecoding
    """Of the mean change at every layer."""
    decoded_random: VectorDecoding
    """Of the first random vector's."""
    logits: LogitChanges
    logits_random: LogitChanges
    kl: tuple[Estimate, Estimate, Spread]
    """KL(unsteered || steered) at +m, at -m, and of random vectors."""
    latents: tuple[LatentTrace, ...]
    error_at_layer: float
    """Largest |dh - m v| / |m v| at the vector's own layer: rounding alone."""

    def as_json(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "n_texts": self.n_texts,
            "n_tokens": self.n_tokens,
            "relative_size": _measured_json(self.size),
            "cosine_with_vector": _measured_json(self.cosine),
            "cosine_with_behaviors": {name: _measured_json(one) for name, one in self.behaviors.items()},
            "odd_share": {"vector": _jsons(self.odd[0]), "random": _jsons(self.odd[1])},
            "cosine_with_small_change": _jsons(self.linear),
            "kl": dict(zip(("plus", "minus", "random"), _jsons(self.kl), strict=True)),
            "logits": vars(self.logits),
            "logits_random": vars(self.logits_random),
            "latents": [one.as_json() for one in self.latents],
            "checks": {"largest_error_at_layer": self.error_at_layer},
        }


def build_trace(
    request: TraceRequest,
    model: "LlamaWrapper",
    place: Place,
    found: Collected,
    behaviors: Sequence[str],
    latents: Sequence[LatentTrace],
    n_tokens: int,
) -> Trace:
    """Estimates from what the texts gave.

    Args:
        request: What was asked for.
        model: The model.
        place: Which vector.
        found: Of this vector's steerings.
        behaviors: Those that changes were compared with.
        latents: Of each SAE.
        n_tokens: Of all texts.
    """
    layers = tuple(range(place.layer, request.n_layers))
    above = slice(place.layer, None)
    compared = _over_texts(found.compared)[:, above]  # [n_steerings, n_layers, n_behaviors, n_texts]
    named = {
        name: _measured(compared[:, :, column], request.seed)
        for column, name in enumerate(behaviors)
        if np.isfinite(compared[:, :, column]).any()
    }
    odd = _over_texts(found.odd)[:, above]
    kl = _over_texts(found.kl)
    mean_change = found.change / found.n_texts
    mean_logits = found.logits / found.n_texts
    return Trace(
        place=place,
        multiplier=request.multiplier,
        layers=layers,
        n_texts=found.n_texts,
        n_tokens=n_tokens,
        size=_measured(_over_texts(found.sizes)[:, above], request.seed),
        cosine=_measured(_over_texts(found.cosines)[:, above], request.seed),
        behaviors=named,
        odd=(_estimates(odd[0], request.seed), _spreads(odd[FIRST_RANDOM // 2 :])),
        linear=_estimates(_over_texts(found.linear)[PLUS, above], request.seed),
        decoded=_decode(model, mean_change[PLUS], layers),
        decoded_random=_decode(model, mean_change[FIRST_RANDOM], layers),
        logits=_logit_changes(model, mean_logits[PLUS]),
        logits_random=_logit_changes(model, mean_logits[FIRST_RANDOM]),
        kl=(*_estimates(kl[:2], request.seed), _spreads(kl[FIRST_RANDOM::2, None])[0]),  # type: ignore[arg-type]
        latents=tuple(latents),
        error_at_layer=max(float(one.max()) for one in found.error_at_layer.values()),
    )


def _over_texts(values: Mapping[int, torch.Tensor]) -> FloatArray:
    """[..., n_texts]"""
    return torch.stack([values[index] for index in sorted(values)], dim=-1).numpy()


def _estimates(rows: FloatArray, seed: int) -> tuple[Estimate, ...]:
    """Means over texts with intervals, of [n, n_texts]."""
    return tuple(mean_estimates(rows, seed, n_resamples=N_RESAMPLES))


def _spreads(values: FloatArray) -> tuple[Spread, ...]:
    """Over random vectors, of [n_random, n, n_texts]."""
    means = values.mean(axis=-1)
    n = len(means)
    centre, wide = means.mean(axis=0), np.full(means.shape[1], np.nan)
    if n > 1:
        wide = stats.t.ppf(0.975, n - 1) * means.std(axis=0, ddof=1) * np.sqrt(1 + 1 / n)
    limits = zip(centre, centre - wide, centre + wide, means[0], strict=True)
    return tuple(Spread(*(float(one) for one in numbers)) for numbers in limits)


def _measured(values: FloatArray, seed: int) -> Measured:
    """Of [n_steerings, n_layers, n_texts]."""
    return Measured(_estimates(values[PLUS], seed), _estimates(values[MINUS], seed), _spreads(values[FIRST_RANDOM::2]))


def _decode(model: "LlamaWrapper", change: torch.Tensor, layers: Sequence[int]) -> VectorDecoding:
    return decode_vectors(model, {layer: change[layer].float() for layer in layers}, N_TOKENS)


def _logit_changes(model: "LlamaWrapper", change: torch.Tensor) -> LogitChanges:
    """Of a mean change [vocab_size]; what all logits have in common moves no probability and is taken off."""
    change = change - change.mean()
    best, worst = change.topk(N_TOKENS), (-change).topk(N_TOKENS)
    texts = vocabulary_texts(model.tokenizer, [*best.indices.tolist(), *worst.indices.tolist()])

    def named(ids: torch.Tensor, values: torch.Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((texts[token], value) for token, value in zip(ids.tolist(), values.tolist(), strict=True))

    return LogitChanges(named(best.indices, best.values), named(worst.indices, -worst.values))


def _measured_json(one: Measured) -> dict[str, Any]:
    return {"plus": _jsons(one.plus), "minus": _jsons(one.minus), "random": _jsons(one.random)}


def _jsons(numbers: Sequence[Estimate | Spread]) -> list[dict[str, float | None]]:
    """A value (the mean of random vectors) and its limits; null where it is not defined."""
    return [
        {
            "value": _finite(one.value if isinstance(one, Estimate) else one.mean),
            "low": _finite(one.low),
            "high": _finite(one.high),
        }
        for one in numbers
    ]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
