"""How large a checkpoint's model is, read from its config.json without torch or transformers where that is safe.

Importing transformers takes seconds; a script wants to know the layers before it knows that there is work.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.model.checkpoints import EMBEDDED_LABEL, ModelChoice, local_folder
from utils.model.embedded import is_complete
from utils.paths import MODELS_DIR

# Architectures that are decoder-only whatever else their config.json says, and write the sizes out under the
# same names. All others are read by transformers.
_PLAIN = frozenset(
    {
        *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_neox", "granite", "llama"),
        *("mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmoe", "persimmon", "phi", "phi3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
    }
)
_WITH_TEXT_CONFIG = frozenset({"gemma3", "mistral3"})
"""Models of text and images, whose sizes are those of the `text_config` inside."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a text model."""

    n_layers: int
    """Decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    max_positions: int | None
    """Tokens that it was made for; None where its configuration does not say."""
    model_type: str = field(default="", compare=False)
    """The architecture's name in transformers; empty where its configuration is an unusual one."""


def model_shape(choice: ModelChoice) -> ModelShape:
    """The shape of a checkpoint's text model, from the config.json on this machine where there is one.

    What is unusual in any way is left to transformers (`load_config`), and so is every refusal. A value that
    the shape does not depend on is checked only when the model is loaded.

    Raises:
        UserError: If the configuration cannot be read, or is not one of a decoder-only model.
    """
    path = _config_path(choice)
    if path is not None and (shape := _read_plain_config(path)) is not None:
        return shape
    from utils.model.loading import load_config

    config = load_config(choice)
    return ModelShape(config.num_hidden_layers, config.hidden_size, getattr(config, "max_position_embeddings", None))


def known_shape(choice: ModelChoice) -> ModelShape | None:
    """The shape as far as a plain config.json on this machine says it: no network, nothing fetched."""
    path = _config_path(choice)
    return None if path is None else _read_plain_config(path)


def _config_path(choice: ModelChoice) -> Path | None:
    """The checkpoint's config.json, if it is on this machine."""
    if choice.is_embedded:
        model_dir = MODELS_DIR / EMBEDDED_LABEL
        return model_dir / "config.json" if is_complete(model_dir) else None
    if (folder := local_folder(choice)) is not None:
        return folder / "config.json"
    return _cached_config(choice.source)


def _cached_config(name: str) -> Path | None:
    """The newest one of a hub model in huggingface_hub's cache (importing that library takes half a second)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home, "hub")
    folder = Path(os.path.expandvars(cache)).expanduser() / f"models--{name.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return folder / "snapshots" / revision / "config.json"


def _read_plain_config(path: Path) -> ModelShape | None:
    """The shape, if the configuration is one that cannot be read in two ways; None otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if "attn_implementation" in text or not isinstance(config, dict) or config.get("is_encoder_decoder"):
        return None
    if config.get("model_type") in _WITH_TEXT_CONFIG:
        config = config.get("text_config")
    if not isinstance(config, dict) or config.get("model_type") not in _PLAIN:
        return None
    if any(key in config for key in ("decoder", "generator", "text_config")):  # a model inside the model
        return None
    return _shape_of(config)


def _shape_of(config: dict[str, Any]) -> ModelShape | None:
    keys = ("num_hidden_layers", "hidden_size", "max_position_embeddings", "num_attention_heads")
    sizes = [size for key in keys if type(size := config.get(key)) is int and size > 0]
    if len(sizes) < len(keys) or sizes[1] % sizes[3]:
        return None
    return ModelShape(sizes[0], sizes[1], sizes[2], config["model_type"])
