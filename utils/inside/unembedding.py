"""From hidden states to tokens: a model's final norm and output embeddings, applied to whatever is asked."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.model.architectures import find_final_norm, logit_scale
from utils.model.steering import capture_outputs

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

# In steps of the model's dtype, of the largest logit: more is another computation, not rounding.
_TOLERATED_STEPS = 32


class Unembedding:
    """Decodes hidden states as the model decodes its last one.

    Built for a model, it runs a short prompt through it and compares: a model that does more to its last
    hidden state than is known here is refused, never decoded wrongly.
    """

    def __init__(self, model: "LlamaWrapper") -> None:
        """
        Raises:
            UserError: If the model's own logits cannot be reproduced.
        """
        self.label, self.d_model = model.label, model.d_model
        self.norm = find_final_norm(model.model, model.label)
        self.head: nn.Module = model.model.get_output_embeddings()  # the wrapper refuses models without
        scale = logit_scale(model.config)
        self.scale, self.softcap = scale.factor, scale.softcap
        self.n_tokens = len(model.tokenizer)
        self._check(model)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of hidden states [..., d_model]: [..., vocab_size], float32, on the head's device."""
        logits = self._project(self.norm(self._placed(hidden))).float() * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def probabilities(self, hidden: Tensor) -> Tensor:
        """Softmax of `logits`, [..., vocab_size]."""
        return self.logits(hidden).softmax(dim=-1)

    @torch.no_grad()
    def vector_logits(self, vectors: Tensor) -> Tensor:
        """What a direction in the residual stream, added to the last block's output, does to the logits.

        The direction goes through the final norm's weights and the output embeddings, without any bias, so
        that only it is decoded. Its length does not matter. Logits mean something only beside each other:
        their mean over the vocabulary is taken off.

        Args:
            vectors: [..., d_model], none of them zero.

        Returns:
            [..., vocab_size], float32, on the CPU: above 0 for tokens that the direction promotes. The
            softcapping of models that have it is left out.
        """
        unit = vectors.double() / vectors.double().norm(dim=-1, keepdim=True)
        hidden = self._placed((unit * self.d_model**0.5).float())
        nothing = torch.zeros_like(hidden)
        normed = self.norm(hidden) - self.norm(nothing)
        logits = (self._project(normed) - self._project(torch.zeros_like(normed))).float().cpu() * self.scale
        return logits - logits[..., : self.n_tokens].mean(dim=-1, keepdim=True)

    def _placed(self, hidden: Tensor) -> Tensor:
        weight = next(self.norm.parameters(), next(self.head.parameters()))
        return hidden.to(weight.device, next(self.head.parameters()).dtype)

    def _project(self, normed: Tensor) -> Tensor:
        return self.head(normed.to(next(self.head.parameters()).device))

    def _check(self, model: "LlamaWrapper") -> None:
        ids = torch.tensor([model.chat_format.encode("?").ids], device=model.device)  # padding would be all zeros
        with torch.no_grad(), capture_outputs(model.layers[-1:]) as captured:
            expected = model.model(input_ids=ids, use_cache=False).logits[0].float().cpu()
        found = self.logits(captured[0][0]).cpu()
        tolerance = _TOLERATED_STEPS * torch.finfo(model.dtype).eps * float(expected.abs().max())
        if found.shape != expected.shape or not float((found - expected).abs().max()) <= tolerance:
            raise UserError(
                f"{self.label} ({model.config.model_type}): its final norm and output embeddings do not give its own "
                "logits; its architecture is not supported for this, so nothing inside it can be decoded"
            )
