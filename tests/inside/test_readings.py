"""What is read inside a model, against hooks, hidden states and matrix products of the tests' own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    CohereConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llama_wrapper import LlamaWrapper
from tests.models import (
    ARCHITECTURES,
    D_MODEL,
    N_LAYERS,
    build_tokenizer,
    build_wrapper,
    count_hooks,
    decoder_blocks,
    final_norm,
    random_vector,
    steered_logits,
)
from tests.reference import carried_path, reference_path
from utils.errors import UserError
from utils.files.reading import load_vector
from utils.inside.blocks import read_blocks
from utils.inside.readings import (
    PLACES,
    Transcript,
    decode_intermediate,
    decode_vectors,
    generate_transcripts,
    project_tokens,
    project_tokens_on_all,
    write_transcript,
)
from utils.inside.token_texts import texts_in_context, vocabulary_texts
from utils.inside.unembedding import Unembedding
from utils.model.checkpoints import choose_model
from utils.model.steering import Steering

QUESTION, ANSWER = "Do you think that the sea is green?", "I think not"
STEERING = Steering(1, 1.5, random_vector(1))
EITHER = pytest.mark.parametrize("steering", [None, STEERING], ids=["unsteered", "steered"])


def ids_of(transcript: Transcript) -> Tensor:
    return torch.tensor([transcript.tokens.ids])


@torch.no_grad()
def states_of(wrapper: LlamaWrapper, transcript: Transcript, steering: Steering | None) -> list[Tensor]:
    """Every block's input and the last one's output, [seq_len, d_model] each, by hooks of this function's own."""
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        if steering is not None and module is blocks[steering.layer]:
            hidden[:, transcript.tokens.steer_start :] += steering.multiplier * steering.vector
        states.append(hidden[0].clone())
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    blocks = decoder_blocks(wrapper.model)
    first = blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append([*args, *kwargs.values()][0][0]), with_kwargs=True
    )
    handles = [first, *(block.register_forward_hook(keep, with_kwargs=True) for block in blocks)]
    try:
        wrapper.model(input_ids=ids_of(transcript), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states


# --- token by token ---


@EITHER
def test_every_token_has_its_own_cosine_and_dot_product(steering: Steering | None) -> None:
    wrapper, vector = build_wrapper(), random_vector(9)
    [transcript] = generate_transcripts(wrapper, [QUESTION], 6, steering)
    assert transcript.n_prompt == len(wrapper.chat_format.encode(QUESTION))
    assert len(transcript.texts) == len(transcript) == transcript.n_prompt + 6
    states = states_of(wrapper, transcript, steering)
    for layer in range(N_LAYERS):
        found = wrapper.token_projections(transcript, layer, vector, steering)
        assert found.transcript is transcript and found.cosines.shape == found.dots.shape == (len(transcript),)
        for position, hidden in enumerate(states[layer + 1].double()):
            dot = sum(a * b for a, b in zip(hidden.tolist(), vector.double().tolist(), strict=True))
            cosine = dot / (
                sum(a * a for a in hidden.tolist()) ** 0.5 * sum(b * b for b in vector.double().tolist()) ** 0.5
            )
            assert found.dots[position].item() == pytest.approx(dot, rel=1e-4, abs=1e-4)
            assert found.cosines[position].item() == pytest.approx(cosine, abs=1e-5)


def test_a_value_belongs_to_the_token_beside_it_and_not_to_the_next_one() -> None:
    wrapper, vector = build_wrapper(), random_vector(9)
    whole = write_transcript(wrapper, QUESTION, ANSWER)
    other = write_transcript(wrapper, QUESTION, "I think that")  # only the last token differs
    assert whole.texts[:-1] == other.texts[:-1] and (whole.texts[-1], other.texts[-1]) == (" not", " that")
    first, second = (project_tokens(wrapper, transcript, 2, vector).cosines for transcript in (whole, other))
    torch.testing.assert_close(first[:-1], second[:-1], rtol=0, atol=1e-6)
    assert abs(first[-1] - second[-1]) > 1e-3


def test_many_vectors_are_projected_on_in_one_pass() -> None:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    passes: list[int] = []
    handle = wrapper.model.register_forward_hook(lambda *_: passes.append(1))
    vectors = {("a", layer): (layer, random_vector(layer)) for layer in range(N_LAYERS)}
    together = project_tokens_on_all(wrapper, transcript, vectors)
    assert passes == [1]
    handle.remove()
    for key, (layer, vector) in vectors.items():
        assert torch.equal(together[key].cosines, project_tokens(wrapper, transcript, layer, vector).cosines)


def test_a_written_transcript_ends_its_prompt_where_the_answer_begins() -> None:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    assert "".join(transcript.texts[transcript.n_prompt :]) == ANSWER
    assert len(write_transcript(wrapper, QUESTION)) == transcript.n_prompt


# --- inside the blocks ---

# where each architecture reads the residual stream after attention: the input of this module
READS_AFTER_ATTENTION = {
    "llama": "post_attention_layernorm",
    "mistral": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
    "qwen3": "post_attention_layernorm",
    "gpt2": "ln_2",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3": "pre_feedforward_layernorm",
}


@EITHER
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parts_of_a_block_add_up_to_its_output(architecture: str, steering: Steering | None) -> None:
    wrapper = build_wrapper(architecture)
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    readings = read_blocks(wrapper, transcript.tokens, range(N_LAYERS), steering)
    states = states_of(wrapper, transcript, steering)
    for layer in range(N_LAYERS):
        added = torch.zeros(len(transcript), D_MODEL)
        if steering is not None and layer == steering.layer:
            added[transcript.tokens.steer_start :] = steering.multiplier * steering.vector
        exactly = {"rtol": 0, "atol": 1e-5}
        after_attention = readings.block_input[layer] + readings.attention_output[layer]
        torch.testing.assert_close(readings.block_input[layer], states[layer], **exactly)
        torch.testing.assert_close(readings.after_attention[layer], after_attention, **exactly)
        output = after_attention + readings.mlp_output[layer] + added
        torch.testing.assert_close(output, states[layer + 1], **exactly)
        torch.testing.assert_close(readings.block_output[layer], states[layer + 1], **exactly)
        # not one of the two summands by itself
        assert readings.attention_output[layer].abs().max() > 1e-2 and readings.mlp_output[layer].abs().max() > 1e-2


@pytest.mark.parametrize("architecture", READS_AFTER_ATTENTION)
def test_the_residual_stream_after_attention_is_what_the_mlp_s_norm_reads(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    captured: list[Tensor] = []
    handles = [
        block.get_submodule(READS_AFTER_ATTENTION[architecture]).register_forward_pre_hook(
            lambda _, args: captured.append(args[0][0].clone())
        )
        for block in decoder_blocks(wrapper.model)
    ]
    readings = read_blocks(wrapper, transcript.tokens, range(N_LAYERS))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(readings.after_attention, torch.stack(captured), rtol=0, atol=1e-5)


def other_model(config: PretrainedConfig, seed: int = 0) -> LlamaWrapper:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return LlamaWrapper(model, build_tokenizer(), "tiny-chat")


def shared_settings(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": D_MODEL,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def opt_config(**more: Any) -> OPTConfig:
    settings = shared_settings(ffn_dim=48, word_embed_proj_dim=D_MODEL, init_std=0.2, **more)
    return OPTConfig(**{k: v for k, v in settings.items() if k not in ("intermediate_size", "initializer_range")})


def bloom_config() -> BloomConfig:
    return BloomConfig(
        vocab_size=len(build_tokenizer()), hidden_size=D_MODEL, n_layer=2, n_head=4, initializer_range=0.2
    )


@pytest.mark.parametrize(
    "config",
    [
        lambda: GraniteConfig(**shared_settings(residual_multiplier=0.3, logits_scaling=4.0)),
        lambda: CohereConfig(**shared_settings(logit_scale=0.25)),
        lambda: PhiConfig(**shared_settings()),
        opt_config,
    ],
    ids=["scaled additions", "side by side", "side by side with dropouts", "an MLP without a module"],
)
def test_unusual_blocks_and_logits_are_read_as_the_model_computes_them(config: Callable[[], PretrainedConfig]) -> None:
    wrapper = other_model(config())
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    readings = read_blocks(wrapper, transcript.tokens, [0, 1])
    whole = readings.block_input + readings.attention_output + readings.mlp_output
    torch.testing.assert_close(whole, wrapper.capture(transcript.tokens), rtol=0, atol=1e-5)
    decoding = decode_intermediate(wrapper, transcript, [1], places=["block_output"], top_k=5)
    expected = steered_probabilities(wrapper, transcript, None).gather(1, decoding.token_ids[0, 0])
    torch.testing.assert_close(decoding.probabilities[0, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_rounding_in_a_short_dtype_is_not_taken_for_another_computation(architecture: str, dtype: torch.dtype) -> None:
    whole = build_wrapper(architecture)
    transcript = write_transcript(whole, QUESTION, ANSWER)
    expected = read_blocks(whole, transcript.tokens, range(N_LAYERS), STEERING).after_attention
    rounded = LlamaWrapper(whole.model.to(dtype), whole.tokenizer, whole.label)
    found = read_blocks(rounded, transcript.tokens, range(N_LAYERS), STEERING).after_attention
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    probabilities = decode_intermediate(rounded, transcript, steering=STEERING).probabilities
    assert probabilities.dtype == torch.float32 and bool((probabilities.sum(dim=-1) <= 1.001).all())


def test_blocks_that_are_built_in_an_unknown_way_are_refused_and_can_be_decoded_as_a_whole() -> None:
    wrapper = other_model(bloom_config())  # its attention adds the residual stream by itself
    transcript = write_transcript(wrapper, QUESTION)
    with pytest.raises(UserError, match="do not add up to the block's output"):
        decode_intermediate(wrapper, transcript, [0])
    assert count_hooks(wrapper.model) == 0
    assert decode_intermediate(wrapper, transcript, [0], places=["block_output"]).token_ids.shape[0] == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: HyperCLOVAXConfig(**shared_settings(logits_scaling=4.0)), "do not give its own logits"),
        (lambda: opt_config(do_layer_norm_before=False), "norm behind its last block was not found"),
    ],
    ids=["logits made otherwise", "no final norm"],
)
def test_a_model_whose_logits_are_made_in_an_unknown_way_is_refused(
    config: Callable[[], PretrainedConfig], reason: str
) -> None:
    wrapper = other_model(config())
    with pytest.raises(UserError, match=reason):
        decode_vectors(wrapper, {0: random_vector(0)})
    with pytest.raises(UserError, match=reason):
        decode_intermediate(wrapper, write_transcript(wrapper, QUESTION), [0], places=["block_output"])


# --- decoding ---


def steered_probabilities(wrapper: LlamaWrapper, transcript: Transcript, steering: Steering | None) -> Tensor:
    """The model's own next-token probabilities, [seq_len, vocab_size]."""
    if steering is None:
        with torch.no_grad():
            return wrapper.model(input_ids=ids_of(transcript), use_cache=False).logits[0].softmax(dim=-1)
    tokens = transcript.tokens
    return steered_logits(wrapper.model, tokens.ids, tokens.steer_start, steering).softmax(dim=-1)


@EITHER
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_block_s_output_decodes_to_the_model_s_own_probabilities(
    architecture: str, steering: Steering | None
) -> None:
    wrapper = build_wrapper(architecture)
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    expected = steered_probabilities(wrapper, transcript, steering)
    decoding = wrapper.intermediate_decoding(transcript, [N_LAYERS - 1], steering=steering, top_k=7)
    at_output = decoding.places.index("block_output")
    for position in range(len(transcript)):
        best = expected[position].topk(7)
        assert decoding.token_ids[0, at_output, position].tolist() == best.indices.tolist()
        torch.testing.assert_close(decoding.probabilities[0, at_output, position], best.values, rtol=0, atol=1e-5)


def test_each_place_is_decoded_with_the_final_norm_and_the_output_embeddings() -> None:
    wrapper = build_wrapper("gpt2")
    transcript = write_transcript(wrapper, QUESTION, ANSWER)
    readings = read_blocks(wrapper, transcript.tokens, [1, 2], STEERING)
    decoding = decode_intermediate(wrapper, transcript, [1, 2], [0, -1], STEERING, top_k=4)
    assert decoding.places == PLACES and decoding.positions == (0, len(transcript) - 1)
    weights = wrapper.model.get_output_embeddings().weight
    for row, layer in enumerate((1, 2)):
        for place in PLACES:
            for position in (0, len(transcript) - 1):
                with torch.no_grad():
                    normed = final_norm(wrapper.model)(getattr(readings, place)[row, position])
                    best = (weights @ normed).softmax(dim=-1).topk(4)
                top = decoding.top(layer, place, position)
                assert [text for text, _ in top] == [
                    vocabulary_texts(wrapper.tokenizer, [i])[i] for i in best.indices.tolist()
                ]
                assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_vector_decodes_to_what_it_adds_to_the_logits(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    norm = final_norm(wrapper.model)
    with torch.no_grad():
        for weights in norm.parameters():  # a norm that would show if it were left out, with a bias where it has one
            weights.copy_(torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) + 0.5)
    vectors = {layer: random_vector(layer, size=10.0**-layer) for layer in (0, 3)}
    decoding = decode_vectors(wrapper, vectors, top_k=5)
    gain = norm.weight.detach() + (1.0 if architecture == "gemma2" else 0.0)
    for row, (layer, vector) in enumerate(vectors.items()):
        centred = vector - vector.mean() if architecture == "gpt2" else vector
        logits = wrapper.model.get_output_embeddings().weight.detach() @ (
            centred / centred.square().mean().sqrt() * gain
        )
        logits = logits - logits.mean()
        best, worst = logits.topk(5), logits.topk(5, largest=False)
        assert decoding.layers[row] == layer
        assert decoding.top_ids[row].tolist() == best.indices.tolist()
        assert decoding.bottom_ids[row].tolist() == worst.indices.tolist()
        torch.testing.assert_close(decoding.top_logits[row], best.values, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(decoding.bottom_logits[row], worst.values, rtol=1e-3, atol=1e-4)


def test_rows_of_the_output_embeddings_without_a_token_are_no_part_of_a_vector_s_decoding() -> None:
    wrapper = build_wrapper()
    n_tokens = len(wrapper.tokenizer)
    wrapper.model.resize_token_embeddings(n_tokens + 5, mean_resizing=False)
    weights = wrapper.model.get_output_embeddings().weight
    vector = random_vector(4)
    with torch.no_grad():
        weights[n_tokens:] = 100 * vector * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[:, None]
    decoding = decode_vectors(wrapper, {0: vector}, top_k=20)
    assert int(torch.cat([decoding.top_ids, decoding.bottom_ids]).max()) < n_tokens
    assert vocabulary_texts(wrapper.tokenizer, [n_tokens])[n_tokens] == f"<token {n_tokens}>"


# --- tokens as text ---


def test_tokens_in_context_join_to_the_text_and_the_last_part_of_a_character_bears_it() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("the sea is 🌊 and\nwide", add_special_tokens=True)["input_ids"]
    texts = texts_in_context(tokenizer, ids)
    assert len(texts) == len(ids) and texts[:2] == ("<s>", "the")
    assert texts[texts.index("🌊") - 3 : texts.index("🌊")] == ("\ufffd",) * 3
    assert "".join(texts).replace("\ufffd", "") == "<s>the sea is 🌊 and\nwide"


def test_tokens_by_themselves_are_told_apart() -> None:
    tokenizer = build_tokenizer()
    every = vocabulary_texts(tokenizer, range(len(tokenizer)))
    assert len(set(every.values())) == len(tokenizer)
    ids = {text: token_id for token_id, text in every.items()}
    assert tokenizer.decode([ids["the"]]) == "the" and tokenizer.decode([ids[" the"]]) == " the"
    [first_byte, *_] = tokenizer("🌊", add_special_tokens=False)["input_ids"]
    assert every[first_byte] == "<0xf0>"


def test_sentencepiece_tokens_keep_their_leading_blank() -> None:
    model = LlamaWrapper.load(choose_model("7b", str(carried_path("Llama-2-tiny-chat-hf")), False), "cpu")
    ids = model.tokenizer("this is", add_special_tokens=False)["input_ids"]
    assert [*vocabulary_texts(model.tokenizer, ids).values()] and vocabulary_texts(model.tokenizer, ids)[
        ids[-1]
    ] == " is"


# --- what is refused, and what is left behind ---


def test_what_does_not_fit_the_model_is_refused() -> None:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, QUESTION)
    with pytest.raises(UserError, match="whose residual stream has 32 values"):
        project_tokens(wrapper, transcript, 0, torch.ones(31))
    with pytest.raises(UserError, match="all zeros has no direction"):
        project_tokens(wrapper, transcript, 0, torch.zeros(D_MODEL))
    with pytest.raises(UserError, match="all zeros has no direction"):
        decode_vectors(wrapper, {0: torch.zeros(D_MODEL)})
    for layer in (-1, N_LAYERS):
        with pytest.raises(UserError, match="has layers 0 to 3"):
            project_tokens(wrapper, transcript, layer, random_vector(0))
        with pytest.raises(UserError, match="has layers 0 to 3"):
            decode_intermediate(wrapper, transcript, [layer])
    for position in (len(transcript), -len(transcript) - 1):
        with pytest.raises(UserError, match=f"the transcript has tokens 0 to {len(transcript) - 1}"):
            decode_intermediate(wrapper, transcript, [0], [position])


def test_no_hook_stays_behind_even_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, QUESTION)
    before = {name: weights.clone() for name, weights in wrapper.model.named_parameters()}
    decode_intermediate(wrapper, transcript, steering=STEERING)
    project_tokens(wrapper, transcript, 0, random_vector(0), STEERING)
    Unembedding(wrapper)
    assert count_hooks(wrapper.model) == 0
    assert all(torch.equal(weights, before[name]) for name, weights in wrapper.model.named_parameters())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a failure in the third block")

    monkeypatch.setattr(decoder_blocks(wrapper.model)[2].mlp, "forward", fail)
    for read in (lambda: read_blocks(wrapper, transcript.tokens, [0, 1, 2, 3], STEERING), lambda: Unembedding(wrapper)):
        with pytest.raises(RuntimeError, match="third block"):
            read()
        assert count_hooks(wrapper.model) == 0


# --- the published implementation ---


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(reference_path("parity", "interp_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny_llama() -> LlamaWrapper:
    return LlamaWrapper.load(choose_model("7b", str(reference_path("parity", "Llama-2-tiny-chat-hf")), False), "cpu")


def golden_vector(wrapper: LlamaWrapper, behavior: str, layer: int) -> Tensor:
    folder: Path = reference_path("parity", "normalized_vectors", behavior)
    return load_vector(folder / f"vec_layer_{layer}_{wrapper.label}.pt")


def test_cosines_equal_the_published_implementation_s(golden: dict[str, Any], tiny_llama: LlamaWrapper) -> None:
    published = golden["dot_products"]
    n_values = len(published["dot_products"])
    [transcript] = generate_transcripts(tiny_llama, [published["prompt"]], published["max_new_tokens"])
    assert "".join(transcript.texts) == published["generated"]
    vector = golden_vector(tiny_llama, published["behavior"], published["layer"])
    cosines = tiny_llama.token_projections(transcript, published["layer"], vector).cosines
    # published: one value for the prompt's last token and one for each later token that was run
    first = transcript.n_prompt - 1
    values = torch.tensor([value for _, value in published["dot_products"]])
    torch.testing.assert_close(cosines[first : first + n_values], values, rtol=0, atol=1e-5)
    # each labelled with the token that this layer would say next
    decoding = tiny_llama.intermediate_decoding(
        transcript, [published["layer"]], range(first, first + n_values), places=["block_output"], top_k=1
    )
    likely = [tiny_llama.tokenizer.decode([token_id]) for token_id in decoding.token_ids.flatten().tolist()]
    assert likely == [token for token, _ in published["dot_products"]]


@pytest.mark.parametrize("multiplier", ["0", "1.5", "-1.5"])
def test_intermediate_decodings_equal_the_published_implementation_s(
    golden: dict[str, Any], tiny_llama: LlamaWrapper, multiplier: str
) -> None:
    published = golden[f"logit_lens_multiplier_{multiplier}"]
    steer = published["steer"]
    assert steer["multiplier"] == float(multiplier)
    steering = Steering(steer["layer"], float(multiplier), golden_vector(tiny_llama, steer["behavior"], steer["layer"]))
    transcript = write_transcript(tiny_llama, published["user_input"], published["model_output"])
    decoding = tiny_llama.intermediate_decoding(transcript, positions=[-1], steering=steering, top_k=10)
    names = ("Attention mechanism", "Intermediate residual stream", "MLP output", "Block output")
    assert len(published["top10_probabilities_at_last_token"]) == tiny_llama.n_layers
    for layer, places in enumerate(published["top10_probabilities_at_last_token"]):
        for column, name in enumerate(names):
            tokens = [tiny_llama.tokenizer.decode([i]) for i in decoding.token_ids[layer, column, 0].tolist()]
            assert tokens == [token for token, _ in places[name]], (layer, name)
            values = [value for _, value in places[name]]
            assert decoding.probabilities[layer, column, 0].tolist() == pytest.approx(values, rel=1e-4), (layer, name)
