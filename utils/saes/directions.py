"""Activations at the end of prompts, and the refusal direction made of them.

Layers are the suite's: `layer` is the output of decoder block `layer`. Other code names the same place by the block
that reads it: `blocks.13.hook_resid_pre` is the suite's layer 12. `read_by` is where one becomes the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files.writing import save_tensor, write_json
from utils.model.ablation import PLACES, References, capture_places
from utils.model.chat_format import PromptTokens
from utils.model.padding import left_padded
from utils.model.steering import capture_outputs
from utils.saes.prompts import Prompts, SystemPrompt, encode_instruction
from utils.vectors.estimators import mean_difference

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper


def read_by(layer: int) -> int:
    """The block that reads the suite's layer, by whose number Arditi et al. and TransformerLens call it."""
    return layer + 1


def hook_name(layer: int) -> str:
    """TransformerLens' name of the suite's layer, as the published scripts have it."""
    return f"blocks.{read_by(layer)}.hook_resid_pre"


def encode_all(
    model: "LlamaWrapper", instructions: Sequence[str], system_prompt: SystemPrompt = "none"
) -> list[PromptTokens]:
    return [encode_instruction(model.chat_format, text, system_prompt) for text in instructions]


def prompt_activations(
    model: "LlamaWrapper",
    prompts: Sequence[PromptTokens],
    layers: Sequence[int],
    positions: Sequence[int] = (-1,),
    batch_size: int | None = None,
) -> Tensor:
    """The residual stream at tokens counted from each prompt's end, [n, n_layers, n_positions, d_model].

    Nothing above the last layer runs. Float32, on the CPU, in the order of the prompts.

    Args:
        model: The model.
        prompts: The prompts, as they are: nothing is steered.
        layers: Ascending.
        positions: Counted from the end: -1 is the last token.
        batch_size: Prompts in one pass; None for as many as fit.

    Raises:
        UserError: If a prompt is longer than the model's context, or has no such position.
    """
    check_positions(prompts, positions)
    blocks = [model.layers[layer] for layer in layers]
    at = list(positions)

    @torch.no_grad()
    def read(batch: list[int]) -> Tensor:
        inputs = padded_inputs(model, [prompts[i] for i in batch])
        with capture_outputs(blocks, lambda hidden: hidden[:, at], stop_after_last=True) as captured:
            model.model.get_decoder()(**inputs, use_cache=False)
        return torch.stack([captured[index].float().cpu() for index in range(len(blocks))], dim=1)

    return in_batches(model, prompts, read, batch_size)


def check_positions(prompts: Sequence[PromptTokens], positions: Sequence[int]) -> None:
    shortest = min(len(prompt) for prompt in prompts)
    for position in positions:
        if not -shortest <= position < 0:
            raise UserError(
                f"--position {position}: count from the end of the prompt, -1 for its last token; "
                f"the shortest prompt has {shortest}"
            )


def padded_inputs(model: "LlamaWrapper", prompts: Sequence[PromptTokens]) -> dict[str, Tensor]:
    """Ids, mask and positions of a batch padded on the left, [batch, seq_len] each."""
    ids, mask = left_padded([prompt.ids for prompt in prompts], model.runtime.pad_id, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def in_batches(
    model: "LlamaWrapper", prompts: Sequence[PromptTokens], run: Any, batch_size: int | None = None
) -> Tensor:
    """Run prompts in batches of like length; what `run` gives for each prompt, [n, ...], in their order."""
    runtime, lengths = model.runtime, [len(prompt) for prompt in prompts]
    runtime.check_lengths(lengths)
    found: dict[int, Tensor] = {}
    for group in runtime.apart(range(len(prompts)), lengths):
        widths = [lengths[i] for i in group]
        for batch, rows in runtime.batcher.run(group, widths, run, batch_size, shared=False):
            found.update(zip(batch, rows, strict=True))
    return torch.stack([found[index] for index in range(len(prompts))])


def refusal_direction(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Mean over harmful minus mean over harmless prompts, [d_model], by the suite's estimator.

    Args:
        harmful: [n, d_model].
        harmless: The same shape; rows need not be pairs.
    """
    return mean_difference(harmful, harmless)


def harmless_means(
    model: "LlamaWrapper", prompts: Sequence[PromptTokens], position: int = -1, batch_size: int | None = None
) -> References:
    """For affine ablation: the mean of every place over prompts, at one position, [n_layers, d_model] float32."""

    @torch.no_grad()
    def read(batch: list[int]) -> Tensor:
        inputs = padded_inputs(model, [prompts[i] for i in batch])
        with capture_places(model.layers, position) as captured:
            model.model.get_decoder()(**inputs, use_cache=False)
        places = [[captured[layer, site].float().cpu() for layer in range(model.n_layers)] for site in PLACES]
        return torch.stack([torch.stack(of_site, dim=1) for of_site in places], dim=1)

    rows = in_batches(model, prompts, read, batch_size)  # [n, n_places, n_layers, d_model]
    means = rows.double().mean(dim=0).float()
    return {site: means[place] for place, site in enumerate(PLACES)}


def candidate_directions(
    model: "LlamaWrapper", prompts: Prompts, layers: Sequence[int], positions: Sequence[int], system: SystemPrompt
) -> Tensor:
    """The direction of every layer and position, [n_layers, n_positions, d_model] float32."""
    harmful, harmless = (
        prompt_activations(model, encode_all(model, texts, system), layers, positions)
        for texts in (prompts.harmful, prompts.harmless)
    )
    flat = refusal_direction(harmful.flatten(1), harmless.flatten(1))
    return flat.view(harmful.shape[1:])


# --- files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectionPlace:
    """Where a direction is read."""

    layer: int
    """The suite's: output of decoder block `layer`."""
    position: int
    """Token, counted from the prompt's end."""

    def metadata(self) -> dict[str, Any]:
        """Under Arditi's keys `pos` and `layer` (the block that reads it), and in the suite's words."""
        return {
            "pos": self.position,
            "layer": read_by(self.layer),
            "suite_layer": self.layer,
            "hook": hook_name(self.layer),
            "layer_means": f"layer: input of block {read_by(self.layer)}; suite_layer: output of block {self.layer}",
        }


def save_direction(folder: Path, direction: Tensor, place: DirectionPlace, made: dict[str, Any]) -> None:
    """direction.pt and, behind it, metadata.json, which says that it is whole."""
    save_tensor(folder / "direction.pt", direction.detach().cpu().float().contiguous())
    write_json(folder / "metadata.json", {**place.metadata(), **made})
