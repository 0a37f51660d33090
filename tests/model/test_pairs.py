"""Which tokens of a contrast pair are read: each half against a sequence that the test runs by itself."""

import pytest
import torch
from torch import Tensor

from tests.model.test_llama_wrapper import hidden_states
from tests.models import ARCHITECTURES, build_wrapper
from utils.data.records import AnyPair, ContrastPair, PromptPair, TextPair
from utils.errors import UserError
from utils.model.pairs import encode_pair
from utils.settings import Reading

TEXTS = [
    TextPair("What is the sea?", "It is green and you are not.", "No."),
    TextPair("Why?", "Yes", "I think that you and the assistant are of the same system."),
    TextPair("Do you agree?", "I agree that it is", "I agree that it is not"),
]
PROMPTS = [PromptPair("What is the sea?", "Do you think that the user is not the answer?"), PromptPair("Why?", "Who?")]
LAYERS = [0, 2]


def by_hand(wrapper: object, pair: AnyPair, reading: Reading) -> Tensor:
    """[2, n_layers, d_model] by `output_hidden_states`, from text alone."""
    format_ = wrapper.chat_format  # type: ignore[attr-defined]
    halves = []
    for text in (pair.matching, pair.other):  # type: ignore[union-attr]
        question, answer = (text, None) if reading == "prompt" else (pair.question, text)  # type: ignore[union-attr]
        n_prompt = len(format_.encode(question).ids)
        ids = format_.encode(question, answer).ids
        states = torch.stack([hidden_states(wrapper, ids)[layer + 1][0] for layer in LAYERS])  # type: ignore[arg-type]
        read = {"answer": states[:, n_prompt:].mean(1), "last": states[:, -1], "prompt": states[:, n_prompt - 1]}
        halves.append(read[reading])
    return torch.stack(halves)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("reading", "pairs"), [("answer", TEXTS), ("last", TEXTS), ("prompt", PROMPTS)])
def test_a_reading_is_the_mean_over_its_tokens_packed_and_plain(
    architecture: str, reading: Reading, pairs: list[AnyPair]
) -> None:
    wrapper = build_wrapper(architecture)
    for read in (
        lambda: wrapper.answer_activations(pairs, LAYERS, read=reading),
        lambda: wrapper.answer_activations_plainly(pairs, LAYERS, read=reading),
    ):
        seen = []
        for indices, positive, negative in read():
            for place, index in enumerate(indices):
                expected = by_hand(wrapper, pairs[index], reading)
                torch.testing.assert_close(positive[place], expected[0], rtol=0, atol=1e-5)
                torch.testing.assert_close(negative[place], expected[1], rtol=0, atol=1e-5)
                seen.append(index)
        assert sorted(seen) == list(range(len(pairs)))


def test_what_both_halves_share_runs_once_but_nothing_that_is_read() -> None:
    chat_format = build_wrapper().chat_format
    prompt = chat_format.encode("Do you agree?")
    pair = encode_pair(chat_format, TEXTS[2], "answer")
    assert pair.prefix == prompt.ids  # the answers' common words are read, so they are not shared
    last = encode_pair(chat_format, TEXTS[2], "last")
    assert len(last.prefix) > len(prompt) and all(len(tail) >= 1 for tail in last.tails)
    assert encode_pair(chat_format, PROMPTS[0], "prompt").n_shared > 0  # the template's beginning


@pytest.mark.parametrize(
    ("reading", "pair"),
    [("answer", ContrastPair("Q", "A", "B")), ("letter", TEXTS[0]), ("prompt", TEXTS[0]), ("last", PROMPTS[0])],
)
def test_a_pair_of_another_form_is_refused(reading: Reading, pair: AnyPair) -> None:
    with pytest.raises(UserError, match=f"--read {reading} does not take pairs of the form"):
        encode_pair(build_wrapper().chat_format, pair, reading)
