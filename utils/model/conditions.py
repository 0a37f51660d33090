"""Gates: steering only the prompts that fulfil a condition (CAST, Lee et al. 2024, arXiv 2409.05907).

A gate depends on the prompt alone, so it is opened or closed before the pass that steers: what is closed is left out of
that pass, which then changes no bit. Rows and packed tails are gated each for itself.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.data.records import PromptPair
from utils.errors import UserError
from utils.model.chat_format import PromptTokens
from utils.model.steering import Condition, Steerings, as_tuple, capture_outputs

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FEWEST_PAIRS = 4


@torch.no_grad()
def prompt_means(model: "LlamaWrapper", prompt: PromptTokens, layers: Sequence[int]) -> Tensor:
    """Mean residual stream of a prompt at some layers, [len(layers), d_model] float64, on the CPU.

    Over its tokens up to the first steered one, but for the sequence's first, whose norm may be a hundred times as
    large.
    """
    if prompt.steer_start < 1:
        raise UserError(
            "a condition is judged by the prompt before the first steered token; here every token is steered"
        )
    ids = torch.tensor([prompt.ids[: prompt.steer_start + 1]], device=model.device)
    blocks = [model.layers[layer] for layer in layers]
    with capture_outputs(blocks, keep=lambda hidden: hidden[0, 1:].double().mean(dim=0).cpu()) as captured:
        model.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return torch.stack([captured[place] for place in range(len(blocks))])


def conditions_of(steerings: Sequence[Steerings]) -> list[Condition]:
    """The different gates of some steerings, in their order."""
    found = {one.condition: None for row in steerings for one in as_tuple(row) if one.condition is not None}
    return list(found)


def open_gates(model: "LlamaWrapper", prompt: PromptTokens, conditions: Sequence[Condition]) -> frozenset[Condition]:
    """The conditions that a prompt fulfils."""
    layers = sorted({condition.layer for condition in conditions})
    means = dict(zip(layers, prompt_means(model, prompt, layers), strict=True)) if layers else {}
    return frozenset(condition for condition in conditions if condition.is_open(means[condition.layer]))


def behind(steerings: Sequence[Steerings], open_ones: Collection[Condition]) -> list[Steerings]:
    """What is left of each row of steerings when these gates are open and the others closed."""

    def left(row: Steerings) -> Steerings:
        several = [one for one in as_tuple(row) if one.condition is None or one.condition in open_ones]
        return tuple(replace(one, condition=None) for one in several) or None

    return [left(row) for row in steerings]


def opened(model: "LlamaWrapper", prompt: PromptTokens, steerings: Sequence[Steerings]) -> list[Steerings]:
    """What each of some steerings does to a prompt: those whose gate is closed are left out."""
    if not (conditions := conditions_of(steerings)):
        return list(steerings)
    return behind(steerings, open_gates(model, prompt, conditions))


Scores = Iterator[tuple[int, Tensor]]


def score_gated(
    model: "LlamaWrapper",
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steerings],
    skip: Collection[int],
    score: Callable[[list[int], Sequence[Steerings], Collection[int]], Scores],
) -> Scores:
    """Score prompts that open the same gates together.

    Args:
        model: The model.
        prompts: Of the items.
        steerings: Of each item, perhaps behind gates.
        skip: Items that are not needed.
        score: Given the items to score, the steerings that are left, and the places to skip among these items, yields
            the place and the scores of each.

    Yields:
        The index of an item and its scores.
    """
    if not (conditions := conditions_of(steerings)):
        yield from score(list(range(len(prompts))), steerings, skip)
        return
    groups: dict[frozenset[Condition], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(open_gates(model, prompt, conditions), []).append(index)
    for open_ones, items in groups.items():
        places = {place for place, index in enumerate(items) if index in skip}
        for place, scores in score(items, behind(steerings, open_ones), places):
            yield items[place], scores


# --- fitting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FittedCondition:
    """A condition, and how well it tells the pairs apart that it was chosen on."""

    condition: Condition
    f1: float
    n_pairs: int
    """That it was chosen on; the vector was made from others, where it was made here."""

    def describe(self) -> str:
        condition = self.condition
        side = "at least" if condition.opens_above else "below"
        return (
            f"layer {condition.layer}, cosine {side} {condition.threshold:.3f} (F1 {self.f1:.2f} on {self.n_pairs} "
            "pairs of prompts)"
        )


def fit_condition(
    model: "LlamaWrapper",
    pairs: Sequence[PromptPair],
    layers: Sequence[int],
    system_prompt: str | None = None,
    vector: Tensor | None = None,
) -> FittedCondition:
    """The layer and threshold with the best F1 between the prompts that are to be steered and the others.

    Every second pair makes the vectors, as the mean difference of prompts' means; layer and threshold are chosen on the
    pairs between them, so that no prompt says how well a vector works that it has helped to make.

    Args:
        model: The model.
        pairs: `matching` is to be steered, `other` not.
        layers: To choose from.
        system_prompt: Before every prompt.
        vector: Takes the place of the mean difference; then all pairs choose, and there must be one layer.

    Raises:
        UserError: If there are too few pairs.
    """
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(f"a condition needs at least {FEWEST_PAIRS} pairs of prompts, found {len(pairs)}")
    encode = model.chat_format.encode
    means = torch.stack(
        [
            torch.stack([prompt_means(model, encode(text, None, system_prompt), layers) for text in texts])
            for texts in ((pair.matching for pair in pairs), (pair.other for pair in pairs))
        ]
    )  # [2, n_pairs, n_layers, d_model]
    chosen_on = means if vector is not None else means[:, 1::2]
    fitted = []
    for place, layer in enumerate(layers):
        made = means[:, ::2, place].mean(dim=1)
        direction = vector.double().cpu() if vector is not None else made[0] - made[1]
        scores = torch.cosine_similarity(chosen_on[:, :, place], direction, dim=-1)  # [2, n]
        threshold, opens_above, f1 = best_threshold(scores[0].tolist(), scores[1].tolist())
        condition = Condition(layer, direction.float(), threshold, opens_above)
        fitted.append(FittedCondition(condition, f1, chosen_on.shape[1]))
    return max(fitted, key=lambda one: one.f1)  # of equally good layers the lowest


def best_threshold(matching: Sequence[float], other: Sequence[float]) -> tuple[float, bool, float]:
    """The threshold between two sets of scores with the best F1 of the matching ones, its side, and that F1.

    Candidates lie half way between neighbouring scores, and below all of them.
    """
    values = sorted({*matching, *other})
    candidates = [values[0] - 1e-6, *((low + high) / 2 for low, high in pairwise(values))]
    best = (values[0] - 1e-6, True, -1.0)
    for threshold in candidates:
        for opens_above in (True, False):
            hits = sum((score >= threshold) == opens_above for score in matching)
            false = sum((score >= threshold) == opens_above for score in other)
            f1 = 2 * hits / (len(matching) + hits + false)  # 2 TP / (2 TP + FP + FN)
            if f1 > best[2]:
                best = (threshold, opens_above, f1)
    return best
