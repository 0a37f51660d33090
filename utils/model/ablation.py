"""Directional ablation: a direction's component is taken out of all that a model writes, or set to a reference.

Arditi et al. 2024 (arXiv 2406.11717) edit the input of every decoder block and what its attention and its MLP add
to the residual stream, so that no stream in between has a component along the direction either. Two kinds:

- zero: `x - (x . d) d`, at every token (Arditi et al.);
- affine: `x + (m . d - x . d) d` with a reference mean m of each place, such as that over harmless prompts (Marshall et
  al. 2024, arXiv 2411.09003), at every token but a sequence's first. Since the mean of a sum is the sum of the means,
  the three places agree: every stream's component is then its reference's.

The first token is left out of the affine kind because in many models it is an attention sink, a hundred times as
long as the others, to which their mean does not apply. It is `PromptTokens.steer_start` that says so: 1 instead of 0.
In generation it concerns the prompt alone; tokens that follow are all edited.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.model.architectures import branch_end
from utils.model.chat_format import PromptTokens
from utils.model.steering import Site, Steering, site_hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AblationKind = Literal["zero", "affine"]
PLACES: tuple[Site, ...] = ("input", "attention", "mlp")
"""Of each block, in the order in which the residual stream passes them."""


@dataclass(frozen=True)
class SetComponent:
    """The operator that sets the component along a vector to a value, as far as the multiplier says (1: wholly)."""

    value: float = 0.0
    """In the unit of the residual stream."""

    def __call__(self, hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # a difference of large numbers
        unit = vector.to(wide) / vector.to(wide).norm()
        change = (self.value - wide @ unit) * multiplier
        return (wide + change[..., None] * unit).to(hidden.dtype)

    def put_in(self, vector: Tensor, multiplier: float) -> Tensor:
        """See `steering.put_in`."""
        return vector / vector.norm() * multiplier * max(1.0, abs(self.value))


ablate = SetComponent()
"""Zero ablation of one place, beside `steering.add`: `Steering(layer, 1.0, direction, ablate)`."""


References = Mapping[Site, Tensor]
"""For each of PLACES the mean of what is there, [n_layers, d_model]."""


def ablation(direction: Tensor, n_layers: int, references: References | None = None) -> tuple[Steering, ...]:
    """The steerings that ablate a direction everywhere: to zero, or to what the references have of it.

    Args:
        direction: [d_model], of any length but 0.
        n_layers: Decoder blocks of the model.
        references: For the affine kind.

    Raises:
        UserError: If the direction is zero or not finite.
    """
    unit = unit_direction(direction)
    wide = unit.double()

    def value(site: Site, layer: int) -> float:
        return 0.0 if references is None else float(references[site][layer].double().cpu() @ wide.cpu())

    places = [(layer, site) for layer in range(n_layers) for site in PLACES]
    return tuple(Steering(layer, 1.0, unit, SetComponent(value(site, layer)), site) for layer, site in places)


def unit_direction(direction: Tensor) -> Tensor:
    """The direction at length 1, float32.

    Raises:
        UserError: If it is zero or not finite.
    """
    length = float(direction.double().norm())
    if not 0 < length < float("inf"):
        raise UserError(f"a direction of norm {length:g} cannot be ablated or added; make it again from other prompts")
    return (direction.double() / length).float()


def ablated_tokens(prompt: PromptTokens, kind: AblationKind) -> PromptTokens:
    """The prompt with the tokens that an ablation of this kind edits: all, or all but the first."""
    return replace(prompt, steer_start=0 if kind == "zero" else 1)


@contextmanager
def capture_places(
    layers: Sequence[nn.Module], position: int, sites: Sequence[Site] = PLACES
) -> Iterator[dict[tuple[int, Site], Tensor]]:
    """For the block: collect what is at one position of every place, [batch, d_model], copied.

    Args:
        layers: Decoder blocks.
        position: Index of the token, from the end where negative.
        sites: Places of each block.
    """
    captured: dict[tuple[int, Site], Tensor] = {}

    def keep(where: tuple[int, Site], hidden: Tensor) -> None:
        captured[where] = hidden[:, position].detach().clone()

    with ExitStack() as stack:
        for layer, block in enumerate(layers):
            for site in sites:
                stack.enter_context(site_hook(block, site, partial(keep, (layer, site))))
        yield captured


# --- the same in the weights ------------------------------------------------------------------------

_ENDS = {
    "attention": ("o_proj", "c_proj", "dense", "out_proj"),
    "mlp": ("down_proj", "c_proj", "dense_4h_to_h", "fc2"),
}


@torch.no_grad()
def orthogonalize_weights(model: "PreTrainedModel", layers: Sequence[nn.Module], direction: Tensor) -> None:
    """Take a direction out of all that writes to the residual stream; the model then equals its zero ablation.

    Embeddings, output projections of attention and MLP, and their biases (Arditi et al. 2024, section 4.1). Output
    embeddings read the stream and stay as they are: where they are tied to the input's they are untied first.

    Args:
        model: Is changed: give a copy to keep it.
        layers: Its decoder blocks.
        direction: [d_model].

    Raises:
        UserError: If the blocks are built so that no weights are equal to the ablation.
    """
    unit = unit_direction(direction)
    writers = [writer for block in layers for writer in (_writer(block, "attention"), _writer(block, "mlp"))]
    _untie(model)
    decoder = model.get_decoder()
    for embeddings in {decoder.get_input_embeddings(), getattr(decoder, "wpe", None)} - {None}:
        embeddings.weight.copy_(_without(embeddings.weight, unit))
    for writer in writers:
        is_linear = isinstance(writer, nn.Linear)  # transformers' Conv1D keeps its weight the other way round
        changed = _without(writer.weight.T if is_linear else writer.weight, unit)  # [d_in, d_model]
        writer.weight.copy_(changed.T if is_linear else changed)
        if writer.bias is not None:
            writer.bias.copy_(_without(writer.bias, unit))


def _writer(block: nn.Module, branch: Literal["attention", "mlp"]) -> Any:
    """The projection that a block's attention or MLP ends with."""
    end = branch_end(block, branch)
    if isinstance(end, nn.Linear):
        return end
    found = [child for name in _ENDS[branch] if (child := getattr(end, name, None)) is not None]
    if len(found) != 1 or not hasattr(found[0], "weight"):
        raise UserError(
            f"{type(block).__name__}: no weights are known that equal the ablation of its {branch}; ablate with hooks"
        )
    return found[0]


def _without(rows: Tensor, unit: Tensor) -> Tensor:
    """Rows [..., d_model] without their component along a unit vector."""
    wide, along = rows.double(), unit.double().to(rows.device)
    return (wide - (wide @ along)[..., None] * along).to(rows.dtype)


def _untie(model: "PreTrainedModel") -> None:
    source, read = model.get_input_embeddings(), model.get_output_embeddings()
    if source.weight is read.weight:
        read.weight = nn.Parameter(source.weight.detach().clone())
        model.config.tie_word_embeddings = False
