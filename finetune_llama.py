#!/usr/bin/env python3
"""Fine-tune a model on a behavior's contrast pairs: supervised, on the answer letter alone.

Towards the matching letter (pos) or the other one (neg); the whole model, one decoder block (--layer) or
LoRA adapters that are merged into the weights. Held-out questions are scored before and after. Several
processes: accelerate launch finetune_llama.py ...; a run that was interrupted goes on when it is started again.

Reads:   datasets/generate/<behavior>/generate_dataset.json, datasets/test/<behavior>/test_dataset_ab.json
Writes:  finetuned_models/<behavior>_{pos,neg}_finetune_{all,<layer>}.pt (--lora: ..._lora.pt)
         finetune_logs/<behavior>_{pos,neg}_finetune_{all,<layer>}.{txt,png,pdf}
Example: ./finetune_llama.py --behavior refusal --direction pos --model_size 135m
"""

import argparse
import logging
from collections.abc import Sequence

from utils.cli import values as flag_values
from utils.cli.flags import add_model, check_layers, data_paths, make_parser, model_choice
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.finetuning.checkpoints import remove_finished_run
from utils.finetuning.request import (
    ADAMW_LR,
    ADAMW_LR_OF_FEW,
    LORA_RANK,
    SGD_LR,
    FinetuneRequest,
    FinetuneSettings,
    default_lr,
    load_data,
    warn_of_other_settings,
)
from utils.model.shapes import model_shape

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument("--behavior", required=True, metavar="ID", help="behavior to train: any of datasets/behaviors")
    parser.add_argument(
        "--direction", required=True, choices=["pos", "neg"], help="towards (pos) or away from (neg) the behavior"
    )
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="train this decoder layer alone, counted from 0 (default: the whole model)",
    )
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters and merge them into the weights")
    parser.add_argument(
        "--lora_rank", type=flag_values.positive_int, metavar="R", help="rank of the adapters (default: 16)"
    )
    add_model(parser, quantize=False)
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="where to train; CUDA_VISIBLE_DEVICES says which GPU (default: the best available)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        default="auto",
        help="arithmetic (autocast); the weights are float32 in any case (default: float32)",
    )
    _add_training(parser)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=flag_values.positive_int, default=1, metavar="N", help="passes over the pairs (default: 1)"
    )
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw", help="(default: adamw)")
    parser.add_argument(
        "--lr",
        type=flag_values.positive_float,
        metavar="X",
        help="highest learning rate; it rises over the first tenth of the steps and then falls linearly to 0 "
        f"(default: {ADAMW_LR:g} with adamw, {ADAMW_LR_OF_FEW:g} with --layer or --lora too, {SGD_LR:g} with sgd)",
    )
    parser.add_argument(
        "--batch_size",
        type=flag_values.positive_int,
        default=4,
        metavar="N",
        help="pairs in one forward pass (default: 4)",
    )
    parser.add_argument(
        "--gradient_accumulation",
        type=flag_values.positive_int,
        default=1,
        metavar="N",
        help="forward passes per step (default: 1)",
    )
    parser.add_argument(
        "--max_grad_norm",
        type=flag_values.non_negative_float,
        default=1.0,
        metavar="X",
        help="scale gradients down to this norm; 0 leaves them as they are (default: 1)",
    )
    parser.add_argument(
        "--checkpoints",
        type=flag_values.count,
        default=1,
        metavar="N",
        help="checkpoints over the run, evenly spaced; an interrupted run goes on from the last (default: 1)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="fail where no interrupted run left a checkpoint (default: then start at the beginning); "
        "with --overwrite: go on from it instead of dropping it",
    )


def build_request(args: argparse.Namespace) -> FinetuneRequest:
    """
    Raises:
        UserError: If flags do not go together.
    """
    if args.lora_rank is not None and not args.lora:
        raise UserError("--lora_rank is the rank of LoRA adapters; add --lora")
    few_weights = args.lora or args.layer is not None
    settings = FinetuneSettings(
        behavior=args.behavior,
        direction=args.direction,
        layer=args.layer,
        lora_rank=(args.lora_rank or LORA_RANK) if args.lora else None,
        optimizer=args.optimizer,
        lr=default_lr(args.optimizer, few_weights=few_weights) if args.lr is None else args.lr,
        epochs=args.epochs,
        batch_size=args.batch_size,
        gradient_accumulation=args.gradient_accumulation,
        max_grad_norm=args.max_grad_norm,
        arithmetic="float32" if args.dtype == "auto" else args.dtype,
        seed=args.seed,
    )
    return FinetuneRequest(
        data_paths(args),
        model_choice(args),
        settings,
        args.device,
        args.checkpoints,
        args.resume,
        args.overwrite,
        args.command,
    )


def run(args: argparse.Namespace) -> int:
    request = build_request(args)
    data = load_data(request)
    if args.layer is not None:
        check_layers([args.layer], model_shape(request.choice).n_layers, request.choice.label, "--layer")
    if not request.is_finished:
        from llama_wrapper import LlamaWrapper
        from utils.finetuning.job import finetune

        if finetune(request, data, lambda device: LlamaWrapper.load(request.choice, device, "float32")):
            log.info("wrote 1, skipped 0, failed 0")
            return EXIT_DONE
    remove_finished_run(request.run_dir, request.weights_path)
    warn_of_other_settings(request, data)
    log.info("wrote 0, skipped 1 that is there already (--overwrite makes it again): %s", request.weights_path)
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
