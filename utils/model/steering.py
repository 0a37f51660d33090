"""Adding vectors to a residual stream, and reading it: the maths and the forward hooks.

Hooks are always removed, also when a forward pass fails.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Steering:
    """Add `multiplier` x `vector` to the output of decoder block `layer`."""

    layer: int
    multiplier: float
    vector: Tensor
    """[d_model], any float dtype and device."""

    @property
    def addition(self) -> Tensor:
        """What is added to the residual stream, [d_model]."""
        return self.vector * self.multiplier


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Average the activation difference over contrast pairs (CAA, Rimsky et al. 2023, eq. 1).

    Args:
        positive: Answer-token activations, [n_pairs, d_model], any float dtype.
        negative: Same shape; row i is the other half of pair i.

    Returns:
        Steering vector, [d_model], float32, on the inputs' device.

    Raises:
        UserError: If the shapes differ or n_pairs is 0.
    """
    if positive.shape != negative.shape or positive.dim() != 2 or positive.shape[0] == 0:
        raise UserError(
            f"a steering vector needs two equal activation tables [n_pairs, d_model], "
            f"found {list(positive.shape)} and {list(negative.shape)}"
        )
    return (positive.double() - negative.double()).mean(dim=0).float()


def normalize_to_mean_norm(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale vectors to their mean Euclidean norm, so that one multiplier means the same for all.

    Args:
        vectors: One vector [d_model] a behavior, of the same layer and model.

    Returns:
        The scaled vectors, float32, under the same keys.

    Raises:
        UserError: If a vector is zero and so has no direction.
    """
    norms = {key: vector.double().norm().item() for key, vector in vectors.items()}
    for key, norm in norms.items():
        if norm == 0.0:
            raise UserError(f"the vector of {key} is all zeros and cannot be normalised; make it again")
    mean_norm = sum(norms.values()) / len(norms)
    return {key: (vector.double() * (mean_norm / norms[key])).float() for key, vector in vectors.items()}


def hidden_of(output: Any) -> Tensor:
    """The residual stream [batch, seq_len, d_model] in what a decoder block returned (a tensor or a tuple)."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What the block returned, with another residual stream in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def output_hooks(hooks: Mapping[nn.Module, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """For the block: call each hook with its module's output residual stream; a returned tensor replaces it."""

    def wrap(hook: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def forward_hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
            replacement = hook(hidden_of(output))
            return None if replacement is None else with_hidden(output, replacement)

        return forward_hook

    with ExitStack() as stack:
        for module, hook in hooks.items():
            handle = module.register_forward_hook(wrap(hook))
            stack.callback(handle.remove)
        yield


class _ForwardStopped(Exception):
    """Unwinds a forward pass of which nothing more is wanted."""


@contextmanager
def capture_outputs(
    layers: Sequence[nn.Module], columns: Tensor | None = None, *, stop_after_last: bool = False
) -> Iterator[dict[int, Tensor]]:
    """For the block: collect each module's output residual stream, copied, under its index in `layers`.

    Args:
        layers: Decoder blocks in the order in which they run.
        columns: Positions in the sequence to keep; None for all.
        stop_after_last: End the forward pass behind the last of them. The pass then returns nothing:
            it must be the block's last statement.
    """
    captured: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[Tensor], None]:
        def hook(hidden: Tensor) -> None:
            kept = hidden if columns is None else hidden[:, columns.to(hidden.device)]
            captured[index] = kept.detach().clone()
            if stop_after_last and index == len(layers) - 1:
                raise _ForwardStopped

        return hook

    with output_hooks({layer: keep(index) for index, layer in enumerate(layers)}):
        try:
            yield captured
        except _ForwardStopped:
            if not stop_after_last:
                raise


class RowSteering:
    """What is added to each row of a batch: every row has its own layer, multiplier and vector, or none."""

    def __init__(self, rows: Sequence[Steering | None], layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._additions: dict[int, Tensor] = {}  # layer -> [batch, 1, d_model]; 0 for rows steered elsewhere
        for layer in sorted({row.layer for row in rows if row is not None}):
            per_row = [row.addition if row is not None and row.layer == layer else None for row in rows]
            blank = torch.zeros_like(next(addition for addition in per_row if addition is not None))
            self._additions[layer] = torch.stack([blank if a is None else a for a in per_row])[:, None, :]
        self.positions: Tensor | None = None
        """[batch, seq_len] bool: which tokens of the coming forward pass are steered; None for all."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some rows of the batch only; `rows` are their indices."""
        self._additions = {layer: added[rows.to(added.device)] for layer, added in self._additions.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the block: steer every forward pass."""

        def hook_at(layer: int) -> Callable[[Tensor], Tensor]:
            def add(hidden: Tensor) -> Tensor:
                added = self._additions[layer] = self._additions[layer].to(hidden)
                if self.positions is None:
                    return hidden + added
                return torch.where(self.positions[:, :, None].to(hidden.device), hidden + added, hidden)

            return add

        with output_hooks({self._layers[layer]: hook_at(layer) for layer in self._additions}):
            yield
