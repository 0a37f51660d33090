"""Gates: which prompts open them, rows gated each for itself, and how a threshold is found."""

import pytest
import torch

from llama_wrapper import LlamaWrapper
from tests.models import build_wrapper, random_vector
from utils.data.records import PromptPair
from utils.errors import UserError
from utils.model.answer_rows import AnswerPair
from utils.model.chat_format import PromptTokens
from utils.model.conditions import best_threshold, fit_condition, opened, prompt_means
from utils.model.generation import GenerationRow
from utils.model.pairs import encode_answer
from utils.model.side_effects import measure_kl, neutral_answers
from utils.model.steering import Condition, Steering, Steerings

QUESTIONS = [f"{topic} {'very ' * n}the answer?" for n in (1, 4, 2) for topic in ("What is the sea of", "Do you agree")]
LAYER = 1


def mean_by_hand(wrapper: LlamaWrapper, prompt: PromptTokens, layer: int) -> torch.Tensor:
    with torch.no_grad():
        states = wrapper.model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    return states[layer + 1][0, 1 : prompt.steer_start + 1].double().mean(dim=0)


def halving(wrapper: LlamaWrapper, prompts: list[PromptTokens]) -> tuple[Condition, list[bool]]:
    """A condition that half of the prompts fulfil, and which, by the test's own cosine."""
    vector = random_vector(9)
    scores = [
        float(torch.cosine_similarity(mean_by_hand(wrapper, prompt, LAYER), vector.double(), dim=0))
        for prompt in prompts
    ]
    threshold = sum(sorted(scores)[2:4]) / 2
    return Condition(LAYER, vector, threshold), [score >= threshold for score in scores]


def test_a_prompt_s_score_is_the_signed_cosine_of_its_mean_without_the_first_token() -> None:
    wrapper = build_wrapper("gpt2")
    prompt = wrapper.chat_format.encode(QUESTIONS[0], "an answer that has no part in it")
    torch.testing.assert_close(prompt_means(wrapper, prompt, [0, 2])[1], mean_by_hand(wrapper, prompt, 2))
    up = Condition(0, torch.tensor([1.0, 0.0]), 0.0)
    assert up.score(torch.tensor([-3.0, 4.0])) == pytest.approx(-0.6)
    assert not up.is_open(torch.tensor([-3.0, 4.0])) and up.is_open(torch.tensor([3.0, 4.0]))
    assert Condition(0, torch.tensor([1.0, 0.0]), 0.0, opens_above=False).is_open(torch.tensor([-3.0, 4.0]))


def test_open_rows_are_steered_and_closed_ones_keep_every_bit_in_every_pass() -> None:
    wrapper = build_wrapper()
    prompts = [wrapper.chat_format.encode(question) for question in QUESTIONS]
    condition, is_open = halving(wrapper, prompts)
    assert sorted(is_open) == [False] * 3 + [True] * 3
    free = Steering(2, 1.5, random_vector(3))
    gated = Steering(2, 1.5, free.vector, condition=condition)
    steerings: list[Steerings] = [None, gated, [Steering(0, 1.0, random_vector(4)), gated]]
    letters = [[5, 9]] * len(prompts)
    packed = dict(wrapper.score(prompts, steerings, letters))
    plain = dict(wrapper.score_plainly(prompts, steerings, letters))
    always = dict(wrapper.score_plainly(prompts, [free], letters))
    for index, opens in enumerate(is_open):
        torch.testing.assert_close(packed[index], plain[index], rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(plain[index][1], always[index][0] if opens else plain[index][0], rtol=1e-5, atol=0)
        if not opens:
            assert torch.equal(packed[index][1], packed[index][0])
            assert torch.equal(wrapper.capture(prompts[index], gated), wrapper.capture(prompts[index]))
    rows = [GenerationRow(prompt, row) for prompt in prompts for row in (gated, free, None)]
    texts = [generation.token_ids for _, generation in sorted(wrapper.generate(rows, 4))]
    for index, opens in enumerate(is_open):
        of_prompt = texts[3 * index : 3 * index + 3]
        assert of_prompt[0] == of_prompt[1 if opens else 2]


def test_answers_and_kl_are_gated_by_their_prompt() -> None:
    wrapper = build_wrapper()
    encode = wrapper.chat_format
    pairs = [AnswerPair(encode_answer(encode, q, "the sea"), encode_answer(encode, q, "not Yes")) for q in QUESTIONS]
    condition, is_open = halving(wrapper, [pair.matching for pair in pairs])
    free = Steering(2, 1.5, random_vector(3))
    gated = Steering(2, 1.5, free.vector, condition=condition)
    packed = dict(wrapper.score_answers(pairs, [None, gated, free], skip={4}))
    plain = dict(wrapper.score_answers_plainly(pairs, [None, gated, free]))
    assert sorted(packed) == [0, 1, 2, 3, 5]
    for index, scores in packed.items():
        torch.testing.assert_close(scores, plain[index], rtol=1e-4, atol=1e-5)
        assert torch.equal(plain[index][1], plain[index][2 if is_open[index] else 0])
    answers = neutral_answers(wrapper, [encode.encode(question) for question in QUESTIONS])
    kl = measure_kl(wrapper, answers, [gated, free]).kl
    start = 0
    for answer, opens in zip(answers, is_open, strict=True):
        of_answer = kl[:, start : start + answer.n_answer]
        torch.testing.assert_close(of_answer[0], of_answer[1] if opens else torch.zeros_like(of_answer[1]))
        start += answer.n_answer


def test_a_threshold_has_the_best_f1_there_is() -> None:
    threshold, opens_above, f1 = best_threshold([0.5, 0.6, 0.9], [0.1, 0.55])
    assert (opens_above, f1) == (True, pytest.approx(6 / 7)) and 0.1 < threshold < 0.5
    threshold, opens_above, f1 = best_threshold([-0.4, -0.3], [0.1, 0.2])
    assert (opens_above, f1) == (False, 1.0) and -0.3 < threshold < 0.1
    assert best_threshold([0.3], [0.3])[2] == pytest.approx(2 / 3)  # nothing tells them apart: all are let in


def test_a_fitted_condition_opens_for_prompts_like_those_it_was_fitted_on() -> None:
    wrapper = build_wrapper()
    pairs = [PromptPair(f"What is the sea of {n} and {n}?", f"Do you agree that {n} is not {n}?") for n in range(12)]
    fitted = fit_condition(wrapper, pairs, range(4))
    assert fitted.f1 == 1.0 and fitted.n_pairs == 6
    gated = Steering(2, 1.0, random_vector(1), condition=fitted.condition)
    for question, opens in (("What is the sea of 77 and 78?", True), ("Do you agree that 77 is not 78?", False)):
        assert (opened(wrapper, wrapper.chat_format.encode(question), [gated]) != [None]) == opens
    with_vector = fit_condition(wrapper, pairs, [2], vector=-fitted.condition.vector)
    assert with_vector.condition.layer == 2 and with_vector.n_pairs == 12
    with pytest.raises(UserError, match="at least 4 pairs of prompts, found 3"):
        fit_condition(wrapper, pairs[:3], [0])


def test_a_gate_before_a_prompt_that_is_steered_from_its_beginning_is_refused() -> None:
    wrapper = build_wrapper()
    prompt = PromptTokens(wrapper.chat_format.encode("Why?").ids, 0)
    with pytest.raises(UserError, match="before the first steered token"):
        list(
            wrapper.score(
                [prompt], [Steering(0, 1.0, random_vector(1), condition=Condition(0, random_vector(2), 0))], [[1]]
            )
        )
