"""What a hierarchy's numbers come to, beside those of its controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.estimates import Estimate
from utils.evaluation.metrics import mean_estimates
from utils.research.concept_layout import Layout
from utils.research.concept_space import FloatArray
from utils.research.concept_statistics import Gap, Geometry
from utils.research.concept_words import CategoryTokens


@dataclass(frozen=True, eq=False)
class Measured:
    """A hierarchy's numbers beside those of the controls."""

    label: str
    categories: list[CategoryTokens]
    layout: Layout
    x: FloatArray
    """[n_rows, d_model]: whitened rows of the words' tokens."""
    background: FloatArray
    """[n, d_model]: of random tokens, for figures."""
    real: Geometry
    shuffled: list[Geometry]
    """With random tokens in the place of the words'."""
    random_parent: FloatArray
    """[n_draws, n_children]"""
    random_gap: float


def summarise(measured: Measured, seed: int) -> dict[str, Estimate]:
    """Means over categories with bootstrap intervals; of controls the mean and the range of 95% of the draws."""
    real, shuffled = measured.real, measured.shuffled
    found = {
        "nested": _mean(real.nested, seed),
        "nested_shuffled": _range([one.nested.mean() for one in shuffled]),
        "random_parent": _range(measured.random_parent.mean(axis=1)),
        "other_parent": _mean(real.other_parent, seed),
        "apart": _mean(real.apart, seed),
        "apart_shuffled": _range([one.apart.mean() for one in shuffled]),
        "share": _mean(real.share, seed),
        "share_shuffled": _range([one.share.mean() for one in shuffled]),
        "norm": _mean(real.norms, seed),
        "norm_shuffled": _range([one.norms.mean() for one in shuffled]),
        "members": _mean(real.members, seed),
        "members_shuffled": _range([one.members.mean() for one in shuffled]),
        "outsiders": _mean(real.outsiders, seed),
        "corners": _mean(real.corners, seed),
        "corners_shuffled": _range([one.corners.mean() for one in shuffled]),
        "nearest": _mean(np.concatenate(real.nearest), seed, (0.0, 1.0)),
        "nearest_shuffled": _range([np.concatenate(one.nearest).mean() for one in shuffled]),
    }
    for kind in ("parent", "child"):
        for held_out in (True, False):
            name = f"{kind}_step_{'held_out' if held_out else 'all_words'}"
            own, other = _gaps(real.gaps, kind, held_out=held_out)
            drawn = [_gaps(one.gaps, kind, held_out=held_out) for one in shuffled]
            found[f"{name}_own"] = _mean(own, seed)
            found[f"{name}_other"] = _mean(other, seed)
            found[f"{name}_own_shuffled"] = _range([values.mean() for values, _ in drawn])
            found[f"{name}_other_shuffled"] = _range([values.mean() for _, values in drawn])
    return found


def _gaps(gaps: Sequence[Gap], kind: str, *, held_out: bool) -> tuple[FloatArray, FloatArray]:
    """Own and other changes of the steps of one kind."""
    chosen = [gap for gap in gaps if gap.kind == kind and gap.held_out == held_out]
    return np.array([gap.own for gap in chosen]), np.array([gap.other for gap in chosen])


def _mean(values: FloatArray, seed: int, bounds: tuple[float, float] | None = None) -> Estimate:
    return mean_estimates(values[None], seed, bounds)[0]


def _range(draws: Sequence[float] | FloatArray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(np.mean(draws)), float(low), float(high), len(draws), len(draws))


def estimate_json(estimate: Estimate) -> dict[str, float | int | None]:
    """For a result file; an interval that is not defined is null."""
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{name: x if math.isfinite(x) else None for name, x in bounds.items()}, "n": estimate.n}


def summary_lines(found: dict[str, Estimate], measured: Measured) -> list[str]:
    """The summary for the terminal."""

    def row(what: str, name: str, *controls: tuple[str, str]) -> str:
        beside = "; ".join(f"{label} {interval(found[key])}" for label, key in controls)
        return f"{what:58} {interval(found[name]):26} {beside}"

    chance = np.mean([1 / len(measured.layout.siblings(p)) for p in range(len(measured.layout.parents))])

    def beside(name: str) -> tuple[str, str]:
        return "shuffled", f"{name}_shuffled"

    lines = [
        row(
            "cos(child - parent, parent), child among the parent's words",
            "nested",
            beside("nested"),
            ("random parent", "random_parent"),
            ("other parent", "other_parent"),
        ),
        row("cos(child - parent, parent), parent of its other children", "apart", beside("apart")),
        row("share of that parent's vector in the child's (1)", "share", beside("share")),
        row("norm of a child's vector", "norm", beside("norm")),
        row("held-out words on their vector (1)", "members", beside("members"), ("others' (0)", "outsiders")),
        row("cosine between corners of a simplex", "corners", beside("corners")),
        row(f"held-out words at their own corner (chance {chance:.2f})", "nearest", beside("nearest")),
    ]
    for held_out, words in (("held_out", "held-out words"), ("all_words", "all words")):
        for kind, other in (("parent", "child"), ("child", "parent")):
            name = f"{kind}_step_{held_out}"
            lines.append(
                row(f"step between {_PLURAL[kind]}: {kind} gap, {words}", f"{name}_own", beside(f"{name}_own"))
            )
            lines.append(row(f"    |{other} gap|", f"{name}_other", beside(f"{name}_other")))
    lines.append(f"random steps: |parent gap|, held-out words                  {measured.random_gap:.3f}")
    return lines


_PLURAL = {"parent": "parents", "child": "siblings"}


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def per_child_rows(measured: Measured) -> list[tuple[Any, ...]]:
    """One row a category, with 95% of the draws of each control."""
    layout, real = measured.layout, measured.real
    rows = []
    for child, category in enumerate(measured.categories):
        nested, apart, share, norms = (
            _range([getattr(one, name)[child] for one in measured.shuffled])
            for name in ("nested", "apart", "share", "norms")
        )
        random_parent = _range(measured.random_parent[:, child])
        rows.append(
            (
                layout.parents[layout.parent_of[child]],
                category.name,
                len(category.words),
                category.n_left_out,
                category.n_tokens,
                float(real.nested[child]),
                *(nested.value, nested.low, nested.high),
                *(random_parent.value, random_parent.low, random_parent.high),
                float(real.other_parent[child]),
                float(real.apart[child]),
                *(apart.value, apart.low, apart.high),
                float(real.share[child]),
                *(share.value, share.low, share.high),
                float(real.norms[child]),
                norms.value,
                float(real.members[child]),
                float(real.outsiders[child]),
            )
        )
    return rows
