"""Which candidate direction is the refusal direction: the scores and the rule of Arditi et al. 2024, appendix C.

Of each candidate, on validation prompts: *bypass*, the mean refusal metric of harmful prompts while it is ablated;
*induce*, that of harmless prompts while it is added at its layer; and the KL divergence that its ablation causes on
harmless prompts. Of those with a small KL, an induce score of 0 or more and a layer in the first 80%, the one with the
lowest bypass is chosen. In files they are called refusal_score, steering_score and kl_div_score, and `layer` is the
block that reads the place (see `directions`).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files.reading import read_json
from utils.model.ablation import AblationKind, References, ablated_tokens, ablation
from utils.model.chat_format import PromptTokens
from utils.model.steering import Steering
from utils.saes.directions import read_by
from utils.saes.refusal import kl_divergence, next_token_logits, refusal_metric

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]
_KEYS = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")


@dataclass(frozen=True)
class Scores:
    """A candidate's; None where a score is not defined."""

    position: int
    """Token, counted from the prompt's end."""
    layer: int
    """The block that reads the place: Arditi's count, one more than the suite's."""
    refusal_score: float | None
    steering_score: float | None
    kl_div_score: float | None


@dataclass(frozen=True)
class SelectionRule:
    """Which candidates may be chosen."""

    n_layers: int
    """Of the model."""
    max_kl: float = 0.1
    min_induce: float = 0.0
    share_of_layers: float = 0.8

    def keeps(self, scores: Scores) -> bool:
        values = (scores.refusal_score, scores.steering_score, scores.kl_div_score)
        if any(value is None or math.isnan(value) for value in values):
            return False
        assert scores.steering_score is not None and scores.kl_div_score is not None
        return (
            scores.layer < int(self.share_of_layers * self.n_layers)
            and scores.kl_div_score <= self.max_kl
            and scores.steering_score >= self.min_induce
        )


@dataclass(frozen=True)
class Selection:
    """What the rule leaves, and takes."""

    kept: tuple[Scores, ...]
    """By ascending bypass score."""

    @property
    def chosen(self) -> Scores:
        return self.kept[0]


def select(candidates: Sequence[Scores], rule: SelectionRule) -> Selection:
    """Apply the rule; of equals the first is taken.

    Raises:
        UserError: If no candidate is kept; says which bound excludes the most promising ones.
    """
    kept = [scores for scores in candidates if rule.keeps(scores)]
    if not kept:
        raise UserError(_why_none(candidates, rule))
    return Selection(tuple(sorted(kept, key=lambda scores: scores.refusal_score or 0.0)))


def _why_none(candidates: Sequence[Scores], rule: SelectionRule) -> str:
    usable = [scores for scores in candidates if SelectionRule(rule.n_layers, math.inf).keeps(scores)]
    if not usable:
        return (
            f"none of {len(candidates)} candidates brings refusal about (induce score of {rule.min_induce:g} or more)"
        )
    nearest = min(usable, key=lambda scores: scores.kl_div_score or 0.0)
    return (
        f"none of {len(candidates)} candidates has a KL of {rule.max_kl:g} or less with an induce score of "
        f"{rule.min_induce:g} or more; the lowest is {nearest.kl_div_score:.3f} (position {nearest.position}, input of "
        f"block {nearest.layer}): allow it with --max_kl (--ablation affine causes less than zero)"
    )


@dataclass(frozen=True)
class Evaluations:
    """Stored scores."""

    candidates: tuple[Scores, ...]
    n_layers: int


def read_evaluations(path: Path) -> Evaluations:
    """Candidates' scores from a file: Arditi's direction_evaluations.json, or an object that holds such a list.

    In a bare list every layer is taken to be there, as in Arditi's: the highest is the model's last.

    Raises:
        UserError: Names the file and the item.
    """
    content = read_json(path, "name a direction_evaluations.json")
    items = content.get("evaluations") if isinstance(content, dict) else content
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: expected a list of candidates' scores, or an object with one under 'evaluations'")
    candidates = tuple(_scores_of(item, f"{path}, item {index}") for index, item in enumerate(items))
    n_layers = content.get("n_layers") if isinstance(content, dict) else None
    return Evaluations(candidates, n_layers if type(n_layers) is int else 1 + max(one.layer for one in candidates))


def _scores_of(item: Any, where: str) -> Scores:
    if not isinstance(item, dict) or any(key not in item for key in _KEYS):
        raise UserError(f"{where}: expected the keys {', '.join(_KEYS)}")
    if type(item["position"]) is not int or type(item["layer"]) is not int:
        raise UserError(f"{where}: position and layer must be whole numbers")
    numbers = [item[key] for key in _KEYS[2:]]
    if any(value is not None and type(value) not in (int, float) for value in numbers):
        raise UserError(f"{where}: scores must be numbers, or null where they are not defined")
    return Scores(item["position"], item["layer"], *numbers)


def as_json(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    return [asdict(one) for one in scores]


# --- measuring them ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CandidateValues:
    """A candidate's scores of every validation prompt, each [n] in nats."""

    bypass: FloatArray
    induce: FloatArray
    kl: FloatArray

    def scores(self, position: int, layer: int) -> Scores:
        """Their means."""
        means = [float(values.mean()) for values in (self.bypass, self.induce, self.kl)]
        return Scores(position, read_by(layer), *(value if math.isfinite(value) else None for value in means))

    def as_rows(self) -> list[list[float]]:
        """For a journal; no value of a model that runs is infinite or NaN."""
        return [values.tolist() for values in (self.bypass, self.induce, self.kl)]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[float]]) -> "CandidateValues":
        return cls(*(np.array(values, dtype=np.float64) for values in rows))


class Evaluator:
    """Measures candidate directions of one model on validation prompts."""

    def __init__(
        self,
        model: "LlamaWrapper",
        harmful: Sequence[PromptTokens],
        harmless: Sequence[PromptTokens],
        tokens: Sequence[int],
        kind: AblationKind,
    ) -> None:
        self.model, self.tokens = model, list(tokens)
        self._harmful = [ablated_tokens(prompt, kind) for prompt in harmful]
        self._harmless = [ablated_tokens(prompt, kind) for prompt in harmless]
        self._harmless_all = list(harmless)
        self._clean = next_token_logits(model, harmless)
        self.harmful_before = refusal_metric(next_token_logits(model, harmful), tokens)
        self.harmless_before = refusal_metric(self._clean, tokens)

    def measure(self, direction: "Tensor", layer: int, references: References | None) -> CandidateValues:
        """Ablate the direction everywhere; add it behind its layer, at every token.

        Args:
            direction: [d_model], with its own norm.
            layer: The suite's.
            references: For affine ablation.
        """
        ablated = ablation(direction, self.model.n_layers, references)
        harmful = next_token_logits(self.model, self._harmful, ablated)
        harmless = next_token_logits(self.model, self._harmless, ablated)
        added = next_token_logits(self.model, self._harmless_all, Steering(layer, 1.0, direction))
        return CandidateValues(
            refusal_metric(harmful, self.tokens),
            refusal_metric(added, self.tokens),
            kl_divergence(self._clean, harmless),
        )


def random_direction(like: "Tensor", seed: int) -> "Tensor":
    """A direction of the same norm as `like` [d_model], evenly drawn from all directions."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn / drawn.norm() * like.double().norm()).float()
