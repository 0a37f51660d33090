"""What one fine-tuning is asked to do: its settings, its data, and where its files go."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.data.records import ChoiceItem, ContrastPair, load_choice_items, load_contrast_pairs
from utils.errors import UserError
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import Side

log = logging.getLogger(__name__)

LORA_RANK = 16
SGD_LR, ADAMW_LR, ADAMW_LR_OF_FEW = 1e-2, 1e-5, 1e-4


def default_lr(optimizer: str, *, few_weights: bool) -> float:
    """The highest learning rate where none is given; AdamW's is higher where few weights are trained."""
    if optimizer == "sgd":
        return SGD_LR
    return ADAMW_LR_OF_FEW if few_weights else ADAMW_LR


def finetuned_name(behavior: str, direction: Side, layer: int | None = None, *, is_lora: bool = False) -> str:
    """Of the weights file and the log, without their ends."""
    part = "all" if layer is None else str(layer)
    return f"{behavior}_{direction}_finetune_{part}{'_lora' if is_lora else ''}"


@dataclass(frozen=True)
class FinetuneSettings:
    """What one fine-tuning computes; two runs with equal settings and data give equal weights."""

    behavior: str
    direction: Side
    layer: int | None
    """The only decoder block that is trained, counted from 0; None for the whole model."""
    lora_rank: int | None
    """Rank of the adapters that are trained instead of the weights; None trains the weights."""
    optimizer: str
    """adamw or sgd."""
    lr: float
    """The highest; see `rate_factor`."""
    epochs: int
    batch_size: int
    """Contrast pairs in one forward pass of one process."""
    gradient_accumulation: int
    """Forward passes in one step."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    arithmetic: str
    """float32, or what autocast computes in: float16 or bfloat16."""
    seed: int
    """Of the order of the pairs, and of the adapters."""

    @property
    def name(self) -> str:
        """Of the weights file and the log."""
        return finetuned_name(self.behavior, self.direction, self.layer, is_lora=self.lora_rank is not None)


@dataclass(frozen=True)
class FinetuneRequest:
    """A fine-tuning, and how it is run."""

    paths: DataPaths
    choice: ModelChoice
    settings: FinetuneSettings
    device: str
    """What --device says."""
    n_checkpoints: int
    resume: bool
    """Fail where there is no checkpoint to go on from."""
    overwrite: bool
    command: str

    @property
    def weights_path(self) -> Path:
        return self.paths.finetuned_weights(self.settings.name)

    @property
    def run_dir(self) -> Path:
        return self.paths.finetune_log(self.settings.name)

    @property
    def is_finished(self) -> bool:
        return self.weights_path.exists() and not self.overwrite


@dataclass(frozen=True)
class FinetuneData:
    """What is trained on, and the test questions that the training is measured with."""

    pairs: list[ContrastPair]
    held_out: list[ChoiceItem]


def load_data(request: FinetuneRequest) -> FinetuneData:
    """
    Raises:
        UserError: If a dataset is missing or broken.
    """
    behavior = request.settings.behavior
    hint = f"run: {request.paths.command('process_raw_datasets', '--behaviors', behavior)}"
    pairs = load_contrast_pairs(request.paths.generate_dataset(behavior), hint)
    return FinetuneData(pairs, load_choice_items(request.paths.test_dataset(behavior, "ab"), "ab", hint))


def describe(request: FinetuneRequest, data: FinetuneData, n_processes: int) -> dict[str, Any]:
    """What the weights depend on, for the provenance and for going on from a checkpoint."""
    behavior = request.settings.behavior
    return {
        "model": request.choice.label,
        **asdict(request.settings),
        "n_processes": n_processes,
        "n_pairs": len(data.pairs),
        "dataset_sha256": sha256_of(request.paths.generate_dataset(behavior)),
        "held_out_sha256": sha256_of(request.paths.test_dataset(behavior, "ab")),
    }


def warn_of_other_settings(request: FinetuneRequest, data: FinetuneData) -> None:
    """Weights that are there: warn where they were made under other settings.

    Raises:
        UserError: If they are another model's.
    """
    path, label = request.weights_path, request.choice.label
    made = read_provenance(path) or {}
    if made.get("model", label) != label:
        raise UserError(f"{path} holds weights of {made['model']}; --overwrite replaces them by {label}'s")
    now = describe(request, data, made.get("n_processes", 1))
    if differing := [key for key in now if key in made and made[key] != now[key]]:
        key = differing[0]
        log.warning(
            "%s was made under other settings (%s was %s, now it is %s); --overwrite makes it again",
            path,
            key,
            made[key],
            now[key],
        )
