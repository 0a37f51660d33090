"""Vectors read by SAEs: what they consist of, and what the parts do."""

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.data.records import load_open_ended_questions, load_text_pairs
from utils.errors import UserError
from utils.evaluation.choice import N_NEUTRAL, load_both_forms, validation_items
from utils.figures.entries import ENTRY, report_entry
from utils.inside.readings import decode_vectors
from utils.inside.token_texts import texts_in_context, visible_text
from utils.model import processes
from utils.model.shapes import ModelShape
from utils.model.side_effects import measure_kl, neutral_answers
from utils.research.pair_activations import load_pair_activations
from utils.research.sae_figures import plot_latents, plot_tradeoff
from utils.research.sae_filters import CONTROLS, Filters, ReadVector, Variants, build_variants, latent_facts
from utils.research.sae_readings import encode_pairs, read_controls, read_vector, unit_rows
from utils.research.sae_request import SaeRequest
from utils.research.sae_results import N_EXAMPLES, N_LISTED, N_TOKENS, Distribution, SaeDone
from utils.research.sae_tradeoff import LEVELS, Tradeoff, mean_of_draws, trade_off
from utils.research.svd_components import FloatArray
from utils.research.vector_effects import WHOLE, Scoring, at_strength, measure_effects
from utils.research.vector_parts import write_parts
from utils.saes.activations import ActivationStore, read_layer
from utils.saes.dictionary import SAE, check_fits
from utils.saes.latents import view_latents
from utils.saes.plan import ActivationPlan
from utils.saes.requests import write_result
from utils.saes.standard_run import own_source
from utils.saes.text import check_length, token_sequences
from utils.vectors.norms import layer_norms, neutral_prompts_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

HEADING = "What vectors are made of: latents of SAEs"

N_VALIDATION = 12
"""Pairs of the generate set, at most, on which the single best latent is chosen."""
_BEFORE, _AFTER = 8, 4
"""Tokens of an example around the one on which the latent fires."""
_OPEN, _CLOSE = "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"


def check_saes(request: SaeRequest, shape: ModelShape) -> None:
    """Refuse what does not fit before anything is computed or written.

    Raises:
        UserError: If an SAE is another model's or of another width, or has no such latent, or there are too few pairs
            to set some aside.
    """
    for folder in request.folders:
        sae = SAE.load(folder)
        check_fits(sae, request.vectors.choice.label, shape.d_model, shape.n_layers)
        if beyond := [one for one in request.drop_latents if one >= sae.d_sae]:
            raise UserError(f"--drop_latents {beyond[0]}: SAE {sae.name} has latents 0 to {sae.d_sae - 1}")
        if request.source is None:
            own_source(sae)
    for behavior in request.vectors.behaviors if request.folders else ():
        _, texts = load_both_forms(request.vectors.paths, behavior, request.vectors.kind)
        validation_items(len(texts), request.vectors.seed, behavior)


def run_sae(request: SaeRequest, model: "LlamaWrapper", behavior: str, folder: Path) -> SaeDone:
    """One job: read a vector by an SAE, measure what its latents make up, and write and draw the results.

    Raises:
        UserError: If its inputs do not belong together.
    """
    sae, vectors = SAE.load(folder), request.vectors
    loaded = load_pair_activations(vectors, behavior, sae.layer, model.d_model)
    vector = loaded.differences.mean(axis=0)
    pairs, texts = load_both_forms(vectors.paths, behavior, vectors.kind)
    if len(pairs) != len(loaded.positive):
        made_of = vectors.make_command(behavior, sae.layer)
        raise UserError(
            f"{behavior}: the generate set has {len(pairs)} pairs, but the activations {len(loaded.positive)}; "
            f"run: {made_of} --overwrite"
        )
    [encodings] = encode_pairs(model, [sae], pairs, vectors.kind.reading)
    rows, token_ids, first = read_text(request, model, sae)
    facts = latent_facts(sae, rows, first, encodings)
    readings = read_vector(sae, vector, encodings.delta)
    read = ReadVector(sae, vector, readings, facts, Filters(request.max_density, request.drop_latents, request.obvious))
    measuring = Measuring(request, model, behavior, folder)
    held_back = validation_items(len(texts), vectors.seed, behavior)[:N_VALIDATION]
    best, best_effect = measuring.best_latent(read, [texts[i] for i in held_back])
    variants = build_variants(read, best, vectors.n_random, vectors.seed)
    made: dict[str, Any] = {**model.provenance(), "command": vectors.command}
    if processes.is_main():
        parts = {
            request.part_name(folder, one.name): one.vectors[0]
            for one in variants.made
            if one.name not in (WHOLE, *CONTROLS)
        }
        write_parts(vectors, behavior, sae.layer, parts, {**made, "sae": sae.name})
    tradeoffs = measuring.trade_offs(variants, sae.layer)
    latents = list(read.base.latents[:N_LISTED])
    decoder = sae.W_dec[latents]
    done = SaeDone(
        request=vectors,
        behavior=behavior,
        read=read,
        controls=read_controls(sae, vector, vectors.n_random, vectors.seed),
        distribution=distribution(sae, vector, rows),
        decoding=decode_vectors(model, dict(zip(latents, decoder, strict=True)), N_TOKENS),
        examples=example_texts(model, sae, rows, token_ids, latents),
        best=best,
        best_effect=best_effect,
        variants=variants,
        tradeoffs=tuple(tradeoffs),
    )
    if processes.is_main():
        stems = [request.stem(what, behavior, folder) for what in ("sae_latents", "sae_tradeoff")]
        plot_latents(done, stems[0])
        plot_tradeoff(done, stems[1])
        on_page = report_entry(vectors.choice.label, behavior, vectors.kind, HEADING, stems)
        content = {**done.as_json(), ENTRY: on_page}
        write_result(request.result(behavior, folder), request.settings(behavior, folder), made, content)
    return done


# --- text ------------------------------------------------------------------------------------------


def read_text(request: SaeRequest, model: "LlamaWrapper", sae: SAE) -> tuple[Tensor, Tensor, Tensor]:
    """Activations of a text's kept tokens, its token ids [n_sequences, context], and the activation of a first token.

    What training left on the disk is used where it is the same text.
    """
    paths, source = request.vectors.paths, request.source or own_source(sae)
    plan = ActivationPlan(source, sae.layer, request.n_tokens, context=int(sae.own.get("context") or 256))
    check_length(source, paths, model.chat_format, plan.context, plan.split, plan.n_sequences)
    rows = ActivationStore(model, plan, paths, keep=True).portion(0)
    rows = processes.from_main(rows)
    sequences = token_sequences(source, paths, model.chat_format, plan.context, plan.split)
    token_ids = torch.tensor(list(islice(sequences, plan.n_rows(0) // (plan.context - 1))))
    first = read_layer(model, token_ids[:1, :1], sae.layer)[0, 0].float().cpu()
    return rows, token_ids, first


def distribution(sae: SAE, vector: FloatArray, rows: Tensor) -> Distribution:
    of_vector = sae.encode(torch.from_numpy(vector).float()[None])[0]
    some = rows[:2048].float()
    return Distribution(
        float(np.linalg.norm(vector)),
        float(some.norm(dim=1).median()),
        int((of_vector > 0).sum()),
        float((sae.encode(some) > 0).sum(dim=1).double().mean()),
    )


def example_texts(
    model: "LlamaWrapper", sae: SAE, rows: Tensor, token_ids: Tensor, latents: list[int]
) -> dict[int, tuple[str, ...]]:
    """Where each latent fires most, in words."""
    found = {}
    for view in view_latents(sae, rows, token_ids, latents):
        texts = []
        for example in view.top[:N_EXAMPLES]:
            pieces = list(texts_in_context(model.tokenizer, example.token_ids))
            place = example.position - example.start
            pieces[place] = f"{_OPEN}{pieces[place]}{_CLOSE}"
            shown = "".join(pieces[max(0, place - _BEFORE) : place + _AFTER + 1])
            texts.append("".join(" " if one == " " else visible_text(one) for one in shown))
        found[view.latent] = tuple(texts)
    return found


# --- effects ---------------------------------------------------------------------------------------


class Measuring:
    """Steers with vectors of one job."""

    def __init__(self, request: SaeRequest, model: "LlamaWrapper", behavior: str, folder: Path) -> None:
        self.request, self.model, self.behavior, self.folder = request, model, behavior, folder
        self.norms = layer_norms(model, request.vectors.paths)

    def best_latent(self, read: ReadVector, items: "list[Any]") -> tuple[tuple[int, float], float]:
        """Of the candidates, the latent with the largest effect on validation items; with its coefficient and that
        effect."""
        found = read.candidates()
        rows, _ = unit_rows(read.sae)
        vectors = [np.sign(amount) * rows[latent] for latent, amount in found]
        effects = self._effects(np.stack(vectors), (1.0,), read.sae.layer, items, "validation")[:, 0].mean(axis=1)
        best = int(effects.argmax())
        return found[best], float(effects[best])

    def trade_offs(self, variants: Variants, layer: int) -> list[Tradeoff]:
        """Every variant on the test items and on neutral answers."""
        request = self.request.vectors
        vectors = np.concatenate([one.vectors for one in variants.made])
        counts = [len(one.vectors) for one in variants.made]
        items = load_text_pairs(request.test_items(self.behavior))[: request.limit]
        effects = self._effects(vectors, LEVELS, layer, items, "test")
        return trade_off(mean_of_draws(effects, counts), mean_of_draws(self._kl(vectors, layer), counts), request.seed)

    def _effects(
        self, vectors: FloatArray, levels: tuple[float, ...], layer: int, items: "list[Any]", what: str
    ) -> FloatArray:
        """[n_vectors, n_levels, n_items]"""
        request = self.request.vectors
        scoring = Scoring(
            items,
            self.request.result(self.behavior, self.folder).parent,
            {**self.request.settings(self.behavior, self.folder), "items": what},
            request.batch_size,
            request.plainly,
            f"{self.behavior}, {self.folder.name}: {what}",
        )
        steerings = [self._steering(layer, level, vector) for vector in vectors for level in levels]
        both = measure_effects(self.model, steerings, scoring).both
        return both.reshape(len(vectors), len(levels), -1)

    def _kl(self, vectors: FloatArray, layer: int) -> FloatArray:
        """95th percentile of the per-token KL, the larger one of both signs, [n_vectors, n_levels]."""
        questions = load_open_ended_questions(neutral_prompts_path(self.request.vectors.paths))[:N_NEUTRAL]
        answers = neutral_answers(self.model, [self.model.chat_format.encode(one) for one in questions])
        signed = [
            self._steering(layer, sign * level, vector) for vector in vectors for level in LEVELS for sign in (1, -1)
        ]
        found = measure_kl(self.model, answers, signed).percentile(0.95).numpy()
        return found.reshape(len(vectors), len(LEVELS), 2).max(axis=2)

    def _steering(self, layer: int, level: float, vector: FloatArray) -> Any:
        strength = level * self.request.vectors.strength
        return at_strength(layer, strength, self.norms[layer], torch.from_numpy(vector).float())
