"""Activations of contrast pairs at every layer: one sequence at a time against shared prefixes.

The one-by-one loop runs both halves of a pair in full, with full logits, as the published code does.

Example: python -m benchmarks.extraction
         python -m benchmarks.extraction --read answer
         python -m benchmarks.extraction --memory_pairs 100 1000
         python -m benchmarks.extraction --pairs 1000 --random_weights 7b --dtype bfloat16     (on a GPU)
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.common import (
    load_model,
    load_pairs,
    make_parser,
    matrix_rate,
    memory_in_own_process,
    peak_memory,
    report,
    seconds,
    skip_without_gpu,
)
from llama_wrapper import LlamaWrapper
from utils.data.records import AnyPair, ContrastPair, as_text_pair
from utils.model.pairs import encode_pair
from utils.model.steering import capture_outputs
from utils.settings import Reading


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--read", choices=["letter", "answer"], default="letter")
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
        sum_differences(model, _pairs(args, args.memory_of), args.read)
        print(peak_memory(model.device))
        return 0
    pairs = _pairs(args, args.pairs)
    some = pairs[: args.one_by_one]
    rate = matrix_rate(model.device, model.dtype)
    expected = one_by_one(model, some[:2], args.read)  # warm-up
    found = sum_differences(model, some[:2], args.read)
    difference = float((found - expected).abs().max())
    of_largest = float(((found - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)).max())
    slow_s = seconds(lambda: one_by_one(model, some, args.read), model.device) / len(some)
    fast_s = seconds(lambda: sum_differences(model, pairs, args.read), model.device) / len(pairs)
    memory = {count: memory_in_own_process("benchmarks.extraction", count, argv) for count in args.memory_pairs}
    figures = {
        "model": model.label,
        "dtype": args.dtype,
        "device": str(model.device),
        "n_pairs": len(pairs),
        "one_by_one_s_per_pair": slow_s,
        "shared_prefix_s_per_pair": fast_s,
        "speedup": slow_s / fast_s,
        "matrix_flops_per_s": rate,
        "read": args.read,
        "largest_absolute_difference": difference,
        "largest_difference_of_layers_largest": of_largest,
        "peak_memory_mib": memory,
    }
    rows = [
        ("pairs", str(len(pairs))),
        ("one by one", f"{slow_s * 1000:.1f} ms a pair"),
        ("shared prefix", f"{fast_s * 1000:.1f} ms a pair, {fast_s * len(pairs):.2f} s in all"),
        ("speed-up", f"{slow_s / fast_s:.1f}x"),
        ("matrix product", f"{rate / 1e9:.0f} GFLOP/s"),
        ("largest absolute difference", f"{difference:.1e}"),
        ("as a share of the layer's largest", f"{of_largest:.1e}"),
    ]
    rows += [(f"peak memory, {count} pairs", f"{mib:.0f} MiB") for count, mib in memory.items()]
    title = f"extraction, read at {args.read}, all layers, {model.label}, {args.dtype}, {model.device}"
    report(title, rows, figures, args)
    return 0


def _pairs(args: argparse.Namespace, count: int) -> Sequence[AnyPair]:
    pairs = load_pairs(args, count)
    return pairs if args.read == "letter" else [as_text_pair(pair) for pair in pairs]


def sum_differences(model: LlamaWrapper, pairs: Sequence[AnyPair], read: Reading = "letter") -> torch.Tensor:
    """Sum of positive minus negative activations, [n_layers, d_model] float64, as generate_vectors.py builds it."""
    total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
    for _, positive, negative in model.answer_activations(pairs, list(range(model.n_layers)), read=read):
        total += (positive.double() - negative.double()).sum(dim=0)
    return total


@torch.no_grad()
def one_by_one(model: LlamaWrapper, pairs: Sequence[AnyPair], read: Reading) -> torch.Tensor:
    """The same sum, with a full pass and full logits for each half of each pair."""
    total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
    for pair in pairs:
        for sign, (ids, read_at) in zip((1, -1), _halves(model, pair, read), strict=True):
            with capture_outputs(model.layers) as captured:
                _ = model.model(torch.tensor([ids], device=model.device)).logits
            streams = [captured[i][0, read_at].double().mean(dim=0).cpu() for i in range(model.n_layers)]
            total += sign * torch.stack(streams)
    return total


def _halves(model: LlamaWrapper, pair: AnyPair, read: Reading) -> Iterator[tuple[Sequence[int], slice]]:
    """The tokens of each half and where they are read: at the letter before the closing bracket, or over the answer."""
    if isinstance(pair, ContrastPair):
        for letter in (pair.matching_letter, pair.other_letter):
            yield model.chat_format.encode(pair.question, f"({letter})").ids, slice(-2, -1)
    else:
        for half in (encoded := encode_pair(model.chat_format, pair, read)).positive, encoded.negative:
            yield half.ids, slice(half.read_from, None)


if __name__ == "__main__":
    sys.exit(main())
