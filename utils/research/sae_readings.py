"""Four readings of a steering vector by an SAE, which answer different questions and often disagree.

- encoding: `encode(v)`. v is a difference of activations and no activation: off what the SAE was trained on, in its
  norm and for lack of the mean that b_enc and b_dec stand for; and it has no negative amounts, though a vector may
  point against a latent (Mayne et al. 2024, arXiv 2411.08790). It is shown because it is what one tries first.
- difference: mean f(matching) - mean f(other), each token encoded where the vector was read.
- nonnegative, signed: the vector itself as few decoder rows, by pursuit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.cli.progress import progress
from utils.data.records import AnyPair
from utils.model import processes
from utils.model.pairs import HalfTokens, encode_pair
from utils.model.steering import capture_outputs
from utils.research.sae_pursuit import Combination, combine, pursue
from utils.research.svd_components import FloatArray
from utils.saes.dictionary import SAE, random_dictionary
from utils.settings import Reading

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

SIZES = (1, 4, 16, 64)
"""Latents in a pursuit."""
Readings = dict[str, Combination]
"""`encoding`, `difference`, and `nonnegative k`, `signed k` for each size."""


@dataclass(frozen=True, eq=False)
class PairEncodings:
    """Latent activations of both halves of the pairs, each the mean over the tokens at which the pair is read."""

    positive: FloatArray
    """[n_pairs, d_sae]"""
    negative: FloatArray

    @property
    def delta(self) -> FloatArray:
        """Mean difference, [d_sae]."""
        return self.positive.mean(axis=0) - self.negative.mean(axis=0)


@torch.no_grad()
def encode_pairs(
    model: "LlamaWrapper", saes: Sequence[SAE], pairs: Sequence[AnyPair], reading: Reading
) -> list[PairEncodings]:
    """Run both halves of each pair up to the SAEs' layer and encode the tokens that a reading takes, one by one.

    Saved activations will not do where several tokens are read: an SAE of their mean is not the mean of its latents.
    Every half is a sequence of its own, padded at its end, which no token before it sees.

    Args:
        model: The model.
        saes: Of one layer.
        pairs: The contrast pairs.
        reading: Where activations are read.

    Returns:
        Of each SAE.
    """
    halves = [half for pair in pairs for half in _halves(model, pair, reading)]
    lengths = [len(half.ids) for half in halves]
    batches: list[list[int]] = []
    for group in model.runtime.apart(range(len(halves)), lengths):
        order = sorted(group, key=lambda i: -lengths[i])
        of_pass = max(1, int(model.runtime.batcher.token_budget() // lengths[order[0]]))
        batches += [order[start : start + of_pass] for start in range(0, len(order), of_pass)]
    own: dict[int, list[Tensor]] = {}
    for number, batch in enumerate(progress(batches, desc="encoding pairs", unit="pass", leave=False)):
        if processes.is_mine(number):
            streams = _read(model, [halves[i].ids for i in batch], saes[0].layer)
            for i, stream in zip(batch, streams, strict=True):
                tokens = stream[halves[i].read_from : len(halves[i].ids)]
                own[i] = [sae.encode(tokens).double().mean(dim=0) for sae in saes]
    found = {i: means for share in processes.gather(own) for i, means in share.items()}
    tables = [torch.stack([found[i][place] for i in range(len(halves))]).numpy() for place in range(len(saes))]
    return [PairEncodings(table[0::2], table[1::2]) for table in tables]


def _halves(model: "LlamaWrapper", pair: AnyPair, reading: Reading) -> tuple[HalfTokens, HalfTokens]:
    tokens = encode_pair(model.chat_format, pair, reading)
    return tokens.positive, tokens.negative


def _read(model: "LlamaWrapper", rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """The residual stream behind a layer, [batch, longest, d_model] float32, on the CPU."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), model.runtime.pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    with capture_outputs([model.layers[layer]], stop_after_last=True) as captured:
        model.model.get_decoder()(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    return captured[0].float().cpu()


def unit_rows(sae: SAE) -> tuple[FloatArray, FloatArray]:
    """Decoder rows at length 1, [d_sae, d_model], and their lengths, [d_sae]; a row of zeros stays."""
    rows = sae.W_dec.double()
    norms = rows.norm(dim=1)
    return (rows / norms.clamp(min=1e-12)[:, None]).numpy(), norms.numpy()


def read_vector(sae: SAE, vector: FloatArray, delta: FloatArray, sizes: Iterable[int] = SIZES) -> Readings:
    """All readings of one vector.

    Args:
        sae: The SAE.
        vector: [d_model]
        delta: Difference of encodings, [d_sae]; all zeros where there is none, as for a random vector.
        sizes: Of the pursuits.
    """
    rows, norms = unit_rows(sae)
    naive = sae.encode(torch.from_numpy(vector).float()[None])[0].double().numpy()
    readings = {
        "encoding": combine(rows, naive * norms, vector),
        "difference": combine(rows, delta * norms, vector),
    }
    wanted = tuple(min(size, sae.d_sae) for size in sizes)
    for name, signed in (("nonnegative", False), ("signed", True)):
        readings |= {f"{name} {k}": found for k, found in pursue(vector, rows, wanted, signed=signed).items()}
    return readings


@dataclass(frozen=True, eq=False)
class Controls:
    """What the readings come to where there is nothing to read: means over draws, by reading's name."""

    random_vector: dict[str, float]
    """Share explained of random vectors of the same norm in this SAE; without `difference`."""
    random_dictionary: dict[str, float]
    """Of the vector in random dictionaries of the SAE's size; without `difference`."""


def read_controls(sae: SAE, vector: FloatArray, n_draws: int, seed: int, sizes: Iterable[int] = SIZES) -> Controls:
    rng = np.random.default_rng(seed)
    nothing = np.zeros(sae.d_sae)
    draws = rng.normal(size=(n_draws, len(vector)))
    draws *= np.linalg.norm(vector) / np.linalg.norm(draws, axis=1, keepdims=True)
    of_random = [read_vector(sae, draw, nothing, sizes) for draw in draws]
    dictionaries = [read_vector(random_dictionary(sae, seed + n), vector, nothing, sizes) for n in range(n_draws)]
    return Controls(_means(of_random), _means(dictionaries))


def _means(draws: list[Readings]) -> dict[str, float]:
    names = [name for name in draws[0] if name != "difference"]
    return {name: float(np.mean([one[name].explained for one in draws])) for name in names}
