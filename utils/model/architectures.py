"""What has to be known about architectures: where their parts are, and what a pass may share.

A model that is not served correctly by what is known here is refused, never steered or read wrongly.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "fc2")
"""fc2: OPT, whose MLP has no module of its own."""
_BRANCH_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
)
"""Norms between attention or MLP and the addition to the residual stream, in blocks that have both."""
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


def find_decoder_layers(model: "PreTrainedModel", label: str) -> list[nn.Module]:
    """The decoder blocks, in order.

    Raises:
        UserError: If the architecture has no such list, or is not one that these hooks steer correctly.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise not_decoder_only(label, model.config)
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"{label} ({model.config.model_type}) carries a recurrent state across tokens; "
            "steering from a position on is not defined for it, so it is refused"
        )
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    found = [blocks for blocks in lists if len(blocks) == config.num_hidden_layers]
    if len(found) != 1:
        raise UserError(
            f"{label} ({model.config.model_type}): it is not clear which modules are its decoder blocks; "
            "it cannot be steered"
        )
    return list(found[0])


def branch_end(block: nn.Module, branch: Literal["attention", "mlp"]) -> nn.Module:
    """The module whose output a decoder block adds to the residual stream: its attention or MLP, or a norm behind it.

    Raises:
        UserError: If it cannot be told.
    """
    place = ("attention", "mlp").index(branch)
    for norms in _BRANCH_NORMS:
        if all(hasattr(block, name) for name in norms):
            return block.get_submodule(norms[place])
    names = (ATTENTION_NAMES, MLP_NAMES)[place]
    found = [module for name in names if isinstance(module := getattr(block, name, None), nn.Module)]
    if len(found) != 1:
        raise UserError(
            f"{type(block).__name__}: which module is its {branch} cannot be told (looked for {', '.join(names)}); "
            "only whole blocks can be steered"
        )
    return found[0]


def not_decoder_only(label: str, config: "PretrainedConfig") -> UserError:
    return UserError(f"{label} ({config.model_type}) is not a decoder-only language model; it cannot be steered")


def find_final_norm(model: "PreTrainedModel", label: str) -> nn.Module:
    """The norm between the last block and the output embeddings; UserError where it is not found."""
    decoder = model.get_decoder()
    found = [module for name in FINAL_NORM_NAMES if isinstance(module := getattr(decoder, name, None), nn.Module)]
    if len(found) != 1:
        raise UserError(
            f"{label} ({model.config.model_type}): the norm behind its last block was not found "
            f"(names tried: {', '.join(FINAL_NORM_NAMES)}), so nothing inside it can be decoded"
        )
    return found[0]


@dataclass(frozen=True)
class LogitScale:
    """What happens to the logits behind the output embeddings."""

    factor: float
    softcap: float | None
    """Logits are bounded by softcap x tanh(logit / softcap); None where they are not."""


def logit_scale(config: "PretrainedConfig") -> LogitScale:
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    return LogitScale(factor, getattr(config, "final_logit_softcapping", None))  # Gemma 2


def residual_factor(block: nn.Module) -> float:
    """What a block multiplies its attention and MLP output by before it adds them."""
    return float(getattr(block, "residual_multiplier", 1.0))  # Granite


def attention_window(config: "PretrainedConfig") -> float:
    """Longest sequence that every layer attends to as a whole; 0 where a layer's attention is of another kind."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return 0
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window is not None and slides else math.inf


def position_switch(config: "PretrainedConfig") -> float:
    """Length beyond which a pass encodes all of its positions differently; infinite where there is none.

    LongRoPE (Phi-3, 128k) has two sets of frequencies and takes the long one for every row of a pass as soon
    as one row is longer than the original context. Rows on both sides of that length must not share a pass.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    several = (
        parameters.values() if parameters and all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    )
    lengths = [
        one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for one in several
        if one.get("rope_type") == "longrope"
    ]
    return min((length for length in lengths if length), default=math.inf)
