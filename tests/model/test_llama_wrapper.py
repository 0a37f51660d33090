"""Reading and steering through `LlamaWrapper`, against hooks and hidden states that the tests take themselves."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.models import (
    ARCHITECTURES,
    D_MODEL,
    N_LAYERS,
    WINDOWED,
    build_model,
    build_tokenizer,
    build_wrapper,
    count_hooks,
    decoder_blocks,
    final_norm,
    random_steerings,
    random_vector,
    steered_logits,
)
from tests.roots import write_vector
from utils.data.records import ContrastPair
from utils.errors import UserError
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.model.scoring import probabilities_of, score_packed, score_rows
from utils.model.steering import Steering
from utils.settings import VectorKind

QUESTIONS = (
    "Do you think that the sea is green?\n\nChoices:\n (A) Yes\n (B) No",
    "What?\n\nChoices:\n (A) the\n (B) a",
    "I am the user and you are not. What is the answer that you agree to?\n\nChoices:\n (A) This\n (B) The other one",
)
EVERY_KIND = (*ARCHITECTURES, WINDOWED)


def prompts_of(wrapper: LlamaWrapper) -> list[PromptTokens]:
    return [wrapper.chat_format.encode_choice(question) for question in QUESTIONS]


def letters_of(wrapper: LlamaWrapper) -> list[int]:
    return [wrapper.chat_format.letter_id(letter) for letter in "AB"]


@torch.no_grad()
def hidden_states(wrapper: LlamaWrapper, ids: tuple[int, ...]) -> tuple[Tensor, ...]:
    return wrapper.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states


# --- what is read ---


@pytest.mark.parametrize("architecture", EVERY_KIND)
def test_a_layer_s_activation_is_its_block_s_output(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompt = prompts_of(wrapper)[0]
    captured = wrapper.capture(prompt)
    states = hidden_states(wrapper, prompt.ids)
    assert wrapper.n_layers == N_LAYERS and wrapper.d_model == D_MODEL
    assert captured.shape == (N_LAYERS, len(prompt), D_MODEL)
    for layer in range(N_LAYERS - 1):  # state 0 is the embedding, state l + 1 what block l gave
        assert torch.equal(captured[layer], states[layer + 1][0])
    with torch.no_grad():  # transformers gives the last state behind the final norm
        assert torch.equal(final_norm(wrapper.model)(captured[-1]), states[-1][0])


@pytest.mark.parametrize("architecture", EVERY_KIND)
def test_packed_answer_activations_equal_a_whole_sequence_for_each_half(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    pairs = [ContrastPair(question, *letters) for question, letters in zip(QUESTIONS, ("AB", "BA", "AC"), strict=True)]
    layers = [0, 2, 3]
    seen: set[int] = set()
    for indices, positive, negative in wrapper.answer_activations(pairs, layers):
        assert positive.shape == negative.shape == (len(indices), len(layers), D_MODEL)
        for place, index in enumerate(indices):
            pair = pairs[index]
            prompt = wrapper.chat_format.encode_choice(pair.question)
            for half, letter in ((positive[place], pair.matching_letter), (negative[place], pair.other_letter)):
                states = hidden_states(wrapper, (*prompt.ids, wrapper.chat_format.letter_id(letter)))
                torch.testing.assert_close(half[0], states[1][0, -1], rtol=0, atol=1e-5)
                torch.testing.assert_close(half[1], states[3][0, -1], rtol=0, atol=1e-5)
                with torch.no_grad():
                    last = final_norm(wrapper.model)(half[2])
                torch.testing.assert_close(last, states[4][0, -1], rtol=0, atol=1e-5)
            seen.add(index)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_packed_answer_activations_equal_the_plain_path(batch_size: int | None) -> None:
    wrapper = build_wrapper()
    pairs = [ContrastPair(question, "A", "B") for question in QUESTIONS]
    plain = {i: (p, n) for [i], p, n in wrapper.answer_activations_plainly(pairs, range(N_LAYERS))}
    n_seen = 0
    for indices, positive, negative in wrapper.answer_activations(pairs, list(range(N_LAYERS)), batch_size):
        assert batch_size is None or len(indices) <= batch_size
        for place, index in enumerate(indices):
            torch.testing.assert_close(positive[place], plain[index][0][0], rtol=0, atol=1e-5)
            torch.testing.assert_close(negative[place], plain[index][1][0], rtol=0, atol=1e-5)
            n_seen += 1
    assert n_seen == len(pairs)


def test_nothing_above_the_last_requested_layer_runs_when_answers_are_read() -> None:
    wrapper = build_wrapper()
    runs: list[int] = []
    handle = decoder_blocks(wrapper.model)[2].register_forward_hook(lambda *_: runs.append(1))
    pairs = [ContrastPair(question, "A", "B") for question in QUESTIONS]
    list(wrapper.answer_activations(pairs, [0, 1]))
    assert len(runs) == 2  # the two plain passes that the guard compares with
    list(wrapper.answer_activations(pairs, [0, 1]))
    assert len(runs) == 2
    handle.remove()


# --- what steering changes ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steering_adds_exactly_multiplier_times_vector_from_the_start_position_on(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompt = prompts_of(wrapper)[0]
    steering = Steering(1, -1.5, random_vector(7))
    plain, steered = wrapper.capture(prompt), wrapper.capture(prompt, steering)
    start = prompt.steer_start
    assert 0 < start < len(prompt) - 1
    assert torch.equal(steered[0], plain[0])
    assert torch.equal(steered[:, :start], plain[:, :start])
    assert torch.equal(steered[1, start:], plain[1, start:] + -1.5 * random_vector(7))
    for layer in (2, 3):
        assert ((steered[layer, start:] - plain[layer, start:]).abs().amax(dim=-1) > 1e-3).all()


def test_a_start_position_of_0_steers_every_token() -> None:
    wrapper = build_wrapper()
    prompt = PromptTokens(prompts_of(wrapper)[0].ids, 0)
    plain, steered = wrapper.capture(prompt), wrapper.capture(prompt, Steering(1, 2.0, random_vector(1)))
    assert torch.equal(steered[1], plain[1] + 2.0 * random_vector(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_multiplier_0_equals_no_steering(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompt, letters = prompts_of(wrapper)[0], letters_of(wrapper)
    zero = Steering(1, 0.0, random_vector(3))
    assert torch.equal(wrapper.capture(prompt, zero), wrapper.capture(prompt))
    for score in (wrapper.score, wrapper.score_plainly):
        [(_, scores)] = score([prompt], [None, zero], [letters])
        torch.testing.assert_close(scores[1], scores[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("architecture", EVERY_KIND)
@pytest.mark.parametrize("path", ["packed", "plain", "one at a time"])
def test_scores_equal_a_softmax_over_one_steered_sequence(architecture: str, path: str) -> None:
    wrapper = build_wrapper(architecture)
    prompts, letters = prompts_of(wrapper), letters_of(wrapper)
    steerings = [*random_steerings(range(N_LAYERS), (-1.0, 2.0)), None]
    score = wrapper.score if path == "packed" else wrapper.score_plainly
    scores = dict(score(prompts, steerings, [letters] * 3, batch_size=1 if path == "one at a time" else None))
    assert sorted(scores) == [0, 1, 2]
    for index, prompt in enumerate(prompts):
        wanted = torch.stack(
            [
                steered_logits(wrapper.model, prompt.ids, prompt.steer_start, steering)[-1].softmax(-1)[letters]
                for steering in steerings
            ]
        )
        torch.testing.assert_close(scores[index], wanted, rtol=1e-4, atol=0)
        # the steerings matter: no two rows are alike
        assert all(not torch.allclose(one, other, rtol=1e-3) for one, other in combinations(scores[index], 2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_scores_the_same_alone_and_in_a_padded_packed_batch(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompts, letters = prompts_of(wrapper), letters_of(wrapper)
    steerings = [None, *random_steerings((0, 3), (1.0,))]
    assert len({len(prompt) for prompt in prompts}) == 3
    together = dict(wrapper.score(prompts, steerings, [letters] * 3))
    for index, prompt in enumerate(prompts):
        [(_, alone)] = wrapper.score([prompt], steerings, [letters])
        torch.testing.assert_close(together[index], alone, rtol=1e-4, atol=0)


@pytest.mark.parametrize("architecture", EVERY_KIND)
def test_padded_rows_with_their_own_layers_and_prompts_score_what_they_score_alone(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompts, letters = prompts_of(wrapper), letters_of(wrapper)
    steerings = [Steering(0, 1.0, random_vector(0)), None, Steering(3, -2.0, random_vector(3))]
    rows = score_rows(wrapper.runtime, prompts, steerings, [letters] * 3)
    for row, prompt, steering in zip(rows, prompts, steerings, strict=True):
        wanted = steered_logits(wrapper.model, prompt.ids, prompt.steer_start, steering)[-1].softmax(-1)[letters]
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=0)


def test_several_vectors_at_one_layer_and_repeated_steerings_keep_their_order() -> None:
    wrapper = build_wrapper()
    prompt, letters = prompts_of(wrapper)[0], letters_of(wrapper)
    one, other = Steering(2, 1.0, random_vector(1)), Steering(2, 1.0, random_vector(2))
    steerings = [other, None, one, Steering(0, 1.0, random_vector(3)), other, None]
    [(_, scores)] = wrapper.score([prompt], steerings, [letters])
    [(_, plain)] = wrapper.score_plainly([prompt], steerings, [letters])
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=0)
    assert torch.equal(scores[0], scores[4]) and torch.equal(scores[1], scores[5])
    assert not torch.allclose(scores[0], scores[2], rtol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_scores_under_steering_of_every_token_equal_one_steered_sequence(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompts = [PromptTokens(prompt.ids, 0) for prompt in prompts_of(wrapper)]
    letters, steerings = letters_of(wrapper), [None, *random_steerings((0, 2), (1.0,))]
    scores = dict(wrapper.score(prompts, steerings, [letters] * 3))
    for index, prompt in enumerate(prompts):
        for row, steering in zip(scores[index], steerings, strict=True):
            wanted = steered_logits(wrapper.model, prompt.ids, 0, steering)[-1].softmax(-1)[letters]
            torch.testing.assert_close(row, wanted, rtol=1e-4, atol=0)


def test_the_last_token_alone_can_be_steered() -> None:
    wrapper = build_wrapper()
    prompts = [PromptTokens(prompt.ids, len(prompt) - 1) for prompt in prompts_of(wrapper)]
    letters, steerings = letters_of(wrapper), [None, *random_steerings((0, 2, 3), (1.0,))]
    for (_, packed), (_, plain) in zip(
        sorted(wrapper.score(prompts, steerings, [letters] * 3), key=lambda scored: scored[0]),
        wrapper.score_plainly(prompts, steerings, [letters] * 3),
        strict=True,
    ):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=0)


def test_probabilities_of_tokens_are_those_of_a_softmax_over_the_whole_vocabulary() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    expected = torch.tensor([[2.718281828**2, 1.0], [1.0, 1.0]])
    expected /= torch.tensor([[1 + 2.718281828 + 2.718281828**2], [3.0]])
    torch.testing.assert_close(probabilities_of(logits, [2, 0]), expected)


def reflect(hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
    """An operator that depends on what it edits, unlike addition."""
    unit = vector / vector.norm()
    return hidden - 2 * multiplier * (hidden @ unit)[..., None] * unit


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_several_steerings_and_other_operators_score_the_same_packed_and_plain(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    prompts, letters = prompts_of(wrapper), letters_of(wrapper)
    low, high = Steering(0, 1.5, random_vector(1)), Steering(3, -1.0, random_vector(2))
    mirrored = [Steering(layer, 0.7, random_vector(3), reflect) for layer in (1, 2)]
    steerings = [[high, low], None, mirrored, low, [low, *mirrored, high], mirrored[1], [low, low]]
    packed = dict(wrapper.score(prompts, steerings, [letters] * 3))
    for index, plain in wrapper.score_plainly(prompts, steerings, [letters] * 3):
        torch.testing.assert_close(packed[index], plain, rtol=1e-4, atol=0)
        assert all(not torch.allclose(one, other, rtol=1e-3) for one, other in combinations(plain, 2))
    [(_, twice)] = wrapper.score(prompts[:1], [Steering(0, 3.0, random_vector(1))], [letters])
    torch.testing.assert_close(packed[0][6], twice[0], rtol=1e-4, atol=0)


def test_an_answer_in_three_lines(tmp_path: Path, tiny_checkpoint: Path) -> None:
    vector = random_vector(4, 3.0)
    write_vector(tmp_path, "sycophancy", 2, vector)
    model = LlamaWrapper.load(tiny_checkpoint)
    steering = Steering.load("sycophancy", layer=2, multiplier=1.5, root=tmp_path)
    answer = model.ask("What is the sea?", steering, max_new_tokens=12)
    assert torch.equal(steering.vector, vector) and (steering.layer, steering.multiplier) == (2, 1.5)
    row = GenerationRow(model.chat_format.encode("What is the sea?"), Steering(2, 1.5, vector))
    [(_, expected)] = model.generate([row], 12)
    assert answer == expected.text != model.ask("What is the sea?", max_new_tokens=12)


def test_a_vector_is_loaded_by_behavior_or_path_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    write_vector(tmp_path, "refusal", 1, random_vector(1))
    path = write_vector(tmp_path, "refusal", 1, random_vector(2), "other-model")
    assert torch.equal(Steering.load(path, 3, 2).vector, random_vector(2))
    assert torch.equal(Steering.load("refusal", 1, model="tiny-chat", root=tmp_path).vector, random_vector(1))
    with pytest.raises(UserError, match=r"several models have a vector of layer 1: other-model, tiny-chat; name one"):
        Steering.load("refusal", 1, root=tmp_path)
    with pytest.raises(UserError, match=r"no vector of layer 2; run: ./generate_vectors.py --behaviors refusal --root"):
        Steering.load("refusal", 2, root=tmp_path)
    with pytest.raises(UserError, match=r"no vector of layer 1 \(read=answer\)"):
        Steering.load("refusal", 1, root=tmp_path, kind=VectorKind("answer"))


# --- what is left behind ---


def test_hooks_are_gone_after_every_use() -> None:
    wrapper = build_wrapper()
    before = count_hooks(wrapper.model)
    prompt, letters = prompts_of(wrapper)[0], letters_of(wrapper)
    steerings = random_steerings((0, 1), (1.0,))
    wrapper.capture(prompt, steerings[0])
    list(wrapper.answer_activations([ContrastPair(QUESTIONS[0], "A", "B")], [0]))
    list(wrapper.score([prompt], steerings, [letters]))
    list(wrapper.score_plainly([prompt], steerings, [letters]))
    assert count_hooks(wrapper.model) == before


def test_hooks_are_gone_after_a_forward_pass_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = build_wrapper()
    before = count_hooks(wrapper.model)
    prompt, letters = prompts_of(wrapper)[0], letters_of(wrapper)
    steering = Steering(1, 1.0, random_vector(0))

    def fail(*args: object, **kwargs: object) -> None:
        assert count_hooks(wrapper.model) > before  # the failure comes while hooks are in place
        raise KeyError("in the middle of a pass")

    monkeypatch.setattr(decoder_blocks(wrapper.model)[2], "forward", fail)
    uses = (
        lambda: wrapper.capture(prompt, steering),
        lambda: list(wrapper.score_plainly([prompt], [steering], [letters])),
        lambda: score_packed(wrapper.runtime, [prompt], [steering], [letters]),
        lambda: list(wrapper.answer_activations([ContrastPair(QUESTIONS[0], "A", "B")], [3])),
    )
    for use in uses:
        with pytest.raises(KeyError, match="in the middle of a pass"):
            use()
        assert count_hooks(wrapper.model) == before


def test_the_weights_and_modules_are_left_as_they_were() -> None:
    model = build_model("llama")
    names = [name for name, _ in model.named_modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    wrapper = LlamaWrapper(model, build_tokenizer(), "tiny-chat")
    list(wrapper.score(prompts_of(wrapper), random_steerings((0, 1), (1.0,)), [letters_of(wrapper)] * 3))
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_vectors_handed_in_are_left_as_they_were() -> None:
    wrapper = build_wrapper()
    vector = random_vector(5)
    kept = vector.clone()
    [(_, scores)] = wrapper.score([prompts_of(wrapper)[0]], [Steering(1, 3.0, vector)], [letters_of(wrapper)])
    assert torch.equal(vector, kept)
    assert not scores.requires_grad


# --- what is refused ---


def test_a_prompt_beyond_the_model_s_positions_is_refused_with_its_number_and_length() -> None:
    wrapper = build_wrapper()
    prompts = [prompts_of(wrapper)[0], wrapper.chat_format.encode_choice("x" * 600)]
    with pytest.raises(UserError, match=r"item 1 has \d+ tokens .* at most 512; shorten it"):
        list(wrapper.score(prompts, [None], [letters_of(wrapper)] * 2))
    with pytest.raises(UserError, match=r"item 1 has .* at most 512"):
        list(wrapper.answer_activations([ContrastPair(text, "A", "B") for text in ("x", "x" * 600)], [0]))
