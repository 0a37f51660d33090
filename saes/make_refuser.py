#!/usr/bin/env python3
"""Make a stand-in for a chat model that refuses: the middle blocks of a model, fine-tuned on bundled instructions.

The embedded model does not refuse, harmful or not. The stand-in is made up: it is taught to answer harmful instructions
with one sentence and to begin its answers to harmless ones as it did before. What is found in it says nothing of models
that were trained to be safe. It learns from the split "refuser", which nothing else reads; its refusal rates are
printed for the test prompts, before and after.

Reads:   datasets/refusal/{harmful,harmless}_{refuser,test}.json
Writes:  finetuned_models/refuser.pt: a state dict for --override_model_weights_path
         analysis/sae/refuser_<model>.json: refusal rates and losses
Example: ./saes/make_refuser.py --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_device, add_layers, add_model, make_parser, model_choice, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import check_one_process
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.saes.refuser_request import RefuserRequest, RefuserSettings, middle_third

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_layers(parser, "the middle third of the model")
    parser.add_argument(
        "--steps",
        type=values.positive_int,
        default=RefuserSettings.steps,
        metavar="N",
        help=f"optimiser steps (default: {RefuserSettings.steps})",
    )
    parser.add_argument(
        "--batch",
        type=values.positive_int,
        default=RefuserSettings.batch_size,
        metavar="N",
        help=f"prompts a step, half of them harmful (default: {RefuserSettings.batch_size})",
    )
    parser.add_argument(
        "--lr",
        type=values.positive_float,
        default=RefuserSettings.lr,
        metavar="X",
        help=f"highest learning rate of AdamW (default: {RefuserSettings.lr:g})",
    )
    parser.add_argument(
        "--max_new_tokens", type=values.positive_int, default=16, metavar="N", help="of test answers (default: 16)"
    )
    add_model(parser, quantize=False)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    check_one_process()
    choice = model_choice(args)
    n_layers = model_shape(choice).n_layers
    layers = check_layers(args.layers or middle_third(n_layers), n_layers, choice.label)
    settings = RefuserSettings(tuple(layers), args.steps, args.batch, args.lr, seed=args.seed)
    request = RefuserRequest(root_paths(args), choice, settings, args.max_new_tokens, args.command)
    if request.is_done(overwrite=args.overwrite):
        log.info("wrote 0, skipped 1 that is there already (--overwrite makes it again)")
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.refuser import make_refuser

    model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    for line in make_refuser(model, request):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
