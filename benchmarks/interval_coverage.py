"""How often the 95% interval of a mean covers the truth: the suite's, BCa alone, and Student's t.

A test set has 50 items. The shapes are those of `benchmarks.family_errors`; of the others a share of items is
not 0: it is 1, or anywhere between 0 and 1, or -1 and 1 alike. `fewest` is the number of other items than the
most common value from which on BCa is taken (`utils.evaluation.resampling.FEWEST_OTHER_ITEMS`).

Example: python -m benchmarks.interval_coverage
         python -m benchmarks.interval_coverage --test_sets 4000 --fewest 0 3 5 8
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.shapes import SHAPES, FloatArray
from utils.evaluation import resampling
from utils.evaluation.metrics import Bounds, mean_estimates
from utils.files.writing import write_json

N_ITEMS = 50
SHARES = (0.02, 0.05, 0.1, 0.2)
OTHERS = ("ones", "any", "both signs")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test_sets", type=int, default=1000, metavar="N", help="for each row (default: 1000)")
    parser.add_argument(
        "--fewest",
        type=int,
        nargs="+",
        default=[0, resampling.FEWEST_OTHER_ITEMS],
        help="other items needed for BCa; 0: always BCa, no width where all are equal (default: 0 and the suite's)",
    )
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of every interval (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the test sets and resamples (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


def draw(row: str, n: int, rng: np.random.Generator) -> tuple[FloatArray, float, Bounds | None]:
    """`n` test sets [n, N_ITEMS], their true mean, and the bounds of an item."""
    if row in SHAPES:
        return SHAPES[row](rng.standard_normal((n, N_ITEMS))), 0.0, None
    share, others = float(row.split(" ", 1)[0]), row.split(" ", 1)[1]
    present = rng.random((n, N_ITEMS)) < share
    if others == "both signs":
        return np.where(present, rng.choice([-1.0, 1.0], (n, N_ITEMS)), 0.0), 0.0, (-1.0, 1.0)
    if others == "ones":
        return present.astype(float), share, (0.0, 1.0)
    return np.where(present, rng.beta(2, 2, (n, N_ITEMS)), 0.0), share / 2, (0.0, 1.0)


def intervals(values: FloatArray, bounds: Bounds | None, fewest: int, args: argparse.Namespace) -> FloatArray:
    """The suite's intervals with another limit of near-constant items, [n, 2]."""
    resampling.FEWEST_OTHER_ITEMS = fewest
    with np.errstate(invalid="ignore"):  # of equal items, at 0
        found = mean_estimates(values, args.seed, bounds, args.resamples)
    return np.array([(one.low, one.high) for one in found])


def students(values: FloatArray) -> FloatArray:
    half = stats.t(N_ITEMS - 1).ppf(0.975) * values.std(axis=1, ddof=1) / np.sqrt(N_ITEMS)
    return np.stack([values.mean(axis=1) - half, values.mean(axis=1) + half], axis=1)


def described(found: FloatArray, truth: float) -> tuple[float, float]:
    """Share of intervals that cover the truth, and their mean width; none covers anything."""
    low, high = np.where(np.isnan(found), [-np.inf, np.inf], found).T
    covers = (low <= truth + 1e-12) & (truth <= high + 1e-12)
    return float(covers.mean()), float(np.nanmean(found[:, 1] - found[:, 0]))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start, used = time.process_time(), resampling.FEWEST_OTHER_ITEMS
    names = ["Student's t", *(f"fewest {fewest}" if fewest else "BCa alone" for fewest in args.fewest)]
    print(f"coverage (mean width) over {args.test_sets} test sets of {N_ITEMS} items")
    print(f"{'':<18}" + "".join(f"{name:<17}" for name in names))
    figures = []
    for row in (*SHAPES, *(f"{share:g} {others}" for others in OTHERS for share in SHARES)):
        values, truth, bounds = draw(row, args.test_sets, np.random.default_rng(args.seed))
        try:
            found = [students(values), *(intervals(values, bounds, fewest, args) for fewest in args.fewest)]
        finally:
            resampling.FEWEST_OTHER_ITEMS = used
        cells = [described(one, truth) for one in found]
        print(f"{row:<18}" + "".join(f"{covered:.3f} ({width:.3f})    " for covered, width in cells), flush=True)
        figures.append({"row": row} | dict(zip(names, cells, strict=True)))
    print(f"{time.process_time() - start:.0f} s of processor time")
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
