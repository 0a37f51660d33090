"""What comes out of taking one vector apart by singular vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.inside.readings import VectorDecoding
from utils.research.decompose_request import DecomposeRequest
from utils.research.svd_components import Consistency, Decomposition, FloatArray
from utils.research.vector_effects import WHOLE, Compared

N_LISTED = 24
"""Components whose numbers and tokens are listed."""
N_TOKENS = 8


def ends_of(decoding: VectorDecoding, row: int, n: int) -> tuple[list[str], list[str]]:
    """The tokens that a decoded vector promotes and suppresses most."""
    promoted, suppressed = (ids[row, :n].tolist() for ids in (decoding.top_ids, decoding.bottom_ids))
    return [decoding.texts[token] for token in promoted], [decoding.texts[token] for token in suppressed]


@dataclass(frozen=True, eq=False)
class Apart:
    """One vector taken apart."""

    parts: Decomposition
    spectra: FloatArray
    """Null spectra, [n_flips, at least rank]."""
    n_real: int
    """Leading components above their null."""
    consistency: Consistency
    centred_with_first: float
    """Cosine of the first centred component with the first uncentred one."""
    centred_with_vector: float
    decoding: VectorDecoding
    """Of the listed components, under their numbers from 1."""

    @property
    def n_consistent(self) -> int:
        """Components on whose side the pairs agree, over all of them."""
        return int((self.consistency.p_family < 0.05).sum())

    @property
    def n_listed(self) -> int:
        return len(self.decoding.layers)

    def tokens(self, component: int, n: int) -> tuple[list[str], list[str]]:
        """What a component, counted from 0, promotes and suppresses most."""
        return ends_of(self.decoding, component, n)


@dataclass(frozen=True, eq=False)
class PartEffect:
    """What one vector does to held-out answers, at the norm of all the others."""

    name: str
    """whole, rank2, without1, random, drawn signs."""
    rank: int | None
    """Of those of the first components."""
    cosine: float
    """With the whole vector; of several draws the mean."""
    compared: Compared


@dataclass(frozen=True, eq=False)
class Done:
    """What came out of one job."""

    request: DecomposeRequest
    behavior: str
    layer: int
    apart: Apart
    effects: tuple[PartEffect, ...]

    def as_json(self) -> dict[str, Any]:
        apart, parts = self.apart, self.apart.parts
        return {
            "n_pairs": len(parts.projections),
            "rank": parts.rank,
            "vector_norm": float(np.linalg.norm(parts.vector)),
            "n_real": apart.n_real,
            "n_consistent": apart.n_consistent,
            "centred_first_component": {
                "cosine_with_uncentred": apart.centred_with_first,
                "cosine_with_vector": apart.centred_with_vector,
            },
            "singular_values": parts.singular_values.tolist(),
            "null_95": np.quantile(apart.spectra, 0.95, axis=0)[: parts.rank].tolist(),
            "share_of_differences": parts.share_of_differences.tolist(),
            "share_of_vector": parts.share_of_vector.tolist(),
            "components": [self.component_json(k) for k in range(apart.n_listed)],
            "effects": [
                {"vector": one.name, "rank": one.rank, "cosine": one.cosine, **one.compared.as_json()}
                for one in self.effects
            ],
        }

    def component_json(self, k: int) -> dict[str, Any]:
        """One component, counted from 0."""
        parts, consistency = self.apart.parts, self.apart.consistency
        promoted, suppressed = self.apart.tokens(k, N_TOKENS)
        return {
            "component": k + 1,
            "singular_value": float(parts.singular_values[k]),
            "share_of_differences": float(parts.share_of_differences[k]),
            "share_of_vector": float(parts.share_of_vector[k]),
            "weight": float(parts.weights[k]),
            "weight_null_95": float(consistency.limit[k]),
            "p_family": float(consistency.p_family[k]),
            "agreeing_pairs": float(parts.agreeing[k]),
            "promoted": promoted,
            "suppressed": suppressed,
        }

    def line(self) -> str:
        """For the terminal."""
        parts = self.apart.parts
        effect = {one.name: one.compared.effect for one in self.effects}
        ranks = [one for one in self.effects if one.rank is not None]
        shown = [f"{one.name} {one.compared.effect.value:+.3f}" for one in ranks[:1]]
        shown += [f"{name} {effect[name].value:+.3f}" for name in (WHOLE, "without1", "random") if name in effect]
        return (
            f"{self.behavior}, layer {self.layer}: {self.apart.n_real} of {parts.rank} components above the sign-flip "
            f"null, {self.apart.n_consistent} on whose side the pairs agree; component 1 has "
            f"{parts.share_of_differences[0]:.0%} of the differences and {parts.share_of_vector[0]:.0%} of the vector; "
            f"effect, nats per token: {', '.join(shown)}"
        )
