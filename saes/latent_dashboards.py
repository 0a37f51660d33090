#!/usr/bin/env python3
"""A page of an SAE's latents: where they fire, what they promote, and how they stand to the refusal direction.

Of each latent: the strongest examples in a text and some of its weaker ones, a histogram, density, mean activation on
harmful and on harmless prompts, cosine with the direction between those, promoted and suppressed tokens, and the
latents with the most similar decoder rows. The page needs no network and runs no script.

Reads:   --saes DIR..., text as in train_sae.py, prompts as in refusal_direction.py
Writes:  analysis/sae/dashboard_<sae>.html, and every number of it as .json (Neuronpedia's names where it has them)
Example: ./saes/latent_dashboards.py --model_size 135m --saes saes_trained/SmolLM2-135M-Instruct_chat --top 16
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import make_parser, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import (
    add_position,
    add_prompts,
    add_saes,
    add_text,
    add_weighted_model,
    loading,
    model_request,
    prompt_source,
    text_source,
)
from utils.saes.dashboard_request import DashboardRequest
from utils.saes.formats import check_sae_folders

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_saes(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--latents", nargs="+", type=values.count, metavar="ID", help="these latents")
    which.add_argument(
        "--top",
        type=values.positive_int,
        default=16,
        metavar="N",
        help="so many, in turn those of the largest cosine, difference and density (default: 16)",
    )
    add_text(parser)
    parser.add_argument(
        "--tokens", type=values.positive_int, default=15_300, metavar="N", help="tokens of text (default: 15300)"
    )
    parser.add_argument(
        "--other_model",
        action="store_true",
        help="SAEs of another checkpoint of the same shape are meant, as in a comparison of models",
    )
    add_position(parser)
    add_prompts(parser)
    add_weighted_model(parser)
    return parser


def requests(args: argparse.Namespace) -> list[DashboardRequest]:
    check_sae_folders(args.saes)
    return [
        DashboardRequest(
            paths=root_paths(args),
            model=model_request(args),
            folder=folder,
            source=text_source(args) if args.data else None,
            n_tokens=args.tokens,
            latents=tuple(dict.fromkeys(args.latents or ())),
            top=args.top,
            prompts=prompt_source(args),
            n_prompts=args.n_prompts,
            position=args.position,
            system_prompt=args.system_prompt,
            other_model=args.other_model,
            command=args.command,
        )
        for folder in args.saes
    ]


def run(args: argparse.Namespace) -> int:
    waiting = [one for one in requests(args) if not one.is_done(overwrite=args.overwrite)]
    if waiting:
        from llama_wrapper import LlamaWrapper
        from utils.saes.dashboard_run import make_dashboard

        model = LlamaWrapper.load(**loading(args))
        for request in waiting:
            make_dashboard(request, model)
    log.info("wrote %d dashboards, skipped %d", len(waiting), len(args.saes) - len(waiting))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
