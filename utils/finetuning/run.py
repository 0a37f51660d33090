"""A fine-tuning run on the machine: what it needs, and how far it is."""

import logging
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from utils.cli.progress import progress
from utils.errors import UserError
from utils.finetuning.checkpoints import checkpoint_steps
from utils.model.architectures import find_decoder_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, TrainerControl, TrainerState

log = logging.getLogger(__name__)

_BYTES_PER_WEIGHT = 4  # float32
_OPTIMIZER_TENSORS = {"adamw": 2, "sgd": 0}  # of the weights' size, for each trained weight
_GB = 1e9


# --- the machine -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run holds beside its activations."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer

    def on_disk(self, n_checkpoints: int) -> int:
        """The weights file, and its checkpoints: while one is written, the one before is still there."""
        return self.weights + min(n_checkpoints, 2) * (self.weights + self.optimizer)


def estimate_footprint(
    config: "PretrainedConfig", label: str, layer: int | None, optimizer: str, *, adapters: bool
) -> Footprint:
    """What training takes, from the configuration alone; adapters themselves are too small to count."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    of_block = [sum(p.numel() for p in block.parameters()) for block in find_decoder_layers(model, label)]
    n_weights = sum(p.numel() for p in model.parameters())
    n_trained = 0 if adapters else n_weights if layer is None else of_block[layer]
    trained = n_trained * _BYTES_PER_WEIGHT
    return Footprint(n_weights * _BYTES_PER_WEIGHT, trained, trained * _OPTIMIZER_TENSORS[optimizer])


def check_memory(needed: Footprint, device: torch.device, label: str) -> None:
    """
    Raises:
        UserError: If the device has not enough free memory for every process that this machine runs on it.
    """
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type != "cuda" else 1
    free = free_memory(device)
    if needed.total * n_processes > free:
        each = f" in each of {n_processes} processes" if n_processes > 1 else ""
        raise UserError(
            f"fine-tuning {label} needs {needed.total / _GB:.1f} GB{each} (weights {needed.weights / _GB:.1f}, "
            f"gradients {needed.gradients / _GB:.1f}, optimizer {needed.optimizer / _GB:.1f}; activations on top), but "
            f"{device} has {free / _GB:.1f} GB free; use --lora, --layer N, --optimizer sgd, or several GPUs (FSDP)"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def check_disk(needed_bytes: int, root: Path) -> None:
    """
    Raises:
        UserError: If the disk has not that much space.
    """
    free = shutil.disk_usage(root).free
    if needed_bytes > free:
        raise UserError(
            f"the weights and checkpoints take {needed_bytes / _GB:.1f} GB, but {root} has {free / _GB:.1f} GB free; "
            "free some space, use --checkpoints 0, or choose another --root"
        )


def check_arithmetic(arithmetic: str, device: torch.device) -> None:
    """
    Raises:
        UserError: If the device does not compute in it.
    """
    if arithmetic == "float16" and device.type != "cuda":
        raise UserError(f"--dtype float16 needs a GPU, the device is {device}; use --dtype bfloat16 or float32")
    if arithmetic == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("--dtype bfloat16: this GPU does not support it; use --dtype float16 or float32")


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether `accelerate launch` spreads the weights themselves over the processes."""
    return bool(arguments.deepspeed) or any(
        os.environ.get(name, "false").lower() == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    )


def check_writable(folder: Path) -> None:
    """Make the folder where it is missing.

    Raises:
        UserError: If no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        reason = os.strerror(err.errno or 0)
        raise UserError(f"{folder} cannot be written to ({reason}); fix that or choose another --root") from err


# --- while it runs ---------------------------------------------------------------------------------
# ruff: noqa: ARG002  (the Trainer gives every callback the same arguments)


class CheckpointSteps(TrainerCallback):
    """Asks for checkpoints, evenly spaced; none at the end, where the weights themselves are written."""

    def __init__(self, n_checkpoints: int) -> None:
        self.n_checkpoints = n_checkpoints

    def on_step_end(
        self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        if state.global_step in checkpoint_steps(state.max_steps, self.n_checkpoints):
            control.should_save = True


class TrainingReport(TrainerCallback):
    """Shows how far the training is, and ends it when the loss is no longer a number."""

    def __init__(self, n_held_out: int) -> None:
        self.n_held_out = n_held_out
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self._bar = progress(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_log(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {state.global_step}", args.learning_rate)
        self._bar.update(state.global_step - self._bar.n)
        if self._bar.disable and state.global_step % max(1, state.max_steps // 10) == 0:
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, loss)

    def on_evaluate(
        self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        metrics = kwargs["metrics"]
        log.info(
            "step %d of %d: held-out accuracy %.3f, p(matching) %.4f (%d questions)",
            state.global_step,
            state.max_steps,
            metrics["eval_accuracy"],
            metrics["eval_p_matching"],
            self.n_held_out,
        )

    def on_train_end(
        self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self._bar.close()


class Diverged(UserError):
    """The training led nowhere; nothing of it is kept."""

    def __init__(self, how: str, lr: float) -> None:
        super().__init__(f"the training diverged: {how}; no weights written. Try a lower rate, e.g. --lr {lr / 10:g}")
