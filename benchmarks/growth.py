"""How time and memory grow: a question's sweep with layers x multipliers, extraction with pairs.

Every point runs in its own process, so that its peak memory is its own.

Example: python -m benchmarks.growth
         python -m benchmarks.growth --pairs 10 100 1000
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import (
    load_items,
    load_model,
    load_pairs,
    make_parser,
    peak_memory,
    random_steerings,
    report,
    seconds,
    skip_without_gpu,
)
from benchmarks.extraction import sum_differences
from llama_wrapper import LlamaWrapper

GRID = ((1, 1), (1, 3), (5, 3), (15, 3), (30, 3), (30, 9))  # layers x multipliers


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--questions", type=int, default=4, metavar="N", help="questions a point (default: 4)")
    parser.add_argument("--pairs", type=int, nargs="+", default=[10, 50, 200], help="default: 10 50 200")
    parser.add_argument("--point", type=int, nargs="+", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    if args.point:
        model = load_model(args)
        measure = sweep_point if len(args.point) == 2 else extraction_point
        print(json.dumps(measure(model, args, *args.point)))
        return 0
    points: dict[str, dict[str, float]] = {}
    for layers, multipliers in GRID:
        points[f"sweep, {layers} layers x {multipliers} multipliers"] = _in_own_process(argv, layers, multipliers)
    for count in args.pairs:
        points[f"extraction, {count} pairs"] = _in_own_process(argv, count)
    rows = [(name, f"{p['ms']:.0f} ms {p['of']}, peak {p['peak_memory_mib']:.0f} MiB") for name, p in points.items()]
    report("growth", rows, points, args)
    return 0


def sweep_point(model: LlamaWrapper, args: argparse.Namespace, n_layers: int, n_multipliers: int) -> dict[str, Any]:
    items = load_items(args, "refusal", "ab", args.questions)
    prompts = [model.chat_format.encode_choice(item.question) for item in items]
    letters = [[model.chat_format.letter_id(letter) for letter in item.letters] for item in items]
    step = model.n_layers / n_layers
    layers = sorted({int(i * step) for i in range(n_layers)})
    multipliers = [0.5 * (i + 1) for i in range(n_multipliers)]
    steerings = random_steerings(model, layers, multipliers, args.seed)
    list(model.score(prompts[:1], steerings, letters[:1]))  # warm-up and guard
    took = seconds(lambda: list(model.score(prompts, steerings, letters)), model.device)
    return {"ms": 1000 * took / len(prompts), "of": "a question", "peak_memory_mib": peak_memory(model.device)}


def extraction_point(model: LlamaWrapper, args: argparse.Namespace, count: int) -> dict[str, Any]:
    pairs = load_pairs(args, count)
    sum_differences(model, pairs[:1])
    took = seconds(lambda: sum_differences(model, pairs), model.device)
    return {"ms": 1000 * took / len(pairs), "of": "a pair", "peak_memory_mib": peak_memory(model.device)}


def _in_own_process(argv: Sequence[str] | None, *point: int) -> dict[str, Any]:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, "-m", "benchmarks.growth", *arguments, "--point", *map(str, point)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
