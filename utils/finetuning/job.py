"""One fine-tuning from the checks of the machine to the weights file."""

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.writing import held_file, save_tensor
from utils.finetuning import training
from utils.finetuning.checkpoints import checkpoint_to_resume, start_run_folder
from utils.finetuning.log import History, save_history
from utils.finetuning.request import FinetuneData, FinetuneRequest, describe
from utils.finetuning.run import (
    Diverged,
    check_arithmetic,
    check_disk,
    check_memory,
    check_writable,
    estimate_footprint,
    is_sharded,
)
from utils.model.loading import load_config, pick_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainingArguments

    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


def finetune(request: FinetuneRequest, data: FinetuneData, load: "Callable[[str], LlamaWrapper]") -> bool:
    """Check the machine, train, and write weights, provenance and log; the main process writes.

    Args:
        request: What to do.
        data: What it is done with.
        load: Loads the model in float32 to the device that it is given.

    Returns:
        False where another run has written the weights meanwhile.

    Raises:
        UserError: If the machine does not suffice, a checkpoint is in the way, or the training diverges.
    """
    arguments = _prepare(request)
    described = describe(request, data, arguments.world_size)
    run_dir = request.run_dir
    processes: Any = arguments.distributed_state
    is_main = processes.is_main_process
    with held_file(run_dir / f"{run_dir.name}.lock") if is_main else nullcontext():
        processes.wait_for_everyone()
        if request.is_finished:
            return False
        checkpoint = checkpoint_to_resume(run_dir, described, resume=request.resume, overwrite=request.overwrite)
        processes.wait_for_everyone()
        if is_main:
            start_run_folder(run_dir, described, checkpoint)
        model = load("cpu" if is_sharded(arguments) else str(arguments.device))
        record = {**model.provenance(), "command": request.command, **described}  # of the weights as they were loaded
        weights, history = _train(request, data, model, arguments, checkpoint)
        if is_main:
            _save(request, data, weights, history, record)
        processes.wait_for_everyone()
        processes.destroy_process_group()
    return True


def _prepare(request: FinetuneRequest) -> "TrainingArguments":
    """Check folders, device, precision, memory and disk, and set the processes up.

    Raises:
        UserError: If one of them does not suffice.
    """
    settings, label = request.settings, request.choice.label
    check_writable(request.weights_path.parent)
    check_writable(request.run_dir.parent)
    device = pick_device(request.device)
    check_arithmetic(settings.arithmetic, device)
    arguments = training.training_arguments(settings, request.run_dir, device)
    if arguments.process_index > 0:
        logging.getLogger().setLevel(logging.ERROR)  # the main process speaks for all
    adapters = settings.lora_rank is not None
    config = load_config(request.choice)
    needed = estimate_footprint(config, label, settings.layer, settings.optimizer, adapters=adapters)
    if not is_sharded(arguments):
        check_memory(needed, arguments.device, label)
    elif adapters:
        raise UserError("--lora is not for a sharded model (FSDP, DeepSpeed); launch it without sharding")
    check_disk(needed.on_disk(request.n_checkpoints), request.paths.root)
    return arguments


def _train(
    request: FinetuneRequest,
    data: FinetuneData,
    model: "LlamaWrapper",
    arguments: "TrainingArguments",
    checkpoint: Path | None,
) -> "tuple[dict[str, Tensor], History]":
    """The trained state dict and how the training went.

    Raises:
        UserError: If the memory does not suffice or the training diverges; a diverged run leaves no checkpoint.
    """
    settings, chat_format = request.settings, model.chat_format
    trained = training.choose_trained(model.model, settings, model.label)
    log.info(
        "%s: %d contrast pairs, %d of %d parameters trained, learning rate %g%s",
        settings.name,
        len(data.pairs),
        training.count_parameters(trained, trained=True),
        training.count_parameters(trained, trained=False),
        settings.lr,
        f", going on from {checkpoint.name}" if checkpoint else "",
    )
    trainer = training.build_trainer(
        trained,
        arguments,
        training.training_examples(data.pairs, chat_format, settings.direction),
        training.held_out_examples(data.held_out, chat_format, settings.direction),
        data.held_out,
        chat_format,
        settings.direction,
        request.n_checkpoints,
    )
    try:
        _run_trainer(trainer, checkpoint)
        history = History.read(trainer.state.log_history)
        if how := history.divergence():
            raise Diverged(how, settings.lr)
        return training.trained_weights(trainer, settings), history
    except Diverged:
        shutil.rmtree(request.run_dir, ignore_errors=True)
        raise


def _run_trainer(trainer: "Trainer", checkpoint: Path | None) -> None:
    """
    Raises:
        UserError: If the memory does not suffice.
    """
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as err:
        if not (isinstance(err, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(err)):
            raise
        raise UserError(
            f"out of memory on {trainer.args.device} while training; use a smaller --batch_size with more "
            "--gradient_accumulation, --dtype bfloat16, --lora or --layer N"
        ) from err


def _save(
    request: FinetuneRequest,
    data: FinetuneData,
    weights: "dict[str, Tensor]",
    history: History,
    record: dict[str, Any],
) -> None:
    """Write the log, then the weights, which say that all is there; then the run's folder goes."""
    settings, path, run_dir = request.settings, request.weights_path, request.run_dir
    record_provenance(path.parent, [path.name], record)
    before, after = history.before, history.after
    what = "all weights" if settings.layer is None else f"layer {settings.layer}"
    how = what if settings.lora_rank is None else f"{what} (LoRA)"
    behavior = load_behavior(request.paths, settings.behavior).label
    title = f"{behavior}, fine-tuned {settings.direction}, {how}, {request.choice.label}"
    notes = [f"{key}: {value}" for key, value in record.items()]
    notes += [f"held-out questions: {len(data.held_out)}", f"before: {before}", f"after: {after}"]
    save_history(run_dir, history, title, notes)
    log.info("wrote %s (png, pdf, txt)", run_dir)
    save_tensor(path, weights)
    log.info("wrote %s", path)
    shutil.rmtree(run_dir, ignore_errors=True)
    log.info("%d held-out questions before: %s; after: %s", len(data.held_out), before, after)
    if (after.p_matching - before.p_matching) * (1 if settings.direction == "pos" else -1) <= 0:
        log.warning("p(matching) did not move towards %s; try more --epochs or another --lr", settings.direction)
