#!/usr/bin/env python3
"""Does a latent do what the refusal direction does? Latents, the direction and random controls, ablated and added.

The latents whose decoder rows point most along the direction are found on the prompts that make it, and tried on test
prompts: ablated everywhere while the model answers harmful ones, and added (at the direction's norm, behind the SAE's
layer) while it answers harmless ones. Refusal rates with Wilson intervals and McNemar's test against the model as it
is; the change of a refusal's log-odds with its interval.

Reads:   SAE folders; datasets/refusal/..., or --harmful FILE --harmless FILE
Writes:  analysis/sae/refusal_latent_steering_evals_<model>.{json,png,pdf,txt}, ..._cosines.{png,pdf,txt}
Example: ./saes/refusal_latent_steering_evals.py --model_size 135m --ablation affine --max_new_tokens 16
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
from utils.cli.sae_flags import add_evaluation, add_refusal_tests, eval_request, loading

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "--top",
        type=values.positive_int,
        default=1,
        metavar="N",
        help="latents of each SAE to try (default: 1)",
    )
    add_refusal_tests(parser)
    add_evaluation(parser, n_random=20)
    return parser


def run(args: argparse.Namespace) -> int:
    own = {
        "top": args.top,
        "ablation": args.ablation,
        "n_test": args.n_test,
        "max_new_tokens": args.max_new_tokens,
        "refusal_tokens": list(args.refusal_tokens or ()),
    }
    request = eval_request(args, "refusal_latent_steering_evals", **own)
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.steering_run import SteeringOptions, evaluate_steering

    options = SteeringOptions(
        args.top,
        args.ablation,
        args.n_test,
        args.max_new_tokens,
        tuple(args.refusal_tokens or ()),
        args.save_completions,
    )
    for line in evaluate_steering(LlamaWrapper.load(**loading(args)), request, options):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
