"""From a model choice to a loaded checkpoint, with every failure said in one line."""

import gc
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files.reading import load_tensor_file
from utils.model import processes
from utils.model.architectures import not_decoder_only
from utils.model.checkpoints import HALF_PRECISION_SIZES, ModelChoice, local_folder
from utils.model.embedded import ensure_embedded_model
from utils.model.load_errors import explain, first_line
from utils.paths import MODELS_DIR, REPOSITORY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device that --device names; "auto" is a GPU where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        if own := processes.device():
            return own
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise UserError(f"--device {name} is not available here ({first_line(err)}); leave it out or use cpu") from err
    return device


def pick_dtype(choice: ModelChoice, name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype names; "auto" is float32, but float16 for Llama 2 13b and 70b on a GPU."""
    if name != "auto":
        return _DTYPES[name]
    return torch.float16 if choice.size in HALF_PRECISION_SIZES and device.type == "cuda" else torch.float32


def load_config(choice: ModelChoice) -> "PretrainedConfig":
    """The checkpoint's text model configuration, without loading its weights.

    Raises:
        UserError: If it cannot be had, or is not one of a decoder-only model.
    """
    return _text_config(choice, _read_config(choice, _checkpoint_source(choice)))


def _read_config(choice: ModelChoice, source: str) -> "PretrainedConfig":
    """The whole configuration, as it stands there."""
    from transformers import AutoConfig

    with _explained(choice):
        return AutoConfig.from_pretrained(source, trust_remote_code=False, token=_hub_token())


def _text_config(choice: ModelChoice, config: "PretrainedConfig") -> "PretrainedConfig":
    """The text model's part of it.

    Raises:
        UserError: If it is not one of a decoder-only model.
    """
    if "/" in (getattr(config, "_attn_implementation", None) or ""):
        raise UserError(
            f"{choice.label}: its config.json asks for attention code from elsewhere ({config._attn_implementation}), "
            "which is not run; remove that line"
        )
    if config.is_encoder_decoder:  # transformers would load the decoder of some of them alone
        raise not_decoder_only(choice.label, config)
    with _explained(choice):
        text_config = config.get_text_config(decoder=True)
    for attribute, what in (("num_hidden_layers", "decoder layers"), ("hidden_size", "as the width of its layers")):
        size = getattr(text_config, attribute, None)
        if type(size) is not int or size < 1:
            raise UserError(f"{choice.label}: its config.json gives {size!r} {what}")
    return text_config


def load_checkpoint(
    choice: ModelChoice, device: torch.device, dtype: torch.dtype, *, over_all_devices: bool = False
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load weights and tokenizer. No code that comes with a checkpoint is run.

    Args:
        choice: The checkpoint.
        device: Where the model goes.
        dtype: Of its weights and arithmetic.
        over_all_devices: Split the model over all GPUs (and the CPU) instead, as accelerate sees fit.

    Raises:
        UserError: If they cannot be had, do not fill the model, or do not fit on the device.
    """
    source = _checkpoint_source(choice)
    with _without_collecting():
        model, tokenizer, found = _load(choice, source, dtype, over_all_devices=over_all_devices)
    _check_complete(choice.label, found)
    if over_all_devices:
        return model, tokenizer
    try:
        model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as err:
        raise UserError(
            f"{choice.label} does not fit into the memory of {device} as {dtype}; "
            "use --dtype bfloat16, --quantize nf4, --device_map auto or --device cpu"
        ) from err
    return model, tokenizer


def _load(
    choice: ModelChoice, source: str, dtype: torch.dtype, *, over_all_devices: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Mapping[str, Any]]":
    """Model and tokenizer, on the CPU or over all devices, and what transformers says about the loading."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    config = _read_config(choice, source)
    _text_config(choice, config)
    token = _hub_token()
    with _explained(choice):
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=False, token=token)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            token=token,
            device_map="auto" if over_all_devices else None,
            ignore_mismatched_sizes=True,  # named in `found`
            output_loading_info=True,
        )
    return loaded[0], tokenizer, loaded[1]


def load_local_tokenizer(choice: ModelChoice) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer as far as it lies on this machine: no network, no weights.

    Raises:
        UserError: If it is not here, or damaged; names the command that fetches it.
    """
    from transformers import AutoTokenizer

    if choice.is_embedded:
        source, command = str(MODELS_DIR / choice.label), "python -m utils.model.embedded"
    else:
        source = str(local_folder(choice) or choice.source)
        command = f"hf download {choice.source} --include '*.json' --include '*.jinja'"
        if choice.size:
            command = f"HF_TOKEN=... {command}"
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as err:  # see `_explained`
        raise UserError(f"no complete tokenizer of {choice.source} on this machine; run: {command}") from err


def _check_complete(label: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that leave a part of the model as it was drawn at random.

    Args:
        label: The model's.
        found: What transformers says about the loading.
    """
    if mismatched := sorted(found["mismatched_keys"]):
        key, there, wanted = mismatched[0]
        raise UserError(f"{label}: its weights do not fit its config.json: {key} is {list(there)}, not {list(wanted)}")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{label}: its weights are incomplete: {len(missing)} tensors are missing, first {missing[0]}")
    if unused := sorted(found["unexpected_keys"]):
        log.warning("%s: %d tensors of its weights are not used, first %s", label, len(unused), unused[0])


def load_weights_over(model: "PreTrainedModel", weights_path: Path) -> None:
    """Replace a model's weights by those of a saved state dict.

    Raises:
        UserError: If the file is unsafe, belongs to another architecture (names the first key that differs), or
            has values that are no numbers.
    """
    state = load_tensor_file(weights_path, "name the file that ./finetune_llama.py wrote")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{weights_path} is not a state dict (names to tensors)")
    expected = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for key in [*expected, *state]:
        if key not in state and key in tied:
            continue
        if key not in state or key not in expected or state[key].shape != expected[key].shape:
            found = list(state[key].shape) if key in state else "nothing"
            wanted = list(expected[key].shape) if key in expected else "nothing"
            raise UserError(f"{weights_path} is for another architecture: {key} is {found}, the model has {wanted}")
    try:
        broken = next((key for key, value in state.items() if not bool(torch.isfinite(value).all())), None)
        if broken is not None:
            raise UserError(f"{weights_path}: {broken} has NaN or infinite values; make it again")
        model.load_state_dict(state, strict=False)
    except RuntimeError as err:  # tensors of a kind that no model has, such as sparse ones
        raise UserError(f"{weights_path} cannot be put over the model's weights: {first_line(err)}") from err


def _checkpoint_source(choice: ModelChoice) -> str:
    if choice.is_embedded:
        return str(ensure_embedded_model())
    if (folder := local_folder(choice)) is not None:
        return str(folder)
    if choice.source.startswith(("/", "./", "../", "~")):
        raise UserError(f"--model {choice.source}: there is no such folder")
    return choice.source


def _hub_token() -> str | None:
    """HF_TOKEN from the environment or the repository's .env."""
    from dotenv import dotenv_values

    token = os.environ.get("HF_TOKEN") or dotenv_values(REPOSITORY / ".env").get("HF_TOKEN") or ""
    return token.strip() or None


@contextmanager
def _explained(choice: ModelChoice) -> Iterator[None]:
    """Turn what the hub client and the loaders raise into one line that says what to do.

    They raise every kind of error for a damaged or hostile checkpoint, down to ZeroDivisionError.
    """
    try:
        yield
    except Exception as err:
        raise explain(err, choice, has_token=_hub_token() is not None) from err


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Pause the garbage collector, which else looks through all that is imported and built again and again.

    That is a seventh of the processor time from start to model.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
