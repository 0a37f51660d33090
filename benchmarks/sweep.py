"""Sweeps: every layer x multiplier of every question, plain loop against packed passes.

The plain loop runs one item and one combination a pass, with full logits, as the published code does.
Its cost does not depend on which combination it is, so by default a few combinations of each question
are timed and scaled up; --full times them all.

Example: python -m benchmarks.sweep
         python -m benchmarks.sweep --type mmlu --layers 15 --multipliers -1 -0.5 0 0.5 1
         python -m benchmarks.sweep --type answer_text --multipliers -2 -1 1 2
         python -m benchmarks.sweep --paper --random_weights 7b --dtype bfloat16     (on a GPU)
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common import (
    count_flops,
    load_items,
    load_model,
    make_parser,
    matrix_rate,
    memory_in_own_process,
    peak_memory,
    random_steerings,
    report,
    seconds,
    skip_without_gpu,
)
from llama_wrapper import LlamaWrapper
from utils.behaviors import bundled_behaviors, published_behaviors
from utils.data.records import load_text_pairs
from utils.model.answer_rows import AnswerPair
from utils.model.chat_format import PromptTokens
from utils.model.pairs import encode_answer
from utils.model.scoring import probabilities_of
from utils.model.steering import RowSteering, Steering
from utils.paths import DataPaths

Steered = Sequence[Steering | None]


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--behavior", choices=bundled_behaviors(), default="refusal")
    parser.add_argument("--type", choices=["ab", "truthful_qa", "mmlu", "answer_text"], default="ab")
    parser.add_argument("--questions", type=int, default=20, metavar="N", help="questions a behavior (default: 20)")
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--multipliers", type=float, nargs="+", default=[-1.0, 0.0, 1.0])
    parser.add_argument("--paper", action="store_true", help="7 behaviors x 50 A/B questions: the paper's layer sweep")
    parser.add_argument("--full", action="store_true", help="time the plain loop on every combination")
    parser.add_argument("--memory_of", choices=["plain", "packed"], help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    model = load_model(args)
    layers = args.layers or list(range(model.n_layers))
    steerings = random_steerings(model, layers, args.multipliers, args.seed)
    work = _answers(model, args) if args.type == "answer_text" else _prompts(model, args)
    if args.memory_of:
        work.plain(steerings[:3]) if args.memory_of == "plain" else work.packed(steerings)
        print(peak_memory(model.device))
        return 0

    rate = matrix_rate(model.device, model.dtype)
    n_evaluations = work.n_questions * len(layers) * len(args.multipliers)
    work.warm_up(steerings)
    results: dict[int, torch.Tensor] = {}
    packed_s = seconds(lambda: results.update(work.packed(steerings)), model.device)
    timed = steerings if args.full else steerings[:: max(1, len(steerings) // 3)]
    plain: list[torch.Tensor] = []
    plain_s = seconds(lambda: plain.extend(work.plain(timed)), model.device)
    plain_s *= n_evaluations / (work.n_questions * len(timed))
    places = [steerings.index(steering) for steering in timed]
    differences = [(results[i][places] - plain[i]).abs() / plain[i].abs() for i in range(work.n_questions)]
    difference = max(float(difference.max()) for difference in differences)
    flops = count_flops(lambda: work.packed(steerings))
    memory = (
        {}
        if args.paper
        else {which: memory_in_own_process("benchmarks.sweep", which, argv) for which in ("plain", "packed")}
    )
    model_mib = sum(p.numel() * p.element_size() for p in model.model.parameters()) / 2**20
    figures = {
        "model": model.label,
        "dtype": args.dtype,
        "device": str(model.device),
        "type": args.type,
        "n_questions": work.n_questions,
        "n_layers": len(layers),
        "multipliers": args.multipliers,
        "n_evaluations": n_evaluations,
        "plain_combinations_timed": len(timed),
        "plain_s": plain_s,
        "packed_s": packed_s,
        "speedup": plain_s / packed_s,
        "packed_flops_per_s": flops / packed_s,
        "matrix_flops_per_s": rate,
        "share_of_matrix_rate": flops / packed_s / rate,
        "largest_relative_difference": difference,
        "peak_memory_mib": memory,
        "model_mib": model_mib,
    }
    report(f"{args.type} sweep, {model.label}, {args.dtype}, {model.device}", _rows(figures), figures, args)
    return 0


def _rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    timed = figures["plain_combinations_timed"]
    rows = [
        ("evaluations", f"{figures['n_evaluations']} ({figures['n_questions']} questions)"),
        ("plain loop", f"{figures['plain_s']:.1f} s (from {timed} combinations of each question)"),
        ("packed", f"{figures['packed_s']:.2f} s"),
        ("speed-up", f"{figures['speedup']:.1f}x"),
        ("achieved", f"{figures['packed_flops_per_s'] / 1e9:.0f} GFLOP/s"),
        ("matrix product", f"{figures['matrix_flops_per_s'] / 1e9:.0f} GFLOP/s"),
        ("share of it", f"{100 * figures['share_of_matrix_rate']:.0f}%"),
        ("largest relative difference", f"{figures['largest_relative_difference']:.1e}"),
    ]
    for which, mib in figures["peak_memory_mib"].items():
        rows.append((f"peak memory, {which}", f"{mib:.0f} MiB (model {figures['model_mib']:.0f})"))
    return rows


@dataclass(frozen=True)
class Work:
    """What is timed."""

    n_questions: int
    packed: Callable[[Steered], dict[int, torch.Tensor]]
    """From steerings to each question's scores."""
    plain: Callable[[Steered], list[torch.Tensor]]
    """The same one by one."""
    warm_up: Callable[[Steered], Any]
    """A first pass, and the guard's comparison."""


@torch.no_grad()
def plain_loop(
    model: LlamaWrapper,
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steering | None],
    token_ids: Sequence[Sequence[int]],
) -> list[torch.Tensor]:
    """One item and one combination a pass, logits of every position; each [len(steerings), n_tokens]."""
    scores = []
    for prompt, ids in zip(prompts, token_ids, strict=True):
        rows = []
        for steering in steerings:
            hooks = RowSteering([steering], model.layers)
            hooks.positions = torch.arange(len(prompt), device=model.device)[None] >= prompt.steer_start
            with hooks.applied():
                logits = model.model(torch.tensor([prompt.ids], device=model.device)).logits
            rows.append(probabilities_of(logits[0, -1], ids).cpu())
        scores.append(torch.stack(rows))
    return scores


@torch.no_grad()
def plain_answers(model: LlamaWrapper, pairs: Sequence[AnswerPair], steerings: Steered) -> list[torch.Tensor]:
    """One answer and one combination a pass, logits of every position; each [len(steerings), 2]."""
    scores = []
    for pair in pairs:
        rows = []
        for steering in steerings:
            hooks = RowSteering([steering], model.layers)
            means = []
            for answer in (pair.matching, pair.other):
                hooks.positions = torch.arange(len(answer), device=model.device)[None] >= answer.steer_start
                ids = torch.tensor([answer.ids], device=model.device)
                with hooks.applied():
                    logits = model.model(ids).logits
                of_tokens = logits[0, -answer.n_answer - 1 : -1].float().log_softmax(dim=-1)
                means.append(of_tokens.gather(1, ids[0, -answer.n_answer :, None]).mean())
            rows.append(torch.stack(means).cpu())
        scores.append(torch.stack(rows))
    return scores


def _answers(model: LlamaWrapper, args: argparse.Namespace) -> Work:
    path = DataPaths(args.data).test_dataset(args.behavior, "answer_text")
    encode = partial(encode_answer, model.chat_format)
    pairs = [
        AnswerPair(encode(item.question, item.matching), encode(item.question, item.other))
        for item in load_text_pairs(path)[: args.questions]
    ]
    return Work(
        len(pairs),
        lambda steerings: dict(model.score_answers(pairs, steerings)),
        lambda steerings: plain_answers(model, pairs, steerings),
        lambda steerings: list(model.score_answers(pairs[:2], steerings)),
    )


def _prompts(model: LlamaWrapper, args: argparse.Namespace) -> Work:
    behaviors = published_behaviors() if args.paper else [args.behavior]
    count = 50 if args.paper else args.questions
    items = [item for behavior in behaviors for item in load_items(args, behavior, args.type, count)]
    prompts = [model.chat_format.encode_choice(item.question) for item in items]
    letters = [[model.chat_format.letter_id(letter) for letter in item.letters] for item in items]
    return Work(
        len(prompts),
        lambda steerings: dict(model.score(prompts, steerings, letters)),
        lambda steerings: plain_loop(model, prompts, steerings, letters),
        lambda steerings: list(model.score(prompts[:2], steerings, letters[:2])),
    )


if __name__ == "__main__":
    sys.exit(main())
