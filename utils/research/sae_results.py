"""What comes out of reading one vector by one SAE."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.inside.readings import VectorDecoding
from utils.research.decompose_request import DecomposeRequest
from utils.research.sae_filters import ReadVector, Variants
from utils.research.sae_readings import Controls
from utils.research.sae_tradeoff import LEVELS, Tradeoff
from utils.research.svd_results import ends_of
from utils.saes.conditions import number

N_LISTED = 20
"""Latents of the reconstruction that are listed."""
N_TOKENS = 6
N_EXAMPLES = 3


@dataclass(frozen=True)
class Distribution:
    """How far a vector is from what the SAE was trained on."""

    vector_norm: float
    token_norm: float
    """Median over the text's tokens."""
    vector_l0: int
    """Latents above 0 in encode(v)."""
    token_l0: float
    """Mean over the text's tokens."""

    @property
    def is_off(self) -> bool:
        """Whether v is no input of this SAE by its norm or by how many latents it sets off."""
        return not (0.5 < self.vector_norm / self.token_norm < 2 and 0.5 < self.vector_l0 / self.token_l0 < 2)


@dataclass(frozen=True, eq=False)
class SaeDone:
    """All that one SAE says of one vector."""

    request: DecomposeRequest
    behavior: str
    read: ReadVector
    controls: Controls
    distribution: Distribution
    decoding: VectorDecoding
    """Of the listed latents, by latent."""
    examples: dict[int, tuple[str, ...]]
    """Of the listed latents: stretches of text, the token on which the latent fires most between « »."""
    best: tuple[int, float]
    """The single best latent and its coefficient."""
    best_effect: float
    """On validation items."""
    variants: Variants
    tradeoffs: tuple[Tradeoff, ...]

    @property
    def listed(self) -> list[int]:
        return list(self.decoding.layers)

    def tokens(self, place: int, n: int) -> tuple[list[str], list[str]]:
        """What a listed latent promotes and suppresses most."""
        return ends_of(self.decoding, place, n)

    def as_json(self) -> dict[str, Any]:
        off = self.distribution
        return {
            "sae": self.read.sae.name,
            "trained_on": self.read.sae.source,
            "encoding_off_distribution": {**vars(off), "is_off": off.is_off},
            "readings": {name: self._reading_json(name) for name in self.read.readings},
            "latents": [self.latent_json(place) for place in range(len(self.listed))],
            "single_best_latent": {"latent": self.best[0], "effect_on_validation": self.best_effect},
            "variants": [self.variant_json(row) for row in range(len(self.variants.made))],
            "absent": self.variants.absent,
        }

    def _reading_json(self, name: str) -> dict[str, Any]:
        found = self.read.readings[name]
        return {
            "cosine": number(found.cosine),
            "unexplained": found.unexplained,
            "explained_at_best_scale": found.explained,
            "n_latents": len(found.latents),
            "n_negative": int((found.coefficients < 0).sum()),
            "explained_of_random_vectors": self.controls.random_vector.get(name),
            "explained_in_random_dictionaries": self.controls.random_dictionary.get(name),
            "top": [
                [latent, float(amount)]
                for latent, amount in zip(found.latents[:10], found.coefficients[:10], strict=True)
            ],
        }

    def latent_json(self, place: int) -> dict[str, Any]:
        """One listed latent."""
        latent, facts = self.listed[place], self.read.facts
        promoted, suppressed = self.tokens(place, N_TOKENS)
        return {
            "latent": latent,
            "coefficient": float(self.read.base.coefficients[place]),
            "density": float(facts.density[latent]),
            "fires_first": bool(facts.fires_first[latent]),
            "matching_minus_other": float(facts.side[latent]),
            "agreeing_pairs": number(float(facts.agreeing[latent])),
            "p_side": float(facts.p_side[latent]),
            "dropped_as": ", ".join(self.read.reasons()[place]),
            "promoted": promoted,
            "suppressed": suppressed,
            "examples": list(self.examples[latent]),
        }

    def variant_json(self, row: int) -> dict[str, Any]:
        one, traded = self.variants.made[row], self.tradeoffs[row]
        vector = one.vectors
        cosines = vector @ self.read.vector / np.linalg.norm(vector, axis=1) / np.linalg.norm(self.read.vector)
        return {
            "vector": one.name,
            "n_latents": one.n_latents,
            "n_dropped": one.n_dropped,
            "cosine_with_whole": float(cosines.mean()),
            "levels": [
                {"strength": level * self.request.strength, "kl_95": kl, **compared.as_json()}
                for level, kl, compared in zip(LEVELS, traded.kl, traded.levels, strict=True)
            ],
            "at_equal_kl": {"extrapolated": traded.beyond, **traded.equal.as_json()},
        }

    def line(self) -> str:
        """For the terminal."""
        read = self.read
        pursuit = f"signed {len(read.base.latents)} latents explain {read.base.explained:.0%}"
        equal = {
            one.name: traded.equal.difference for one, traded in zip(self.variants.made, self.tradeoffs, strict=True)
        }
        shown = [
            f"{name} {equal[name].value:+.3f} [{equal[name].low:+.3f}, {equal[name].high:+.3f}]"
            for name in ("reconstruction", "irrelevant removed", "obvious only", "single best latent")
            if name in equal
        ]
        return (
            f"{self.behavior}, SAE {read.sae.name}: {pursuit} of the vector, encode(v) "
            f"{read.readings['encoding'].explained:.0%}, difference of encodings "
            f"{read.readings['difference'].explained:.0%}; effect minus the whole vector's at equal KL: "
            f"{', '.join(shown)}"
        )
