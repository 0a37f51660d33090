"""What adding vectors does to held-out answers, each at the same norm, paired item by item.

The effect is the preference for the matching answer's text at +strength minus at -strength, in nats per token.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from utils.cli.progress import progress
from utils.data.estimates import Estimate
from utils.data.records import TextPair
from utils.evaluation.choice import Effects
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.paired_tests import paired_tests
from utils.evaluation.preferences import answer_pair
from utils.files.journal import open_journal
from utils.model import processes
from utils.model.steering import Steering
from utils.research.svd_components import FloatArray
from utils.vectors.norms import multiplier_of_strength

WHOLE = "whole"
"""The vector that others are compared with."""

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper


@dataclass(frozen=True)
class Scoring:
    """On what, and how."""

    items: Sequence[TextPair]
    folder: Path
    """Where items that are done are kept until all are."""
    depends_on: Mapping[str, Any]
    """Tells this run from others."""
    batch_size: int | None = None
    plainly: bool = False
    label: str = "held-out answers"


def at_strength(layer: int, strength: float, norm: float, vector: Tensor) -> Steering:
    """Steering that adds `strength` x the layer's residual norm along a vector."""
    return Steering(layer, multiplier_of_strength(strength, norm, vector), vector)


def measure_effects(model: "LlamaWrapper", steerings: Sequence[Steering], scoring: Scoring) -> Effects:
    """Score every item under each steering and its opposite; a run that is killed goes on where it was.

    Several processes share the items, and each gets all.
    """
    pairs = [answer_pair(model.chat_format, item) for item in scoring.items]
    signed = [replace(one, multiplier=sign * one.multiplier) for one in steerings for sign in (1, -1)]
    run = {**scoring.depends_on, "fingerprint": model.fingerprint, "processes": processes.count()}
    run["steerings"] = [(one.layer, one.multiplier, _digest(one.vector)) for one in signed]
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]
    path = scoring.folder / f".effects_{digest}_{processes.index()}.jsonl"
    score = model.score_answers_plainly if scoring.plainly else model.score_answers
    with open_journal(path, {"run": digest}) as journal:
        done = {int(key) for key in journal.entries}
        with progress(total=len(pairs), initial=len(done), desc=scoring.label, unit="item") as bar:
            for index, scores in score(pairs, [None, *signed], scoring.batch_size, done):
                journal.append(str(index), (scores[:, 0] - scores[:, 1]).tolist())
                bar.update()
        preference = np.empty((1 + len(signed), len(pairs)))
        for share in processes.gather(journal.entries):
            for key, values in share.items():
                preference[:, int(key)] = values
        journal.remove()
    change = preference[1:] - preference[0]
    return Effects(change[0::2], change[1::2])


def _digest(vector: Tensor) -> str:
    return hashlib.sha256(vector.float().numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Compared:
    """The effect of one vector, and how it differs from another's on the same items."""

    effect: Estimate
    p_value: float
    """That it is 0."""
    difference: Estimate
    """From the vector that it is compared with; not defined for that one itself."""
    p_difference: float

    def as_json(self) -> dict[str, float | int | None]:
        values = {
            "effect": self.effect.value,
            "low": self.effect.low,
            "high": self.effect.high,
            "p": self.p_value,
            "difference": self.difference.value,
            "difference_low": self.difference.low,
            "difference_high": self.difference.high,
            "p_difference": self.p_difference,
        }
        return {"n": self.effect.n, **{name: float(v) if np.isfinite(v) else None for name, v in values.items()}}


def compare(effects: FloatArray, reference: int, seed: int) -> list[Compared]:
    """Each vector by itself and, paired, against one of them.

    Args:
        effects: [n_vectors, n_items]
        reference: The row that the others are compared with.
        seed: Of the resampling.
    """
    differences = effects - effects[reference]
    differences[reference] = np.nan
    own, beside = mean_estimates(effects, seed), mean_estimates(differences, seed)
    p_own = [paired_tests(row[None], seed).p_value[0] for row in effects]
    p_beside = [paired_tests(row[None], seed).p_value[0] for row in differences]
    return [Compared(*each) for each in zip(own, map(float, p_own), beside, map(float, p_beside), strict=True)]
