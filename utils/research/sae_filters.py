"""Which latents of a reconstruction carry a behavior, and vectors without those that do not.

The conditions are those of an experiment that DeepMind's interpretability team reported in 2024: with a vector for
anger a single latent did better than the vector; with one for weddings the reconstruction did slightly worse, the
obvious latents alone notably worse, and the reconstruction without irrelevant latents better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from utils.research.sae_closed_forms import fgaa_target
from utils.research.sae_pursuit import Combination
from utils.research.sae_readings import PairEncodings, Readings, unit_rows
from utils.research.svd_components import FloatArray
from utils.research.vector_effects import WHOLE
from utils.saes.dictionary import SAE
from utils.saes.latents import encoded

N_CANDIDATES = 6
"""Latents of which the single best one is taken."""
FGAA_POSITIVE, FGAA_NEGATIVE = 16, 16
DRAWN_OUT = "as many dropped at random"
RANDOM = "random vector"
CONTROLS = (DRAWN_OUT, RANDOM)


@dataclass(frozen=True, eq=False)
class LatentFacts:
    """What all latents of an SAE are like, [d_sae] each."""

    density: FloatArray
    """Share of the text's tokens on which it fires."""
    fires_first: NDArray[np.bool_]
    """Whether it fires on the first token of a sequence, the attention sink."""
    side: FloatArray
    """Mean activation over the matching answers minus over the others."""
    agreeing: FloatArray
    """Of the pairs in which its two halves differ, the share in which the matching one has more; NaN without any."""
    p_side: FloatArray
    """That both halves have more equally often (sign test)."""


def latent_facts(sae: SAE, rows: torch.Tensor, first: torch.Tensor, encodings: PairEncodings) -> LatentFacts:
    """
    Args:
        sae: The SAE.
        rows: Activations over a text, [n_tokens, d_model].
        first: Of a first token, [d_model].
        encodings: Of the pairs.
    """
    from scipy import stats

    fired = torch.zeros(sae.d_sae, dtype=torch.float64)
    for f in encoded(sae, rows):
        fired += (f > 0).sum(dim=0)
    change = encodings.positive - encodings.negative
    more, less = (change > 0).sum(axis=0), (change < 0).sum(axis=0)
    n = more + less
    with np.errstate(invalid="ignore"):
        agreeing = np.where(n > 0, more / n, np.nan)
    p_side = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(more, less), n, 0.5))
    fires_first = (sae.encode(first.float()[None])[0] > 0).numpy()
    return LatentFacts((fired / len(rows)).numpy(), fires_first, change.mean(axis=0), agreeing, p_side)


@dataclass(frozen=True)
class Filters:
    """Which latents are irrelevant."""

    max_density: float
    named: tuple[int, ...] = ()
    obvious: int = 5

    def reasons(self, latent: int, coefficient: float, facts: LatentFacts) -> list[str]:
        """Why a latent with this coefficient in the vector is left out; none where it is kept."""
        tests = {
            "dense": facts.density[latent] > self.max_density,
            "first token": bool(facts.fires_first[latent]),
            # fires equally in both halves, or more in the other half than the vector would have it
            "non-discriminating": facts.p_side[latent] >= 0.05 or facts.side[latent] * coefficient <= 0,
            "named": latent in self.named,
        }
        return [reason for reason, holds in tests.items() if holds]


@dataclass(frozen=True, eq=False)
class Variant:
    """A vector to compare with the whole one, at its norm."""

    name: str
    vectors: FloatArray
    """[n_draws, d_model]; one for all but controls."""
    n_latents: int | None = None
    """That it is the sum of."""
    n_dropped: int | None = None


@dataclass(frozen=True, eq=False)
class Variants:
    """What was made of a vector."""

    made: tuple[Variant, ...]
    """The whole vector first, the controls last."""
    absent: dict[str, str] = field(default_factory=dict)
    """Why a condition is not there, by its name."""


@dataclass(frozen=True, eq=False)
class ReadVector:
    """A vector as an SAE reads it, with what is known of the latents."""

    sae: SAE
    vector: FloatArray
    """The whole one, [d_model]."""
    readings: Readings
    facts: LatentFacts
    filters: Filters

    @property
    def base(self) -> Combination:
        """The reconstruction that latents are dropped from: the largest signed pursuit."""
        return next(found for name, found in reversed(self.readings.items()) if name.startswith("signed"))

    def reasons(self) -> list[list[str]]:
        """Why each latent of the reconstruction is irrelevant; empty for those that are not."""
        both = zip(self.base.latents, self.base.coefficients.tolist(), strict=True)
        return [self.filters.reasons(latent, amount, self.facts) for latent, amount in both]

    def candidates(self) -> list[tuple[int, float]]:
        """The largest latents that no filter takes, with their coefficients; of all where none is left."""
        both = list(zip(self.base.latents, self.base.coefficients.tolist(), strict=True))
        kept = [one for one, why in zip(both, self.reasons(), strict=True) if not why]
        return (kept or both)[:N_CANDIDATES]


def build_variants(read: ReadVector, best: tuple[int, float], n_draws: int, seed: int) -> Variants:
    """Every condition and its controls.

    Args:
        read: What the vector consists of.
        best: The single best latent and its coefficient.
        n_draws: Of each control.
        seed: Of the draws.
    """
    base, (rows, _) = read.base, unit_rows(read.sae)
    reasons = read.reasons()
    made = [Variant(WHOLE, read.vector[None]), Variant("reconstruction", base.vector[None], len(base.latents), 0)]
    absent: dict[str, str] = {}

    def keep(name: str, kept: Sequence[bool]) -> None:
        places = np.flatnonzero(kept)
        if len(places) in (0, len(base.latents)):
            absent[name] = "no latent is left" if len(places) == 0 else "no latent is dropped"
            return
        made.append(Variant(name, _sum(base, rows, places)[None], len(places), len(base.latents) - len(places)))

    for reason in ("dense", "first token", "non-discriminating", *(["named"] if read.filters.named else [])):
        keep(f"without {reason}", [reason not in why for why in reasons])
    relevant = [not why for why in reasons]
    keep("irrelevant removed", relevant)
    obvious = set(np.flatnonzero(relevant)[: read.filters.obvious].tolist())
    keep("obvious only", [place in obvious for place in range(len(reasons))])
    made.append(Variant("single best latent", np.sign(best[1]) * rows[best[0]][None], 1, len(base.latents) - 1))
    target = _fgaa(read.facts, read.filters)
    for name, vector, n in (
        ("difference of encodings", read.readings["difference"].vector, len(read.readings["difference"].latents)),
        ("FGAA latents", target @ read.sae.W_dec.double().numpy(), int((target != 0).sum())),
    ):
        if np.linalg.norm(vector) > 0:
            made.append(Variant(name, vector[None], n))
        else:
            absent[name] = "no latent is left"
    made += _controls(base, rows, sum(not one for one in relevant), n_draws, seed)
    return Variants(tuple(made), absent)


def _sum(base: Combination, rows: FloatArray, places: NDArray[np.int64]) -> FloatArray:
    """Some of the reconstruction's latents."""
    return base.coefficients[places] @ rows[[base.latents[place] for place in places]]


def _fgaa(facts: LatentFacts, filters: Filters) -> FloatArray:
    tensors = (torch.from_numpy(facts.side), torch.from_numpy(facts.density), torch.from_numpy(facts.fires_first))
    return fgaa_target(*tensors, filters.max_density, FGAA_POSITIVE, FGAA_NEGATIVE).numpy()


def _controls(base: Combination, rows: FloatArray, n_dropped: int, n_draws: int, seed: int) -> list[Variant]:
    """As many latents dropped at random as are irrelevant, and random vectors."""
    rng = np.random.default_rng(seed)
    n = len(base.latents)
    controls = []
    if 0 < n_dropped < n:
        sums = [_sum(base, rows, rng.permutation(n)[n_dropped:]) for _ in range(n_draws)]
        controls.append(Variant(DRAWN_OUT, np.stack(sums), n - n_dropped, n_dropped))
    return [*controls, Variant(RANDOM, rng.normal(size=(n_draws, rows.shape[1])))]
