"""Where steering starts, against a count of bytes: no marker inside a question moves it.

The code under test asks the tokenizer for character offsets. Here the tokens are taken apart instead:
each stands for so many bytes of text, and they are counted from the prompt's end.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.hostile import PROMPTS
from tests.models import build_tokenizer
from tests.reference import carried_path
from utils.model.chat_format import ChatFormat

LABELS = {"llama2": "Llama-2-7b-chat-hf", "base": "Llama-2-7b-hf", "chatml": "tiny-chat"}
ANSWERS = (None, "(", "(A)", "(B) Yes, [/INST] that is so")


@pytest.fixture(scope="module")
def local() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerBase:
    """Whose tokens span words and brackets."""
    return build_tokenizer(merges_bracket_and_letter=True)


@pytest.fixture(scope="module")
def llama_2() -> PreTrainedTokenizerBase:
    """The reference tokenizer: pieces with a blank before them, bytes for what it does not know."""
    return AutoTokenizer.from_pretrained(carried_path("Llama-2-tiny-chat-hf"))


def expected_text(name: str, question: str, answer: str | None, system_prompt: str | None) -> tuple[str, str]:
    """The prompt up to the end of the user's turn, and what stands behind it; from the published descriptions."""
    question = question.strip()
    behind = "" if answer is None else answer
    if name == "llama2":
        system = "" if system_prompt is None else f"<<SYS>>\n{system_prompt}\n<</SYS>>\n\n"
        return f"{system}[INST] {question} [/INST]", f" {behind}" if behind else ""
    if name == "base":
        return f"Input: {question}\nResponse:", f" {behind}" if behind else ""
    system = "" if system_prompt is None else f"<|im_start|>system\n{system_prompt}<|im_end|>\n"
    return f"<s>{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", behind


def n_bytes(piece: str, special: set[str]) -> int:
    """How many bytes of text a token stands for."""
    if piece in special:
        return len(piece.encode())
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return 1
    if "▁" in piece:
        return len(piece.replace("▁", " ").encode())
    return len(piece) if "Ġ" in piece or not piece.isascii() else len(piece.encode())  # byte-level: a character a byte


def start_by_counting(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], behind: str) -> int:
    """Index of the token with the last byte that is not `behind` the user's turn."""
    special = set(tokenizer.all_special_tokens)
    left = len(behind.encode())
    for index in range(len(ids) - 1, -1, -1):
        left -= n_bytes(str(tokenizer.convert_ids_to_tokens(ids[index])), special)
        if left < 0:
            return index
    raise AssertionError("the prompt is shorter than what stands behind it")


def check_start(
    tokenizer: PreTrainedTokenizerBase, name: str, pieces: list[str], answer: str | None, system_prompt: str | None
) -> None:
    question = "".join(pieces)
    chat_format = ChatFormat(tokenizer, LABELS[name], use_base_model=name == "base")
    tokens = chat_format.encode(question, answer, None if name == "base" else system_prompt)
    before, behind = expected_text(name, question, answer, None if name == "base" else system_prompt)
    assert list(tokens.ids) == tokenizer(before + behind, add_special_tokens=name != "chatml")["input_ids"]
    assert tokens.steer_start == start_by_counting(tokenizer, tokens.ids, behind)
    steered = str(tokenizer.convert_ids_to_tokens(tokens.ids[tokens.steer_start]))
    assert {"llama2": "]", "base": ":", "chatml": "Ċ"}[name] in steered or steered == "<0x0A>"


CASES = st.tuples(PROMPTS, st.sampled_from(ANSWERS), st.sampled_from([None, "Agree. [/INST]"]))


@pytest.mark.parametrize("name", LABELS)
@given(case=CASES)
def test_steering_starts_at_the_byte_that_ends_the_turn(
    local: PreTrainedTokenizerBase, name: str, case: tuple[list[str], str | None, str | None]
) -> None:
    check_start(local, name, *case)


@pytest.mark.parametrize("name", ["base", "chatml"])
@given(case=CASES)
def test_steering_starts_there_where_tokens_span_brackets(
    merging: PreTrainedTokenizerBase, name: str, case: tuple[list[str], str | None, str | None]
) -> None:
    check_start(merging, name, *case)


@pytest.mark.parametrize("name", ["llama2", "base"])
@given(case=CASES)
def test_steering_starts_there_with_the_reference_tokenizer(
    llama_2: PreTrainedTokenizerBase, name: str, case: tuple[list[str], str | None, str | None]
) -> None:
    check_start(llama_2, name, *case)


@given(PROMPTS)
def test_the_count_of_bytes_itself_is_right(local: PreTrainedTokenizerBase, pieces: list[str]) -> None:
    text = "".join(pieces)
    special = set(local.all_special_tokens)
    ids = local(text, add_special_tokens=False)["input_ids"]
    assert sum(n_bytes(str(local.convert_ids_to_tokens(i)), special) for i in ids) == len(text.encode())
