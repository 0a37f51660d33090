"""A direction trained by gradients on what the benchmark measures.

Wu et al. (2025, arXiv 2505.20809, RePS) train a rank-1 intervention so that it prefers a concept's answers when it is
added, and the others when it is subtracted. Here: with u = w / |w| and r = STRENGTH x the layer's residual norm,

    loss = -log s(SCALE (g(+r u) - g(0))) - log s(-SCALE (g(-r u) - g(0)))

where g is the log-probability per token of the matching answer minus that of the other, and s the logistic function.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from utils.cli.progress import progress
from utils.evaluation.preferences import answer_pair
from utils.model import processes
from utils.model.answer_rows import AnswerPair, BaseRows
from utils.model.answer_scoring import packable_groups, scores_of_rows
from utils.model.steering import Steering
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
    pairs = [answer_pair(model.chat_format, pair) for pair in material.texts]
    w = (start / start.norm()).clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=RATE / start.numel() ** 0.5)
    order = random.Random(material.request.seed)
    batches = [
        shuffled[i : i + BATCH]
        for _ in range(EPOCHS)
        for shuffled in [order.sample(pairs, len(pairs))]
        for i in range(0, len(pairs), BATCH)
    ]
    gaps = _gaps_packed if is_packable(model, pairs, Steering(layer, size, start / start.norm())) else _gaps_plainly
    with _frozen(model):
        for batch in progress(batches, desc=f"{material.behavior}: training at layer {layer}"):
            optimizer.zero_grad()
            if own := batch[processes.index() :: processes.count()]:
                unsteered, *steered = gaps(model, own, [Steering(layer, sign * size, w / w.norm()) for sign in (1, -1)])
                change = SCALE * (torch.stack(steered) - unsteered)
                loss = -logsigmoid(change * torch.tensor([[1.0], [-1.0]], device=change.device)).sum() / len(batch)
                loss.backward()
            shares = processes.gather(None if w.grad is None else w.grad.cpu())
            w.grad = torch.stack([share for share in shares if share is not None]).sum(dim=0).to(w.device)
            optimizer.step()
    return (w.detach() / w.detach().norm() * start.norm()).cpu()


def is_packable(model: "LlamaWrapper", pairs: Sequence[AnswerPair], steering: Steering) -> bool:
    """Whether all of the pairs may share passes behind their prefixes, which no gradient reaches."""
    groups = packable_groups(model.runtime, pairs, [steering])
    return len(groups) == 1 and len(groups[0]) == len(pairs)


def _gaps_packed(model: "LlamaWrapper", pairs: Sequence[AnswerPair], steerings: Sequence[Steering]) -> Tensor:
    """Log-probability per token of each pair's matching answer minus that of the other: unsteered, then under each
    steering of one layer, [1 + n_steerings, n_pairs]."""
    scores = BaseRows(model.runtime, pairs).score([(steering,) for steering in steerings])
    return scores[:, 0::2] - scores[:, 1::2]


def _gaps_plainly(model: "LlamaWrapper", pairs: Sequence[AnswerPair], steerings: Sequence[Steering]) -> Tensor:
    """The same from whole sequences: the reference."""
    answers = [answer for pair in pairs for answer in pair.answers]
    rows = [[steering] * len(answers) for steering in (None, *steerings)]
    scores = torch.stack([scores_of_rows(model.runtime, answers, row) for row in rows])
    return scores[:, 0::2] - scores[:, 1::2]


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
