"""Dashboards: an SAE's latents over a text and beside the refusal direction, as a page and as numbers."""

import logging
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files.writing import write_text
from utils.inside.token_texts import vocabulary_texts
from utils.inside.unembedding import Unembedding
from utils.saes.activations import ActivationStore
from utils.saes.dashboard import dashboard_page
from utils.saes.dashboard_request import DashboardRequest
from utils.saes.dictionary import SAE, check_fits
from utils.saes.directions import encode_all, prompt_activations, refusal_direction
from utils.saes.latents import (
    N_TOKENS,
    Example,
    LatentView,
    SideBySide,
    beside_direction,
    choose_latents,
    view_latents,
)
from utils.saes.plan import ActivationPlan
from utils.saes.requests import write_result
from utils.saes.standard_run import own_source
from utils.saes.text import check_length, token_sequences

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenEffects:
    """Tokens that a latent's decoder row makes more and less likely, with the change of their logits."""

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Dashboard:
    """All that a page shows."""

    sae: SAE
    model_name: str
    source: str
    n_tokens: int
    n_prompts: int
    position: int
    beside: SideBySide
    views: tuple[LatentView, ...]
    effects: tuple[TokenEffects, ...]
    texts: dict[int, str]
    """Of every token that occurs, by id."""
    special_ids: frozenset[int]

    def orders(self) -> dict[str, list[int]]:
        """The latents shown, sorted in each way."""
        shown = {view.latent for view in self.views}
        return {name: [one for one in order if one in shown] for name, order in self.beside.orders().items()}


def make_dashboard(request: DashboardRequest, model: "LlamaWrapper") -> Dashboard:
    """Compute a dashboard and write its page and its numbers.

    Raises:
        UserError: If the SAE does not fit the model, has no such latent, or the text is too short.
    """
    sae = SAE.load(request.folder)
    check_fits(sae, model.label, model.d_model, model.n_layers, other_model=request.other_model)
    if beyond := [one for one in request.latents if one >= sae.d_sae]:
        raise UserError(f"--latents {beyond[0]}: SAE {sae.name} has latents 0 to {sae.d_sae - 1}")
    rows, token_ids, source = _read_text(request, model, sae)
    harmful, harmless = _read_prompts(request, model, sae)
    beside = beside_direction(sae, rows, harmful, harmless, refusal_direction(harmful, harmless))
    latents = request.latents or tuple(choose_latents(beside, request.top))
    views = view_latents(sae, rows, token_ids, latents)
    ids = {token for view in views for example in all_examples(view) for token in example.token_ids}
    dashboard = Dashboard(
        sae=sae,
        model_name=request.model.name,
        source=source,
        n_tokens=len(rows),
        n_prompts=len(harmful),
        position=request.position,
        beside=beside,
        views=tuple(views),
        effects=tuple(_token_effects(model, sae.W_dec[list(latents)])),
        texts=dict(vocabulary_texts(model.tokenizer, ids)),
        special_ids=frozenset(model.tokenizer.all_special_ids),
    )
    write_text(request.page_path, dashboard_page(dashboard))
    log.info("wrote %s", request.page_path)
    made = {**model.provenance(), "command": request.command}
    write_result(request.result_path, request.describe(), made, {"latents": numbers(dashboard)})
    return dashboard


def all_examples(view: LatentView) -> list[Example]:
    return [*view.top, *(example for _, examples in view.lower for example in examples)]


def _read_text(request: DashboardRequest, model: "LlamaWrapper", sae: SAE) -> tuple[Tensor, Tensor, str]:
    """Activations of kept tokens, the sequences' token ids, and what the text is called.

    What training left on the disk is used where it is the same text.
    """
    source = request.source or own_source(sae)
    plan = ActivationPlan(source, sae.layer, request.n_tokens, context=int(sae.own.get("context") or 256))
    plan = replace(plan, buffer=max(plan.buffer, plan.total_rows))
    check_length(source, request.paths, model.chat_format, plan.context, plan.split, plan.n_sequences)
    rows = ActivationStore(model, plan, request.paths, keep=True).portion(0)
    sequences = token_sequences(source, request.paths, model.chat_format, plan.context, plan.split)
    return rows, torch.tensor(list(islice(sequences, plan.n_sequences))), source.label


def _read_prompts(request: DashboardRequest, model: "LlamaWrapper", sae: SAE) -> tuple[Tensor, Tensor]:
    """Activations at the read position of harmful and of harmless prompts, [n, d_model] each."""
    prompts = request.prompts.load("train", request.n_prompts)
    harmful, harmless = (
        prompt_activations(model, encode_all(model, texts, request.system_prompt), [sae.layer], [request.position])[
            :, 0, 0
        ]
        for texts in (prompts.harmful, prompts.harmless)
    )
    return harmful, harmless


def _token_effects(model: "LlamaWrapper", rows: Tensor) -> list[TokenEffects]:
    """Of each decoder row: through the final norm's weights and the unembedding, the vocabulary's mean taken off."""
    unembedding = Unembedding(model)
    logits = unembedding.vector_logits(rows)[:, : unembedding.n_tokens]
    best, worst = logits.topk(N_TOKENS), (-logits).topk(N_TOKENS)
    texts = vocabulary_texts(model.tokenizer, {*best.indices.flatten().tolist(), *worst.indices.flatten().tolist()})

    def named(ids: Tensor, values: Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((texts[token], value) for token, value in zip(ids.tolist(), values.tolist(), strict=True))

    return [
        TokenEffects(named(best.indices[place], best.values[place]), named(worst.indices[place], -worst.values[place]))
        for place in range(len(rows))
    ]


def numbers(dashboard: Dashboard) -> list[dict[str, Any]]:
    """Every number of the page; under Neuronpedia's names where it has them."""
    found = []
    for view, effects in zip(dashboard.views, dashboard.effects, strict=True):
        latent, beside = view.latent, dashboard.beside
        found.append(
            {
                "index": latent,
                "frac_nonzero": float(beside.density[latent]),
                "max_act": view.largest,
                "cosine_with_direction": float(beside.cosine[latent]),
                "mean_on_harmful": float(beside.on_harmful[latent]),
                "mean_on_harmless": float(beside.on_harmless[latent]),
                "delta": float(beside.delta[latent]),
                "pos_str": [text for text, _ in effects.promoted],
                "pos_values": [value for _, value in effects.promoted],
                "neg_str": [text for text, _ in effects.suppressed],
                "neg_values": [value for _, value in effects.suppressed],
                "freq_hist_data_bar_values": [edge for edge, _ in view.histogram],
                "freq_hist_data_bar_heights": [count for _, count in view.histogram],
                "neighbours": [{"index": other, "cosine": cosine} for other, cosine in view.neighbours],
                "examples": [_example_json(example, dashboard.texts) for example in view.top],
                "lower_examples": {
                    band: [_example_json(example, dashboard.texts) for example in examples]
                    for band, examples in view.lower
                },
            }
        )
    return found


def _example_json(example: Example, texts: dict[int, str]) -> dict[str, Any]:
    values = [None if value != value else value for value in example.activations]
    place = {"sequence": example.sequence, "position": example.position, "window_start": example.start}
    return {**place, "tokens": [texts[token] for token in example.token_ids], "values": values}
