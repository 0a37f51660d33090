#!/usr/bin/env python3
"""Fine-tune a model on a behavior's contrast pairs: supervised, on the answer letter alone.

Towards the matching letter (pos) or the other one (neg); the whole model, one decoder block (--layer) or
LoRA adapters that are merged into the weights. Held-out questions are scored before and after. Several
processes: accelerate launch finetune_llama.py ...; a run that was interrupted goes on when it is started again.

Reads:   datasets/generate/<behavior>/generate_dataset.json, datasets/test/<behavior>/test_dataset_ab.json
Writes:  finetuned_models/<behavior>_{pos,neg}_finetune_{all,<layer>}.pt
         finetune_logs/<behavior>_{pos,neg}_finetune_{all,<layer>}.{txt,png,pdf}
Example: ./finetune_llama.py --behavior refusal --direction pos --model_size 135m
"""

import argparse
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import load_behavior
from utils.cli import values as flag_values
from utils.cli.flags import add_model, check_layers, data_paths, make_parser, model_choice
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.data.records import ChoiceItem, ContrastPair, load_choice_items, load_contrast_pairs
from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainingArguments

    from llama_wrapper import LlamaWrapper
    from utils.finetuning.log import History
    from utils.finetuning.training import FinetuneSettings

log = logging.getLogger(__name__)

SGD_LR, ADAMW_LR, ADAMW_LR_OF_FEW = 1e-2, 1e-5, 1e-4


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
    add_model(parser)
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="where to train; CUDA_VISIBLE_DEVICES says which GPU (default: the best there is)",
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
        help="forward passes a step (default: 1)",
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


@dataclass(frozen=True)
class Task:
    """Everything that one run needs to know before it loads the model."""

    args: argparse.Namespace
    paths: DataPaths
    choice: ModelChoice
    settings: "FinetuneSettings"
    name: str
    """Of the weights file and the log."""
    pairs: list[ContrastPair]
    items: list[ChoiceItem]
    """The held-out questions."""

    @property
    def weights_path(self) -> Path:
        return self.paths.finetuned_weights(self.name)

    @property
    def run_dir(self) -> Path:
        return self.paths.finetune_log(self.name)

    @property
    def is_finished(self) -> bool:
        return self.weights_path.exists() and not self.args.overwrite

    def describe(self, n_processes: int) -> dict[str, Any]:
        """What the weights depend on, for the provenance and for going on from a checkpoint."""
        from utils.files.reading import sha256_of

        behavior = self.settings.behavior
        return {
            "model": self.choice.label,
            **self.settings.describe(),
            "n_processes": n_processes,
            "n_pairs": len(self.pairs),
            "dataset_sha256": sha256_of(self.paths.generate_dataset(behavior)),
            "held_out_sha256": sha256_of(self.paths.test_dataset(behavior, "ab")),
        }


def run(args: argparse.Namespace) -> int:
    task = plan(args)
    if task.is_finished or not finetune(task, prepare(task)):
        check_finished(task)
        log.info("wrote 0, skipped 1 that is there already (--overwrite makes it again): %s", task.weights_path)
    else:
        log.info("wrote 1, skipped 0, failed 0")
    return EXIT_DONE


# --- before the model is loaded --------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Task:
    """Check flags and data.

    Raises:
        UserError: If flags do not go together, the layer is not the model's, or data is missing or broken.
    """
    paths, choice = data_paths(args), model_choice(args)
    if args.lora_rank is not None and not args.lora:
        raise UserError("--lora_rank is the rank of LoRA adapters; add --lora")
    hint = f"run: {paths.command('process_raw_datasets', '--behaviors', args.behavior)}"
    pairs = load_contrast_pairs(paths.generate_dataset(args.behavior), hint)
    items = load_choice_items(paths.test_dataset(args.behavior, "ab"), "ab", hint)

    from utils.finetuning.training import LORA_RANK, FinetuneSettings
    from utils.model.loading import load_config

    n_layers = load_config(choice).num_hidden_layers
    if args.layer is not None:
        check_layers([args.layer], n_layers, choice.label, "--layer")
    few = args.lora or args.layer is not None
    default_lr = SGD_LR if args.optimizer == "sgd" else ADAMW_LR_OF_FEW if few else ADAMW_LR
    settings = FinetuneSettings(
        behavior=args.behavior,
        direction=args.direction,
        layer=args.layer,
        lora_rank=(args.lora_rank or LORA_RANK) if args.lora else None,
        optimizer=args.optimizer,
        lr=default_lr if args.lr is None else args.lr,
        epochs=args.epochs,
        batch_size=args.batch_size,
        gradient_accumulation=args.gradient_accumulation,
        max_grad_norm=args.max_grad_norm,
        arithmetic="float32" if args.dtype == "auto" else args.dtype,
        seed=args.seed,
    )
    name = f"{args.behavior}_{args.direction}_finetune_{'all' if args.layer is None else args.layer}"
    return Task(args, paths, choice, settings, name, pairs, items)


def check_finished(task: Task) -> None:
    """Weights that are there: warn where they were made under other settings.

    Raises:
        UserError: If they are another model's.
    """
    from utils.files.provenance import read_provenance
    from utils.finetuning.run import forget_finished

    forget_finished(task.run_dir, task.weights_path)
    made = read_provenance(task.weights_path) or {}
    if made.get("model", task.choice.label) != task.choice.label:
        raise UserError(
            f"{task.weights_path} holds weights of {made['model']}; --overwrite replaces them by {task.choice.label}'s"
        )
    now = task.describe(made.get("n_processes", 1))
    if differing := [key for key in now if key in made and made[key] != now[key]]:
        key = differing[0]
        log.warning(
            "%s was made under other settings (%s was %s, now it is %s); --overwrite makes it again",
            task.weights_path,
            key,
            made[key],
            now[key],
        )


def prepare(task: Task) -> "TrainingArguments":
    """Check folders, device, precision, memory and disk, and set the processes up.

    Raises:
        UserError: If one of them does not suffice.
    """
    from utils.finetuning.run import (
        check_arithmetic,
        check_disk,
        check_memory,
        check_writable,
        estimate_footprint,
        is_sharded,
    )
    from utils.finetuning.training import training_arguments
    from utils.model.loading import load_config, pick_device

    check_writable(task.weights_path.parent)
    check_writable(task.run_dir.parent)
    device = pick_device(task.args.device)
    check_arithmetic(task.settings.arithmetic, device)
    arguments = training_arguments(task.settings, task.run_dir, device)
    if arguments.process_index > 0:
        logging.getLogger().setLevel(logging.ERROR)  # the main process speaks for all
    settings = task.settings
    needed = estimate_footprint(
        load_config(task.choice), task.choice.label, settings.layer, settings.optimizer, adapters=task.args.lora
    )
    if not is_sharded(arguments):
        check_memory(needed, arguments.device, task.choice.label)
    elif settings.lora_rank is not None:
        raise UserError("--lora is not for a sharded model (FSDP, DeepSpeed); launch it without sharding")
    check_disk(needed.on_disk(task.args.checkpoints), task.paths.root)
    return arguments


# --- training --------------------------------------------------------------------------------------


def finetune(task: Task, arguments: "TrainingArguments") -> bool:
    """Train, and write weights, provenance and log; the main process writes.

    Returns:
        False where another run has written the weights meanwhile.

    Raises:
        UserError: If there is a checkpoint in the way, the memory does not suffice, or the training diverges.
    """
    from llama_wrapper import LlamaWrapper
    from utils.files.writing import held_file
    from utils.finetuning.run import checkpoint_to_resume, is_sharded, start_run_folder

    args, described = task.args, task.describe(arguments.world_size)
    processes: Any = arguments.distributed_state
    is_main = processes.is_main_process
    with held_file(task.run_dir / f"{task.name}.lock") if is_main else nullcontext():
        processes.wait_for_everyone()
        if task.is_finished:
            return False
        checkpoint = checkpoint_to_resume(task.run_dir, described, resume=args.resume, overwrite=args.overwrite)
        processes.wait_for_everyone()
        if is_main:
            start_run_folder(task.run_dir, described, checkpoint)
        device = "cpu" if is_sharded(arguments) else str(arguments.device)
        model = LlamaWrapper.load(task.choice, device, "float32")
        record = {**model.provenance(), "command": args.command, **described}  # of the weights as they were loaded
        weights, history = train(task, model, arguments, checkpoint)
        if is_main:
            save(task, weights, history, record)
        processes.wait_for_everyone()
        processes.destroy_process_group()
    return True


def train(
    task: Task, model: "LlamaWrapper", arguments: "TrainingArguments", checkpoint: Path | None
) -> "tuple[dict[str, Tensor], History]":
    """The trained state dict and how the training went.

    Raises:
        UserError: If the memory does not suffice or the training diverges; a diverged run leaves no checkpoint.
    """
    from utils.finetuning import training as finetuning
    from utils.finetuning.log import History
    from utils.finetuning.run import Diverged

    settings, chat_format = task.settings, model.chat_format
    trained = finetuning.choose_trained(model.model, settings, model.label)
    log.info(
        "%s: %d contrast pairs, %d of %d parameters trained, learning rate %g%s",
        task.name,
        len(task.pairs),
        finetuning.count_parameters(trained, trained=True),
        finetuning.count_parameters(trained, trained=False),
        settings.lr,
        f", going on from {checkpoint.name}" if checkpoint else "",
    )
    trainer = finetuning.build_trainer(
        trained,
        arguments,
        finetuning.training_examples(task.pairs, chat_format, settings.direction),
        finetuning.held_out_examples(task.items, chat_format, settings.direction),
        task.items,
        chat_format,
        settings.direction,
        task.args.checkpoints,
    )
    try:
        run_trainer(trainer, checkpoint)
        history = History.read(trainer.state.log_history)
        if how := history.divergence():
            raise Diverged(how, settings.lr)
        return finetuning.trained_weights(trainer, settings), history
    except Diverged:
        shutil.rmtree(task.run_dir, ignore_errors=True)
        raise


def run_trainer(trainer: "Trainer", checkpoint: Path | None) -> None:
    """
    Raises:
        UserError: If the memory does not suffice.
    """
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as err:
        if not (isinstance(err, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(err)):
            raise
        raise UserError(
            f"out of memory on {trainer.args.device} while training; use a smaller --batch_size with more "
            "--gradient_accumulation, --dtype bfloat16, --lora or --layer N"
        ) from err


def save(task: Task, weights: "dict[str, Tensor]", history: "History", record: dict[str, Any]) -> None:
    """Write the log, then the weights, which say that all is there; then the run's folder goes."""
    from utils.files.provenance import record_provenance
    from utils.files.writing import save_tensor
    from utils.finetuning.log import save_history

    record_provenance(task.weights_path.parent, [task.weights_path.name], record)
    before, after = history.before, history.after
    what = "all weights" if task.settings.layer is None else f"layer {task.settings.layer}"
    how = f"{what} (LoRA)" if task.args.lora else what
    label = load_behavior(task.paths, task.settings.behavior).label
    title = f"{label}, fine-tuned {task.settings.direction}, {how}, {task.choice.label}"
    notes = [f"{key}: {value}" for key, value in record.items()]
    notes += [f"held-out questions: {len(task.items)}", f"before: {before}", f"after: {after}"]
    save_history(task.run_dir, history, title, notes)
    log.info("wrote %s (png, pdf, txt)", task.run_dir)
    save_tensor(task.weights_path, weights)
    log.info("wrote %s", task.weights_path)
    shutil.rmtree(task.run_dir, ignore_errors=True)
    log.info("%d held-out questions before: %s; after: %s", len(task.items), before, after)
    if (after.p_matching - before.p_matching) * (1 if task.settings.direction == "pos" else -1) <= 0:
        log.warning("p(matching) did not move towards %s; try more --epochs or another --lr", task.settings.direction)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
