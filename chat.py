#!/usr/bin/env python3
"""Talk to a steered model, on the terminal or in a browser.

On the terminal every line is a message, and lines that begin with a slash are commands (/help). With --web a page on
this machine shows the unsteered and the steered answer side by side. Layer and multiplier are those that
choose_steering.py chose, where it did; else the middle layer and 1.

Reads:   normalized_vectors/<behavior>/vec_layer_<layer>_<model>...pt, vectors/<behavior>/chosen_<model>...json
Writes:  nothing but what /save names
Example: ./chat.py --behavior positive-sentiment
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import values
from utils.cli.flags import (
    add_device,
    add_model,
    add_vector_kind,
    data_paths,
    kind_filter,
    make_parser,
    model_choice,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.model.checkpoints import EMBEDDED_SIZE
from utils.model.shapes import model_shape
from utils.settings import OPERATORS

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, seed=True)
    vector = parser.add_mutually_exclusive_group()
    vector.add_argument("--behavior", metavar="ID", help="steer with this behavior's vector (default: no steering)")
    vector.add_argument("--vector", type=Path, metavar="FILE", help="steer with this vector file")
    parser.add_argument("--layer", type=values.layer, metavar="N", help="steered decoder layer, counted from 0")
    parser.add_argument("--multiplier", type=values.finite_float, metavar="X", help="multiple of the vector")
    parser.add_argument(
        "--operator",
        type=values.operator,
        default="add",
        metavar="NAME",
        help=f"what is done with the vector: {', '.join(OPERATORS)} (default: add)",
    )
    add_vector_kind(parser, "the chosen one, else answer, else letter")
    parser.add_argument("--system", metavar="TEXT", help="system prompt (default: none)")
    parser.add_argument(
        "--temperature",
        type=values.non_negative_float,
        default=0.0,
        metavar="T",
        help="sample at this temperature (default: 0, the most likely token)",
    )
    parser.add_argument(
        "--max_new_tokens", type=values.positive_int, default=200, metavar="N", help="tokens an answer (default: 200)"
    )
    add_web(parser)
    add_model(parser, EMBEDDED_SIZE)
    add_device(parser)
    return parser


def add_web(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--web", action="store_true", help="a page in a browser instead of the terminal")
    parser.add_argument("--host", default="127.0.0.1", help="with --web: address to serve at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=values.count, default=8340, metavar="N", help="with --web; 0 for a free one (default: 8340)"
    )


def run(args: argparse.Namespace) -> int:
    from utils.chat.commands import Knobs
    from utils.chat.shelf import Shelf

    paths, choice = data_paths(args), model_choice(args)
    shape = model_shape(choice)
    shelf = Shelf(paths, choice, shape.n_layers, shape.d_model, kind_filter(args))
    source = args.behavior or (str(args.vector) if args.vector else None)
    if source is None and (args.layer is not None or args.multiplier is not None):
        raise UserError("--layer and --multiplier are of a vector: name one with --behavior or --vector")
    if args.vector and args.vector.suffix != ".pt":
        raise UserError(f"--vector {args.vector}: a vector file ends in .pt")
    if source is None:
        shelf.check_not_empty()
    asks = (shelf.ask(source, args.layer, args.multiplier, args.operator),) if source else ()
    for ask in asks:
        shelf.load(ask.source, ask.layer)
    knobs = Knobs(asks, args.system, args.temperature, args.seed, args.max_new_tokens)

    from llama_wrapper import LlamaWrapper

    model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    shelf.model = model
    if args.web:
        from utils.chat.web import serve_page

        serve_page(model, shelf, knobs, args.host, args.port)
        return EXIT_DONE
    from utils.chat.terminal import Terminal

    Terminal(model, shelf, knobs, _read_line, sys.stdout).run()
    return EXIT_DONE


def _read_line() -> str:
    """A line from the terminal, with editing and its earlier lines; from a pipe as it comes."""
    if not sys.stdin.isatty():
        if line := sys.stdin.readline():
            return line
        raise EOFError
    import readline  # noqa: F401  gives input() its editing

    return input("> ")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
