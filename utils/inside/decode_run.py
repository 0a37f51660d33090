"""What analyze_vectors.py --decode makes: vectors as tokens by the logit lens and the J-lens, and what they do first.

The J-lens decodes J v, the first-order effect of a vector on the last layer; see `utils.inside.jlens`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.data.estimates import Estimate, jackknife_estimate
from utils.data.records import load_open_ended_questions
from utils.evaluation.words import behavior_label
from utils.figures.entries import ENTRY, report_entry
from utils.figures.requests import product_suffix
from utils.figures.style import figure_style, log_written, save_figure
from utils.files.reading import sha256_of
from utils.files.tables import Table, with_suffix
from utils.files.writing import write_json
from utils.inside.figures import draw_vector_decodings, vector_decoding_table
from utils.inside.first_order_figures import FirstOrderRow, RandomRow, draw_first_order, first_order_table
from utils.inside.inner_product import causal_root
from utils.inside.jlens import FirstOrder, JLens, LayerVector, random_vectors
from utils.inside.planned import LayerVectors, PlannedReading, fingerprint, load_layer_vectors
from utils.inside.readings import VectorDecoding, decode_vectors
from utils.inside.requests import InsideRequest
from utils.model.checkpoints import ModelChoice
from utils.vectors.files import layer_ranges
from utils.vectors.norms import neutral_prompts_path
from utils.vectors.similarity import FloatArray, paired_cosines

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

DECODED_TOKENS = 10
N_RANDOM = 2
"""Random vectors of each layer, the control."""


class SharedLens:
    """The lens of a run: its texts and random vectors are the same for all behaviors."""

    def __init__(self, request: InsideRequest) -> None:
        self.request = request
        self._lens: JLens | None = None
        self._root: FloatArray | None = None
        self._random: dict[int, tuple[FirstOrder, list[Tensor]]] = {}

    def of(self, model: "LlamaWrapper") -> JLens:
        if self._lens is None:
            questions = load_open_ended_questions(neutral_prompts_path(self.request.paths))[: self.request.n_texts]
            self._lens = JLens.over(model, [model.chat_format.encode(question) for question in questions])
        return self._lens

    def root(self, model: "LlamaWrapper") -> FloatArray | None:
        """Of the inner product under which cosines are taken; None for the usual one."""
        if self._root is None and self.request.inner_product == "causal":
            self._root = causal_root(model).numpy()
        return self._root

    def random(self, model: "LlamaWrapper", layers: Sequence[int]) -> dict[int, tuple[FirstOrder, list[Tensor]]]:
        """Of each layer: what random vectors do, and the vectors."""
        lacking = [layer for layer in layers if layer not in self._random]
        vectors = [random_vectors([layer], model.d_model, N_RANDOM, self.request.seed + layer) for layer in lacking]
        if lacking:
            found = self.of(model).first_order([one for of_layer in vectors for one in of_layer])
            for place, (layer, of_layer) in enumerate(zip(lacking, vectors, strict=True)):
                rows = slice(place * N_RANDOM, (place + 1) * N_RANDOM)
                part = FirstOrder(found.effects[rows], found.linear_cosines[:, rows])
                self._random[layer] = part, [one.vector for one in of_layer]
        return {layer: self._random[layer] for layer in layers}


def plan_decodings(
    request: InsideRequest, choice: ModelChoice, layers_of: Mapping[str, Sequence[int]]
) -> list[PlannedReading]:
    """What every behavior's vectors decode to, at each layer."""
    lens = SharedLens(request)
    prompts = sha256_of(neutral_prompts_path(request.paths))[:16]
    return [_plan(request, choice, behavior, layers, lens, prompts) for behavior, layers in layers_of.items()]


@dataclass(frozen=True, eq=False)
class _Job:
    """One behavior's."""

    stem: Path
    first_order_stem: Path
    vectors: LayerVectors
    title: str
    notes: tuple[str, ...]
    lens: SharedLens
    report: Mapping[str, Any]


def _plan(
    request: InsideRequest,
    choice: ModelChoice,
    behavior: str,
    layers: Sequence[int],
    lens: SharedLens,
    prompts: str,
) -> PlannedReading:
    scope = f"layers={layer_ranges(layers)}_" if request.layers else ""
    made_by = f"{scope}{choice.label}{request.kind.suffix}{product_suffix(request.inner_product)}"
    stem, first = (request.paths.analysis(behavior, f"{name}_{made_by}") for name in ("decoded_tokens", "first_order"))
    vectors = load_layer_vectors(request.paths, choice.label, behavior, layers, normalized=False, kind=request.kind)
    title = f"{behavior_label(behavior)}, {choice.label}{request.kind.suffix.replace('_', ', ')}"
    notes = (
        f"{title}: tokens that the steering vector promotes most and least",
        "logits above the mean of the vocabulary, of the vector scaled to root mean square 1 and sent through "
        "the final norm's weights and the output embeddings (logit lens); jlens: the same of its first-order effect "
        "on the last layer; random: the J-lens of a random vector",
        f"J-lens over {request.n_texts} texts (neutral prompts {prompts} with the unsteered model's own answers), "
        f"seed {request.seed}",
        *([] if request.inner_product == "euclidean" else [f"cosines: {request.inner_product} inner product"]),
        f"vectors: {fingerprint([vectors])}",
    )
    report = report_entry(choice.label, behavior, request.kind, "Vectors as tokens", [stem, first])
    job = _Job(stem, first, vectors, title, notes, lens, report)
    beside = tuple(with_suffix(first, suffix) for suffix in (".png", ".pdf", ".txt", ".json"))
    return PlannedReading(stem, (".png", ".pdf"), notes, partial(_decode, job), beside)


def _decode(job: _Job, model: "LlamaWrapper") -> list[Path]:
    layers = list(job.vectors)
    decoded = decode_vectors(model, job.vectors, DECODED_TOKENS)
    lens = job.lens.of(model)
    found = lens.first_order([LayerVector(layer, job.vectors[layer]) for layer in layers])
    random = job.lens.random(model, layers)
    through = decode_vectors(model, dict(zip(layers, found.mean.float(), strict=True)), DECODED_TOKENS)
    of_random = decode_vectors(model, {layer: random[layer][0].mean[0].float() for layer in layers}, DECODED_TOKENS)
    decodings = (decoded, through, of_random)
    rows = first_order_rows(lens, job.vectors, found, random, decodings, job.lens.root(model))
    n_texts = len(lens.texts)
    with figure_style():
        title = f"{job.title}: first-order effect on the last layer"
        figure = draw_first_order(rows, title, n_texts)
        table = first_order_table(rows, (title, *job.notes[2:]))
        paths = save_figure(figure, job.first_order_stem, table)
        settings = {"notes": list(job.notes), "n_texts": n_texts, "step": lens.step}
        result = with_suffix(job.first_order_stem, ".json")
        write_json(result, {"settings": settings, "results": [row.as_json() for row in rows], ENTRY: job.report})
        tokens = draw_vector_decodings(
            {"logit lens": decoded, "J-lens": through},
            job.notes[0],
            f"J-lens: of the first-order effect on the last layer, mean over {n_texts} texts",
        )
        log_written([*paths, result])
        return save_figure(tokens, job.stem, _tokens_table(decoded, through, of_random, job.notes))


def _tokens_table(
    decoded: VectorDecoding, through: VectorDecoding, of_random: VectorDecoding, notes: tuple[str, ...]
) -> Table:
    """The logit lens in the first columns, then the J-lens, then a random vector's."""
    tables = [vector_decoding_table(one) for one in (decoded, through, of_random)]
    columns = list(tables[0].columns)
    for name, table in zip(("jlens", "random"), tables[1:], strict=True):
        columns += [f"{name}_{column}" for column in table.columns[2:]]
    rows = [(*one, *two[2:], *three[2:]) for one, two, three in zip(*(table.rows for table in tables), strict=True)]
    return Table(tuple(columns), rows, notes)


def first_order_rows(
    lens: JLens,
    vectors: LayerVectors,
    found: FirstOrder,
    random: Mapping[int, tuple[FirstOrder, list[Tensor]]],
    decodings: tuple[VectorDecoding, VectorDecoding, VectorDecoding],
    root: FloatArray | None = None,
) -> list[FirstOrderRow]:
    """One row a layer, with its random vectors."""
    rows = []
    for place, (layer, vector) in enumerate(vectors.items()):
        gain, cosine = _gain_and_cosine(found.effects[place], vector, root)
        of_random, random_ones = random[layer]
        both = [_gain_and_cosine(of_random.effects[i], each, root) for i, each in enumerate(random_ones)]
        randoms = [
            RandomRow(one.value, other.value, linear)
            for (one, other), linear in zip(both, of_random.linear_up_to, strict=True)
        ]
        strength = found.linear_up_to[place]
        rows.append(
            FirstOrderRow(
                layer=layer,
                gain=gain,
                cosine=cosine,
                agreement=agreement(found.effects[place], root),
                linear_up_to=strength,
                linear_up_to_by_token=found.linear_up_to_by_token[place],
                multiplier=None if strength is None else strength * lens.norms[layer] / float(vector.double().norm()),
                largest_logits=tuple(float(one.top_logits[place].max()) for one in decodings),
                random=tuple(randoms),
                random_agreement=float(np.mean([agreement(effect, root) for effect in of_random.effects])),
            )
        )
    return rows


def _gain_and_cosine(effects: Tensor, vector: Tensor, root: FloatArray | None) -> tuple[Estimate, Estimate]:
    """|J v| / |v| and cos(J v, v), with jackknife intervals over texts, from effects [n_texts, d_model].

    Not by the bootstrap: the mean of fewer different texts is longer, whatever the truth.
    """
    values, along = effects.numpy(), vector.double().numpy()
    length, n = float(np.linalg.norm(along)), len(values)

    def both(means: Any) -> tuple[Any, Any]:
        pair = (means, along) if root is None else (means @ root, along @ root)
        return np.linalg.norm(means, axis=-1) / length, paired_cosines(pair[0], np.broadcast_to(pair[1], means.shape))

    left = both((values.sum(axis=0) - values) / max(1, n - 1))  # without each text
    gain, cosine = both(values.mean(axis=0))
    return jackknife_estimate(float(gain), left[0].tolist()), jackknife_estimate(float(cosine), left[1].tolist())


def agreement(effects: Tensor, root: FloatArray | None = None) -> float:
    """Mean cosine of two texts' effects, of [n_texts, d_model]; NaN for a single text."""
    n = effects.shape[0]
    effects = effects if root is None else effects @ torch.from_numpy(root)
    units = effects / effects.norm(dim=-1, keepdim=True)
    total = float(units.sum(dim=0).square().sum())
    return (total - n) / (n * (n - 1)) if n > 1 else math.nan
