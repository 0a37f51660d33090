"""A direction trained by gradients on what the benchmark measures.

Wu et al. (2025, arXiv 2505.20809, RePS) train a rank-1 intervention so that it prefers a concept's answers when it is
added, and the others when it is subtracted. Here: with u = w / |w| and r = STRENGTH x the layer's residual norm,

    loss = -log s(SCALE (g(+r u) - g(0))) - log s(-SCALE (g(-r u) - g(0)))

where g is the log-probability per token of the matching answer minus that of the other, and s the logistic function.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from utils.cli.progress import progress
from utils.model import processes
from utils.model.chat_format import AnswerTokens
from utils.model.padding import left_padded
from utils.model.pairs import encode_answer
from utils.model.steering import RowSteering, Steering
from utils.vectors.norms import layer_norms

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.research.benchmark_material import Material

STRENGTH = 0.1
SCALE = 4.0
BATCH = 4
EPOCHS = 1
RATE = 0.15
"""Of Adam, on a w that begins at length 1."""


def train_direction(material: "Material", layer: int) -> Tensor:
    """The trained direction, [d_model] float32, at the mean difference's norm; it begins at the mean difference."""
    model = material.model
    start = material.estimated("answer", "mean")[layer].to(model.device)
    size = STRENGTH * layer_norms(model, material.request.paths)[layer]
    pairs = [
        [encode_answer(model.chat_format, pair.question, answer) for answer in (pair.matching, pair.other)]
        for pair in material.texts
    ]
    w = (start / start.norm()).clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=RATE / start.numel() ** 0.5)
    order = random.Random(material.request.seed)
    batches = [
        shuffled[i : i + BATCH]
        for _ in range(EPOCHS)
        for shuffled in [order.sample(pairs, len(pairs))]
        for i in range(0, len(pairs), BATCH)
    ]
    with _frozen(model):
        for batch in progress(batches, desc=f"{material.behavior}: training at layer {layer}"):
            optimizer.zero_grad()
            own = batch[processes.index() :: processes.count()]
            if own:
                _add_gradients(model, own, len(batch), lambda sign: Steering(layer, sign * size, w / w.norm()))
            shares = processes.gather(None if w.grad is None else w.grad.cpu())
            w.grad = torch.stack([share for share in shares if share is not None]).sum(dim=0).to(w.device)
            optimizer.step()
    return (w.detach() / w.detach().norm() * start.norm()).cpu()


def _add_gradients(
    model: "LlamaWrapper",
    pairs: Sequence[Sequence[AnswerTokens]],
    n_pairs: int,
    steering: Callable[[float], Steering],
) -> None:
    """Backward through the loss of some of a batch's `n_pairs` pairs, one sign after the other."""
    with torch.no_grad():
        before = _gaps(model, pairs, None)
    for sign in (1.0, -1.0):
        gaps = _gaps(model, pairs, steering(sign))
        loss = -logsigmoid(sign * SCALE * (gaps - before)).sum() / n_pairs
        loss.backward()


def _gaps(model: "LlamaWrapper", pairs: Sequence[Sequence[AnswerTokens]], steering: Steering | None) -> Tensor:
    """Log-probability per token of each pair's matching answer minus that of the other, [n_pairs]."""
    answers = [answer for pair in pairs for answer in pair]
    ids, mask = left_padded([answer.ids for answer in answers], model.runtime.pad_id, model.device)
    positions = mask.cumsum(1) - 1
    starts = torch.tensor([answer.steer_start for answer in answers], device=model.device)
    rows = RowSteering([steering] * len(answers), model.layers)
    rows.positions = (positions >= starts[:, None]) & mask.bool()
    longest = 1 + max(answer.n_answer for answer in answers)
    with rows.applied():
        logits = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.clamp(min=0),
            use_cache=False,
            logits_to_keep=longest,
        ).logits.float()
    means = []
    for row, answer in zip(logits, answers, strict=True):
        n = answer.n_answer
        targets = torch.tensor(answer.ids[-n:], device=row.device)
        means.append(row[-n - 1 : -1].log_softmax(-1).gather(-1, targets[:, None]).mean())
    both = torch.stack(means).view(-1, 2)
    return both[:, 0] - both[:, 1]


@contextmanager
def _frozen(model: "LlamaWrapper") -> Iterator[None]:
    """For the block: no gradients of the model's own weights."""
    trained = [weights for weights in model.model.parameters() if weights.requires_grad]
    for weights in trained:
        weights.requires_grad_(False)
    try:
        yield
    finally:
        for weights in trained:
            weights.requires_grad_(True)
