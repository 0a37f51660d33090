"""Projections of texts against the model's own forward rate, measured in the same run.

The forward rate is that of the decoder alone, all layers, no logits, on rows of equal length without any padding:
the most that this model does here. monitor.py's rate covers everything from the file to the lines that are written:
reading, tokenising, padding, projecting on every vector, percentiles, JSON; not the loading of the model nor the
neutral texts, which are measured once a run. With --layer at the last one no layer is saved.

Example: python -m benchmarks.monitoring
         python -m benchmarks.monitoring --memory_texts 500 5000
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import (
    load_model,
    make_parser,
    memory_in_own_process,
    peak_memory,
    report,
    seconds,
    skip_without_gpu,
)
from llama_wrapper import LlamaWrapper
from utils.data.records import load_text_pairs
from utils.exports.lines import failed_line, measured_line
from utils.exports.measuring import Failed, Measured, make_probe, measure_texts
from utils.exports.monitor_request import VectorSource
from utils.exports.reference import Reference, reference_of
from utils.exports.texts import read_texts
from utils.model.projecting import Probe
from utils.paths import DataPaths

ROW_TOKENS = 128
TOKENS_PER_PASS = 1024


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--texts", type=int, default=240, metavar="N", help="questions with answers (default: 240)")
    parser.add_argument("--vectors", type=int, default=4, metavar="N", help="to measure along (default: 4)")
    parser.add_argument("--layer", type=int, metavar="N", help="where they are read (default: the last, nothing saved)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of both in turn; medians count (default: 3)"
    )
    parser.add_argument(
        "--memory_texts",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="also measure the peak memory of so many texts, each in its own process, e.g. 500 5000",
    )
    parser.add_argument("--memory_of", type=int, metavar="TEXTS", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    model = load_model(args)
    layer = model.n_layers - 1 if args.layer is None else args.layer
    probes = _probes(model, layer, args.vectors, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        texts = _write_texts(DataPaths(args.data), Path(folder) / "texts.jsonl", args.memory_of or args.texts)
        reference = _reference(model, DataPaths(args.data), probes)
        if args.memory_of:
            monitor_all(model, texts, probes, reference)
            print(peak_memory(model.device))
            return 0
        rates = [_rates(model, texts, probes, reference) for _ in range(args.rounds + 1)][1:]  # the first warms up
    forward, monitored = (statistics.median(rate[place] for rate in rates) for place in (0, 1))
    memory = {count: memory_in_own_process("benchmarks.monitoring", count, argv) for count in args.memory_texts}
    shares = [rate[1] / rate[0] for rate in rates]
    rows = [
        ("forward passes alone", f"{forward:.0f} tokens/s"),
        (f"monitor.py, {args.vectors} vectors at layer {layer}", f"{monitored:.0f} tokens/s"),
        ("share of the forward rate", f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"),
        *((f"peak memory, {count} texts", f"{peak:.0f} MiB") for count, peak in memory.items()),
    ]
    figures = {"forward_tokens_per_s": forward, "monitor_tokens_per_s": monitored, "memory_mib": memory}
    report(f"Monitoring {args.texts} texts with {model.label}, {args.dtype}", rows, figures, args)
    return 0


def _probes(model: LlamaWrapper, layer: int, count: int, seed: int) -> list[Probe]:
    generator = torch.Generator().manual_seed(seed)
    return [make_probe(layer, torch.randn(model.d_model, generator=generator)) for _ in range(count)]


def _write_texts(paths: DataPaths, file: Path, count: int) -> Path:
    """Bundled questions with their answers, repeated where there are fewer, as JSON Lines."""
    bundled = sorted(paths.generate_text_dataset("any").parent.parent.glob("*/generate_dataset*.json"))
    pairs = [pair for path in bundled for pair in load_text_pairs(path)]
    records = [
        {"question": pair.question, "answer": answer} for pair in pairs for answer in (pair.matching, pair.other)
    ]
    with file.open("w") as lines:
        for place in range(count):
            lines.write(json.dumps(records[(place * 37) % len(records)]) + "\n")
    return file


def _reference(model: LlamaWrapper, paths: DataPaths, probes: Sequence[Probe]) -> Reference:
    neutral = read_texts(paths.neutral_prompts().with_name("texts.json"))
    return reference_of([one for one in measure_texts(model, neutral, probes) if isinstance(one, Measured)])


def monitor_all(model: LlamaWrapper, file: Path, probes: Sequence[Probe], reference: Reference) -> int:
    """From the file to the lines, as monitor.py does it; returns how many tokens ran."""
    sources = [VectorSource(f"vector-{place}", probe.layer, file) for place, probe in enumerate(probes)]
    n_tokens = 0
    with tempfile.TemporaryFile() as out:
        for one in measure_texts(model, read_texts(file), probes):
            if isinstance(one, Failed):
                out.write(failed_line(one))
                continue
            out.write(measured_line(one, sources, reference, None))
            n_tokens += len(one.encoded.ids)
    return n_tokens


@torch.no_grad()
def forward_all(model: LlamaWrapper, n_tokens: int) -> int:
    """About so many tokens through the decoder, in full rows; returns how many."""
    n_rows = TOKENS_PER_PASS // ROW_TOKENS
    generator = torch.Generator().manual_seed(0)
    n_passes = max(1, round(n_tokens / TOKENS_PER_PASS))
    for _ in range(n_passes):
        ids = torch.randint(5, model.config.vocab_size, (n_rows, ROW_TOKENS), generator=generator)
        model.model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)
    return n_passes * n_rows * ROW_TOKENS


def _rates(model: LlamaWrapper, texts: Path, probes: Sequence[Probe], reference: Reference) -> tuple[float, float]:
    """Tokens a second, of forward passes alone and of monitoring, one behind the other."""
    done = [0, 0]

    def monitored() -> None:
        done[1] = monitor_all(model, texts, probes, reference)

    def forward() -> None:
        done[0] = forward_all(model, done[1])

    monitor_s = seconds(monitored, model.device)
    forward_s = seconds(forward, model.device)
    return done[0] / forward_s, done[1] / monitor_s


if __name__ == "__main__":
    sys.exit(main())
