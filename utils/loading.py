"""From a model choice to a loaded checkpoint, with every failure said in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils import processes
from utils.artifact_io import load_tensor_file
from utils.embedded_model import ensure_embedded_model
from utils.errors import UserError
from utils.models import EMBEDDED_SIZE, ModelChoice
from utils.paths import REPOSITORY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
        raise UserError(f"--device {name} is not to be had here ({_first_line(err)}); leave it out or use cpu") from err
    return device


def pick_dtype(choice: ModelChoice, name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype names; "auto" is float32, but float16 for Llama 2 13b and 70b on a GPU."""
    if name != "auto":
        return _DTYPES[name]
    return torch.float16 if choice.size in ("13b", "70b") and device.type == "cuda" else torch.float32


def load_config(choice: ModelChoice) -> "PretrainedConfig":
    """The checkpoint's text model configuration, without loading its weights.

    Raises:
        UserError: If it cannot be had, or is not one of a decoder-only model.
    """
    from transformers import AutoConfig

    source = _checkpoint_source(choice)
    with _explained(choice):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, token=_hub_token())
    if config.is_encoder_decoder:  # transformers would load the decoder of some of them alone
        raise _no_decoder_only_model(choice.label, config)
    return config.get_text_config(decoder=True)


def load_checkpoint(
    choice: ModelChoice, device: torch.device, dtype: torch.dtype, *, over_all_devices: bool = False
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load weights and tokenizer.

    Args:
        choice: The checkpoint.
        device: Where the model goes.
        dtype: Of its weights and arithmetic.
        over_all_devices: Split the model over all GPUs (and the CPU) instead, as accelerate sees fit.

    Raises:
        UserError: If they cannot be had or do not fit on the device.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    load_config(choice)  # refuses what is no decoder-only model
    source = _checkpoint_source(choice)
    with _explained(choice):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, token=_hub_token())
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            token=_hub_token(),
            device_map="auto" if over_all_devices else None,
        )
    if over_all_devices:
        return model, tokenizer
    try:
        model.to(device)  # type: ignore[arg-type]  # its annotation leaves devices out
    except torch.OutOfMemoryError as err:
        raise UserError(
            f"{choice.label} does not fit into the memory of {device} as {dtype}; "
            "use --dtype bfloat16, --device_map auto or --device cpu"
        ) from err
    return model, tokenizer


def load_weights_over(model: "PreTrainedModel", weights_path: Path) -> None:
    """Replace a model's weights by those of a saved state dict.

    Raises:
        UserError: If the file is unsafe or belongs to another architecture; names the first key that differs.
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
    model.load_state_dict(state, strict=False)


def find_decoder_layers(model: "PreTrainedModel", label: str) -> list[nn.Module]:
    """The decoder blocks, in order.

    Raises:
        UserError: If the architecture has no such list, or is none that these hooks steer correctly.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise _no_decoder_only_model(label, model.config)
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"{label} ({model.config.model_type}) carries a recurrent state across tokens; "
            "steering from a position on is not defined for it, so it is refused"
        )
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    found = [blocks for blocks in lists if len(blocks) == config.num_hidden_layers]
    if len(found) != 1:
        raise UserError(f"{label} ({model.config.model_type}): its decoder blocks cannot be told; it cannot be steered")
    return list(found[0])


def _no_decoder_only_model(label: str, config: "PretrainedConfig") -> UserError:
    return UserError(f"{label} ({config.model_type}) is no decoder-only language model; it cannot be steered")


def _checkpoint_source(choice: ModelChoice) -> str:
    if choice.is_embedded:
        return str(ensure_embedded_model())
    path = Path(choice.source).expanduser()
    if path.is_dir():
        return str(path)
    if choice.source.startswith(("/", "./", "../", "~")):
        raise UserError(f"--model {choice.source}: there is no such folder")
    return choice.source


def _hub_token() -> str | None:
    """HF_TOKEN from the environment or the repository's .env."""
    from dotenv import dotenv_values

    return os.environ.get("HF_TOKEN") or dotenv_values(REPOSITORY / ".env").get("HF_TOKEN") or None


@contextmanager
def _explained(choice: ModelChoice) -> Iterator[None]:
    """Turn what the hub client and the loaders raise into one line that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as err:
        reason = _first_line(err)
        if choice.size and choice.size != EMBEDDED_SIZE:
            raise UserError(
                f"{choice.source} could not be loaded ({reason}). Llama 2 is gated: ask for access on its page at "
                f"the Hugging Face hub and put HF_TOKEN=... into .env. --model_size {EMBEDDED_SIZE} needs neither."
            ) from err
        raise UserError(f"--model {choice.source} could not be loaded: {reason}") from err


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:300].rstrip(".")
