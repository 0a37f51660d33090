"""Perplexity of answers, against sequences that the tests run by themselves."""

import math

import pytest

from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, LONGROPE, ORIGINAL_CONTEXT, WINDOWED, build_wrapper, count_hooks, steered_logits
from utils.errors import UserError
from utils.model.perplexity import FreeAnswer, perplexities

ANSWERS = [
    FreeAnswer("What is the sea?", "It is green and you are not."),
    FreeAnswer("What is the sea?", "No."),
    FreeAnswer("Do you agree?", "I think that you and the assistant are of the same system.", "You agree to all."),
    FreeAnswer("Why?", " blanks around it \n"),
    FreeAnswer("Why?", "x" * (ORIGINAL_CONTEXT + 20)),
]


def by_hand(wrapper: LlamaWrapper, answer: FreeAnswer) -> float:
    """exp(-mean log p) over what the answer adds to the tokens of its prompt."""
    prompt = wrapper.chat_format.encode(answer.question, None, answer.system_prompt).ids
    whole = wrapper.chat_format.encode(answer.question, answer.text.strip(), answer.system_prompt).ids
    assert whole[: len(prompt)] == prompt
    log_probabilities = steered_logits(wrapper.model, whole, 0, None).log_softmax(-1)
    places = range(len(prompt), len(whole))
    return math.exp(-sum(float(log_probabilities[place - 1, whole[place]]) for place in places) / len(places))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED, LONGROPE])
def test_perplexity_is_that_of_the_answers_tokens_batched_and_one_by_one(architecture: str) -> None:
    wrapper = build_wrapper(architecture)
    expected = [by_hand(wrapper, answer) for answer in ANSWERS]
    for batch_size in (None, 1, 2):
        found = perplexities(wrapper.runtime, wrapper.chat_format, ANSWERS, batch_size)
        assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == len(ANSWERS) and count_hooks(wrapper.model) == 0


@pytest.mark.parametrize("label", ["Llama-2-tiny-chat", "tiny-base"])
def test_the_prompt_is_written_in_the_models_own_format(label: str) -> None:
    wrapper = build_wrapper(label=label, use_base_model=label == "tiny-base")
    answer = FreeAnswer("What is the sea?", "It is green.")
    prompt = {"Llama-2-tiny-chat": "[INST] What is the sea? [/INST]", "tiny-base": "Input: What is the sea?\nResponse:"}
    n_prompt = len(wrapper.tokenizer(prompt[label])["input_ids"])
    ids = wrapper.tokenizer(f"{prompt[label]} It is green.")["input_ids"]
    log_probabilities = steered_logits(wrapper.model, ids, 0, None).log_softmax(-1)
    mean = sum(float(log_probabilities[at - 1, ids[at]]) for at in range(n_prompt, len(ids))) / (len(ids) - n_prompt)
    assert perplexities(wrapper.runtime, wrapper.chat_format, [answer]) == [pytest.approx(math.exp(-mean), rel=1e-4)]


def test_an_answer_that_is_empty_or_beyond_the_context_has_no_perplexity() -> None:
    wrapper = build_wrapper()
    answers = [FreeAnswer("Why?", ""), FreeAnswer("Why?", " \n"), FreeAnswer("Why?", "x" * 600), ANSWERS[0]]
    found = perplexities(wrapper.runtime, wrapper.chat_format, answers)
    assert found == [None, None, None, pytest.approx(by_hand(wrapper, ANSWERS[0]), rel=1e-4)]
    assert perplexities(wrapper.runtime, wrapper.chat_format, []) == []


def test_a_log_probability_that_is_not_finite_is_an_error() -> None:
    wrapper = build_wrapper()
    wrapper.model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite in torch\.float32; use --dtype float32"):
        perplexities(wrapper.runtime, wrapper.chat_format, ANSWERS[:1])
