#!/usr/bin/env python3
"""Take steering vectors to other tools, and bring theirs here.

Formats: gguf (llama.cpp, repeng), easysteer (vLLM; with its JSON spec), safetensors, svec (AISteer360), lm_eval
(lm-evaluation-harness, --model steered), persona (persona vectors), neuronpedia (upload). The multiplier goes into
the file's own coefficient where the format has one (easysteer, lm_eval, neuronpedia), else into the vectors.
Layer numbers differ between tools and are converted: docs/exports.md.

Reads:   normalized_vectors/<behavior>/vec_layer_<layer>_<model>...pt (--raw: vectors/)
         vectors/<behavior>/chosen_<model>...json with --chosen; FILE with --import or --check
Writes:  exports/<format>/<behavior>/vec_layer_<layers>_<model>...
         with --import: vectors/<behavior>/vec_layer_<layer>_<model>...pt (normalized_vectors/ where the file says so)
Example: ./export_vectors.py --behaviors refusal --read answer --layers 16 --format gguf
         ./export_vectors.py --behaviors refusal --read answer --chosen --format lm_eval
         ./export_vectors.py --import happy.gguf --behavior happy --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import values
from utils.cli.flags import (
    add_behaviors,
    add_layers,
    add_model_filter,
    add_vector_kind,
    data_paths,
    make_parser,
    model_filter,
    root_paths,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.exports.requests import FORMATS, ExportRequest, ImportRequest

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--format", choices=FORMATS, help="write files of this format")
    what.add_argument("--import", dest="file", type=Path, metavar="FILE", help="bring in the vectors of a file")
    what.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="say what llama.cpp would make of a control vector file",
    )
    add_behaviors(parser)
    add_layers(parser, default="none: name them, or take --chosen")
    parser.add_argument("--chosen", action="store_true", help="layer and strength that choose_steering.py chose")
    parser.add_argument(
        "--multiplier",
        type=values.finite_float,
        default=1.0,
        metavar="X",
        help="how many times the vector is to be added (default: 1)",
    )
    parser.add_argument(
        "--one_file", action="store_true", help="all layers in one file, in gguf too, where the tool adds them all"
    )
    parser.add_argument("--raw", action="store_true", help="the vectors as they were read, not normalised")
    parser.add_argument(
        "--licence",
        metavar="TEXT",
        help="of the vectors, for the file (default: MIT for bundled pairs, else nothing is said)",
    )
    parser.add_argument("--behavior", metavar="ID", help="with --import: under which id (default: as the file says)")
    add_vector_kind(parser)
    add_model_filter(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if args.check is not None:
        return check(args)
    if args.file is not None:
        return bring_in(args)
    if args.behavior is not None:
        raise UserError("--behavior is for --import; name what to export with --behaviors")
    from utils.exports.export_run import export_vectors

    counts = export_vectors(
        ExportRequest(
            paths=data_paths(args),
            choice=model_filter(args),
            behaviors=tuple(dict.fromkeys(args.behaviors)),
            format_name=args.format,
            layers=tuple(args.layers) if args.layers else None,
            kind=vector_kind(args),
            multiplier=args.multiplier,
            chosen=args.chosen,
            raw=args.raw,
            one_file=args.one_file,
            licence=args.licence,
            overwrite=args.overwrite,
            command=args.command,
        )
    )
    log.info(
        "wrote %d files, skipped %d that are there, %d there are made otherwise",
        counts["wrote"],
        counts["skipped"],
        counts["differ"],
    )
    return EXIT_DONE


def bring_in(args: argparse.Namespace) -> int:
    """Import a file."""
    from utils.exports.import_run import import_vectors

    request = ImportRequest(
        paths=root_paths(args),
        file=args.file,
        choice=model_filter(args),
        behavior=args.behavior,
        kind=vector_kind(args),
        overwrite=args.overwrite,
        command=args.command,
    )
    counts = import_vectors(request)
    log.info("wrote %d vectors, skipped %d that are there", counts["wrote"], counts["skipped"])
    return EXIT_DONE


def check(args: argparse.Namespace) -> int:
    """Say what llama.cpp makes of a file."""
    from utils.exports.gguf_files import llama_cpp_vectors

    try:
        found = llama_cpp_vectors(args.check)
    except UserError as err:
        log.error("%s", err)
        return EXIT_FAILED
    for block, vector in sorted(found.items()):
        sys.stdout.write(
            f"added to the output of block {block}: {vector.size} values, norm {float((vector**2).sum()) ** 0.5:.6g}\n"
        )
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
