"""From units to rows: every column of the benchmark with its interval, and what holds over the methods."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from utils.data.estimates import CONFIDENCE, Estimate, share_estimate, student_estimate
from utils.evaluation.chosen import holm
from utils.evaluation.metrics import item_slopes, mean_estimates, steerabilities
from utils.evaluation.paired_tests import paired_tests
from utils.files.reading import read_json
from utils.judge.score_files import answer_key
from utils.research.benchmark_judge import Scores, answers_of
from utils.research.benchmark_request import PROMPTS, TRANSFER, finite

if TYPE_CHECKING:
    from utils.research.benchmark_request import BenchmarkRequest

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Unit = Mapping[str, Any]
MINUS, NONE, PLUS = 0, 1, 2
"""Places of the sides in a unit's columns."""
N_RANKINGS = 2000
N_EXAMPLES = 2
"""Free answers of each side that are shown."""


@dataclass(frozen=True)
class Row:
    """One method on one behavior. Effects are for minus against the behavior, on the test items."""

    behavior: str
    method: str
    what: str
    kind: str
    layer: int | None
    amount: float | None
    effect: Estimate
    """Of the preference for the matching answer's text, nats per token. Of a control: over its draws."""
    p_value: float
    p_holm: float
    """Corrected over the behavior's methods; NaN for `none` and the controls."""
    moved_right: float
    """Share of items."""
    slope: Estimate
    """Of the preference, nats per token for each unit of the chosen amount."""
    against: Estimate
    """Share of items with a slope below 0."""
    over_prompt: Estimate | None
    """The effect beyond that of the system prompt, paired."""
    letters: Estimate | None
    """Of the log-odds of the matching letter, both orders of the answers."""
    free_metric: Estimate | None
    """Of the behavior's own measure of free answers."""
    judge: Estimate | None
    """Of the judge's scores of free answers, 0 to 10; None where no judge was asked."""
    kl_95: float
    """95th percentile of the per-token KL, on neutral prompts that nothing was chosen on; the larger of both sides."""
    perplexity: float
    """Of neutral texts, as a multiple of the unsteered model's; the larger one of both sides."""
    distinct_2: float | None
    """Of free answers; the smaller one of both sides."""
    mmlu: Estimate
    """Change of p(correct), mean of both sides."""
    truthful_qa: Estimate
    others: float | None
    """Mean absolute effect on the other behaviors."""
    seconds: float | None
    """To make the vector."""
    speed: float
    """Tokens a second, as a multiple of the unsteered model's."""

    @property
    def is_tested(self) -> bool:
        return self.kind not in ("none", "control")


def item_effects(unit: Unit) -> FloatArray:
    """Of each test item, [n_items]; of a control the mean over its draws."""
    if "draws" in unit:
        return np.asarray(unit["draws"], dtype=np.float64).mean(axis=0)
    preference = np.asarray(unit["preference"], dtype=np.float64)
    effects: FloatArray = preference[-1] - preference[0]
    return effects


class Results:
    """The units of a request that are there."""

    def __init__(self, request: "BenchmarkRequest") -> None:
        self.request = request
        self.units: dict[tuple[str, str], Unit] = {}
        self.not_run: list[Unit] = []
        self.transfer: dict[str, Unit] = {}
        for behavior in request.behaviors:
            for method in (*request.methods, *([TRANSFER] if request.transfer else [])):
                path = request.unit_path(behavior, method)
                if path.exists():
                    unit: Unit = read_json(path)
                    if "not_run" in unit:
                        self.not_run.append(unit)
                    elif method == TRANSFER:
                        self.transfer[behavior] = unit
                    else:
                        self.units[behavior, method] = unit

    @cached_property
    def judges(self) -> dict[str, Mapping[str, Any]]:
        """By behavior: who scored its free answers, and the scores; as they are when first asked for."""
        paths = {behavior: self.request.scores_path(behavior) for behavior in self.request.behaviors}
        return {behavior: read_json(path) for behavior, path in paths.items() if path.exists()}

    @cached_property
    def rows(self) -> list[Row]:
        """By behavior, the largest effect first."""
        found = []
        for behavior in self.request.behaviors:
            of_behavior = [unit for (one, _), unit in self.units.items() if one == behavior]
            if of_behavior:
                scores = self.judges.get(behavior, {}).get("scores", {})
                found += sorted(_rows(of_behavior, scores, self.request.seed), key=lambda row: -row.effect.value)
        return found

    def behaviors(self) -> list[str]:
        """Those with a unit that was run."""
        return list(dict.fromkeys(behavior for behavior, _ in self.units))

    @cached_property
    def ranks(self) -> dict[str, Estimate]:
        """Mean rank over behaviors (1: largest effect) of the methods that all of them have, the best first.

        Intervals by resampling each behavior's items, the same for all methods.
        """
        behaviors = self.behaviors()
        methods = [m for m in self.request.methods if behaviors and all((b, m) in self.units for b in behaviors)]
        if len(methods) < 2:
            return {}
        random = np.random.default_rng(self.request.seed)
        observed, drawn = [], []
        for behavior in behaviors:
            effects = np.stack([item_effects(self.units[behavior, method]) for method in methods])
            observed.append(stats.rankdata(-effects.mean(axis=1)))
            places = random.integers(0, effects.shape[1], (N_RANKINGS, effects.shape[1]))
            drawn.append(stats.rankdata(-effects[:, places].mean(axis=2), axis=0))  # [n_methods, N_RANKINGS]
        means = np.mean(drawn, axis=0)
        tail = (1 - CONFIDENCE) / 2
        limits = np.quantile(means, [tail, 1 - tail], axis=1)
        ranks = {
            method: Estimate(float(value), float(limits[0, i]), float(limits[1, i]), len(behaviors), len(behaviors))
            for i, (method, value) in enumerate(zip(methods, np.mean(observed, axis=0), strict=True))
        }
        return dict(sorted(ranks.items(), key=lambda entry: entry[1].value))

    def rows_json(self, behavior: str | None = None) -> list[dict[str, Any]]:
        """Of one behavior or all."""
        return [finite(asdict(row)) for row in self.rows if behavior in (None, row.behavior)]

    def to_json(self) -> dict[str, Any]:
        """What others may cite."""
        content = {
            "settings": self.request.describe(),
            "behaviors": list(self.request.behaviors),
            "methods": list(self.request.methods),
            "rows": self.rows_json(),
            "ranks": {method: asdict(rank) for method, rank in self.ranks.items()},
            "transfer": [
                {"behavior": behavior, "made_under": made, "tested_under": tested, "effect": asdict(effect)}
                for behavior, made, tested, effect in transfer_rows(self.transfer, self.request.seed)
            ],
            "not_run": [
                {key: unit[key] for key in ("behavior", "method", "not_run", "provide")} for unit in self.not_run
            ],
            "judges": {behavior: found["judge"] for behavior, found in self.judges.items()},
            "examples": {
                f"{b}/{m}": [side[:N_EXAMPLES] for side in unit["answers"]] for (b, m), unit in self.units.items()
            },
            "made": next((unit["made"] for unit in self.units.values()), {}),
        }
        found: dict[str, Any] = finite(content)
        return found


# --- one behavior -----------------------------------------------------------------------------------


def _rows(units: Sequence[Unit], scores: Scores, seed: int) -> list[Row]:
    effects = np.stack([item_effects(unit) for unit in units])
    estimates = mean_estimates(effects, seed)
    p_values = paired_tests(effects, seed).p_value
    is_tested = [unit["kind"] not in ("none", "control") for unit in units]
    tested = [i for i, of_family in enumerate(is_tested) if of_family and np.isfinite(p_values[i])]
    corrected = dict(zip(tested, holm([float(p_values[i]) for i in tested]), strict=True))
    prompt = next((i for i, unit in enumerate(units) if unit["method"] == "system_prompt"), None)
    over = mean_estimates(effects - effects[prompt], seed) if prompt is not None else None
    rows = []
    for i, unit in enumerate(units):
        estimate, p_value = estimates[i], float(p_values[i])
        if "draws" in unit:
            estimate, p_value = over_draws(np.asarray(unit["draws"], dtype=np.float64))
        versus = None if over is None or i == prompt else over[i]
        rows.append(_row(unit, estimate, p_value, corrected.get(i, np.nan), versus, scores, seed))
    return rows


def over_draws(draws: FloatArray) -> tuple[Estimate, float]:
    """Mean effect of the draws [n_draws, n_items] with Student's interval over draws, and its p-value.

    Over draws, not items: a single random vector may well move all items one way; which way is chance.
    """
    means = draws.mean(axis=1)
    p_value = float(stats.ttest_1samp(means, 0.0).pvalue) if len(means) > 1 else np.nan
    return student_estimate(means.tolist()), p_value


def _row(
    unit: Unit, effect: Estimate, p: float, p_holm: float, over: Estimate | None, scores: Scores, seed: int
) -> Row:
    slopes = item_slopes(np.asarray(unit["preference"], dtype=np.float64), unit["levels"])
    [steerability] = steerabilities(slopes[None], seed)
    items = item_effects(unit)
    is_none = unit["kind"] == "none"
    texts = np.asarray(unit["texts"], dtype=np.float64)
    distinct = [_mean(side) for side in unit["distinct_2"]]
    others = [abs(float(np.mean(effects))) for effects in unit["others"].values()]
    speeds = unit["tokens_per_second"]
    return Row(
        unit["behavior"],
        unit["method"],
        unit["what"],
        unit["kind"],
        unit.get("layer"),
        unit.get("amount"),
        effect,
        np.nan if is_none else p,
        p_holm,
        float((items > 0).mean()),
        steerability.slope,
        share_estimate(0, len(items), len(items)) if is_none else steerability.anti_share,
        over,
        _both_sides(unit["log_odds"], seed),
        _both_sides(unit["free_metric"], seed),
        _both_sides(_scores(unit, scores), seed),
        max(side["p95"] for side in unit["kl"]),
        float(np.exp((texts[NONE] - texts[[MINUS, PLUS]]).mean(axis=1).max())),
        min((value for value in (distinct[MINUS], distinct[PLUS]) if value is not None), default=None),
        _change(unit["mmlu"], seed),
        _change(unit["truthful_qa"], seed),
        float(np.mean(others)) if others else None,
        unit.get("seconds", {}).get("make"),
        (speeds[MINUS] + speeds[PLUS]) / 2 / speeds[NONE],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _both_sides(sides: Sequence[Sequence[float | None]] | None, seed: int) -> Estimate | None:
    """Plus minus minus, over the items that have both."""
    if sides is None:
        return None
    values = np.array(sides, dtype=np.float64)
    if not np.isfinite(values[PLUS] - values[MINUS]).any():
        return None
    return mean_estimates((values[PLUS] - values[MINUS])[None], seed)[0]


def _scores(unit: Unit, scores: Scores) -> list[list[float | None]]:
    """The judge's scores of each side's answers, [n_sides][n_questions]."""
    return [[scores.get(answer_key(one)) for one in side] for side in answers_of(unit)]


def _change(sides: Sequence[Sequence[float]], seed: int) -> Estimate:
    """Mean change of both sides from none."""
    values = np.array(sides, dtype=np.float64)
    return mean_estimates(((values[PLUS] + values[MINUS]) / 2 - values[NONE])[None], seed)[0]


def transfer_rows(units: Mapping[str, Mapping[str, Any]], seed: int) -> list[tuple[str, str, str, Estimate]]:
    """Behavior, system prompt of the making, of the test, and the effect."""
    rows: list[tuple[str, str, str, Estimate]] = []
    for behavior, unit in units.items():
        effects = np.array(unit["effects"], dtype=np.float64)
        for i, made in enumerate(PROMPTS):
            for tested, estimate in zip(PROMPTS, mean_estimates(effects[i], seed), strict=True):
                rows.append((behavior, made or "none", tested or "none", estimate))
    return rows
