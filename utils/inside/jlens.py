"""What a direction does to the last layer, to first order: the Jacobian lens of a vector.

    J_l = mean over texts of (1/|V|) sum over t in V, t' in V, t' >= t of  d h_last(t') / d h_l(t)
    J_l v = mean over texts of (1/|V|) sum over t' in V of  d/de h_last(t')  with e v added at all of V at once

V: a text's tokens from the 17th on, without the last; h_last: the output of the last block. The second form, the
first-order effect of steering, needs one steered pass for each sign and no backward pass. Definition: the Jacobian
lens of Anthropic (2026; anthropics/jacobian-lens) as TransformerLens documents it (`tools/analysis/jacobian_lens.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model.chat_format import AnswerTokens, PromptTokens
from utils.model.downstream import follow, steered_text
from utils.model.side_effects import LINEAR_COSINE, neutral_answers, residual_norms
from utils.model.steering import Steering

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FIRST_TOKEN = 16
"""Tokens before it are left out, as where the lens was defined: the first ones are unlike all others."""
STEP = 0.003
"""Of the residual norm. A smaller one drowns in rounding: norms are computed in float32 whatever the model's dtype."""
STEP_IN_ROUNDING = 30
"""The step is at least so many times the dtype's resolution."""
LINEAR_STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""At which the change is compared with the first-order one."""


@dataclass(frozen=True, eq=False)
class LayerVector:
    """A vector of one layer."""

    layer: int
    vector: Tensor
    """[d_model], not zero."""


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """First-order effects of some vectors on the last layer."""

    effects: Tensor
    """J v on each text, [n_vectors, n_texts, d_model] float64."""
    linear_cosines: Tensor
    """Of the change at each of LINEAR_STRENGTHS with the first-order one, the smaller of both signs; of the mean over
    tokens, and over all tokens as one vector, [2, n_vectors, n_strengths] float64."""

    @property
    def mean(self) -> Tensor:
        """J v, [n_vectors, d_model] float64."""
        return self.effects.mean(dim=1)

    @property
    def linear_up_to(self) -> list[float | None]:
        """The largest strength up to which the mean change points along the first-order one; None where none does."""
        return _linear_up_to(self.linear_cosines[0])

    @property
    def linear_up_to_by_token(self) -> list[float | None]:
        """The same for the changes of all tokens as one vector, which is stricter."""
        return _linear_up_to(self.linear_cosines[1])


def _linear_up_to(cosines: Tensor) -> list[float | None]:
    found: list[float | None] = []
    for row in cosines.tolist():
        n_linear = next((i for i, cosine in enumerate(row) if not cosine >= LINEAR_COSINE), len(row))
        found.append(LINEAR_STRENGTHS[n_linear - 1] if n_linear else None)
    return found


class JLens:
    """The lens of one model, over some texts."""

    def __init__(self, model: "LlamaWrapper", texts: Sequence[AnswerTokens]) -> None:
        """
        Args:
            model: The model.
            texts: Of more than FIRST_TOKEN + 1 tokens; steered and read where each says.
        """
        self.model, self.texts = model, list(texts)
        self.norms: list[float] = residual_norms(model, self.texts).tolist()
        self.step = max(STEP, STEP_IN_ROUNDING * torch.finfo(model.dtype).eps)

    @classmethod
    def over(cls, model: "LlamaWrapper", prompts: Sequence[PromptTokens]) -> "JLens":
        """Over prompts with the unsteered model's own answers.

        Raises:
            UserError: If none is long enough.
        """
        answers = neutral_answers(model, prompts)
        texts = [steered_text(answer, FIRST_TOKEN) for answer in answers if len(answer) > FIRST_TOKEN + 1]
        if not texts:
            raise UserError(
                f"the J-lens needs texts of more than {FIRST_TOKEN + 1} tokens; the neutral prompts have none"
            )
        return cls(model, texts)

    def first_order(self, vectors: Sequence[LayerVector], *, plainly: bool = False) -> FirstOrder:
        """What each vector does to the last layer.

        Args:
            vectors: Of any layers, in any lengths: what is found is for each vector as it is.
            plainly: One full pass for each text, vector and sign: the reference.
        """
        units = [self._unit(one) for one in vectors]
        small = [replace(one, multiplier=sign * self.step) for one in units for sign in (1.0, -1.0)]
        effects = torch.empty(len(vectors), len(self.texts), self.model.d_model, dtype=torch.float64)
        per_token: Tensor | None = None
        for place, text in enumerate(self.texts):
            found = self._changes(text, small, plainly)
            slopes = (found[0::2] - found[1::2]) / (2 * self.step)  # [n_vectors, n_tokens, d_model]
            effects[:, place] = slopes.double().mean(dim=1).cpu()
            per_token = slopes if place == 0 else per_token
        assert per_token is not None
        scale = torch.tensor([self.norms[one.layer] / float(one.vector.double().norm()) for one in vectors])
        cosines = self._linear_cosines(self.texts[0], units, per_token, plainly)
        return FirstOrder(effects / scale[:, None, None].double(), cosines)

    def _unit(self, one: LayerVector) -> Steering:
        """Steering whose multiplier is a strength: a share of the layer's residual norm."""
        length = float(one.vector.double().norm())
        return Steering(one.layer, 1.0, (one.vector.double() * (self.norms[one.layer] / length)).float())

    def _changes(self, text: AnswerTokens, steerings: Sequence[Steering], plainly: bool) -> Tensor:
        """Of the last layer, [n_steerings, n_tokens, d_model] float32."""
        last = self.model.n_layers - 1
        found = torch.empty(len(steerings), text.n_steered - 1, self.model.d_model, device=self.model.device)

        def keep(layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:  # noqa: ARG001
            found[list(which)] = (steered.float() - base.float()).to(found)

        follow(self.model, text, steerings, keep, [last], plainly=plainly)
        return found

    def _linear_cosines(self, text: AnswerTokens, units: Sequence[Steering], slopes: Tensor, plainly: bool) -> Tensor:
        """On one text; see `FirstOrder.linear_cosines`."""
        signs = (1.0, -1.0)
        steerings = [
            replace(one, multiplier=sign * strength) for one in units for strength in LINEAR_STRENGTHS for sign in signs
        ]
        per_vector = len(LINEAR_STRENGTHS) * len(signs)
        found = torch.empty(2, len(steerings), dtype=torch.float64)

        def compare(layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:  # noqa: ARG001
            for row, hidden in zip(which, steered, strict=True):
                change = hidden.float() - base.float()
                expected = slopes[row // per_vector].to(change) * steerings[row].multiplier
                for place, pair in enumerate(
                    ((change.mean(0), expected.mean(0)), (change.flatten(), expected.flatten()))
                ):
                    found[place, row] = float(torch.nn.functional.cosine_similarity(*pair, dim=0))

        follow(self.model, text, steerings, compare, [self.model.n_layers - 1], plainly=plainly)
        return found.view(2, len(units), len(LINEAR_STRENGTHS), len(signs)).amin(dim=-1)


def random_vectors(layers: Sequence[int], d_model: int, n: int, seed: int) -> list[LayerVector]:
    """The control: `n` random directions for each layer, one layer behind the other."""
    generator = torch.Generator().manual_seed(seed)
    return [LayerVector(layer, torch.randn(d_model, generator=generator)) for layer in layers for _ in range(n)]
