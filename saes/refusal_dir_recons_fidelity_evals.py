#!/usr/bin/env python3
"""How well SAEs reconstruct the refusal direction: cosine and relative error of the reconstructed one.

r is the mean of harmful minus the mean of harmless prompts at each SAE's layer, r_hat the same of the reconstructions.
Beside the published numbers stand ones that are corrected for the noise of few prompts, with intervals; random
directions and random dictionaries are the controls; SAEs of one layer are compared on the same prompts.

Reads:   SAE folders; datasets/refusal/..., or --harmful FILE --harmless FILE
Writes:  analysis/sae/refusal_dir_recons_fidelity_evals_<model>.{json,png,pdf,txt}
Example: ./saes/refusal_dir_recons_fidelity_evals.py --model_size 135m
             --override_model_weights_path finetuned_models/refuser.pt --saes saes_trained/*_chat saes_trained/*_web
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli.flags import make_parser
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import add_evaluation, eval_request, loading

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_evaluation(parser, n_random=20)
    return parser


def run(args: argparse.Namespace) -> int:
    request = eval_request(args, "refusal_dir_recons_fidelity_evals")
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.fidelity_run import evaluate_fidelity

    for line in evaluate_fidelity(LlamaWrapper.load(**loading(args)), request):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
