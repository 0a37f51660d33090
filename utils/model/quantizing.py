"""Weights in 8 or 4 bits: a loaded model is quantised, and measured against what it was before.

The linear layers of the decoder blocks are quantised, each weight matrix by itself, without calibration data:

    int8, CPU   torchao, weights in int8 with a scale a row, arithmetic in the model's dtype
    int8, GPU   bitsandbytes, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): weights and activations in int8 with
                outlier columns in float16
    nf4, GPU    bitsandbytes, 4-bit NormalFloat in blocks of 64 (Dettmers et al. 2023, arXiv 2305.14314), arithmetic in
                the model's dtype

Embeddings, norms, the output head and the residual stream between the blocks stay in floating point: what is read and
what is added there is as exact as without quantisation.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.model.architectures import find_decoder_layers
from utils.model.fingerprint import fingerprint_of
from utils.model.load_errors import first_line
from utils.settings import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

INSTALL = "pip install -r requirements-quantize.txt"
OUTLIERS_FROM = 6.0
"""LLM.int8(): columns of activations with an entry as large as this are multiplied in float16."""
_LIBRARIES = {"cpu": "torchao", "cuda": "bitsandbytes"}
PASSAGES = (
    "The harbour froze in the second week of January. Ships that had come for timber lay between the ice and the quay, "
    "and their crews walked to the inn across the water.",
    "Question: A train leaves at 9:40 and needs 2 hours and 35 minutes. When does it arrive?\nAnswer: At 12:15, since "
    "9:40 and 2 hours are 11:40, and 35 minutes more are 12:15.",
)
"""What the quantised model is compared on: next tokens behind every token."""


@dataclass(frozen=True)
class Quantized:
    """How a model's weights are kept, and how far it is from the model before."""

    name: Quantization
    library: str
    fingerprint: str
    """Of the weights before and of how they were quantised."""
    share: float
    """Of the parameters that are quantised."""
    difference: float
    """The largest change of a next-token probability."""
    kl: float
    """KL divergence of the quantised model's next tokens from those before, in nats, mean over tokens."""

    @property
    def arithmetic(self) -> torch.dtype | None:
        """The dtype in which linear layers compute where it is not the model's."""
        return torch.float16 if (self.name, self.library) == ("int8", "bitsandbytes") else None

    @property
    def facts(self) -> dict[str, Any]:
        """What provenance says of it."""
        return {
            "quantize": self.name,
            "quantize_difference": round(self.difference, 6),
            self.library: version(self.library),
        }

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.library}), {self.share:.0%} of the parameters: next-token probabilities change by at "
            f"most {self.difference:.2g}, mean KL {self.kl:.2g} nats"
        )


def check_quantizer(name: Quantization, device: torch.device, *, over_all_devices: bool) -> None:
    """Refuse what cannot be quantised, before anything is loaded.

    Raises:
        UserError: If the device has no such kind, or the library is not installed.
    """
    if over_all_devices:
        raise UserError(f"--quantize {name} keeps the model on one device; leave --device_map out")
    library = _LIBRARIES.get(device.type)
    if library is None or (name, library) == ("nf4", "torchao"):
        instead = "--quantize int8, or leave it out" if library else "--device cpu, or leave --quantize out"
        raise UserError(f"--quantize {name} is for NVIDIA GPUs, and this is {device.type}; use {instead}")
    if find_spec(library) is None:
        raise UserError(f"--quantize {name} on {device.type} needs {library}, which is not installed; run: {INSTALL}")


def quantize_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    label: str,
    name: Quantization,
    device: torch.device,
) -> Quantized:
    """Quantise a loaded model in place, bring it to its device, and compare it with what it was.

    Args:
        model: On the CPU, in floating point.
        tokenizer: Its own.
        label: The model's.
        name: How.
        device: Where it goes.

    Raises:
        UserError: If its blocks have no linear layers, it does not fit on the device, or the library does not take it.
    """
    library = _LIBRARIES[device.type]
    before = next_token_logs(model, tokenizer)
    fingerprint = fingerprint_of(model, name, library)
    n_parameters = sum(weights.numel() for weights in model.parameters())
    blocks = find_decoder_layers(model, label)
    linears = [module for block in blocks for module in block.modules() if _is_linear(module)]
    n_quantized = sum(linear.weight.numel() for linear in linears)
    if not n_quantized:
        raise UserError(f"{label}: its decoder blocks have no linear layers that {library} takes; leave --quantize out")
    try:
        for block in blocks:
            (_by_torchao if library == "torchao" else _by_bitsandbytes)(block, name)
        model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as err:
        raise UserError(f"{label} as {name} does not fit into the memory of {device}; use --device cpu") from err
    except (ImportError, OSError, NotImplementedError, RuntimeError) as err:
        raise UserError(f"{label}: {library} cannot quantise it to {name}: {first_line(err)}; run: {INSTALL}") from err
    difference, kl = compare_next_tokens(before, next_token_logs(model, tokenizer))
    found = Quantized(name, library, fingerprint, n_quantized / n_parameters, difference, kl)
    log.info("%s as %s", label, found)
    return found


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear


def _by_torchao(block: nn.Module, name: Quantization) -> None:
    assert name == "int8"
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(block, Int8WeightOnlyConfig(), filter_fn=lambda module, _: _is_linear(module))


def _by_bitsandbytes(block: nn.Module, name: Quantization) -> None:
    """Replace the linear layers of a block; they are quantised on their way to the device."""
    for path, linear in list(block.named_modules()):
        if _is_linear(linear):
            parent, _, last = path.rpartition(".")
            setattr(block.get_submodule(parent), last, _bitsandbytes_linear(linear, name))


def _bitsandbytes_linear(linear: nn.Linear, name: Quantization) -> nn.Module:
    import bitsandbytes as bnb

    sizes, weights = (linear.in_features, linear.out_features), linear.weight.data
    if name == "int8":
        found = bnb.nn.Linear8bitLt(*sizes, linear.bias is not None, has_fp16_weights=False, threshold=OUTLIERS_FROM)
        found.weight = bnb.nn.Int8Params(weights, requires_grad=False, has_fp16_weights=False)
    else:
        found = bnb.nn.Linear4bit(*sizes, linear.bias is not None, compute_dtype=weights.dtype, quant_type="nf4")
        found.weight = bnb.nn.Params4bit(weights, requires_grad=False, quant_type="nf4")
    if linear.bias is not None:
        found.bias = linear.bias
    return found.train(linear.training)


@torch.no_grad()
def next_token_logs(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[Tensor]:
    """Log-probabilities of next tokens behind every token of `PASSAGES`, each [seq_len, vocab_size], on the CPU."""
    found = []
    for passage in PASSAGES:
        ids = torch.tensor([tokenizer(passage)["input_ids"]], device=model.device)
        found.append(model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1).cpu())
    return found


def compare_next_tokens(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """The largest change of a probability, and the mean KL divergence of `after` from `before` in nats.

    Args:
        before: Log-probabilities, each [seq_len, vocab_size].
        after: The same of the other model.

    Raises:
        UserError: If some are not finite.
    """
    one, other = torch.cat(list(before)).double(), torch.cat(list(after)).double()
    if not bool(one.isfinite().all() and other.isfinite().all()):
        raise UserError("the quantised model's next-token scores are not finite; use another --dtype or no --quantize")
    largest = float((one.exp() - other.exp()).abs().max())
    return largest, float((one.exp() * (one - other)).sum(dim=-1).mean())
