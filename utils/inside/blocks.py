"""What happens inside a decoder block: what attention and MLP add to the residual stream.

    residual stream after attention = block input + attention output
    block output                    = residual stream after attention + MLP output

Attention or MLP "output" is what is added to the residual stream: behind a norm or a factor where the
architecture has one there. In a block whose attention and MLP run side by side (GPT-NeoX, Cohere) the
residual stream after attention is the same sum, but the MLP does not read it.

The sums are checked in every pass. An architecture for which they do not hold is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.model.architectures import ATTENTION_NAMES, MLP_NAMES, residual_factor
from utils.model.chat_format import PromptTokens
from utils.model.steering import RowSteering, Steerings, capture_outputs, hidden_of

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

# In steps of the block's dtype, of its largest output: more is another computation, not rounding.
_TOLERATED_STEPS = 16


@dataclass(frozen=True)
class BlockReadings:
    """The parts of some blocks' residual streams, each [n_layers, seq_len, d_model], on the CPU."""

    block_input: Tensor
    attention_output: Tensor
    after_attention: Tensor
    mlp_output: Tensor
    block_output: Tensor
    """As the next block reads it: with what steering adds at this layer."""


@torch.no_grad()
def read_blocks(
    model: "LlamaWrapper", tokens: PromptTokens, layers: Sequence[int], steering: Steerings = None
) -> BlockReadings:
    """Run one sequence and keep the parts of some blocks, for every token.

    Args:
        model: The model.
        tokens: The sequence; steered from its `steer_start` on.
        layers: Blocks to read.
        steering: What to add; None for nothing.

    Raises:
        UserError: If the parts of a block cannot be told, or do not add up to its output.
    """
    blocks = [model.layers[layer] for layer in layers]
    recorders = [_BlockRecorder(block, model) for block in blocks]
    rows = RowSteering([steering], model.layers)
    rows.positions = torch.arange(len(tokens))[None] >= tokens.steer_start
    ids = torch.tensor([tokens.ids], device=model.device)
    # Hooks run in the order in which they are set: the recorders check a block's sum before it is steered.
    with ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder.recording())
        stack.enter_context(rows.applied())
        outputs = stack.enter_context(capture_outputs(blocks))
        model.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    parts = [recorder.parts for recorder in recorders]
    steered = torch.stack([outputs[index][0].cpu() for index in range(len(layers))])
    names = [field.name for field in fields(BlockReadings) if field.name != "block_output"]
    return BlockReadings(**{name: torch.stack([part[name] for part in parts]) for name in names}, block_output=steered)


class _BlockRecorder:
    """Follows one block through a forward pass.

    Which module a tensor came out of is known from the tensor itself: what takes the attention's very output
    as its input (a norm before the addition, a dropout) belongs to the attention's branch, and gives its output.
    """

    def __init__(self, block: nn.Module, model: "LlamaWrapper") -> None:
        self.block = block
        self.what = f"{model.label} ({model.config.model_type})"
        self.attention = self._only_child(ATTENTION_NAMES, "attention")
        self.mlp = self._only_child(MLP_NAMES, "MLP")
        self.factor = residual_factor(block)
        self.parts: dict[str, Tensor] = {}
        self._block_input: Tensor | None = None
        self._branches: dict[nn.Module, Tensor] = {}  # attention or MLP -> the last tensor of its branch
        self._kept: dict[nn.Module, Tensor] = {}  # the same, copied at once: later code may write into it

    def _only_child(self, names: Sequence[str], what: str) -> nn.Module:
        found = [module for name in names if isinstance(module := getattr(self.block, name, None), nn.Module)]
        if len(found) != 1:
            raise UserError(
                f"{self.what}: the {what} of its blocks cannot be identified (looked for {', '.join(names)}); "
                "only whole blocks can be decoded"
            )
        return found[0]

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self.block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for child in self.block.children():
                stack.callback(child.register_forward_hook(self._pass_child, with_kwargs=True).remove)
            stack.callback(self.block.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        entered = _first_tensor(args, kwargs)
        assert entered is not None, "a decoder block is given the residual stream"
        self._block_input = entered.detach().clone()

    def _pass_child(self, child: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        output = hidden_of(output)
        if child in (self.attention, self.mlp):
            self._keep(child, output)
            return
        entered = _first_tensor(args, kwargs)
        for branch, end in self._branches.items():
            if end is entered:
                self._keep(branch, output)

    def _keep(self, branch: nn.Module, end: Tensor) -> None:
        self._branches[branch], self._kept[branch] = end, end.detach().clone()

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        output, before = hidden_of(output), self._block_input
        assert before is not None, "a block's pre-hook runs before its hook"
        added = [self._kept[branch] * self.factor for branch in (self.attention, self.mlp) if branch in self._kept]
        if len(added) < 2 or any(part.numel() != before.numel() for part in added):
            raise UserError(f"{self.what}: its blocks do not use their attention and MLP as modules")
        attention, mlp = (part.view_as(before) for part in added)
        after_attention = before + attention
        gap = float((after_attention + mlp - output).abs().max())
        if not gap <= _TOLERATED_STEPS * torch.finfo(output.dtype).eps * float(output.abs().max()):
            raise UserError(
                f"{self.what}: block input, attention and MLP output do not add up to the block's output; "
                "its architecture is not supported for this, so only whole blocks can be decoded"
            )
        named = zip(
            ("block_input", "attention_output", "after_attention", "mlp_output"),
            (before, attention, after_attention, mlp),
            strict=True,
        )
        self.parts = {name: part[0].cpu() for name, part in named}
        self._block_input, self._branches, self._kept = None, {}, {}


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The residual stream, or what was made of it, among a module's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
