#!/usr/bin/env python3
"""Does the model or the text that an SAE was trained on matter for the refusal direction? Two heatmaps.

All SAEs are read on the one model that the flags name, as published: rows are the models they were trained on, columns
the texts. One heatmap has the cosine of the reconstructed direction, the other the largest cosine of a latent with it.
Several SAEs of a cell (other seeds) are averaged, and columns are compared SAE by SAE.

Reads:   SAE folders, usually four or a multiple; datasets/refusal/..., or --harmful FILE --harmless FILE
Writes:  analysis/sae/dataset_vs_model_transfer_<model>.{json,png,pdf,txt}
Example: ./saes/dataset_vs_model_transfer.py --model_size 135m
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
    request = eval_request(args, "dataset_vs_model_transfer")
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.transfer_run import evaluate_transfer

    for line in evaluate_transfer(LlamaWrapper.load(**loading(args)), request):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
