"""Residual norms, KL to the unsteered model and the linear range, against computations of the tests' own."""

import pytest
import torch

from tests.models import ARCHITECTURES, build_wrapper, random_vector, steered_logits
from utils.errors import UserError
from utils.model.side_effects import ANSWER_TOKENS, linear_range, measure_kl, neutral_answers, residual_norms
from utils.model.steering import Steering

QUESTIONS = ("What is the sea?", "Do you think that the user is not the answer?", "Why?")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_kl_is_that_of_whole_distributions_at_every_answer_token(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    answers = neutral_answers(wrapper, [wrapper.chat_format.encode(question) for question in QUESTIONS])
    assert all(0 < answer.n_answer <= ANSWER_TOKENS for answer in answers)
    steerings = [
        Steering(2, 0.5, random_vector(1)),
        Steering(0, -1.0, random_vector(2)),
        Steering(3, 1.0, random_vector(3)),
    ]
    found = measure_kl(wrapper, answers, steerings).kl
    for row, steering in enumerate(steerings):
        expected = []
        for answer in answers:
            places = slice(len(answer) - answer.n_answer - 1, len(answer) - 1)
            before, after = (
                steered_logits(wrapper.model, answer.ids, answer.steer_start, one)[places].double().log_softmax(-1)
                for one in (None, steering)
            )
            expected += (before.exp() * (before - after)).sum(-1).tolist()
        assert found[row].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_percentiles_are_taken_over_tokens_and_no_steering_has_no_kl() -> None:
    wrapper = build_wrapper()
    answers = neutral_answers(wrapper, [wrapper.chat_format.encode(question) for question in QUESTIONS])
    effects = measure_kl(wrapper, answers, [Steering(1, 0.0, random_vector(1)), Steering(1, 2.0, random_vector(1))])
    assert float(effects.kl[0].max()) < 1e-9
    assert float(effects.percentile(0.95)[1]) == pytest.approx(float(effects.kl[1].double().quantile(0.95)))


def test_the_first_token_has_no_part_in_residual_norms() -> None:
    wrapper = build_wrapper()
    prompts = [wrapper.chat_format.encode(question) for question in QUESTIONS]
    norms = residual_norms(wrapper, prompts)
    with torch.no_grad():  # a sink at the first token: it alone becomes a hundred times as large
        wrapper.model.get_input_embeddings().weight[prompts[0].ids[0]] *= 100
    assert norms[0] == pytest.approx(float(residual_norms(wrapper, prompts)[0]), rel=0.5)


def test_norms_that_are_not_numbers_give_no_strength() -> None:
    wrapper = build_wrapper()
    with torch.no_grad():
        wrapper.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"the residual norm of layer 0 is nan in torch\.float32"):
        residual_norms(wrapper, [wrapper.chat_format.encode("Why?")])


def test_the_linear_range_ends_where_the_last_layer_s_change_turns() -> None:
    wrapper = build_wrapper()
    [answer] = neutral_answers(wrapper, [wrapper.chat_format.encode(QUESTIONS[0])])
    steering = Steering(1, 1.0, random_vector(1))
    amounts = [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 1000.0]
    found = linear_range(wrapper, answer, steering, amounts)
    assert found is not None and 1e-3 <= found < 1000.0
    before = wrapper.capture(answer)[-1, answer.steer_start :].double()

    def cosine(amount: float) -> float:
        changes = [
            (
                wrapper.capture(answer, Steering(1, m, steering.vector))[-1, answer.steer_start :].double() - before
            ).flatten()
            for m in (amounts[0], amount)
        ]
        return float(torch.nn.functional.cosine_similarity(*changes, dim=0))

    assert cosine(found) >= 0.99 > cosine(amounts[amounts.index(found) + 1])
