#!/usr/bin/env python3
"""Choose each behavior's layer and strength on validation items under a budget of side effects; test them once.

Validation items are a third of the generate set; vectors for choosing are made from the rest. The budget is the 95th
percentile of the per-token KL to the unsteered model on neutral prompts. The effect is the change of the preference
for the matching answer's text, in nats per token, at +strength minus at -strength. A strength is the added norm as a
share of the layer's residual norm.

Reads:   datasets/generate/..., datasets/test/..., datasets/neutral/prompts.json,
         normalized_vectors/<behavior>/vec_layer_<layer>_<model>...pt
Writes:  vectors/<behavior>/chosen_<model>...json     (prompting_with_steering.py --chosen reads it)
         analysis/<behavior>/chosen_<model>...: effect against KL over layers (.png, .pdf, .txt)
Example: ./choose_steering.py --behaviors refusal --read answer --model_size 135m
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from utils.cli import values
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_vector_kind,
    data_paths,
    make_parser,
    model_choice,
    vector_kind,
)
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.evaluation.chosen import ChoiceRequest, tested_choices
from utils.model import processes
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser)
    add_vector_kind(parser)
    parser.add_argument(
        "--kl",
        type=values.positive_float,
        default=1.0,
        metavar="NATS",
        help="budget: 95th percentile of the per-token KL to the unsteered model on neutral prompts (default: 1)",
    )
    add_model(parser)
    add_compute(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    choice = model_choice(args)
    request = ChoiceRequest(
        paths=data_paths(args),
        choice=choice,
        behaviors=tuple(dict.fromkeys(args.behaviors)),
        layers=tuple(check_layers(args.layers, model_shape(choice).n_layers, choice.label)),
        kind=vector_kind(args),
        kl=args.kl,
        seed=args.seed,
        overwrite=args.overwrite,
        command=args.command,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
    )
    waiting = request.waiting
    if waiting:
        from llama_wrapper import LlamaWrapper
        from utils.evaluation.choice import Chooser
        from utils.evaluation.chosen import save_choice
        from utils.figures.choice import choice_line, plot_choice, plot_tested, tested_lines

        model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
        chooser = Chooser(model, request)
        for behavior in waiting:
            chosen = chooser.choose(behavior)
            if processes.is_main():
                plot_choice(chosen, request)
                log.info("wrote %s", save_choice(chosen, request, model.provenance()))
                sys.stdout.write(choice_line(chosen) + "\n")
        if processes.is_main():
            choices = tested_choices(request)
            sys.stdout.write("".join(f"{line}\n" for line in tested_lines(choices)))
            log.info("wrote %s (png, pdf, txt)", plot_tested(choices, request))
    n_there = len(request.behaviors) - len(waiting)
    log.info(
        "chose for %d behaviors, skipped %d that are chosen already (--overwrite chooses again)", len(waiting), n_there
    )
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
