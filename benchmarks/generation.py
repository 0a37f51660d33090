"""Open-ended answers: one by one against batches in which every row has its own steering.

Example: python -m benchmarks.generation
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import load_model, make_parser, random_steerings, report, seconds, skip_without_gpu
from utils.behaviors import bundled_behaviors
from utils.data.records import load_open_ended_questions
from utils.model.generation import GenerationRow
from utils.paths import DataPaths


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--behavior", choices=bundled_behaviors(), default="sycophancy")
    parser.add_argument("--questions", type=int, default=16, metavar="N")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--multipliers", type=float, nargs="+", default=[-1.0, 0.0, 1.0])
    parser.add_argument("--max_new_tokens", type=int, default=60)
    parser.add_argument(
        "--one_by_one", type=int, metavar="N", help="time this many answers one by one and scale up (default: all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="time both in turn, N times; the best counts (default: 3)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    model = load_model(args)
    path = DataPaths(args.data).test_dataset(args.behavior, "open_ended")
    questions = load_open_ended_questions(path)[: args.questions]
    steerings = random_steerings(model, [args.layer], args.multipliers, args.seed)
    prompts = [model.chat_format.encode(question) for question in questions]
    rows = [GenerationRow(prompt, steering) for steering in steerings for prompt in prompts]
    answers: dict[str, dict[int, str]] = {"one by one": {}, "batched": {}}

    n_slow = min(args.one_by_one or len(rows), len(rows))
    slow_rows = list(range(0, len(rows), len(rows) // n_slow))[:n_slow]

    def generate(way: str, batch_size: int | None, skip: set[int]) -> None:
        for index, generation in model.generate(rows, args.max_new_tokens, batch_size=batch_size, skip=skip):
            answers[way][index] = generation.text

    list(model.generate(rows[:2], 2))  # warm-up
    slow_times, fast_times = [], []
    for _ in range(args.repeats):
        slow = seconds(lambda: generate("one by one", 1, set(range(len(rows))) - set(slow_rows)), model.device)
        slow_times.append(slow * len(rows) / n_slow)
        fast_times.append(seconds(lambda: generate("batched", None, set()), model.device))
    slow_s, fast_s = min(slow_times), min(fast_times)
    n_equal = sum(answers["batched"][i] == text for i, text in answers["one by one"].items())
    figures = {
        "model": model.label,
        "n_answers": len(rows),
        "max_new_tokens": args.max_new_tokens,
        "one_by_one_s": slow_s,
        "batched_s": fast_s,
        "speedup": slow_s / fast_s,
        "n_identical": n_equal,
    }
    table = [
        ("answers", f"{len(rows)} of up to {args.max_new_tokens} tokens"),
        ("one by one", f"{slow_s:.1f} s" + (f", scaled up from {n_slow}" if n_slow < len(rows) else "")),
        ("batched", f"{fast_s:.1f} s"),
        ("speed-up", f"{slow_s / fast_s:.1f}x"),
        ("identical answers", f"{n_equal} of {n_slow}"),
    ]
    report(f"open-ended answers, {model.label}, {args.dtype}, {model.device}", table, figures, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
