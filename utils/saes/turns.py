"""Conversations as text, in a model's own chat format and without the system prompt that some templates put in.

The pieces of a template are found once, by rendering it around marks; a conversation is then put together from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from utils.errors import UserError
from utils.model.chat_format import ChatFormat, write_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SystemPrompt = Literal["none", "default"]
"""none: no system prompt, as in the published scripts; default: what the template puts in by itself."""

_USER, _ANSWER, _NEXT = "first mark", "second mark", "third mark"


@dataclass(frozen=True)
class TurnFormat:
    """The text around the words of a conversation."""

    beginning: str
    """Before everything, such as the system prompt; without what the tokenizer adds by itself."""
    before_user: str
    before_answer: str
    """From the end of the user's words to the assistant's: in a prompt, the last characters."""
    after_answer: str
    adds_special_tokens: bool
    """Whether the tokenizer still has to put its own special tokens around the text."""

    def prompt(self, user: str) -> str:
        """A question, up to where the assistant begins."""
        return f"{self.beginning}{self.before_user}{user.strip()}{self.before_answer}"

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """Pairs of what the user and what the assistant say."""
        said = [f"{self.before_user}{u.strip()}{self.before_answer}{a.strip()}{self.after_answer}" for u, a in turns]
        return self.beginning + "".join(said)


def turn_format(chat_format: ChatFormat, system_prompt: SystemPrompt = "none") -> TurnFormat:
    """The pieces of a model's chat format.

    Raises:
        UserError: If the template does not write later turns as it writes the first.
    """
    if chat_format.name != "template":
        before, separator = write_prompt(chat_format.name, _USER)
        before_user, _, before_answer = before.partition(_USER)
        return TurnFormat("", before_user, before_answer + separator, "\n", True)
    return _from_template(chat_format.tokenizer, chat_format.model_label, system_prompt)


def _from_template(tokenizer: "PreTrainedTokenizerBase", label: str, system_prompt: SystemPrompt) -> TurnFormat:
    conversation = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    two_turns = _render(tokenizer, [*conversation, {"role": "user", "content": _NEXT}], prompt=True)
    closed = _render(tokenizer, conversation, prompt=False)
    one_turn = _render(tokenizer, [{"role": "user", "content": _USER}], prompt=True)
    second = two_turns[len(closed) :].replace(_NEXT, _USER)  # a user's turn that no system prompt comes before
    if not (two_turns.startswith(closed) and one_turn.endswith(second) and closed.count(_ANSWER) == 1):
        raise UserError(
            f"{label}: its chat template writes later turns in another way than the first; "
            "texts for an SAE cannot be put into it (--format plain needs no template)"
        )
    beginning = one_turn.removesuffix(second)
    if system_prompt == "none":
        bos = str(tokenizer.bos_token or "")
        beginning = bos if beginning.startswith(bos) and not second.startswith(bos) else ""
    before_user, _, before_answer = second.partition(_USER)
    return TurnFormat(beginning, before_user, before_answer, closed.partition(_ANSWER)[2], False)


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], *, prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
