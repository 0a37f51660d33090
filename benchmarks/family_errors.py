"""False positives and power over a family of layers: the suite's paired test beside others.

A data set has 50 items and 30 layers that correlate at 0.7. A false positive is a data set in which any layer
without an effect is taken to hold at 5%; the mixed family has one log-normal layer in five, the others normal.
Power is the share found of 10 layers that have an effect, of the given size in standard deviations, towards
the long tail of the shape (+) or away from it (-).

Example: python -m benchmarks.family_errors
         python -m benchmarks.family_errors --data_sets 1000
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.shapes import SHAPES, FloatArray, draw_family, score_correlation
from utils.evaluation.chosen import holm
from utils.evaluation.paired_tests import paired_tests
from utils.evaluation.resampling import drawn_counts
from utils.files.writing import write_json

N_ITEMS, N_LAYERS = 50, 30
AFFECTED = np.arange(N_LAYERS) % 3 == 0
ALPHA = 0.05
MIXED = "mixed"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_sets", type=int, default=150, metavar="N", help="for each row (default: 150)")
    parser.add_argument("--resamples", type=int, default=3000, metavar="N", help="of every test (default: 3000)")
    parser.add_argument("--effects", type=float, nargs="*", default=[0.5, 0.7], help="default: 0.5 0.7")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, MIXED], default=[*SHAPES, MIXED], help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the data sets and resamples (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


# --- the tests that are compared: family p-values [n_layers] of differences [n_layers, n_items] ------


def sign_flips_with_holm(differences: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    """Permutation of signs, exact for symmetric differences; Holm 1979."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n_resamples, differences.shape[1]))
    at_least = np.abs(signs @ differences.T) >= np.abs(differences.sum(axis=1)) * (1 - 1e-12)
    return np.array(holm((1 + at_least.sum(axis=0)) / (1 + n_resamples)))


def bootstrap_t_with_holm(differences: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    """Symmetric bootstrap-t; Holm 1979."""
    t, resampled = absolute_t(differences, seed, n_resamples)
    return np.array(holm((1 + (resampled >= t).sum(axis=0)) / (1 + n_resamples)))


def bootstrap_t_with_max_t(differences: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    """Symmetric bootstrap-t against the largest of all layers, step-down (Westfall & Young 1993)."""
    t, resampled = absolute_t(differences, seed, n_resamples)
    ascending = np.argsort(t)
    largest = np.maximum.accumulate(resampled[:, ascending], axis=1)
    p = (1 + (largest >= t[ascending]).sum(axis=0)) / (1 + n_resamples)
    adjusted = np.empty(len(t))
    adjusted[ascending] = np.maximum.accumulate(p[::-1])[::-1]
    return adjusted


def absolute_t(differences: FloatArray, seed: int, n_resamples: int) -> tuple[FloatArray, FloatArray]:
    """|t| of the layers, [n_layers], and of resamples around their means, [n_resamples, n_layers]."""
    n = differences.shape[1]
    means, deviations = differences.mean(axis=1), differences.std(axis=1)
    scaled = (differences - means[:, None]) / deviations[:, None]
    counts = np.concatenate(list(drawn_counts(n, n, n_resamples, seed)))
    first, second = counts @ scaled.T / n, counts @ (scaled**2).T / n
    variance = np.maximum(second - first**2, 1e-300)  # no spread: as good as infinite
    root = np.sqrt(n - 1)
    return np.abs(means / deviations) * root, np.abs(first) / np.sqrt(variance) * root


def the_suites(differences: FloatArray, seed: int, n_resamples: int) -> FloatArray:
    return paired_tests(differences, seed, n_resamples).p_family


METHODS: dict[str, Callable[[FloatArray, int, int], FloatArray]] = {
    "sign flips, Holm": sign_flips_with_holm,
    "bootstrap-t, Holm": bootstrap_t_with_holm,
    "bootstrap-t, max-T": bootstrap_t_with_max_t,
    "the suite's": the_suites,
}

# --- the simulation ----------------------------------------------------------------------------------


def families(shape: str, rng: np.random.Generator, n: int) -> Iterator[FloatArray]:
    """`n` data sets without effects, [n_layers, n_items] each."""
    if shape == MIXED:
        tailed = np.arange(N_LAYERS)[:, None] % 5 == 0
        for scores in families("normal", rng, n):
            yield np.where(tailed, SHAPES["log-normal"](scores), scores)
        return
    correlation = score_correlation(SHAPES[shape])
    for _ in range(n):
        yield draw_family(rng, SHAPES[shape], correlation, N_LAYERS, N_ITEMS)


def simulate(shape: str, effect: float, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """For each method and data set: any false positive (0 or 1), and the share found of the affected layers."""
    rng = np.random.default_rng(args.seed)
    outcomes: dict[str, dict[str, list[float]]] = {name: {"false": [], "found": []} for name in METHODS}
    affected = AFFECTED & (effect != 0)
    for index, differences in enumerate(families(shape, rng, args.data_sets)):
        differences[affected] += effect
        for name, test in METHODS.items():
            holds = test(differences, args.seed + index, args.resamples) < ALPHA
            outcomes[name]["false"].append(float(holds[~affected].any()))
            outcomes[name]["found"].append(float(holds[affected].mean()) if effect else np.nan)
    return outcomes


def rate(outcomes: Sequence[float]) -> str:
    """A share of data sets with its exact binomial interval (Clopper-Pearson)."""
    found = stats.binomtest(int(sum(outcomes)), len(outcomes))
    low, high = found.proportion_ci(0.95)
    return f"{found.statistic:.3f} [{low:.3f}, {high:.3f}]"


def mean(outcomes: Sequence[float]) -> str:
    """A mean over data sets with its 95% interval."""
    half = 1.96 * np.std(outcomes) / np.sqrt(len(outcomes))
    return f"{np.mean(outcomes):.3f} +- {half:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start = time.process_time()
    figures = []
    print(f"{N_ITEMS} items, {N_LAYERS} layers, {args.data_sets} data sets a row, {args.resamples} resamples, 5% level")
    print(f"{'':<22}" + "".join(f"{name:<23}" for name in METHODS))
    for effect in (0.0, *(sign * size for size in args.effects for sign in (1, -1))):
        print(f"power, effect {effect:+g}" if effect else "false positives")
        for shape in args.shapes:
            outcomes = simulate(shape, effect, args)
            show, what = (mean, "found") if effect else (rate, "false")
            print(f"  {shape:<20}" + "".join(f"{show(outcomes[name][what]):<23}" for name in METHODS), flush=True)
            means = {name: float(np.mean(found[what])) for name, found in outcomes.items()}
            figures.append({"shape": shape, "effect": effect, "data_sets": args.data_sets, **means})
    print(f"{time.process_time() - start:.0f} s of processor time")
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
