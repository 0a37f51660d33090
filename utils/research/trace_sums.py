"""Numbers of how steering travels up, collected text by text from packed passes.

change at layer l'   dh = h(steered) - h(unsteered), on the same tokens
relative size        mean over tokens of |dh| / |h(unsteered)|
cosine               mean over tokens of cos(dh, m v)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.inside.unembedding import Unembedding
from utils.model.chat_format import AnswerTokens
from utils.model.downstream import follow
from utils.model.steering import Steering
from utils.saes.dictionary import SAE

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

LayerVectors = Mapping[int, Tensor]
"""By layer: the unit vectors of the behaviors that the change is compared with, [n_behaviors, d_model]; rows of NaN
where a behavior has none."""


@dataclass(eq=False)
class LatentSums:
    """What becomes of one SAE's latents, summed over tokens."""

    change: Tensor
    """Steered minus unsteered activation, [n_steerings, d_sae] float64."""
    on: Tensor
    """Tokens on which it fires when steered, of the same shape."""
    on_unsteered: Tensor
    """[d_sae] float64"""
    n_tokens: int = 0

    @classmethod
    def of(cls, sae: SAE, n: int) -> "LatentSums":
        change, on = (torch.zeros(n, sae.d_sae, dtype=torch.float64) for _ in range(2))
        return cls(change, on, torch.zeros(sae.d_sae, dtype=torch.float64))

    @classmethod
    def merged(cls, parts: "Sequence[LatentSums]") -> "LatentSums":
        """Of several processes."""
        names = ("change", "on", "on_unsteered", "n_tokens")
        return cls(*(sum((getattr(one, name) for one in parts[1:]), getattr(parts[0], name)) for name in names))

    def rows(self, rows: slice) -> "LatentSums":
        return LatentSums(self.change[rows], self.on[rows], self.on_unsteered, self.n_tokens)


@dataclass(eq=False)
class TextTrace:
    """One text under every steering; all over [n_steerings, n_layers], NaN below a steering's layer."""

    sizes: Tensor
    cosines: Tensor
    """With what is added."""
    compared: Tensor
    """With each behavior's own vector at that layer, [n_steerings, n_layers, n_behaviors]."""
    change: Tensor
    """Mean over tokens, [n_steerings, n_layers, d_model] float64."""
    error_at_layer: Tensor
    """Largest |dh - m v| / |m v| over tokens at the steering's own layer, [n_steerings]."""
    kl: Tensor
    """KL(unsteered || steered) in nats, mean over tokens, [n_steerings]."""
    logits: Tensor
    """Mean change of the logits over tokens, [n_steerings, vocab_size]."""


def trace_text(
    model: "LlamaWrapper",
    text: AnswerTokens,
    steerings: Sequence[Steering],
    compared: LayerVectors,
    unembedding: Unembedding,
    saes: Sequence[tuple[SAE, LatentSums]] = (),
    *,
    plainly: bool = False,
) -> TextTrace:
    """Run one text under every steering and read what it does at each later layer.

    Args:
        model: The model.
        text: Steered from its `steer_start` on.
        steerings: One each.
        compared: What changes are compared with.
        unembedding: Of the model.
        saes: Read at their layers; their sums grow.
        plainly: One full pass for each steering.
    """
    reader = _Reader(model, steerings, compared, unembedding, saes)
    follow(model, text, steerings, reader.read, plainly=plainly)
    return reader.trace


class _Reader:
    def __init__(
        self,
        model: "LlamaWrapper",
        steerings: Sequence[Steering],
        compared: LayerVectors,
        unembedding: Unembedding,
        saes: Sequence[tuple[SAE, LatentSums]],
    ) -> None:
        self.steerings, self.compared, self.unembedding, self.saes = steerings, compared, unembedding, saes
        self.last = model.n_layers - 1
        n, n_behaviors = len(steerings), len(next(iter(compared.values())))
        added = torch.stack([one.vector.float() * one.multiplier for one in steerings])
        self.added = added.to(model.device)
        self.signs = torch.tensor([1.0 if one.multiplier > 0 else -1.0 for one in steerings], device=model.device)
        shape = (n, model.n_layers)
        self.trace = TextTrace(
            sizes=torch.full(shape, torch.nan, dtype=torch.float64),
            cosines=torch.full(shape, torch.nan, dtype=torch.float64),
            compared=torch.full((*shape, n_behaviors), torch.nan, dtype=torch.float64),
            change=torch.full((*shape, model.d_model), torch.nan, dtype=torch.float64),
            error_at_layer=torch.full((n,), torch.nan, dtype=torch.float64),
            kl=torch.full((n,), torch.nan, dtype=torch.float64),
            logits=torch.zeros(n, unembedding.n_tokens),
        )
        self._counted: set[int] = set()  # SAEs whose unsteered tokens are in

    def read(self, layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:
        rows = list(which)
        base, steered = base.float(), steered.float()
        change = steered - base  # [n, n_tokens, d_model]
        lengths = change.norm(dim=-1)
        trace, added = self.trace, self.added[rows].to(change.device)
        trace.sizes[rows, layer] = (lengths / base.norm(dim=-1)).double().mean(dim=1).cpu()
        dots = torch.einsum("ntd,nd->nt", change, added) / added.norm(dim=-1)[:, None]
        trace.cosines[rows, layer] = (dots / lengths).double().mean(dim=1).cpu()
        units = self.compared[layer].to(change)
        signed = (change @ units.T) * self.signs[rows].to(change.device)[:, None, None]
        trace.compared[rows, layer] = (signed / lengths[..., None]).double().mean(dim=1).cpu()
        trace.change[rows, layer] = change.double().mean(dim=1).cpu()
        for place, row in enumerate(rows):
            if self.steerings[row].layer == layer:
                gap = (change[place] - added[place]).norm(dim=-1).max() / added[place].norm()
                trace.error_at_layer[row] = float(gap)
        for sae, sums in self.saes:
            if sae.layer == layer:
                self._read_latents(sae, sums, base, steered, rows)
        if layer == self.last:
            self._read_logits(base, steered, rows)

    def _read_latents(self, sae: SAE, sums: LatentSums, base: Tensor, steered: Tensor, rows: list[int]) -> None:
        before = sae.encode(base)
        if id(sae) not in self._counted:
            self._counted.add(id(sae))
            sums.on_unsteered += (before > 0).double().sum(dim=0).cpu()
            sums.n_tokens += len(base)
        for row, hidden in zip(rows, steered, strict=True):
            after = sae.encode(hidden)
            sums.change[row] += (after - before).double().sum(dim=0).cpu()
            sums.on[row] += (after > 0).double().sum(dim=0).cpu()

    def _read_logits(self, base: Tensor, steered: Tensor, rows: list[int]) -> None:
        n_tokens = self.unembedding.n_tokens
        before = self.unembedding.logits(base)[:, :n_tokens]
        expected = before.log_softmax(dim=-1)
        for row, hidden in zip(rows, steered, strict=True):
            after = self.unembedding.logits(hidden)[:, :n_tokens]
            divergence = (expected.exp() * (expected - after.log_softmax(dim=-1))).sum(dim=-1)
            self.trace.kl[row] = float(divergence.double().clamp(min=0).mean())
            self.trace.logits[row] = (after - before).mean(dim=0).cpu()


@dataclass(eq=False)
class Collected:
    """All texts so far: the small numbers of each, and sums of the large ones."""

    sizes: dict[int, Tensor]
    """By text, as in `TextTrace`."""
    cosines: dict[int, Tensor]
    compared: dict[int, Tensor]
    odd: dict[int, Tensor]
    """Share of the change that turns its sign with the multiplier, for each two steerings, [n / 2, n_layers]."""
    linear: dict[int, Tensor]
    """Cosine of the change under each steering with that of the pair behind it, which is taken to be proportional;
    [n, n_layers], of use where the pair behind is the same vector."""
    kl: dict[int, Tensor]
    error_at_layer: dict[int, Tensor]
    change: Tensor
    logits: Tensor

    @classmethod
    def of(cls, n: int, model: "LlamaWrapper", vocab_size: int) -> "Collected":
        change = torch.zeros(n, model.n_layers, model.d_model, dtype=torch.float64)
        return cls({}, {}, {}, {}, {}, {}, {}, change, torch.zeros(n, vocab_size, dtype=torch.float64))

    def add(self, index: int, text: TextTrace) -> None:
        """Take in a text; steerings 2 i and 2 i + 1 are +m and -m of one vector."""
        plus, minus = text.change[0::2], text.change[1::2]  # [n / 2, n_layers, d_model]
        odd, even = ((plus - minus) / 2), ((plus + minus) / 2)
        odd_size, even_size = odd.square().sum(dim=-1), even.square().sum(dim=-1)
        self.odd[index] = odd_size / (odd_size + even_size)
        small = odd.roll(-1, dims=0).repeat_interleave(2, dim=0)  # of the pair behind each
        small[1::2] *= -1
        self.linear[index] = torch.nn.functional.cosine_similarity(text.change, small, dim=-1)
        for name in ("sizes", "cosines", "compared", "kl", "error_at_layer"):
            getattr(self, name)[index] = getattr(text, name)
        self.change += text.change.nan_to_num()
        self.logits += text.logits.double()

    @classmethod
    def merged(cls, parts: "Sequence[Collected]") -> "Collected":
        """Of several processes."""
        named = {
            name: {index: value for part in parts for index, value in sorted(getattr(part, name).items())}
            for name in _BY_TEXT
        }
        change, logits = (sum((getattr(part, name) for part in parts[1:]), getattr(parts[0], name)) for name in _SUMS)
        return cls(**named, change=change, logits=logits)

    def rows(self, rows: slice) -> "Collected":
        """Of some steerings: an even number, from an even place on."""
        half = slice(rows.start // 2, rows.stop // 2)
        named = {
            name: {index: value[half if name == "odd" else rows] for index, value in getattr(self, name).items()}
            for name in _BY_TEXT
        }
        return Collected(**named, change=self.change[rows], logits=self.logits[rows])

    @property
    def n_texts(self) -> int:
        return len(self.sizes)


_BY_TEXT = ("sizes", "cosines", "compared", "odd", "linear", "kl", "error_at_layer")
_SUMS = ("change", "logits")
