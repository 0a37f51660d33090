"""Supervised fine-tuning on the answer letter, on transformers' Trainer.

A sequence is a prompt that ends in `(`; the loss is the cross-entropy of the letter that comes next, over
the whole vocabulary, and nothing else. Weights are float32 whatever the arithmetic is.

Sequences are padded on the right: no token attends to padding, positions count from 0 as they do without
it, and only the answer positions' logits are computed.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from utils.data.records import ChoiceItem, ContrastPair
from utils.errors import UserError
from utils.finetuning.request import FinetuneSettings
from utils.finetuning.run import CheckpointSteps, Diverged, TrainingReport
from utils.model.architectures import find_decoder_layers
from utils.model.chat_format import ChatFormat
from utils.settings import Side

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel

IGNORED = -100  # label of every position but the answer's; the Trainer counts what differs from it
LORA_SCALE = 2  # lora_alpha / rank: what is added to a weight matrix is LORA_SCALE x B A
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd"}


# --- data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A prompt that ends in `(`, and the letter that is to follow."""

    ids: tuple[int, ...]
    answer_id: int


def training_examples(pairs: Sequence[ContrastPair], chat_format: ChatFormat, direction: Side) -> list[Example]:
    """One example a contrast pair: towards the matching letter for pos, towards the other one for neg."""
    letters = [pair.matching_letter if direction == "pos" else pair.other_letter for pair in pairs]
    return _examples([pair.question for pair in pairs], letters, chat_format)


def held_out_examples(items: Sequence[ChoiceItem], chat_format: ChatFormat, direction: Side) -> list[Example]:
    """The test questions with the letter that the training is after, in their order."""
    letters = [item.target_letter if direction == "pos" else item.other_letter for item in items]
    return _examples([item.question for item in items], letters, chat_format)


def _examples(questions: Sequence[str], letters: Sequence[str], chat_format: ChatFormat) -> list[Example]:
    return [
        Example(chat_format.encode_choice(question).ids, chat_format.letter_id(letter))
        for question, letter in zip(questions, letters, strict=True)
    ]


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Pad a batch on the right.

    Returns:
        input_ids, attention_mask and labels, [batch, seq_len]; labels hold the answer's id at the last
        token of each prompt, the one that predicts it. logits_to_keep holds, ascending, the positions
        that are the last token of any prompt, [n_kept].
    """
    shape = (len(examples), max(len(example.ids) for example in examples))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
        labels[row, len(example.ids) - 1] = example.answer_id
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits_to_keep": _kept_positions(labels)}


def _kept_positions(labels: Tensor) -> Tensor:
    return (labels != IGNORED).any(dim=0).nonzero().squeeze(1)


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the answers, averaged over all items of the step, in however many passes it is done.

    Args:
        outputs: Of the model; its logits are [batch, n_kept, vocab_size], as `collate` asked for them.
        labels: [batch, seq_len], of `collate`.
        num_items_in_batch: Items of the whole step; None averages over this batch.
    """
    targets = labels[:, _kept_positions(labels)].flatten()
    total = cross_entropy(outputs.logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def letter_log_probabilities(letter_ids: Sequence[int]) -> Callable[[Any, Tensor], Tensor]:
    """What the evaluation keeps of a batch: the letters' log-probabilities, [batch, len(letter_ids)]."""

    def keep(logits: Any, labels: Tensor) -> Tensor:
        of_kept: Tensor = logits[0] if isinstance(logits, tuple) else logits  # [batch, n_kept, vocab_size]
        place = (labels[:, _kept_positions(labels)] != IGNORED).int().argmax(dim=1)  # each row has one answer
        at_answer = of_kept[torch.arange(len(labels), device=labels.device), place].float()
        return at_answer.log_softmax(dim=-1)[:, torch.tensor(list(letter_ids), device=labels.device)]

    return keep


def held_out_metrics(
    items: Sequence[ChoiceItem], letters: Sequence[str], direction: Side
) -> "Callable[[EvalPrediction], dict[str, float]]":
    """Accuracy, mean p(matching) = p(match) / (p(match) + p(other)), and the loss that the training is after."""

    def measure(prediction: "EvalPrediction") -> dict[str, float]:
        log_p = np.asarray(prediction.predictions, dtype=np.float64)  # [n_items, n_letters]
        rows = np.arange(len(items))
        matching = log_p[rows, [letters.index(item.target_letter) for item in items]]
        other = log_p[rows, [letters.index(item.other_letter) for item in items]]
        p_matching = 1 / (1 + np.exp(np.clip(other - matching, -700, 700)))
        return {
            "p_matching": float(p_matching.mean()),
            "accuracy": float((matching > other).mean()),
            "answer_loss": -float((matching if direction == "pos" else other).mean()),
        }

    return measure


# --- what is trained -------------------------------------------------------------------------------


def choose_trained(model: "PreTrainedModel", settings: FinetuneSettings, label: str) -> nn.Module:
    """Freeze what is not trained; with LoRA, put adapters on every linear map of the decoder blocks.

    Returns:
        The model to train: the given one, or peft's around it.
    """
    blocks = find_decoder_layers(model, label)
    chosen = blocks if settings.layer is None else [blocks[settings.layer]]
    if settings.lora_rank is not None:
        return _add_adapters(model, chosen, settings.lora_rank, settings.seed)
    for weights in model.parameters():
        weights.requires_grad_(settings.layer is None)
    for weights in chosen[0].parameters() if settings.layer is not None else ():
        weights.requires_grad_(True)
    return model


def _add_adapters(model: "PreTrainedModel", blocks: Sequence[nn.Module], rank: int, seed: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    inside = {module for block in blocks for module in block.modules() if isinstance(module, nn.Linear | Conv1D)}
    names = [name for name, module in model.named_modules() if module in inside]
    set_seed(seed)  # adapters start from random numbers
    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_SCALE * rank,
        lora_dropout=0.0,
        target_modules=names,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inside),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks the model for an attribute that has a newer name
        return get_peft_model(model, config)


def count_parameters(model: nn.Module, *, trained: bool) -> int:
    return sum(weights.numel() for weights in model.parameters() if weights.requires_grad or not trained)


# --- the trainer -----------------------------------------------------------------------------------


def training_arguments(settings: FinetuneSettings, run_dir: Path, device: torch.device) -> TrainingArguments:
    """The Trainer's arguments; making them also sets up the process group of `accelerate launch`."""
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        optim=_OPTIMIZERS[settings.optimizer],
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.arithmetic == "bfloat16",
        fp16=settings.arithmetic == "float16",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,  # the mean is over the items of all processes
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        eval_on_start=True,
        eval_strategy="epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # CheckpointSteps decides
        save_total_limit=1,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process trains on one device: no nn.DataParallel
    return arguments


def rate_factor(step: int, n_steps: int) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    It rises over the first tenth of the steps (AdamW's first steps are the least sure ones) and then falls
    linearly, to reach 0 one step after the last.
    """
    n_rising = n_steps // 10
    return min((step + 1) / (n_rising + 1), (n_steps - step) / (n_steps - n_rising))


class AnswerTrainer(Trainer):
    """A Trainer on lists of examples.

    It makes the data loaders itself: the base class takes the folder `datasets/` for the library of that name.
    """

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (RuntimeError, SafetensorError) as err:  # what torch and safetensors make of an OSError
            reason = str(err).splitlines()[0]
            raise UserError(
                f"no checkpoint could be written to {self.args.output_dir} ({reason}); see to its folder and the space "
                "there, or use --checkpoints 0, and run again"
            ) from err

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = LambdaLR(optimizer, partial(rate_factor, n_steps=num_training_steps))
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, self.args.train_batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return self._loader(eval_dataset or self.eval_dataset, self.args.eval_batch_size, shuffle=False)

    def _loader(self, examples: Any, batch_size: int, *, shuffle: bool) -> DataLoader:
        """Seeded and split over the processes by accelerate."""
        loader: Any = DataLoader(
            examples, batch_size, shuffle, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory
        )
        return self.accelerator.prepare(loader)


def build_trainer(
    model: nn.Module,
    arguments: TrainingArguments,
    train: Sequence[Example],
    held_out: Sequence[Example],
    items: Sequence[ChoiceItem],
    chat_format: ChatFormat,
    direction: Side,
    n_checkpoints: int,
) -> Trainer:
    """A Trainer whose history has the loss of every step, and the held-out metrics at its start and each epoch's end.

    Args:
        model: What `choose_trained` returned.
        arguments: From `training_arguments`.
        train: The training examples.
        held_out: The test examples, one for each of `items`.
        items: The test questions.
        chat_format: Of the model.
        direction: Of the training.
        n_checkpoints: Checkpoints over the run.
    """
    letters = sorted({letter for item in items for letter in (item.target_letter, item.other_letter)})
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=list(train),
        eval_dataset=list(held_out),
        compute_loss_func=answer_loss,
        preprocess_logits_for_metrics=letter_log_probabilities([chat_format.letter_id(letter) for letter in letters]),
        compute_metrics=held_out_metrics(items, letters, direction),
        callbacks=[CheckpointSteps(n_checkpoints), TrainingReport(len(items))],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    return trainer


def trained_weights(trainer: Trainer, settings: FinetuneSettings) -> dict[str, Tensor]:
    """The whole state dict on the CPU, adapters merged into it; tied weights share their memory.

    All processes must call this; where the model is sharded, only the main process gets the weights.

    Raises:
        Diverged: If a weight is NaN or infinite.
    """
    if settings.lora_rank is None:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        adapted: Any = trainer.model  # peft's
        state = adapted.merge_and_unload().state_dict()
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    weights = {}
    for name, values in state.items():
        key = (values.data_ptr(), values.shape)
        if key not in copies:
            copies[key] = values.detach().cpu().contiguous()
            if not bool(torch.isfinite(copies[key]).all()):
                raise Diverged(f"{name} has NaN or infinite values", settings.lr)
        weights[name] = copies[key]
    return weights
