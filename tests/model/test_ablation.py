"""Directional ablation: against hooks and sums written out here, in prefill, in batches and while decoding."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, D_MODEL, N_LAYERS, build_wrapper, count_hooks, decoder_blocks, random_vector
from utils.errors import UserError
from utils.model.ablation import (
    PLACES,
    References,
    SetComponent,
    ablate,
    ablated_tokens,
    ablation,
    capture_places,
    orthogonalize_weights,
)
from utils.model.generation import GenerationRow
from utils.model.scoring import score_rows
from utils.model.steering import RowSteering, Steering

DIRECTION = random_vector(7, 3.0)
UNIT = (DIRECTION.double() / DIRECTION.double().norm()).float()
QUESTIONS = ["What is that?", "Do you agree that the answer is not the question?", "Is it?"]
# by attribute name, so that tests do not ask the code under test
ATTENTION = {"gpt2": "attn", "gpt_neox": "attention", "gemma2": "post_attention_layernorm"}
MLP = {"gemma2": "post_feedforward_layernorm"}
ATTENTION["gemma3"], MLP["gemma3"] = ATTENTION["gemma2"], MLP["gemma2"]


def references(seed: int = 3) -> References:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(N_LAYERS, D_MODEL, generator=generator) for site in PLACES}


@contextmanager
def plain_hooks(model: LlamaWrapper, architecture: str, edit: Callable[[str, int, Tensor], Tensor]) -> Iterator[None]:
    """The three places of every block, edited by hooks of this file's own."""
    handles = []

    def on_input(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (edit("input", layer, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit("input", layer, kwargs["hidden_states"])}

        return hook

    def on_output(site: str, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(site, layer, output[0]), *output[1:])
            return edit(site, layer, output)

        return hook

    try:
        for layer, block in enumerate(decoder_blocks(model.model)):
            handles.append(block.register_forward_pre_hook(on_input(layer), with_kwargs=True))
            attention = block.get_submodule(ATTENTION.get(architecture, "self_attn"))
            handles.append(attention.register_forward_hook(on_output("attention", layer)))
            mlp = block.get_submodule(MLP.get(architecture, "mlp"))
            handles.append(mlp.register_forward_hook(on_output("mlp", layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_zero(site: str, layer: int, hidden: Tensor) -> Tensor:
    return hidden - (hidden @ UNIT)[..., None] * UNIT


@torch.no_grad()
def logits_of(model: LlamaWrapper, ids: Sequence[int]) -> Tensor:
    return model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def ablated_logits(model: LlamaWrapper, ids: Sequence[int], steerings: Sequence[Steering], start: int = 0) -> Tensor:
    rows = RowSteering([steerings], model.layers)
    rows.positions = torch.arange(len(ids))[None] >= start
    with rows.applied():
        return logits_of(model, ids)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_ablation_equals_plain_hooks_at_all_three_places(architecture: str) -> None:
    model = build_wrapper(architecture)
    ids = model.chat_format.encode(QUESTIONS[1]).ids
    with plain_hooks(model, architecture, to_zero):
        expected = logits_of(model, ids)
    torch.testing.assert_close(ablated_logits(model, ids, ablation(DIRECTION, N_LAYERS)), expected)
    assert not torch.allclose(expected, logits_of(model, ids), atol=1e-2)
    assert count_hooks(model.model) == 0


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3"])
def test_affine_ablation_equals_plain_hooks_and_leaves_the_first_token(architecture: str) -> None:
    model, means = build_wrapper(architecture), references()
    ids = model.chat_format.encode(QUESTIONS[1]).ids

    def to_mean(site: str, layer: int, hidden: Tensor) -> Tensor:
        edited = hidden + (means[site][layer] @ UNIT - hidden @ UNIT)[..., None] * UNIT  # type: ignore[index]
        return torch.cat([hidden[:, :1], edited[:, 1:]], dim=1)

    with plain_hooks(model, architecture, to_mean):
        expected = logits_of(model, ids)
    torch.testing.assert_close(ablated_logits(model, ids, ablation(DIRECTION, N_LAYERS, means), 1), expected)


@torch.no_grad()
def streams(model: LlamaWrapper, ids: Sequence[int], steerings: Sequence[Steering], start: int) -> Tensor:
    """Every block's input, the stream behind its attention, and its output, [n_streams, seq_len, d_model]."""
    kept: list[Tensor] = []
    rows = RowSteering([steerings], model.layers)
    rows.positions = torch.arange(len(ids))[None] >= start
    with rows.applied():  # the model's own sums: hidden_states of transformers, and what the second norm reads
        handles = [
            block.post_attention_layernorm.register_forward_pre_hook(lambda _, args: kept.append(args[0][0].clone()))
            for block in model.layers
        ]
        output = model.model.model(input_ids=torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
        for handle in handles:
            handle.remove()
    return torch.stack([*kept, *(stream[0] for stream in output.hidden_states[1:-1])])


def test_after_zero_ablation_no_stream_has_a_component_left() -> None:
    model = build_wrapper("llama")
    ids = model.chat_format.encode(QUESTIONS[1]).ids
    found = streams(model, ids, ablation(DIRECTION, N_LAYERS), 0)
    assert len(found) == 2 * N_LAYERS - 1
    assert float((found @ UNIT).abs().max()) < 1e-5 * float(found.norm(dim=-1).max())
    assert float((streams(model, ids, (), 0) @ UNIT).abs().max()) > 0.1


@torch.no_grad()
def means_of(model: LlamaWrapper, prompts: Sequence[Sequence[int]]) -> References:
    read: dict[Any, list[Tensor]] = {}
    for ids in prompts:
        with capture_places(model.layers, -1) as captured:
            logits_of(model, ids)
        for where, kept in captured.items():
            read.setdefault(where, []).append(kept[0])
    return {
        site: torch.stack([torch.stack(read[layer, site]).mean(dim=0) for layer in range(N_LAYERS)]) for site in PLACES
    }


def test_after_affine_ablation_every_stream_has_the_component_of_the_mean_prompt() -> None:
    """The places' own means add up: attention and MLP need no reference of the streams behind them."""
    model = build_wrapper("llama")
    prompts = [model.chat_format.encode(question).ids for question in QUESTIONS]
    means = means_of(model, prompts)
    unedited = torch.stack([streams(model, ids, (), 0)[:, -1] for ids in prompts])  # [n_prompts, n_streams, d_model]
    expected = unedited.mean(dim=0) @ UNIT
    found = streams(model, prompts[0], ablation(DIRECTION, N_LAYERS, means), 1)
    components = found[:, 1:] @ UNIT  # [n_streams, seq_len - 1]
    torch.testing.assert_close(components, expected[:, None].expand_as(components), atol=1e-4, rtol=0)
    whole = streams(model, prompts[0], (), 0)
    torch.testing.assert_close(found[:, 0], whole[:, 0])  # the first token attends to itself alone


def test_ablating_twice_is_ablating_once() -> None:
    hidden = torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(0)) * 100
    for operator in (ablate, SetComponent(12.5)):
        once = operator(hidden, DIRECTION, 1.0)
        torch.testing.assert_close(once @ UNIT, torch.full((2, 5), operator.value), atol=1e-4, rtol=0)
        torch.testing.assert_close(operator(once, DIRECTION, 1.0), once, atol=1e-4, rtol=1e-6)
        assert torch.equal(operator(hidden, DIRECTION, 0.0), hidden)
    model = build_wrapper("llama")
    ids, steerings = model.chat_format.encode(QUESTIONS[0]).ids, ablation(DIRECTION, N_LAYERS)
    torch.testing.assert_close(ablated_logits(model, ids, steerings * 2), ablated_logits(model, ids, steerings))


def test_multiplier_0_and_no_steering_are_bit_equal_to_no_hook() -> None:
    model = build_wrapper("llama")
    ids = model.chat_format.encode(QUESTIONS[0]).ids
    expected = logits_of(model, ids)
    nothing = [replace(one, multiplier=0.0) for one in ablation(DIRECTION, N_LAYERS)]
    assert torch.equal(ablated_logits(model, ids, nothing), expected)
    assert torch.equal(ablated_logits(model, ids, ()), expected)


@pytest.mark.parametrize("kind", ["zero", "affine"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_padded_rows_score_as_they_do_alone_each_with_its_own_edits(architecture: str, kind: Any) -> None:
    model = build_wrapper(architecture)
    steerings = ablation(DIRECTION, N_LAYERS, references() if kind == "affine" else None)
    prompts = [ablated_tokens(model.chat_format.encode(question), kind) for question in QUESTIONS]
    rows = [steerings, None, [*steerings, Steering(1, 2.0, random_vector(1))]]
    tokens = [tuple(range(20))] * 3
    together = score_rows(model.runtime, prompts, rows, tokens)
    for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        alone = ablated_logits(model, prompt.ids, row or (), prompt.steer_start)[-1]
        torch.testing.assert_close(together[place], alone.softmax(dim=-1)[:20], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["zero", "affine"])
def test_answers_with_a_kv_cache_in_a_batch_equal_those_without_one_by_one(kind: Any) -> None:
    model = build_wrapper("llama")
    steerings = ablation(DIRECTION, N_LAYERS, references() if kind == "affine" else None)
    prompts = [ablated_tokens(model.chat_format.encode(question), kind) for question in QUESTIONS]
    rows = [GenerationRow(prompt, steerings) for prompt in prompts] + [GenerationRow(prompts[0], None)]
    cached = {index: answer.token_ids for index, answer in model.generate(rows, 12)}
    plain = {index: answer.token_ids for index, answer in model.generate(rows, 12, use_cache=False)}
    assert cached == plain
    assert cached[0] != cached[3]


def test_every_decode_step_is_ablated() -> None:
    model = build_wrapper("llama")
    seen: list[Tensor] = []
    block = model.layers[2]
    prompt = ablated_tokens(model.chat_format.encode(QUESTIONS[0]), "affine")
    rows = [GenerationRow(prompt, ablation(DIRECTION, N_LAYERS, references()))]
    handle = block.input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0] @ UNIT))
    try:
        list(model.generate(rows, 5))
    finally:
        handle.remove()
    value = float(references()["input"][2] @ UNIT)
    # the first token runs alone, unedited; then the rest of the prompt, then one token a step
    assert [len(part) for part in seen] == [1, len(prompt) - 1, 1, 1, 1, 1]
    assert abs(float(seen[0]) - value) > 1e-2
    torch.testing.assert_close(torch.cat(seen[1:]), torch.full((len(prompt) + 3,), value), atol=1e-4, rtol=0)


def test_hooks_are_gone_after_an_exception() -> None:
    model = build_wrapper("llama")
    rows = RowSteering([ablation(DIRECTION, N_LAYERS)], model.layers)
    with pytest.raises(RuntimeError, match="on purpose"), rows.applied():
        assert count_hooks(model.model) == 3 * N_LAYERS
        raise RuntimeError("on purpose")
    wrong_width = [Steering(0, 1.0, torch.ones(D_MODEL + 1), ablate, "mlp")]
    with pytest.raises(RuntimeError):
        ablated_logits(model, [1, 2, 3], wrong_width)
    assert count_hooks(model.model) == 0


def test_packed_scoring_leaves_what_it_cannot_do_to_whole_sequences() -> None:
    model = build_wrapper("llama")
    prompts = [model.chat_format.encode_choice(question) for question in QUESTIONS]
    rows = [None, [Steering(1, 1.0, DIRECTION, ablate, "attention")], [Steering(1, 1.0, DIRECTION, ablate)]]
    tokens = [[5, 6]] * 3
    fast, plain = dict(model.score(prompts, rows, tokens)), dict(model.score_plainly(prompts, rows, tokens))
    for index in range(3):
        torch.testing.assert_close(fast[index], plain[index])
    assert not torch.allclose(fast[0][0], fast[0][1])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox", "mistral"])
def test_orthogonal_weights_equal_zero_ablation(architecture: str) -> None:
    model = build_wrapper(architecture)
    weights = copy.deepcopy(model.model)
    for name, values in weights.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(values, std=0.3)
    model, changed = LlamaWrapper(weights, model.tokenizer, "tiny"), copy.deepcopy(weights)
    orthogonalize_weights(changed, decoder_blocks(changed), DIRECTION)
    ids = model.chat_format.encode(QUESTIONS[1]).ids
    expected = ablated_logits(model, ids, ablation(DIRECTION, N_LAYERS))
    with torch.no_grad():
        found = changed(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_what_has_no_equal_in_weights_or_no_direction_is_refused() -> None:
    model = build_wrapper("gemma2")
    with pytest.raises(UserError, match="no weights are known that equal the ablation of its attention"):
        orthogonalize_weights(model.model, model.layers, DIRECTION)
    for broken in (torch.zeros(D_MODEL), torch.full((D_MODEL,), float("nan"))):
        with pytest.raises(UserError, match="cannot be ablated or added"):
            ablation(broken, N_LAYERS)
