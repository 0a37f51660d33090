"""Texts and conversations as tokens, and which tokens belong to which turn.

Where a turn stands is known from building the text, not from searching for what it says; the tokenizer's
character offsets say which tokens that are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.exports.texts import MonitoredText, Role, Turn

if TYPE_CHECKING:
    from utils.model.chat_format import ChatFormat


@dataclass(frozen=True)
class TurnTokens:
    """The tokens of one turn, without what its template puts around it."""

    role: Role
    start: int
    end: int
    """One behind the last."""

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class EncodedText:
    """A text as the model reads it."""

    ids: tuple[int, ...]
    turns: tuple[TurnTokens, ...]
    """Those that are measured: a conversation's of user and assistant, or a text by itself."""

    @property
    def measured(self) -> tuple[TurnTokens, ...]:
        """The turns whose tokens a text's own value is the mean over: the assistant's, or a text by itself."""
        return tuple(turn for turn in self.turns if turn.role in ("assistant", "text"))


def encode_text(chat_format: "ChatFormat", text: MonitoredText) -> EncodedText:
    """The tokens of a record, without its first token, an attention sink in many models.

    Raises:
        UserError: If the model's format cannot write it, or nothing of it can be measured.
    """
    if text.is_bare:
        encoded = _bare(chat_format, text.turns[0].text)
    elif [turn.role for turn in text.turns] == ["user", "assistant"]:
        encoded = _question_and_answer(chat_format, text.turns[0].text, text.turns[1].text)
    else:
        encoded = _conversation(chat_format, text.turns)
    if not any(len(turn) for turn in encoded.measured):
        raise UserError("nothing to measure: no token of an assistant's turn, or none behind a text's first token")
    return encoded


def _bare(chat_format: "ChatFormat", text: str) -> EncodedText:
    ids = tuple(chat_format.tokenizer(text, truncation=False)["input_ids"])
    return EncodedText(ids, (TurnTokens("text", min(1, len(ids)), len(ids)),))


def _question_and_answer(chat_format: "ChatFormat", question: str, answer: str) -> EncodedText:
    """As the suite writes it everywhere; the question's turn is the prompt behind its first token."""
    tokens = chat_format.encode(question, answer)
    behind_prompt = tokens.steer_start + 1
    turns = (TurnTokens("user", 1, behind_prompt), TurnTokens("assistant", behind_prompt, len(tokens)))
    return EncodedText(tokens.ids, turns)


def _conversation(chat_format: "ChatFormat", turns: Sequence[Turn]) -> EncodedText:
    if chat_format.name == "base":
        raise UserError("a base model knows no turns; measure its texts as a question and an answer, or by themselves")
    text, places = (_llama2_text if chat_format.name == "llama2" else _template_text)(chat_format, turns)
    encoding = chat_format.tokenizer(
        text, add_special_tokens=chat_format.name != "template", return_offsets_mapping=True, truncation=False
    )
    offsets = encoding["offset_mapping"]
    found = []
    for turn, (start, end) in zip(turns, places, strict=True):
        inside = [i for i, (first, behind) in enumerate(offsets) if i and behind > start and first < end]
        if turn.role != "system":
            found.append(TurnTokens(turn.role, inside[0], inside[-1] + 1) if inside else TurnTokens(turn.role, 0, 0))
    return EncodedText(tuple(encoding["input_ids"]), tuple(found))


def _llama2_text(_: "ChatFormat", turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """Llama 2 chat as CAA writes it, one round behind the other."""
    text, places = "", []
    for place, turn in enumerate(turns):
        before, behind = {
            "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
            "user": ("</s><s>[INST] " if any(t.role == "assistant" for t in turns[:place]) else "[INST] ", " [/INST] "),
        }.get(turn.role, ("", " "))
        content = turn.text.strip()
        places.append((len(text) + len(before), len(text) + len(before) + len(content)))
        text += before + content + behind
    return text.rstrip(" "), places


def _template_text(chat_format: "ChatFormat", turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """A chat template's text. A turn begins where texts with another content in its place begin to differ."""
    messages = [{"role": turn.role, "content": turn.text.strip()} for turn in turns]
    text = _render(chat_format, messages)
    places = []
    for place, message in enumerate(messages):
        before = messages[:place]
        others = [_render(chat_format, [*before, {**message, "content": other}]) for other in ("x", "y")]
        start = next((i for i, (one, other) in enumerate(zip(*others, strict=False)) if one != other), 0)
        end = start + len(message["content"])
        if text[start:end] != message["content"]:
            raise UserError(
                f"{chat_format.model_label}: its chat template does not keep the turns of this conversation as they "
                f"are (turn {place})"
            )
        places.append((start, end))
    return text, places


def _render(chat_format: "ChatFormat", messages: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    try:
        text = chat_format.tokenizer.apply_chat_template(messages, tokenize=False)
    # the template comes with the checkpoint; jinja keeps it in a sandbox but not from failing
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as err:
        raise UserError(f"{chat_format.model_label}: its chat template refuses this conversation: {err}") from err
    assert isinstance(text, str), "tokenize=False gives a text"
    return text
