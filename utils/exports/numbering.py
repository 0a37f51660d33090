"""How other tools count layers: the one place where their numbers are made from ours.

Ours: layer `l` is decoder block `l`, counted from 0; a vector is read from that block's output and added to it.

| format | its number of our layer l | what the number means there | layers that it has no number for |
| --- | --- | --- | --- |
| safetensors | l | key `layer.<l>`: ours | |
| gguf | l | `direction.<l>`: output of block l | 0 (llama.cpp refuses a file with `direction.0`) |
| easysteer | l | `direction.<l>`: output of block l, from 0 on | |
| svec | l | key `<l>` of `directions` | |
| lm_eval | l | hookpoint `layers.<l>`: output of block l | |
| persona | l + 1 | row of `hidden_states`: row 0 is the embeddings | |
| neuronpedia | l + 1 | `hook_resid_pre`: input of block l + 1 | the last one (no block comes behind it) |
"""

from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class Numbering:
    """How one format counts layers."""

    offset: int = 0
    """Its number is our layer plus this."""
    first: int = 0
    """The smallest number that it takes."""
    below_n_layers: bool = False
    """Whether its numbers end below the number of the model's layers although they are shifted."""


NUMBERINGS: dict[str, Numbering] = {
    "gguf": Numbering(first=1),
    "safetensors": Numbering(),
    "svec": Numbering(),
    "lm_eval": Numbering(),
    "easysteer": Numbering(),
    "persona": Numbering(offset=1),
    "neuronpedia": Numbering(offset=1, below_n_layers=True),
}


def number_of_layer(format_name: str, layer: int, n_layers: int | None = None) -> int:
    """A format's number of our layer.

    Args:
        format_name: One of NUMBERINGS.
        layer: Ours.
        n_layers: Of the model; None where it is not known.

    Raises:
        UserError: If the format has no number for it.
    """
    numbering = NUMBERINGS[format_name]
    number = layer + numbering.offset
    if number < numbering.first:
        raise UserError(
            f"layer {layer} has no number in the format {format_name}, which counts from {numbering.first}; "
            "llama.cpp would refuse the whole file. Export a later layer, or take another format"
        )
    if numbering.below_n_layers and n_layers is not None and number >= n_layers:
        raise UserError(
            f"layer {layer} is the model's last: in the format {format_name} it is the input of a block {number}, "
            "and there is none; export an earlier layer, or take another format"
        )
    return number


def layer_of_number(format_name: str, number: int) -> int | None:
    """Our layer of a format's number; None for what is no decoder block's output (the embeddings)."""
    layer = number - NUMBERINGS[format_name].offset
    return layer if layer >= 0 else None
