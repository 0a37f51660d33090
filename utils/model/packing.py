"""Many continuations of one prompt in a single forward pass.

A packed sequence is a prefix followed by tails, each `tail_length` tokens long:

    [ prefix, left-padded | tail 0 | tail 1 | ... ]

Every tail attends to the prefix and to itself, under a 4-D mask, with the position ids it would have
right behind the prefix. Keys and values of the prefix are thereby computed once for all tails.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from utils.model.steering import hidden_of, with_hidden


class PackedBatch:
    """The model inputs of a batch of packed sequences, all with tails of one length."""

    def __init__(
        self,
        prefixes: Sequence[Sequence[int]],
        tails: Sequence[Sequence[Sequence[int]]],
        pad_id: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            prefixes: One token sequence a row.
            tails: For each row its tails; the same number and length everywhere.
            pad_id: Fills the left of shorter prefixes; never attended to.
            device: Where the inputs go.
            dtype: The model's, for the mask.
        """
        self.prefix_length = max(len(prefix) for prefix in prefixes)
        self.n_tails, self.tail_length = len(tails[0]), len(tails[0][0])
        rows, positions = [], []
        for prefix, row_tails in zip(prefixes, tails, strict=True):
            padding = self.prefix_length - len(prefix)
            rows.append([*[pad_id] * padding, *prefix, *(token for tail in row_tails for token in tail)])
            tail_positions = range(len(prefix), len(prefix) + self.tail_length)
            positions.append([*[0] * padding, *range(len(prefix)), *[*tail_positions] * self.n_tails])
        self.input_ids = torch.tensor(rows, device=device)  # [batch, seq_len]
        self.position_ids = torch.tensor(positions, device=device)  # [batch, seq_len]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        self.attention_mask = self._build_mask(lengths, device, dtype)  # [batch, 1, seq_len, seq_len]

    @property
    def sequence_length(self) -> int:
        return self.input_ids.shape[1]

    def tail_ends(self) -> Tensor:
        """Column of each tail's last token, [n_tails]."""
        first = self.prefix_length + self.tail_length - 1
        return torch.arange(first, self.sequence_length, self.tail_length, device=self.input_ids.device)

    def model_inputs(self) -> dict[str, Any]:
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "use_cache": False,
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
        blocked = torch.finfo(dtype).min
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, blocked)[:, None]


@contextmanager
def tails_enter_late(
    batch: PackedBatch, layers: Sequence[nn.Module], additions: Mapping[int, Tensor]
) -> Iterator[None]:
    """For the block: steered tails join the packed sequence behind the layer that steers them.

    Below its layer a steered tail equals the unsteered one. So tail 0 runs unsteered from the bottom, and
    behind layer l it is copied once for every row of `additions[l]`, with that row added. The tails of
    `batch` must be tail 0, then one for each addition, by ascending layer.

    Args:
        batch: The packed sequence with all tails.
        layers: The decoder blocks.
        additions: For each steered layer what is added, [n_combinations, d_model].
    """
    base = slice(batch.prefix_length, batch.prefix_length + batch.tail_length)
    length = base.stop
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            hook = _narrow_inputs(layer, batch.sequence_length, length)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if index in additions:
                stack.callback(layer.register_forward_hook(_append_tails(base, additions[index])).remove)
                length += additions[index].shape[0] * batch.tail_length
        yield


def _append_tails(base: slice, added: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        hidden = hidden_of(output)  # [batch, length, d_model]
        steered = hidden[:, None, base] + added.to(hidden)[None, :, None, :]  # [batch, n_combinations, tail, d_model]
        return with_hidden(output, torch.cat([hidden, steered.flatten(1, 2)], dim=1))

    return hook


# where a decoder block's inputs have the sequence, as dimensions
_SEQUENCE_DIMENSIONS = {
    "hidden_states": (1,),
    "attention_mask": (-2, -1),
    "position_ids": (-1,),
    "position_embeddings": (-2,),
}


def _narrow_inputs(layer: nn.Module, full_length: int, length: int) -> Callable[..., Any]:
    """A pre-hook that cuts a block's inputs down to the first `length` columns."""
    names = list(inspect.signature(layer.forward).parameters)

    def narrow(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(narrow(name, part) for part in value)
        if not isinstance(value, Tensor):
            return value
        for dimension in _SEQUENCE_DIMENSIONS.get(name, ()):
            if value.shape[dimension] == full_length:
                value = value.narrow(dimension, 0, length)
        return value

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        narrowed = tuple(narrow(name, value) for name, value in zip(names, args, strict=False))
        return narrowed, {name: narrow(name, value) for name, value in kwargs.items()}

    return hook
