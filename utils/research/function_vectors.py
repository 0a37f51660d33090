"""Function vectors (Todd et al. 2024): what a few attention heads carry of a task shown by examples in the prompt.

a_lh   mean output of head h of layer l at the last token of prompts with right examples
IE_lh  p(answer | shuffled examples, a_lh put in) - p(answer | shuffled examples), mean over trials
FV     sum over the heads of largest IE of what they add to the residual stream, out_proj_l(a_lh)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files.reading import short
from utils.research.head_rows import NO_EDIT, Heads, LastTokenEdit
from utils.research.task_lists import TaskPrompt

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

HeadPlace = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A task prompt as tokens."""

    ids: tuple[int, ...]
    answer_id: int
    """The answer's first token."""


def encode_prompt(model: "LlamaWrapper", prompt: TaskPrompt) -> EncodedPrompt:
    """Plain text, as the tokenizer begins a text; no chat template.

    Raises:
        UserError: If the answer's first token cannot be told from the prompt's last.
    """
    ids = tuple(model.tokenizer(prompt.text)["input_ids"])
    whole = tuple(model.tokenizer(prompt.text + prompt.answer)["input_ids"])
    if whole[: len(ids)] != ids or len(whole) <= len(ids):
        raise UserError(f"{model.label}: the answer {short(prompt.answer)} does not begin with a token of its own")
    return EncodedPrompt(ids, whole[len(ids)])


@dataclass(frozen=True, eq=False)
class Means:
    """Means over prompts at their last token."""

    heads: Tensor
    """[n_layers, n_heads, head_dim] float32."""
    outputs: Tensor
    """[n_layers, d_model] float32."""


def mean_over(heads: Heads, prompts: Iterable[EncodedPrompt]) -> Means:
    """Mean head outputs and residual streams over prompts."""
    head_sum, output_sum, n = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for prompt in prompts:
        found = heads.read(prompt.ids)
        head_sum, output_sum, n = head_sum + found.heads.double(), output_sum + found.outputs.double(), n + 1
    return Means((head_sum / n).float(), (output_sum / n).float())


def indirect_effects(heads: Heads, trials: Iterable[EncodedPrompt], means: Means) -> Tensor:
    """Effect of every head on the answer's probability, [n_trials, n_layers, n_heads] float32.

    Args:
        heads: The model's.
        trials: Prompts with shuffled examples.
        means: Of prompts with right examples.
    """
    places = all_places(means)
    edits = [NO_EDIT, *(LastTokenEdit({place: means.heads[place]}) for place in places)]
    found = []
    for trial in trials:
        p = heads.logits(trial.ids, edits).softmax(-1)[:, trial.answer_id]
        found.append((p[1:] - p[0]).view(means.heads.shape[:2]))
    return torch.stack(found)


def all_places(means: Means) -> list[HeadPlace]:
    n_layers, n_heads = means.heads.shape[:2]
    return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]


def top_heads(effects: Tensor, n: int) -> list[HeadPlace]:
    """The heads of largest mean effect, from [n_trials, n_layers, n_heads]."""
    mean = effects.double().mean(dim=0)
    return [divmod(place, mean.shape[1]) for place in mean.flatten().topk(min(n, mean.numel())).indices.tolist()]


def function_vector(heads: Heads, means: Means, places: Sequence[HeadPlace]) -> Tensor:
    """What some heads add to the residual stream, each from its own layer, summed; [d_model] float32."""
    total = torch.zeros(means.outputs.shape[1], dtype=torch.float64)
    for layer in sorted({layer for layer, _ in places}):
        of_layer = {head: means.heads[layer, head] for at, head in places if at == layer}
        total += heads.project(layer, of_layer).double()
    return total.float()


def random_heads_vector(
    heads: Heads, means: Means, n: int, norm: float, generator: torch.Generator, avoid: Sequence[HeadPlace] = ()
) -> Tensor:
    """The same of random heads, scaled to a norm: the control."""
    others = [place for place in all_places(means) if place not in set(avoid)]
    drawn = torch.randperm(len(others), generator=generator)[:n].tolist()
    vector = function_vector(heads, means, [others[i] for i in drawn])
    return vector * (norm / vector.norm())


def answers_right(
    heads: Heads, prompts: Sequence[EncodedPrompt], edits: Sequence[LastTokenEdit], step: Callable[[], object]
) -> Tensor:
    """Whether the most likely next token is the answer's first, [n_edits, n_prompts] bool."""
    columns = []
    for prompt in prompts:
        columns.append(heads.logits(prompt.ids, edits).argmax(-1) == prompt.answer_id)
        step()
    return torch.stack(columns, dim=1)
