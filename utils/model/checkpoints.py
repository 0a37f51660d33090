"""Which checkpoint a command means, and the names that it leaves in file names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.settings import Quantization

EMBEDDED_SIZE = "135m"
EMBEDDED_LABEL = "SmolLM2-135M-Instruct"

# --model_size -> (chat checkpoint, base checkpoint) on the Hugging Face hub
LLAMA_2_CHECKPOINTS: dict[str, tuple[str, str]] = {
    "7b": ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
    "13b": ("meta-llama/Llama-2-13b-chat-hf", "meta-llama/Llama-2-13b-hf"),
    "70b": ("meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-2-70b-hf"),
}
MODEL_SIZES = (*LLAMA_2_CHECKPOINTS, EMBEDDED_SIZE)
HALF_PRECISION_SIZES = ("13b", "70b")
"""Those that --dtype auto loads as float16 on a GPU."""


def checkpoint_label(source: str) -> str:
    """The checkpoint's last path component, as it stands in `vec_layer_<layer>_<label>.pt`."""
    return source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class ModelChoice:
    """A checkpoint to load and how it is named."""

    source: str
    """Hub name or local folder; for the embedded model its label (its folder is made when needed)."""
    label: str
    """Last path component; names vectors and activations."""
    size: str | None
    """The --model_size that chose it; None for --model."""
    use_base_model: bool
    """Prompts are written as plain text (base model) instead of as a chat."""
    quantize: Quantization | None = None
    """How its weights are kept; None for floating point."""

    @property
    def is_embedded(self) -> bool:
        return self.size == EMBEDDED_SIZE

    @property
    def command_words(self) -> list[str]:
        """The flags that choose this model again, for messages that name a command."""
        return [*self.name_words, "--quantize", self.quantize] if self.quantize else self.name_words

    @property
    def name_words(self) -> list[str]:
        """The flags that name it, for the command of a script that does not load it."""
        chosen = ["--model_size", self.size] if self.size else ["--model", self.source]
        return [*chosen, "--use_base_model"] if self.use_base_model else chosen


def choose_model(
    model_size: str, model: str | None, use_base_model: bool, quantize: Quantization | None = None
) -> ModelChoice:
    """Resolve the flags --model_size, --model, --use_base_model and --quantize.

    Raises:
        UserError: For an unknown size, or a base model where there is none.
    """
    if model is not None:
        label = checkpoint_label(model)
        if label in ("", ".", ".."):
            raise UserError(f"--model {model!r} does not end in a name; give a hub name or a folder by its name")
        return ModelChoice(model, label, None, use_base_model, quantize)
    if model_size == EMBEDDED_SIZE:
        if use_base_model:
            raise UserError("--model_size 135m is a chat model and has no base checkpoint; leave --use_base_model out")
        return ModelChoice(EMBEDDED_LABEL, EMBEDDED_LABEL, EMBEDDED_SIZE, False, quantize)
    if model_size not in LLAMA_2_CHECKPOINTS:
        raise UserError(f"unknown model size {model_size!r}; choose from: {', '.join(MODEL_SIZES)}")
    source = LLAMA_2_CHECKPOINTS[model_size][1 if use_base_model else 0]
    return ModelChoice(source, checkpoint_label(source), model_size, use_base_model, quantize)


def choice_of(name: str) -> ModelChoice:
    """The chat checkpoint that a word means: a size, a hub name or a folder."""
    return choose_model(name, None, False) if name in MODEL_SIZES else choose_model("", name, False)


def check_layers(requested: Sequence[int] | None, n_layers: int, model_label: str, flag: str = "--layers") -> list[int]:
    """The requested layers, sorted and without repeats; all where none were named.

    Raises:
        UserError: If one is not a layer of the model.
    """
    layers = sorted(set(requested)) if requested else list(range(n_layers))
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside:
        named = ", ".join(map(str, outside))
        raise UserError(f"{flag} {named}: {model_label} has layers 0 to {n_layers - 1}")
    return layers


def local_folder(choice: ModelChoice) -> Path | None:
    """The folder that --model names, if it names one."""
    try:
        folder = Path(choice.source).expanduser()
    except RuntimeError:  # ~name, and there is no such user
        return None
    return folder if folder.is_dir() else None
