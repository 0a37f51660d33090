"""The leaning of an answer is a difference of log-probabilities under two system prompts."""

import math

import pytest
import torch

from tests.models import build_wrapper
from utils.authoring.leaning import leanings
from utils.behaviors import SystemPrompts
from utils.data.records import PromptPair
from utils.model.pairs import encode_pair

PROMPTS = [
    SystemPrompts("Talk of the sea.", "Say nothing of water at all."),
    SystemPrompts("You are glad.", "You are not."),
]
ANSWERED = [("What is it?", "the sea and the answer"), ("Do you think?", "That is what you think of the answer.")]


def test_leaning_equals_one_pass_for_each_prompt() -> None:
    model = build_wrapper()
    found = leanings(model.runtime, model.chat_format, ANSWERED, PROMPTS)
    for place, ((question, answer), prompts) in enumerate(zip(ANSWERED, PROMPTS, strict=True)):
        means = []
        for system in (prompts.pos, prompts.neg):
            prompt = model.chat_format.encode(question, None, system)
            ids = model.chat_format.encode(question, answer, system).ids
            with torch.no_grad():
                logs = model.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            new = ids[prompt.steer_start + 1 :]
            start = prompt.steer_start
            means.append(sum(float(logs[start + i, token]) for i, token in enumerate(new)) / len(new))
        assert found[place] == pytest.approx(means[0] - means[1], abs=1e-4)
    assert abs(found[0]) > 1e-3


def test_exchanged_prompts_turn_the_sign_and_no_text_has_no_leaning() -> None:
    model = build_wrapper()
    turned = [SystemPrompts(one.neg, one.pos) for one in PROMPTS]
    found = leanings(model.runtime, model.chat_format, ANSWERED, PROMPTS)
    assert leanings(model.runtime, model.chat_format, ANSWERED, turned) == pytest.approx(-found, abs=1e-6)
    [nothing] = leanings(model.runtime, model.chat_format, [("What is it?", "")], PROMPTS[:1])
    assert math.isnan(nothing)


@pytest.mark.parametrize("reading", ["prompt", "prompt_mean"])
def test_prompts_with_system_prompts_are_read_where_they_part(reading: str) -> None:
    model = build_wrapper()
    pair = PromptPair("What is it?", "What is it?", PROMPTS[0].pos, PROMPTS[0].neg)
    tokens = [model.chat_format.encode("What is it?", None, system) for system in (PROMPTS[0].pos, PROMPTS[0].neg)]
    n_shared = next(i for i, (a, b) in enumerate(zip(*(one.ids for one in tokens), strict=False)) if a != b)
    expected = []
    for one in tokens:
        last = one.steer_start
        captured = model.capture(one)[2].float()
        expected.append(captured[last] if reading == "prompt" else captured[n_shared : last + 1].mean(dim=0))
    [(_, positive, negative)] = model.answer_activations([pair], [2], read=reading)  # type: ignore[arg-type]
    torch.testing.assert_close(positive[0, 0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(negative[0, 0], expected[1], atol=1e-5, rtol=1e-4)
    assert n_shared > 2
    assert encode_pair(model.chat_format, pair, reading).positive.read_from == (  # type: ignore[arg-type]
        tokens[0].steer_start if reading == "prompt" else n_shared
    )
