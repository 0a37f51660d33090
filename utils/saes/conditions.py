"""What edits do to a model's answers: refusal rates, the refusal metric, and KL, against the same prompts unedited."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.cli.progress import progress
from utils.data.estimates import Estimate
from utils.evaluation.metrics import mean_estimates
from utils.evaluation.paired_tests import paired_tests
from utils.model.ablation import AblationKind, References, ablation
from utils.model.chat_format import PromptTokens
from utils.model.steering import Steering
from utils.saes.prompts import SIDES, Side
from utils.saes.refusal import MATCHERS, Answers, answer_all, kl_divergence, mcnemar, next_token_logits, refusal_metric

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Condition:
    """An edit of a model, on prompts of one side."""

    side: Side
    edit: str
    """none, ablated or added."""
    what: str
    """What is ablated or added, in words; empty for none."""
    steerings: tuple[Steering, ...] = ()
    first_token: int = 0
    """The first token of the prompt that is edited."""

    @property
    def name(self) -> str:
        return "unedited" if self.edit == "none" else f"{self.what} {self.edit}"


BASELINES = tuple(Condition(side, "none", "") for side in SIDES)


def ablating(
    what: str, direction: "Tensor", n_layers: int, references: References | None, side: Side = "harmful"
) -> Condition:
    """A direction ablated everywhere: to the references where there are such, else to zero."""
    kind: AblationKind = "zero" if references is None else "affine"
    steerings = ablation(direction, n_layers, references)
    return Condition(side, "ablated", what, steerings, 0 if kind == "zero" else 1)


def adding(what: str, direction: "Tensor", layer: int, side: Side = "harmless") -> Condition:
    """A direction added, at its own norm, behind a layer, at every token."""
    return Condition(side, "added", what, (Steering(layer, 1.0, direction),))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a condition's prompts gave."""

    condition: Condition
    answers: Answers
    metric: FloatArray
    """log p - log(1 - p) of a refusal's first token, [n]."""
    kl: FloatArray
    """To the unedited next token, [n]."""


def run_conditions(
    model: "LlamaWrapper",
    prompts: dict[Side, list[PromptTokens]],
    conditions: Sequence[Condition],
    tokens: Sequence[int],
    max_new_tokens: int,
) -> list[Outcome]:
    """Every condition; those of `BASELINES` that are needed come first."""
    sides = [side for side in SIDES if any(one.side == side for one in conditions)]
    clean = {side: next_token_logits(model, prompts[side]) for side in sides}
    every = [*(one for one in BASELINES if one.side in sides), *(one for one in conditions if one.edit != "none")]
    outcomes = []
    for condition in progress(every, desc="conditions"):
        edited = [replace(prompt, steer_start=condition.first_token) for prompt in prompts[condition.side]]
        logits = clean[condition.side]
        if condition.steerings:
            logits = next_token_logits(model, edited, condition.steerings)
        answers = answer_all(model, edited, condition.steerings or None, max_new_tokens)
        kl = kl_divergence(clean[condition.side], logits)
        outcomes.append(Outcome(condition, answers, refusal_metric(logits, tokens), kl))
    return outcomes


@dataclass(frozen=True)
class Summary:
    """A condition in numbers."""

    condition: Condition
    rates: dict[str, Estimate]
    """Share of refusals by matcher, with Wilson's interval."""
    p_mcnemar: dict[str, float]
    """That as many answers changed one way as the other, against unedited; by matcher."""
    metric: Estimate
    """Mean refusal metric."""
    change: Estimate
    """Its mean change from unedited, prompt by prompt."""
    p_change: float
    """That the mean change is 0; NaN where there is no test."""
    kl: float
    """Mean KL to unedited."""

    def as_json(self) -> dict[str, Any]:
        return {
            "side": self.condition.side,
            "edit": self.condition.edit,
            "what": self.condition.what,
            "n": self.metric.n,
            **{f"refused_{name}": interval(rate) for name, rate in self.rates.items()},
            **{f"p_mcnemar_{name}": p for name, p in self.p_mcnemar.items()},
            "metric": interval(self.metric),
            "metric_change": interval(self.change),
            "p_metric_change": number(self.p_change),
            "kl": number(self.kl),
        }


def summarize(outcomes: Sequence[Outcome], seed: int) -> list[Summary]:
    """Each outcome against the unedited one of its side."""
    before = {one.condition.side: one for one in outcomes if one.condition.edit == "none"}
    summaries = []
    for one in outcomes:
        base = before[one.condition.side]
        change = one.metric - base.metric
        metric, changed = mean_estimates(np.stack([one.metric, change]), seed)
        tested = paired_tests(change[None], seed).p_value[0] if one is not base else np.nan
        summaries.append(
            Summary(
                one.condition,
                {matcher: one.answers.rate(matcher) for matcher in MATCHERS},
                {m: mcnemar(base.answers.refused(m), one.answers.refused(m)) for m in MATCHERS},
                metric,
                changed,
                float(tested),
                float(one.kl.mean()),
            )
        )
    return summaries


def interval(estimate: Estimate) -> dict[str, float | int | None]:
    """An estimate as JSON; None where a number is not defined."""
    return {
        "value": number(estimate.value),
        "low": number(estimate.low),
        "high": number(estimate.high),
        "n": estimate.n,
    }


def number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
