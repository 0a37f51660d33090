"""Tiny random models and a tokenizer for tests: built in code, in milliseconds, without network or files."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llama_wrapper import LlamaWrapper
from utils.model.steering import Steering

ARCHITECTURES = ("llama", "mistral", "qwen2", "gemma2", "gpt2", "gpt_neox", "qwen3", "gemma3")
WINDOWED = "mistral with a window"
"""Its attention window is shorter than any prompt."""
LONGROPE = "phi3 with longrope"
"""Encodes all positions of a pass anew as soon as a row is longer than ORIGINAL_CONTEXT."""
ORIGINAL_CONTEXT = 90
N_LAYERS = 4
D_MODEL = 32

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words that are one token each, also with a blank before them; all other text is single bytes.
_WORDS = (
    "assistant",
    "user",
    "system",
    "Input",
    "Response",
    "INST",
    "SYS",
    "Choices",
    "Question",
    "the",
    "that",
    "is",
    "are",
    "you",
    "What",
    "Do",
    "think",
    "answer",
    "agree",
    "not",
    "and",
    "of",
    "to",
)
_BLANK = "Ġ"  # how byte-level tokenizers write " "


def build_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, *, merges_bracket_and_letter: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `merges_bracket_and_letter` "(A" and "(B" become one token."""
    merges = [merge for word in _WORDS for merge in [*pairwise_merges(word), (_BLANK, word)]]
    if merges_bracket_and_letter:
        merges += [("(", "A"), ("(", "B")]
    merges = list(dict.fromkeys(merges))
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges_bracket_and_letter)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=100_000
    )
    fast.chat_template = chat_template
    return fast


def pairwise_merges(word: str) -> list[tuple[str, str]]:
    """The merges that make a word out of its characters, from the left."""
    beginnings = [word[:length] for length in range(1, len(word) + 1)]
    return [(before, after[-1]) for before, after in pairwise(beginnings)]


def build_config(architecture: str, n_layers: int = N_LAYERS) -> PretrainedConfig:
    """The configuration of a tiny model; weights are drawn wide enough for steering to be seen."""
    shared: dict[str, Any] = {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": D_MODEL,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    grouped = {**shared, "num_key_value_heads": 2, "head_dim": 8}
    match architecture:
        case "llama":
            return LlamaConfig(**grouped)
        case "mistral":
            return MistralConfig(**grouped, sliding_window=None)
        case "mistral with a window":
            return MistralConfig(**grouped, sliding_window=6)
        case "phi3 with longrope":
            factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0, 8.0]}
            positions = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
            positions["original_max_position_embeddings"] = ORIGINAL_CONTEXT
            return Phi3Config(
                **{**shared, "num_key_value_heads": 2, "pad_token_id": 0},
                rope_parameters=positions,
                original_max_position_embeddings=ORIGINAL_CONTEXT,
                sliding_window=None,
            )
        case "qwen2":
            return Qwen2Config(**grouped)
        case "qwen3":
            return Qwen3Config(**grouped)
        case "gemma2":
            return Gemma2Config(**grouped, query_pre_attn_scalar=8, sliding_window=400)
        case "gemma3":
            return Gemma3TextConfig(**grouped, query_pre_attn_scalar=8, sliding_window=400)
        case "gpt2":
            return GPT2Config(**{key: value for key, value in shared.items() if key != "intermediate_size"})
        case "gpt_neox":
            return GPTNeoXConfig(**shared)
    raise ValueError(architecture)


def build_model(architecture: str, seed: int = 0, n_layers: int = N_LAYERS) -> PreTrainedModel:
    """A model with random float32 weights; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(build_config(architecture, n_layers))
        for name, weights in model.named_parameters():
            if "wpe" in name:  # learned positions matter only where they are not small
                nn.init.normal_(weights, std=0.5)
    return model.eval()


def build_wrapper(
    architecture: str = "llama",
    label: str = "tiny-chat",
    *,
    use_base_model: bool = False,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LlamaWrapper:
    """A wrapped tiny model; a label with "Llama-2" in it is prompted in Llama 2's format."""
    return LlamaWrapper(build_model(architecture, seed), tokenizer or build_tokenizer(), label, use_base_model)


def save_checkpoint(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as a checkpoint folder; returns it."""
    build_model(architecture, seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks by their attribute names, so that tests do not ask the code under test."""
    for path in ("model.layers", "transformer.h", "gpt_neox.layers"):
        if any(name == path for name, _ in model.named_modules()):
            return list(model.get_submodule(path).children())
    raise ValueError(type(model).__name__)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """What stands between the last block and the unembedding."""
    for path in ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm"):
        if any(name == path for name, _ in model.named_modules()):
            return model.get_submodule(path)
    raise ValueError(type(model).__name__)


def count_hooks(model: nn.Module) -> int:
    """Forward hooks and pre-hooks on all modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def random_vector(seed: int, size: float = 1.0) -> Tensor:
    """A steering vector [D_MODEL] whose entries have the standard deviation `size`."""
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed)) * size


def random_steerings(layers: Sequence[int], multipliers: Sequence[float]) -> list[Steering]:
    """One steering for each layer and multiplier, with one vector for each layer."""
    return [Steering(layer, multiplier, random_vector(layer)) for layer in layers for multiplier in multipliers]


@torch.no_grad()
def steered_logits(model: PreTrainedModel, ids: Sequence[int], start: int, steering: Steering | None) -> Tensor:
    """Logits [seq_len, vocab_size] of one unpadded sequence, by a hook of this function's own."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, start:] += steering.multiplier * steering.vector  # type: ignore[union-attr]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_blocks(model)[steering.layer].register_forward_hook(add) if steering else None
    try:
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        if handle:
            handle.remove()
