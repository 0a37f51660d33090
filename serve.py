#!/usr/bin/env python3
"""Serve a model to OpenAI clients, with steering in the request.

The model's name carries the steering, as in SmolLM2-135M-Instruct+positive-sentiment@14x1.5 (layer 14, multiplier
1.5), or the request's field `steering` says it in full. Requests that come together run together, each with its own.

Reads:   normalized_vectors/<behavior>/vec_layer_<layer>_<model>...pt, vectors/<behavior>/chosen_<model>...json
Writes:  nothing
Example: ./serve.py --port 8342
"""

import argparse
import os
from collections.abc import Sequence

from utils.cli import values
from utils.cli.flags import add_device, add_model, add_vector_kind, kind_filter, make_parser, model_choice, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.model.checkpoints import EMBEDDED_SIZE
from utils.model.shapes import model_shape

KEY_NAME = "CAA_API_KEY"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1)")
    parser.add_argument("--port", type=values.count, default=8342, metavar="N", help="0 for a free one (default: 8342)")
    parser.add_argument(
        "--api_key",
        metavar="KEY",
        help=f"what clients must send as their key (default: ${KEY_NAME}, else none; needed beyond this machine)",
    )
    parser.add_argument(
        "--max_rows", type=values.positive_int, default=16, metavar="N", help="requests at once (default: 16)"
    )
    add_vector_kind(parser, "the chosen one, else answer, else letter")
    add_model(parser, EMBEDDED_SIZE)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from utils.chat.guarding import is_loopback
    from utils.chat.shelf import Shelf

    key = args.api_key or os.environ.get(KEY_NAME) or None
    if key is None and not is_loopback(args.host):
        raise UserError(f"--host {args.host} is open to others: name a key with --api_key or ${KEY_NAME}")
    choice = model_choice(args)
    shape = model_shape(choice)
    shelf = Shelf(root_paths(args), choice, shape.n_layers, shape.d_model, kind_filter(args))
    shelf.check_not_empty()

    from llama_wrapper import LlamaWrapper
    from utils.chat.engine import Engine
    from utils.chat.server import build_server
    from utils.chat.web import serve_app

    model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    shelf.model = model
    engine = Engine(model, args.max_rows)
    app = build_server(model, shelf, engine, args.host, key)
    try:
        serve_app(app, args.host, args.port, lambda at: f"serving {choice.label} at {at}/v1 (Ctrl-C ends)")
    finally:
        engine.close()
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
