"""Activations of contrast pairs at every layer: one sequence at a time against shared prefixes.

The one-by-one loop runs both halves of a pair in full, with full logits, as the published code does.

Example: python -m benchmarks.extraction
         python -m benchmarks.extraction --memory_pairs 100 1000
         python -m benchmarks.extraction --pairs 1000 --random_weights 7b --dtype bfloat16     (on a GPU)
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks.common import (
    load_model,
    load_pairs,
    make_parser,
    matrix_rate,
    peak_memory,
    report,
    seconds,
    skip_without_gpu,
)
from llama_wrapper import LlamaWrapper
from utils.data.records import ContrastPair
from utils.model.steering import capture_outputs


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=60, metavar="N", help="contrast pairs (default: 60)")
    parser.add_argument(
        "--one_by_one", type=int, default=20, metavar="N", help="of these timed one by one (default: 20)"
    )
    parser.add_argument(
        "--memory_pairs",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="also measure the peak memory of extracting so many pairs, each in its own process, e.g. 100 1000",
    )
    parser.add_argument("--memory_of", type=int, metavar="PAIRS", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    model = load_model(args)
    if args.memory_of:
        sum_differences(model, load_pairs(args, args.memory_of))
        print(peak_memory(model.device))
        return 0
    pairs = load_pairs(args, args.pairs)
    some = pairs[: args.one_by_one]
    rate = matrix_rate(model.device, model.dtype)
    expected = one_by_one(model, some[:2])  # warm-up
    found = sum_differences(model, some[:2])
    difference = float((found - expected).abs().max())
    slow_s = seconds(lambda: one_by_one(model, some), model.device) / len(some)
    fast_s = seconds(lambda: sum_differences(model, pairs), model.device) / len(pairs)
    memory = {count: _memory_in_own_process(count, argv) for count in args.memory_pairs}
    figures = {
        "model": model.label,
        "dtype": args.dtype,
        "device": str(model.device),
        "n_pairs": len(pairs),
        "one_by_one_s_per_pair": slow_s,
        "shared_prefix_s_per_pair": fast_s,
        "speedup": slow_s / fast_s,
        "matrix_flops_per_s": rate,
        "largest_absolute_difference": difference,
        "peak_memory_mib": memory,
    }
    rows = [
        ("pairs", str(len(pairs))),
        ("one by one", f"{slow_s * 1000:.1f} ms a pair"),
        ("shared prefix", f"{fast_s * 1000:.1f} ms a pair, {fast_s * len(pairs):.2f} s in all"),
        ("speed-up", f"{slow_s / fast_s:.1f}x"),
        ("matrix product", f"{rate / 1e9:.0f} GFLOP/s"),
        ("largest absolute difference", f"{difference:.1e}"),
    ]
    rows += [(f"peak memory, {count} pairs", f"{mib:.0f} MiB") for count, mib in memory.items()]
    report(f"extraction, all layers, {model.label}, {args.dtype}, {model.device}", rows, figures, args)
    return 0


def sum_differences(model: LlamaWrapper, pairs: Sequence[ContrastPair]) -> torch.Tensor:
    """Sum of positive minus negative activations, [n_layers, d_model] float64, as generate_vectors.py builds it."""
    total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
    for _, positive, negative in model.answer_activations(pairs, list(range(model.n_layers))):
        total += (positive.double() - negative.double()).sum(dim=0)
    return total


@torch.no_grad()
def one_by_one(model: LlamaWrapper, pairs: Sequence[ContrastPair]) -> torch.Tensor:
    """The same sum, with a full pass and full logits for each half of each pair."""
    total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
    for pair in pairs:
        for sign, letter in ((1, pair.matching_letter), (-1, pair.other_letter)):
            ids = model.chat_format.encode(pair.question, f"({letter})").ids
            with capture_outputs(model.layers) as captured:
                _ = model.model(torch.tensor([ids], device=model.device)).logits
            total += sign * torch.stack([captured[i][0, -2].double().cpu() for i in range(model.n_layers)])
    return total


def _memory_in_own_process(count: int, argv: Sequence[str] | None) -> float:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, "-m", "benchmarks.extraction", *arguments, "--memory_of", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main())
