#!/usr/bin/env python3
"""Measure texts along steering vectors, without steering: per answer, per token, over the turns of conversations.

The projection of a token is the dot product of its residual stream behind a layer with the vector scaled to length 1;
that of an answer is the mean over its tokens. Percentiles say where it lies among neutral texts: 60 bundled answers,
measured in the same run.

Texts, in JSON (a list) or JSON Lines: {"question", "model_output"} as prompting_with_steering.py writes them
(also prompt; answer, response), {"messages": [{"role", "content"}, ...]}, {"text"}, or a bare text.

Reads:   FILE..., - for standard input; vectors/<behavior>/vec_layer_<layer>_<model>...pt;
         vectors/<behavior>/chosen_<model>...json where no --layers are given; datasets/neutral/texts.json
Writes:  analysis/monitor/<file>_<model>....jsonl           a line a text
         analysis/monitor/<file>_<model>..._drift           with conversations: .png, .pdf, .txt
         analysis/monitor/<file>_<model>....html            with --page: texts coloured by token
Example: ./monitor.py answers.json --behaviors sycophancy refusal --read answer --layers 16 --model_size 135m
         cat texts.jsonl | ./monitor.py - --output - --behaviors refusal --layers 16 --model_size 135m > readings.jsonl
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from utils.cli import values
from utils.cli.flags import (
    add_behaviors,
    add_device,
    add_layers,
    add_model,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.exports.monitor_request import PAGE_TEXTS, STANDARD, MonitorRequest, find_sources, is_there
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="texts: JSON or JSON Lines; - for stdin")
    add_behaviors(parser)
    add_layers(parser, default="the layer that choose_steering.py chose for each behavior")
    add_vector_kind(parser)
    parser.add_argument("--tokens", action="store_true", help="write every token with its projections too")
    parser.add_argument(
        "--page",
        nargs="?",
        type=values.positive_int,
        const=PAGE_TEXTS,
        default=0,
        metavar="N",
        help=f"one HTML page of the first N texts, coloured by token (default: none; without N: {PAGE_TEXTS})",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="other neutral texts to take percentiles of: questions with answers",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the lines go; - for stdout (default: analysis/monitor/)"
    )
    add_model(parser)
    add_device(parser)
    parser.add_argument(
        "--batch_size",
        type=values.batch_size,
        default="auto",
        metavar="N",
        help="texts in one forward pass (default: auto, from the free memory)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    choice = model_choice(args)
    request = MonitorRequest(
        paths=data_paths(args),
        choice=choice,
        files=tuple(dict.fromkeys(args.files)),
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(check_layers(args.layers, model_shape(choice).n_layers, choice.label)) if args.layers else None,
        kind=vector_kind(args),
        tokens=args.tokens,
        page_texts=args.page,
        reference=args.reference,
        output=args.output,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        overwrite=args.overwrite,
        command=args.command,
    )
    sources = find_sources(request)
    waiting = request.of_files(
        [file for file in request.files if args.overwrite or not is_there(request, file, sources)]
    )
    n_failed = 0
    if waiting.files:
        from llama_wrapper import LlamaWrapper
        from utils.exports.monitor_run import monitor_files

        model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
        n_failed = monitor_files(waiting, sources, model)
    if STANDARD not in (*request.files, request.output):
        log.info(
            "measured %d files, skipped %d that are measured already (--overwrite measures again); %d texts failed",
            len(waiting.files),
            len(request.files) - len(waiting.files),
            n_failed,
        )
    return EXIT_FAILED if n_failed else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
