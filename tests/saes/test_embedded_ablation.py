"""Ablation on the real small model: what its attention sink does to the zero kind, and how the affine kind survives."""

import pytest
import torch

from llama_wrapper import LlamaWrapper
from utils.model.ablation import ablated_tokens, ablation
from utils.model.embedded import is_complete
from utils.model.steering import RowSteering, capture_outputs
from utils.paths import MODELS_DIR, REPOSITORY, DataPaths
from utils.saes.directions import encode_all, harmless_means, prompt_activations, refusal_direction
from utils.saes.prompts import PromptSource
from utils.saes.refusal import kl_divergence, next_token_logits

N = 16
LAYER = 13


@pytest.mark.embedded
@pytest.mark.slow
def test_affine_ablation_changes_the_embedded_model_less_than_the_zero_kind() -> None:
    if not is_complete(MODELS_DIR / "SmolLM2-135M-Instruct"):
        pytest.skip("the embedded model is not here; run: .venv/bin/python -m utils.model.embedded")
    model = LlamaWrapper.load("135m")
    instructions = PromptSource(DataPaths(REPOSITORY)).load("train", N)
    harmful, harmless = (encode_all(model, texts) for texts in (instructions.harmful, instructions.harmless))
    assert model.tokenizer.decode(list(harmful[0].ids)).startswith("<|im_start|>user\n")  # no system prompt
    read = [prompt_activations(model, prompts, [LAYER])[:, 0, 0] for prompts in (harmful, harmless)]
    r = refusal_direction(*read)
    unit = r.double() / r.double().norm()
    means = harmless_means(model, harmless)
    torch.testing.assert_close(means["input"][LAYER + 1], read[1].mean(dim=0), rtol=1e-4, atol=1e-3)
    clean = next_token_logits(model, harmless)
    kl = {}
    for kind, references in (("zero", None), ("affine", means)):
        steerings = ablation(r, model.n_layers, references)
        edited = [ablated_tokens(prompt, kind) for prompt in harmless]  # type: ignore[arg-type]
        kl[kind] = float(kl_divergence(clean, next_token_logits(model, edited, steerings)).mean())
    assert kl["affine"] < min(0.15, kl["zero"] / 2)  # 0.03 and 0.82 nats with 24 prompts a side
    rows = RowSteering([ablation(r, model.n_layers, means)], model.layers)
    rows.positions = torch.arange(len(harmful[0]))[None] >= 1
    with torch.no_grad(), rows.applied(), capture_outputs([model.layers[LAYER]]) as captured:
        model.model(input_ids=torch.tensor([harmful[0].ids]), use_cache=False)
    components = captured[0][0].double() @ unit  # of the output of block 13: the sum of the three places of each block
    expected = float(read[1].double().mean(dim=0) @ unit)
    torch.testing.assert_close(components[1:], torch.full_like(components[1:], expected), atol=0.05, rtol=0)
    assert float(captured[0][0, 0].norm()) > 20 * float(captured[0][0, 1:].norm(dim=-1).median())  # the sink is left
