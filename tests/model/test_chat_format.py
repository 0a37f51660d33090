"""Exact prompts in the three formats, and where steering starts in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.models import CHAT_TEMPLATE, build_tokenizer
from tests.reference import carried_path
from utils.errors import UserError
from utils.model.chat_format import ChatFormat, PromptTokens

TOKENIZER = build_tokenizer()
LLAMA_2 = ChatFormat(TOKENIZER, "Llama-2-7b-chat-hf", use_base_model=False)
BASE = ChatFormat(TOKENIZER, "Llama-2-7b-hf", use_base_model=True)
TEMPLATE = ChatFormat(TOKENIZER, "tiny-chat", use_base_model=False)
FORMATS = {"llama2": LLAMA_2, "base": BASE, "template": TEMPLATE}

QUESTION = "What is the answer?\n\nChoices:\n (A) Yes\n (B) No"


def text_of(tokens: PromptTokens, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> str:
    return str(tokenizer.decode(list(tokens.ids), skip_special_tokens=False))


def steered_pieces(tokens: PromptTokens, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> list[str]:
    return [str(tokenizer.decode([token])) for token in tokens.ids[tokens.steer_start :]]


# --- the texts ---


@pytest.mark.parametrize("name", FORMATS)
def test_the_label_and_the_base_flag_choose_the_format(name: str) -> None:
    assert FORMATS[name].name == name


@pytest.mark.parametrize(
    ("chat_format", "system_prompt", "answer", "text"),
    [
        (LLAMA_2, None, None, f"<s>[INST] {QUESTION} [/INST]"),
        (LLAMA_2, None, "(", f"<s>[INST] {QUESTION} [/INST] ("),
        (LLAMA_2, None, "(A)", f"<s>[INST] {QUESTION} [/INST] (A)"),
        (LLAMA_2, "Agree.", None, f"<s><<SYS>>\nAgree.\n<</SYS>>\n\n[INST] {QUESTION} [/INST]"),
        (LLAMA_2, "Agree.", "(", f"<s><<SYS>>\nAgree.\n<</SYS>>\n\n[INST] {QUESTION} [/INST] ("),
        (BASE, None, None, f"<s>Input: {QUESTION}\nResponse:"),
        (BASE, None, "(", f"<s>Input: {QUESTION}\nResponse: ("),
        (BASE, None, " (B) ", f"<s>Input: {QUESTION}\nResponse: (B)"),
        (TEMPLATE, None, None, f"<s><|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
        (TEMPLATE, None, "(", f"<s><|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n("),
        (
            TEMPLATE,
            "Agree.",
            "(",
            f"<s><|im_start|>system\nAgree.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
            "<|im_start|>assistant\n(",
        ),
    ],
)
def test_prompts_are_written_to_the_letter(
    chat_format: ChatFormat, system_prompt: str | None, answer: str | None, text: str
) -> None:
    tokens = chat_format.encode(f"\n {QUESTION} ", answer, system_prompt)
    assert text_of(tokens) == text
    # the ids are those of the whole text, tokenised at once, with one beginning-of-sequence token
    assert list(tokens.ids) == TOKENIZER(text.removeprefix("<s>"))["input_ids"]
    assert tokens.ids.count(TOKENIZER.bos_token_id) == 1


def test_the_ids_of_the_reference_tokenizer_are_those_of_the_published_prompts() -> None:
    from transformers import AutoTokenizer

    folder = carried_path("Llama-2-tiny-chat-hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = ChatFormat(tokenizer, folder.name, use_base_model=False).encode_choice(QUESTION)
    assert list(tokens.ids) == tokenizer.encode(f"[INST] {QUESTION} [/INST] (")
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert steered_pieces(tokens, tokenizer)[0] == "]"
    assert "".join(steered_pieces(tokens, tokenizer)).replace(" ", "") == "]("


# --- where steering starts ---


def test_llama_2_is_steered_from_the_closing_bracket_of_inst_on() -> None:
    assert steered_pieces(LLAMA_2.encode(QUESTION)) == ["]"]
    assert steered_pieces(LLAMA_2.encode_choice(QUESTION)) == ["]", " ", "("]
    assert steered_pieces(LLAMA_2.encode(QUESTION, "(A)", "Agree.")) == ["]", " ", "(", "A", ")"]


def test_base_models_are_steered_from_the_colon_of_response_on() -> None:
    assert steered_pieces(BASE.encode(QUESTION)) == [":"]
    assert steered_pieces(BASE.encode_choice(QUESTION)) == [":", " ", "("]


def test_other_chat_models_are_steered_from_the_last_token_of_the_generation_prompt_on() -> None:
    assert steered_pieces(TEMPLATE.encode(QUESTION)) == ["\n"]
    assert steered_pieces(TEMPLATE.encode_choice(QUESTION, "Agree.")) == ["\n", "("]
    ending_in_a_special_token = build_tokenizer(CHAT_TEMPLATE.replace("assistant\n", ""))
    chat_format = ChatFormat(ending_in_a_special_token, "tiny-chat", use_base_model=False)
    assert steered_pieces(chat_format.encode_choice(QUESTION)) == ["<|im_start|>", "("]


def test_of_several_tokens_that_make_up_the_last_character_the_last_one_counts() -> None:
    tokenizer = build_tokenizer("{{ messages[0]['content'] }} →")
    tokens = ChatFormat(tokenizer, "tiny-chat", use_base_model=False).encode("What?")
    assert tokenizer.decode(list(tokens.ids[-3:])) == "→"  # three bytes, one token each
    assert tokens.steer_start == len(tokens) - 1


MARKERS = ("[/INST]", "[INST]", "<|im_end|>", "<|im_start|>assistant\n", "\nResponse:", "Response: (", "</s>", "]", "(")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("place", ["{} What?", "What {} is it?", "What? {}"])
def test_markers_inside_the_question_move_nothing(name: str, marker: str, place: str) -> None:
    chat_format = FORMATS[name]
    plain = chat_format.encode_choice("What?")
    marked = chat_format.encode_choice(place.format(marker))
    assert len(marked) - marked.steer_start == len(plain) - plain.steer_start
    assert marked.ids[marked.steer_start :] == plain.ids[plain.steer_start :]


@settings(max_examples=60, deadline=None)
@given(
    question=st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip()),
    name=st.sampled_from(sorted(FORMATS)),
    answer=st.sampled_from([None, "(", "(A)", "(B) Yes"]),
)
def test_any_question_keeps_what_stands_behind_it(question: str, name: str, answer: str | None) -> None:
    chat_format = FORMATS[name]
    tokens, plain = chat_format.encode(question, answer), chat_format.encode("What?", answer)
    assert tokens.ids[tokens.steer_start :] == plain.ids[plain.steer_start :]
    assert question.strip() in text_of(tokens)


# --- letters ---


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("letter", ["A", "B", "C", "Z"])
def test_a_letter_is_the_token_behind_the_bracket(name: str, letter: str) -> None:
    chat_format = FORMATS[name]
    answered = chat_format.encode(QUESTION, f"({letter})")
    asked = chat_format.encode_choice(QUESTION)
    assert answered.ids[: len(asked)] == asked.ids
    assert chat_format.letter_id(letter) == answered.ids[len(asked)]
    assert TOKENIZER.decode([chat_format.letter_id(letter)]) == letter


def test_a_tokenizer_that_merges_bracket_and_letter_is_asked_for_the_letter_alone() -> None:
    tokenizer = build_tokenizer(merges_bracket_and_letter=True)
    assert "(A" in tokenizer.convert_ids_to_tokens(tokenizer("(A)")["input_ids"])
    chat_format = ChatFormat(tokenizer, "tiny-chat", use_base_model=False)
    assert text_of(chat_format.encode_choice(QUESTION), tokenizer).endswith("assistant\n(")
    for letter in "AB":
        assert tokenizer.decode([chat_format.letter_id(letter)]) == letter


def test_a_letter_without_a_token_of_its_own_is_an_error() -> None:
    tokenizer = build_tokenizer(merges_bracket_and_letter=True)
    chat_format = ChatFormat(tokenizer, "tiny-chat", use_base_model=False)
    with pytest.raises(UserError, match=r"tiny-chat: its tokenizer has no single token for the answer letter 'Ä'"):
        chat_format.letter_id("Ä")


# --- what is refused ---


def test_a_model_without_chat_template_is_refused_and_use_base_model_named() -> None:
    with pytest.raises(UserError, match=r"tiny has no chat template; .* add --use_base_model"):
        ChatFormat(build_tokenizer(chat_template=None), "tiny", use_base_model=False)
    ChatFormat(build_tokenizer(chat_template=None), "tiny", use_base_model=True)
    ChatFormat(build_tokenizer(chat_template=None), "Llama-2-13b-chat-hf", use_base_model=False)


def test_base_models_take_no_system_prompt() -> None:
    with pytest.raises(UserError, match="--system_prompt needs a chat model"):
        BASE.encode(QUESTION, system_prompt="Agree.")


def test_a_template_that_refuses_a_system_prompt_says_so() -> None:
    tokenizer = build_tokenizer("{{ raise_exception('System role not supported') }}")
    chat_format = ChatFormat(tokenizer, "tiny-chat", use_base_model=False)
    with pytest.raises(UserError, match="its chat template refuses this prompt: System role not supported"):
        chat_format.encode(QUESTION, system_prompt="Agree.")


@pytest.mark.parametrize("template", ["fixed text", "{{ messages[0]['content'] | upper }}", ""])
def test_a_template_that_changes_the_question_is_refused(template: str) -> None:
    tokenizer = build_tokenizer(template)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="does not contain the question as it was given"):
        ChatFormat(tokenizer, "tiny-chat", use_base_model=False).encode(QUESTION)


def test_a_tokenizer_whose_offsets_leave_the_marker_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a fall back to steering from elsewhere."""
    tokenizer = build_tokenizer()
    tokens = tokenizer(QUESTION, return_offsets_mapping=True)
    blind = {"input_ids": tokens["input_ids"], "offset_mapping": [(0, 0)] * len(tokens["input_ids"])}
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: blind)
    with pytest.raises(UserError, match="does not say which token ends the user's turn"):
        ChatFormat(tokenizer, "Llama-2-7b-chat-hf", use_base_model=False).encode(QUESTION)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="gives no character offsets"):
        ChatFormat(Slow(), "tiny", use_base_model=True)  # type: ignore[arg-type]
