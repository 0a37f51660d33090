#!/usr/bin/env python3
"""Standard evaluations of SAEs: how much of a layer they keep, how sparsely, and what it costs the model.

Explained variance, L0, L1, squared error, density and dead latents, and the cross-entropy with the reconstruction in
the layer's place, beside the model as it is and the layer put to 0; on held-out text of each SAE's own source and,
crosswise, of the other SAEs' sources; with intervals, and a random dictionary as the control.

Reads:   --saes DIR..., text as in train_sae.py
Writes:  analysis/sae/standard_evals_<model>: .json, .png, .pdf, .txt
Example: ./saes/standard_evals.py --model_size 135m --saes saes_trained/SmolLM2-135M-Instruct_{chat,web}
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import make_parser, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import (
    add_saes,
    add_system_prompt,
    add_text,
    add_weighted_model,
    loading,
    model_request,
    text_source,
)
from utils.errors import UserError
from utils.saes.formats import check_sae_folders
from utils.saes.standard_request import EvalsRequest


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_saes(parser)
    add_text(parser, several=True)
    add_system_prompt(parser)
    parser.add_argument(
        "--tokens", type=values.positive_int, default=8192, metavar="N", help="tokens of each text (default: 8192)"
    )
    parser.add_argument(
        "--context", type=values.positive_int, default=256, metavar="N", help="tokens a sequence (default: 256)"
    )
    parser.add_argument(
        "--batch_size",
        type=values.batch_size,
        default="auto",
        metavar="N",
        help="sequences in one pass of the model (default: auto, from the free memory)",
    )
    add_weighted_model(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    check_sae_folders(args.saes)
    if args.context < 3:
        raise UserError(f"--context {args.context}: the first token is left out, and the last predicts nothing; give 3")
    request = EvalsRequest(
        paths=root_paths(args),
        model=model_request(args),
        folders=tuple(args.saes),
        sources=tuple(text_source(args, data) for data in args.data or ()),
        n_tokens=args.tokens,
        context=args.context,
        seed=args.seed,
        command=args.command,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
    )
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.standard_run import run_evals, table_lines

    cells = run_evals(request, LlamaWrapper.load(**loading(args)))
    sys.stdout.write("\n".join(table_lines(cells)) + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
