"""Many continuations of one prompt in a single forward pass.

A packed sequence is a prefix followed by tails, each `tail_length` tokens long:

    (opening, once for all rows) [ prefix, left-padded | tail 0 | tail 1 | ... ]

Every tail attends to the prefix and to itself, under a 4-D mask, with the position ids it would have
right behind the prefix. Keys and values of the prefix are thereby computed once for all tails, and those of
an opening that the prefixes have in common once for all rows.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from utils.model.prefixes import SharedPrefixes, n_tokens
from utils.model.steering import Steering, hidden_of, with_hidden


class PackedBatch:
    """The model inputs of a batch of packed sequences. Shorter tails are padded on the right to the longest."""

    def __init__(
        self,
        prefixes: Sequence[Sequence[int]],
        tails: Sequence[Sequence[Sequence[int]]],
        pad_id: int,
        device: torch.device,
        dtype: torch.dtype,
        opening: DynamicCache | None = None,
    ) -> None:
        """
        Args:
            prefixes: One token sequence a row, with the opening.
            tails: For each row its tails; the same number everywhere.
            pad_id: Fills the left of shorter prefixes and the right of shorter tails; no token attends to it.
            device: Where the inputs go.
            dtype: The model's, for the mask.
            opening: Keys and values of what all prefixes begin with; they are not run again.
        """
        self.opening, self.n_opening = opening, n_tokens(opening)
        prefixes = [prefix[self.n_opening :] for prefix in prefixes]
        self.prefix_length = max(len(prefix) for prefix in prefixes)
        self.n_tails = len(tails[0])
        self.tail_length = max(len(tail) for row_tails in tails for tail in row_tails)
        rows, positions = [], []
        for prefix, row_tails in zip(prefixes, tails, strict=True):
            padding = self.prefix_length - len(prefix)
            slots = [[*tail, *[pad_id] * (self.tail_length - len(tail))] for tail in row_tails]
            rows.append([*[pad_id] * padding, *prefix, *(token for slot in slots for token in slot)])
            tail_positions = range(len(prefix), len(prefix) + self.tail_length)
            positions.append([*[0] * padding, *range(len(prefix)), *[*tail_positions] * self.n_tails])
        self.input_ids = torch.tensor(rows, device=device)  # [batch, seq_len]
        self.position_ids = self.n_opening + torch.tensor(positions, device=device)  # [batch, seq_len]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        self.attention_mask = self._build_mask(lengths, device, dtype)  # [batch, 1, seq_len, n_opening + seq_len]

    @property
    def sequence_length(self) -> int:
        return self.input_ids.shape[1]

    def tail_ends(self) -> Tensor:
        """Column of each tail's last token, [n_tails], where all tails are equally long."""
        first = self.prefix_length + self.tail_length - 1
        return torch.arange(first, self.sequence_length, self.tail_length, device=self.input_ids.device)

    def model_inputs(self) -> dict[str, Any]:
        cache = SharedPrefixes(self.opening, rows_per_prefix=len(self.input_ids)) if self.opening else None
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }

    def _build_mask(self, prefix_lengths: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        column = torch.arange(self.sequence_length, device=device)
        # -1 for the prefix, else the tail's number
        segment = torch.div(column - self.prefix_length, self.tail_length, rounding_mode="floor").clamp(min=-1)
        causal = column[None, :] <= column[:, None]
        visible = causal & ((segment[None, :] == -1) | (segment[None, :] == segment[:, None]))
        is_padding = column[None, :] < (self.prefix_length - prefix_lengths)[:, None]  # [batch, keys]
        allowed = visible[None] & ~is_padding[:, None, :]
        allowed |= torch.eye(self.sequence_length, dtype=torch.bool, device=device)  # padding sees itself: no empty row
        allowed = nn.functional.pad(allowed, (self.n_opening, 0), value=True)
        blocked = torch.finfo(dtype).min
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, blocked)[:, None]


@contextmanager
def tails_enter_late(
    batch: PackedBatch, layers: Sequence[nn.Module], combinations: Sequence[tuple[Steering, ...]]
) -> Iterator[None]:
    """For the block: steered tails join the packed sequence behind the first layer that steers them.

    Below that layer a steered tail equals the unsteered one. So tail 0 runs unsteered from the bottom, and
    behind layer l it is copied and edited once for every combination that begins at l. The tails of `batch`
    must be tail 0, then one for each combination.

    Args:
        batch: The packed sequence with all tails.
        layers: The decoder blocks.
        combinations: What is done to each tail but tail 0, by ascending layer; the first layers ascend as well.
    """
    length = batch.prefix_length + batch.tail_length
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            narrow = partial(_narrowed, batch=batch, length=length)
            stack.callback(LayerInputs(layer).changed_by(narrow).remove)
            edits = _edits_at(index, combinations)
            if edits:
                stack.callback(layer.register_forward_hook(_edit_tails(batch, edits)).remove)
                length += sum(edit.enters for edit in edits) * batch.tail_length
        yield


@dataclass(frozen=True)
class _TailEdit:
    """What one layer does to one tail."""

    tail: int
    steerings: tuple[Steering, ...]
    enters: bool
    """Whether the tail joins here, as a copy of tail 0."""


def _edits_at(layer: int, combinations: Sequence[tuple[Steering, ...]]) -> list[_TailEdit]:
    edits = []
    for place, steerings in enumerate(combinations):
        if here := tuple(steering for steering in steerings if steering.layer == layer):
            edits.append(_TailEdit(1 + place, here, enters=steerings[0].layer == layer))
    return edits


def _edit_tails(batch: PackedBatch, edits: Sequence[_TailEdit]) -> Callable[..., Any]:
    def columns(tail: int) -> slice:
        start = batch.prefix_length + tail * batch.tail_length
        return slice(start, start + batch.tail_length)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        hidden = hidden_of(output)  # [batch, length, d_model]
        base, entering, present = hidden[:, columns(0)], [], {}
        for edit in edits:
            tail = base if edit.enters else hidden[:, columns(edit.tail)]
            for steering in edit.steerings:
                tail = steering.placed(tail.device).edit(tail)
            if edit.enters:
                entering.append(tail)
            else:
                present[edit.tail] = tail
        if present:
            hidden = hidden.clone()
            for number, tail in present.items():
                hidden[:, columns(number)] = tail
        return with_hidden(output, torch.cat([hidden, *entering], dim=1))

    return hook


# where a decoder block's inputs have the sequence, as dimensions; keys have the opening before it
_SEQUENCE_DIMENSIONS = {
    "hidden_states": (1,),
    "attention_mask": (-2,),
    "position_ids": (-1,),
    "position_embeddings": (-2,),
}
_KEY_DIMENSIONS = {"attention_mask": (-1,)}


class LayerInputs:
    """What a decoder block is given, by name, and a way to change it."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._names = list(inspect.signature(layer.forward).parameters)

    def changed_by(self, change: Callable[[str, Tensor], Tensor]) -> RemovableHandle:
        """A pre-hook that gives the block `change(name, tensor)` for each of its tensors."""

        def apply(name: str, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(apply(name, part) for part in value)
            return change(name, value) if isinstance(value, Tensor) else value

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
            changed = tuple(apply(name, value) for name, value in zip(self._names, args, strict=False))
            return changed, {name: apply(name, value) for name, value in kwargs.items()}

        return self.layer.register_forward_pre_hook(hook, with_kwargs=True)


def _narrowed(name: str, value: Tensor, batch: PackedBatch, length: int) -> Tensor:
    """An input of a block, cut down to the first `length` columns."""
    for before, dimensions in ((0, _SEQUENCE_DIMENSIONS), (batch.n_opening, _KEY_DIMENSIONS)):
        for dimension in dimensions.get(name, ()):
            if value.shape[dimension] == before + batch.sequence_length:
                value = value.narrow(dimension, 0, before + length)
    return value
