"""What steering does beside its purpose, on neutral prompts: residual norms, KL to the unsteered model, linear range.

Steering is measured where it acts: on the unsteered model's own answers, from the last prompt token on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model import processes
from utils.model.answer_rows import AnswerPair, BaseRows
from utils.model.chat_format import AnswerTokens, PromptTokens
from utils.model.conditions import opened
from utils.model.generation import GenerationRow
from utils.model.steering import Steering, Steerings, as_tuple, edit_outputs_only

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

ANSWER_TOKENS = 24
"""Of the unsteered answers on which KL is measured."""
LINEAR_COSINE = 0.99
"""The change of the last layer counts as proportional while its direction has at least this cosine with that of a
small strength."""


def residual_norms(model: "LlamaWrapper", prompts: Sequence[PromptTokens]) -> Tensor:
    """Median norm of each layer's residual stream over the prompts' tokens, [n_layers] float64.

    The first token is left out: in many models it is an attention sink whose norm is a hundred times the others'.

    Raises:
        UserError: If a layer's norms are not finite or zero.
    """
    norms = [model.capture(prompt)[:, 1:].double().norm(dim=-1) for prompt in prompts]  # [n_layers, n_tokens - 1]
    medians = torch.cat(norms, dim=1).median(dim=1).values
    if broken := [layer for layer, norm in enumerate(medians.tolist()) if not 0 < norm < float("inf")]:
        raise UserError(
            f"{model.label}: the residual norm of layer {broken[0]} is {float(medians[broken[0]])} in {model.dtype}; "
            "a strength needs one; use --multipliers, or --dtype float32"
        )
    return medians


def neutral_answers(model: "LlamaWrapper", prompts: Sequence[PromptTokens]) -> list[AnswerTokens]:
    """The unsteered model's own answers to prompts (greedy, at most ANSWER_TOKENS), with the prompts."""
    rows = [GenerationRow(prompt, None) for prompt in prompts]
    answers = {}
    for part in processes.gather(dict(model.generate(rows, ANSWER_TOKENS))):
        answers.update(part)
    return [
        AnswerTokens((*prompt.ids, *answers[i].token_ids), prompt.steer_start, len(answers[i].token_ids))
        for i, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class SideEffects:
    """What some steerings do to the next-token distributions of neutral answers."""

    kl: Tensor
    """KL(unsteered || steered) at every answer token, [n_steerings, n_tokens] float32, in nats."""

    def percentile(self, share: float = 0.95) -> Tensor:
        """Of each steering's per-token KL, [n_steerings]."""
        return self.kl.double().quantile(share, dim=1)


@torch.no_grad()
def measure_kl(model: "LlamaWrapper", answers: Sequence[AnswerTokens], steerings: Sequence[Steerings]) -> SideEffects:
    """KL of next-token distributions to the unsteered model's, under each steering.

    Several processes share the answers, and each gets all; every one must call it.

    Args:
        model: The model.
        answers: Neutral prompts with the unsteered model's answers.
        steerings: One or several each, of block outputs; none, or a gate that the prompt does not open, is KL 0.
    """
    assert edit_outputs_only(steerings), "rows behind a shared prefix are edited at block outputs only"
    own: dict[int, Tensor] = {}
    for index, answer in enumerate(answers):
        if not processes.is_mine(index):
            continue
        rows = [tuple(one.placed(model.device) for one in as_tuple(row)) for row in opened(model, answer, steerings)]
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: rows[i][0].layer)
        base = BaseRows(model.runtime, [AnswerPair(answer, answer)], one_answer=True)
        at_once = max(1, int(model.runtime.batcher.token_budget() // base.input_ids.numel()))
        kl = torch.zeros(len(rows), answer.n_answer)
        for start in range(0, len(order), at_once):
            chunk = order[start : start + at_once]
            kl[chunk] = base.kl([rows[i] for i in chunk]).cpu()
        own[index] = kl
    found = {index: kl for share in processes.gather(own) for index, kl in share.items()}
    return SideEffects(torch.cat([found[index] for index in range(len(answers))], dim=1))


def linear_range(
    model: "LlamaWrapper", answer: AnswerTokens, steering: Steering, multipliers: Sequence[float]
) -> float | None:
    """Largest of the multipliers up to which the last layer's change keeps its direction; None where none does.

    The direction is that of the smallest multiplier. It is measured over all steered tokens together.
    """
    unsteered = model.capture(answer)[-1, answer.steer_start :].double()

    def change(multiplier: float) -> Tensor:
        steered = replace(steering, multiplier=multiplier)
        return (model.capture(answer, steered)[-1, answer.steer_start :].double() - unsteered).flatten()

    smallest, *others = sorted(multipliers, key=abs)
    reference, kept = change(smallest), None
    for multiplier in others:
        if float(torch.nn.functional.cosine_similarity(change(multiplier), reference, dim=0)) < LINEAR_COSINE:
            break
        kept = multiplier
    return kept
