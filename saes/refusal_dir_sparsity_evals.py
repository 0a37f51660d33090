#!/usr/bin/env python3
"""How few latents of an SAE make up the refusal direction: the error left by the best combination of k of them.

The k latents whose mean activation differs most between harmful and harmless prompts get free coefficients; what is
left of the direction is drawn against k = 1, 2, 4, ..., 512, beside random directions in the same SAE and the same
direction in random dictionaries. A curve ends where no further latent differs.

Reads:   SAE folders; datasets/refusal/..., or --harmful FILE --harmless FILE
Writes:  analysis/sae/refusal_dir_sparsity_evals_<model>.{json,png,pdf,txt}
Example: ./saes/refusal_dir_sparsity_evals.py --model_size 135m
             --override_model_weights_path finetuned_models/refuser.pt --saes saes_trained/*_chat saes_trained/*_web
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import make_parser
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import add_evaluation, eval_request, loading

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "--method",
        choices=["lstsq", "adam", "omp"],
        default="lstsq",
        help="lstsq: the exact optimum; adam: the published fit of the same loss; omp: matching pursuit, which chooses "
        "latents by the direction itself (default: lstsq)",
    )
    parser.add_argument(
        "--n_resamples",
        type=values.count,
        default=200,
        metavar="N",
        help="resamples of the prompts for the intervals, with lstsq; 0 for none (default: 200)",
    )
    add_evaluation(parser, n_random=5)
    return parser


def run(args: argparse.Namespace) -> int:
    own = {"method": args.method, "n_resamples": args.n_resamples}
    request = eval_request(args, "refusal_dir_sparsity_evals", **own)
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.sparsity_run import SparsityOptions, evaluate_sparsity

    model = LlamaWrapper.load(**loading(args))
    for line in evaluate_sparsity(model, request, SparsityOptions(args.method, args.n_resamples)):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
