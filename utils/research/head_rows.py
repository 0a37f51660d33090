"""The last token of a prompt under many edits at once, and what single attention heads put out there.

An edit reaches the last token only, so all that comes before it runs once: its keys and values are kept, and the last
token stands behind them once for each edit, in one pass. Each of these tokens attends to the prompt and to itself:

    prompt without its last token (once) | last token, edit 1 | last token, edit 2 | ...

A head's output is its slice of what the attention's output projection takes in.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from utils.errors import UserError
from utils.model.architectures import ATTENTION_NAMES, branch_end, residual_factor
from utils.model.runtime import Runtime
from utils.model.steering import Steering, capture_outputs, output_hooks

PROJECTION_NAMES = ("o_proj", "c_proj", "out_proj", "dense")


@dataclass(frozen=True, eq=False)
class LastTokenEdit:
    """What is done to one row's last token."""

    heads: Mapping[tuple[int, int], Tensor]
    """(layer, head) -> its output instead, [head_dim]."""
    steering: Steering | None = None
    """Added behind a block."""


NO_EDIT = LastTokenEdit({})


@dataclass(frozen=True, eq=False)
class LastToken:
    """What was read at the last token of a prompt, float32, on the CPU."""

    heads: Tensor
    """Head outputs before the projection, [n_layers, n_heads, head_dim]."""
    outputs: Tensor
    """The residual stream behind every block, [n_layers, d_model]."""


class Heads:
    """The attention heads of a model."""

    def __init__(self, runtime: Runtime) -> None:
        """
        Raises:
            UserError: If the output projections cannot be told, or what they give is not simply added.
        """
        self.runtime = runtime
        self.projections = [_output_projection(block, runtime.label) for block in runtime.layers]
        self.n_heads: int = runtime.config.num_attention_heads

    @property
    def n_layers(self) -> int:
        return len(self.projections)

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> LastToken:
        """Run one prompt and read its last token."""
        self.runtime.check_lengths([len(ids)])
        inputs: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer, module in enumerate(self.projections):
                stack.callback(module.register_forward_pre_hook(_keep_last(inputs, layer)).remove)
            with capture_outputs(self.runtime.layers, lambda hidden: hidden[0, -1], stop_after_last=True) as captured:
                self.runtime.model.get_decoder()(input_ids=self._tensor(ids), use_cache=False)
        heads = torch.stack([inputs[layer] for layer in range(self.n_layers)])
        outputs = torch.stack([captured[layer].float().cpu() for layer in range(self.n_layers)])
        return LastToken(heads.unflatten(1, (self.n_heads, -1)), outputs)

    @torch.no_grad()
    def project(self, layer: int, outputs: Mapping[int, Tensor]) -> Tensor:
        """What some heads of a layer add to the residual stream together, [d_model] float32, without the bias.

        Args:
            layer: Their block.
            outputs: Head -> its output before the projection, [head_dim].
        """
        module = self.projections[layer]
        weight = next(module.parameters())
        size = next(iter(outputs.values())).shape[0]
        row = torch.zeros(self.n_heads, size, dtype=weight.dtype, device=weight.device)
        for head, value in outputs.items():
            row[head] = value.to(row)
        added = module(row.flatten()[None])[0] - module(torch.zeros_like(row).flatten()[None])[0]
        return (added * residual_factor(self.runtime.layers[layer])).float().cpu()

    def logits(self, ids: Sequence[int], edits: Sequence[LastTokenEdit], *, plainly: bool = False) -> Tensor:
        """Logits behind the last token under each edit, [n_edits, vocab_size] float32 on the CPU.

        Args:
            ids: The prompt's tokens, at least two.
            edits: What is done, each on its own.
            plainly: One full pass for each edit: the reference.
        """
        self.runtime.check_lengths([len(ids)])
        if plainly or not self._may_pack(ids, edits):
            return torch.cat([self._run(ids, [edit], None) for edit in edits])
        return self._packed(ids, edits)

    def _may_pack(self, ids: Sequence[int], edits: Sequence[LastTokenEdit]) -> bool:
        if not self.runtime.packable([len(ids)]):
            return False
        sample = [edits[0], edits[len(edits) // 2], edits[-1]]

        def probabilities(logits: Tensor) -> Tensor:
            return logits.softmax(-1).amax(dim=-1)

        return self.runtime.guard.allows(
            "last token",
            lambda: probabilities(self._packed(ids, sample)),
            lambda: probabilities(torch.cat([self._run(ids, [edit], None) for edit in sample])),
        )

    def _packed(self, ids: Sequence[int], edits: Sequence[LastTokenEdit]) -> Tensor:
        prefix = self._prefix(ids[:-1])
        at_once = max(1, int(self.runtime.batcher.token_budget()))
        return torch.cat(
            [self._run(ids, edits[start : start + at_once], prefix) for start in range(0, len(edits), at_once)]
        )

    @torch.no_grad()
    def _prefix(self, ids: Sequence[int]) -> DynamicCache:
        cache = DynamicCache()
        self.runtime.model.get_decoder()(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True)
        return cache

    @torch.no_grad()
    def _run(self, ids: Sequence[int], edits: Sequence[LastTokenEdit], prefix: DynamicCache | None) -> Tensor:
        """One pass: all edits behind a prefix, or the only one over the whole prompt."""
        n = len(edits)
        with self._applied(edits):
            if prefix is None:
                given: dict[str, Any] = {"input_ids": self._tensor(ids), "use_cache": False}
            else:
                given = self._behind(ids, n, prefix)
            logits = self.runtime.model(**given, logits_to_keep=n).logits[0]
        if prefix is not None:
            prefix.crop(-n)  # what the edited tokens have added to it
        return logits.float().cpu()

    def _behind(self, ids: Sequence[int], n: int, prefix: DynamicCache) -> dict[str, Any]:
        device, dtype, shared = self.runtime.device, self.runtime.dtype, len(ids) - 1
        visible = torch.cat([torch.ones(n, shared, dtype=torch.bool), torch.eye(n, dtype=torch.bool)], dim=1)
        mask = torch.zeros(n, shared + n, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        return {
            "input_ids": self._tensor([ids[-1]] * n),
            "attention_mask": mask[None, None].to(device),
            "position_ids": torch.full((1, n), shared, device=device),
            "past_key_values": prefix,
            "use_cache": True,
        }

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.runtime.device)

    @contextmanager
    def _applied(self, edits: Sequence[LastTokenEdit]) -> Iterator[None]:
        """For the block: the last `len(edits)` tokens of a pass are edited, each by its own."""
        heads: dict[int, list[tuple[int, int, Tensor]]] = {}
        steered: dict[int, list[tuple[int, Steering]]] = {}
        for row, edit in enumerate(edits):
            for (layer, head), value in edit.heads.items():
                heads.setdefault(layer, []).append((row, head, value))
            if edit.steering is not None:
                steered.setdefault(edit.steering.layer, []).append((row, edit.steering))
        n, layers = len(edits), self.runtime.layers
        with ExitStack() as stack:
            for layer, placed in heads.items():
                hook = _put_heads(n, self.n_heads, placed)
                stack.callback(self.projections[layer].register_forward_pre_hook(hook).remove)
            stack.enter_context(output_hooks({layers[layer]: _steer_rows(n, rows) for layer, rows in steered.items()}))
            yield


def _output_projection(block: nn.Module, label: str) -> nn.Module:
    attention = branch_end(block, "attention")
    is_attention = any(attention is getattr(block, name, None) for name in ATTENTION_NAMES)
    found = [module for name in PROJECTION_NAMES if isinstance(module := getattr(attention, name, None), nn.Module)]
    if not is_attention or len(found) != 1:
        raise UserError(
            f"{label}: {type(block).__name__} does not add its heads' outputs as they are to the residual stream "
            f"(looked for one of {', '.join(PROJECTION_NAMES)} in its attention); its heads cannot be told apart"
        )
    return found[0]


def _keep_last(inputs: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        inputs[layer] = args[0].detach().flatten(0, -2)[-1].float().cpu()

    return hook


def _put_heads(n: int, n_heads: int, placed: Sequence[tuple[int, int, Tensor]]) -> Any:
    rows, heads = torch.tensor([row for row, _, _ in placed]), torch.tensor([head for _, head, _ in placed])
    values = torch.stack([value for _, _, value in placed])

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        changed = args[0].clone()
        last = changed.flatten(0, -2)[-n:].unflatten(1, (n_heads, -1))  # a view, [n, n_heads, head_dim]
        last[rows.to(last.device), heads.to(last.device)] = values.to(last)
        return (changed, *args[1:])

    return hook


def _steer_rows(n: int, placed: Sequence[tuple[int, Steering]]) -> Any:
    def hook(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        last = changed[0, -n:]
        for row, steering in placed:
            last[row] = steering.placed(hidden.device).edit(last[row])
        return changed

    return hook
