#!/usr/bin/env python3
"""The refusal direction of a model: mean of harmful minus mean of harmless prompts, at a layer and a position.

The layer and position are named, or chosen (--select) as Arditi et al. 2024 do: of the candidates that cause little KL
when they are ablated, and bring refusal about when they are added, the one whose ablation bypasses refusal best. What
was chosen on validation prompts is then tried on test prompts, beside a random direction. --evaluations chooses among
scores in a file, without a model.

--layer and --layers count block outputs from 0, as everywhere in the suite; files carry Arditi's count beside it, the
block that reads the place, which is one more.

Reads:   datasets/refusal/..., or --harmful FILE --harmless FILE
Writes:  refusal/<model>/direction.pt, metadata.json; with --select direction_evaluations.json and heatmaps
         analysis/sae/refusal_direction_<model>: what it does on test prompts (.json, .png, .pdf, .txt)
Example: ./saes/refusal_direction.py --select --layers 8-18 --ablation affine --max_kl 0.5 --model_size 135m
             --override_model_weights_path finetuned_models/refuser.pt
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import add_layers, make_parser
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import (
    add_position,
    add_prompts,
    add_refusal_tests,
    add_weighted_model,
    check_one_process,
    loading,
    model_request,
    prompt_source,
)
from utils.errors import UserError
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--layer", type=values.layer, metavar="N", help="read the direction behind this block")
    where.add_argument("--select", action="store_true", help="choose layer and position among --layers and --positions")
    where.add_argument(
        "--evaluations", type=Path, metavar="FILE", help="choose among the scores in a file, and print the choice"
    )
    add_position(parser)
    add_layers(parser, "all but the last, with --select")
    parser.add_argument(
        "--positions",
        nargs="+",
        type=int,
        metavar="N",
        help="with --select: tokens from the prompt's end (default: all behind the instruction)",
    )
    parser.add_argument(
        "--max_kl",
        type=values.non_negative_float,
        default=0.1,
        metavar="NATS",
        help="with --select and --evaluations: largest KL on harmless prompts (default: 0.1, as published)",
    )
    parser.add_argument(
        "--n_val", type=values.positive_int, default=32, metavar="N", help="validation prompts a side (default: 32)"
    )
    parser.add_argument(
        "--no_filter",
        action="store_true",
        help="with --select: keep harmful prompts that are not refused and harmless ones that are (default: leave them "
        "out, as published)",
    )
    add_refusal_tests(parser)
    add_prompts(parser)
    add_weighted_model(parser)
    return parser


def choose_from_file(args: argparse.Namespace) -> int:
    from utils.saes.selection import SelectionRule, read_evaluations, select

    stored = read_evaluations(args.evaluations)
    selection = select(stored.candidates, SelectionRule(stored.n_layers, args.max_kl))
    best = selection.chosen
    sys.stdout.write(
        f"{args.evaluations}: position {best.position}, input of block {best.layer} (--layer {best.layer - 1}); bypass "
        f"{best.refusal_score:.3f}, induce {best.steering_score:.3f}, KL {best.kl_div_score:.3f}; "
        f"kept {len(selection.kept)} of {len(stored.candidates)}\n"
    )
    return EXIT_DONE


def run(args: argparse.Namespace) -> int:
    if args.evaluations is not None:
        return choose_from_file(args)
    from utils.saes.direction_request import DirectionRequest

    check_one_process()
    model = model_request(args)
    n_layers = model_shape(model.choice).n_layers
    named = [args.layer] if args.layer is not None else args.layers or list(range(n_layers - 1))
    request = DirectionRequest(
        source=prompt_source(args),
        model=model,
        layers=tuple(check_layers(named, n_layers, model.name, "--layer" if args.layer is not None else "--layers")),
        positions=tuple(args.positions or ()) if args.select else (args.position,),
        select=args.select,
        ablation=args.ablation,
        filtered=not args.no_filter,
        max_kl=args.max_kl,
        n_prompts=args.n_prompts,
        n_val=args.n_val,
        n_test=args.n_test,
        system_prompt=args.system_prompt,
        refusal_tokens=tuple(args.refusal_tokens or ()),
        max_new_tokens=args.max_new_tokens,
        save_completions=args.save_completions,
        seed=args.seed,
        command=args.command,
    )
    if any(position >= 0 for position in request.positions):
        raise UserError("--position and --positions count from the prompt's end: -1 is its last token")
    if request.is_done(overwrite=args.overwrite):
        log.info("wrote 0, skipped 1 that is there already (--overwrite makes it again)")
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.direction_run import make_direction

    for line in make_direction(LlamaWrapper.load(**loading(args)), request):
        sys.stdout.write(line + "\n")
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
