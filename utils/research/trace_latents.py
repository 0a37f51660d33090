"""Which latents of an SAE change under steering, and what they are: tokens, density, examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.inside.token_texts import texts_in_context, vocabulary_texts
from utils.inside.unembedding import Unembedding
from utils.model.chat_format import AnswerTokens
from utils.model.downstream import follow
from utils.model.steering import Steering
from utils.research.trace_sums import LatentSums
from utils.saes.dictionary import SAE

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

N_LATENTS, N_TOKENS, N_EXAMPLES = 20, 6, 3
BEFORE, AFTER = 8, 3
"""Tokens shown around an example's."""


@dataclass(frozen=True)
class LatentChange:
    """One latent on the traced tokens."""

    latent: int
    change: float
    """Mean activation at +m minus that without steering."""
    at_minus: float
    """The same at -m."""
    random: float
    """The same of random vectors at +m: the mean of its absolute value."""
    density: float
    """Share of the tokens on which it fires without steering."""
    density_steered: float
    """At +m."""
    tokens: tuple[str, ...]
    """That its decoder row promotes most."""
    examples: tuple[str, ...]
    """Where it fires most at +m; the token itself in double brackets."""


@dataclass(frozen=True)
class LatentTrace:
    """The latents of one SAE that change most."""

    sae: str
    layer: int
    n_tokens: int
    latents: tuple[LatentChange, ...]
    largest_random: tuple[float, ...]
    """The largest absolute mean change of any latent, for each random vector."""

    def as_json(self) -> dict[str, Any]:
        return {
            "sae": self.sae,
            "layer": self.layer,
            "n_tokens": self.n_tokens,
            "largest_change_of_random_vectors": list(self.largest_random),
            "latents": [vars(one) for one in self.latents],
        }


def trace_latents(
    model: "LlamaWrapper", sae: SAE, sums: LatentSums, steering: Steering, texts: Sequence[AnswerTokens]
) -> LatentTrace:
    """The latents that change most under a steering.

    Args:
        model: The model.
        sae: At the steering's layer or above.
        sums: Of +m, -m, small ones of both, then of each random vector +m and -m.
        steering: At +m.
        texts: Those that the sums are of.
    """
    mean = sums.change / sums.n_tokens  # [n_steerings, d_sae]
    random = mean[4::2]
    chosen = mean[0].abs().topk(min(N_LATENTS, sae.d_sae)).indices.tolist()
    tokens, examples = _promoted(model, sae, chosen), _examples(model, sae, chosen, steering, texts)
    found = [
        LatentChange(
            latent=latent,
            change=float(mean[0, latent]),
            at_minus=float(mean[1, latent]),
            random=float(random[:, latent].abs().mean()),
            density=float(sums.on_unsteered[latent] / sums.n_tokens),
            density_steered=float(sums.on[0, latent] / sums.n_tokens),
            tokens=tokens[place],
            examples=examples[place],
        )
        for place, latent in enumerate(chosen)
    ]
    return LatentTrace(sae.name, sae.layer, sums.n_tokens, tuple(found), tuple(random.abs().amax(dim=1).tolist()))


def _promoted(model: "LlamaWrapper", sae: SAE, latents: Sequence[int]) -> list[tuple[str, ...]]:
    unembedding = Unembedding(model)
    best = unembedding.vector_logits(sae.W_dec[list(latents)])[:, : unembedding.n_tokens].topk(N_TOKENS).indices
    texts = vocabulary_texts(model.tokenizer, best.flatten().tolist())
    return [tuple(texts[token] for token in row) for row in best.tolist()]


def _examples(
    model: "LlamaWrapper", sae: SAE, latents: Sequence[int], steering: Steering, texts: Sequence[AnswerTokens]
) -> list[tuple[str, ...]]:
    """Of each latent the tokens, one a text, on which it fires most when steered."""
    peaks: list[tuple[Tensor, Tensor]] = []  # of each text: activations and places of the peaks, [n_latents] each

    def read(layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:  # noqa: ARG001
        best = sae.encode(steered[0].float())[:, list(latents)].max(dim=0)
        peaks.append((best.values.cpu(), best.indices.cpu()))

    for text in texts:
        follow(model, text, [steering], read, [sae.layer])
    heights = torch.stack([values for values, _ in peaks])  # [n_texts, n_latents]
    found = []
    for column in range(len(latents)):
        order = heights[:, column].argsort(descending=True)[:N_EXAMPLES].tolist()
        found.append(
            tuple(
                _window(model, texts[i], texts[i].steer_start + int(peaks[i][1][column]))
                for i in order
                if heights[i, column] > 0
            )
        )
    return found


def _window(model: "LlamaWrapper", text: AnswerTokens, place: int) -> str:
    words = texts_in_context(model.tokenizer, text.ids)
    first, last = max(0, place - BEFORE), min(len(words), place + AFTER + 1)
    return "".join([*words[first:place], "[[", words[place], "]]", *words[place + 1 : last]])
