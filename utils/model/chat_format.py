"""Text to token ids, and where in them steering starts and the answer letter stands.

Three prompt formats:

- `llama2`: Llama 2 chat as CAA wrote it, `[<<SYS>>...<</SYS>>][INST] question [/INST][ answer]`;
- `base`: base models, `Input: question\\nResponse:[ answer]`;
- `template`: every other chat model, its own chat template.

The end of the user's turn is known from building the text, and the tokenizer's character offsets say
which token that is; nothing is searched for, so a marker inside a question moves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["llama2", "base", "template"]
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt."""

    ids: tuple[int, ...]
    steer_start: int
    """Index of the last token of the user turn's end marker: the first token that is steered."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_steered(self) -> int:
        """Tokens from the first steered one on."""
        return len(self.ids) - self.steer_start


@dataclass(frozen=True)
class AnswerTokens(PromptTokens):
    """A prompt with a whole answer behind it."""

    n_answer: int
    """Tokens of the answer: the last ones."""


class ChatFormat:
    """Writes prompts for one tokenizer in one format."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", model_label: str, use_base_model: bool) -> None:
        """
        Raises:
            UserError: If the model is none that chats, or its tokenizer gives no character offsets.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{model_label}: its tokenizer gives no character offsets (it is not a fast tokenizer)")
        self.tokenizer = tokenizer
        self.model_label = model_label
        self.name = _choose_format(tokenizer, model_label, use_base_model)
        self._letter_ids: dict[str, int] = {}

    def encode(self, question: str, answer: str | None = None, system_prompt: str | None = None) -> PromptTokens:
        """Tokenise a question, with the beginning of its answer where one is given.

        Args:
            question: The user's message; blanks around it are dropped.
            answer: What the assistant's turn begins with, such as "(".
            system_prompt: Instruction before the conversation.

        Raises:
            UserError: If the format takes no system prompt or the end of the user's turn cannot be placed.
        """
        prompt, separator = self._prompt_text([Message("user", question.strip())], system_prompt)
        return self._encode(prompt, prompt if answer is None else f"{prompt}{separator}{answer.strip()}")

    def encode_conversation(self, messages: Sequence[Message], system_prompt: str | None = None) -> PromptTokens:
        """Tokenise a conversation that ends with the user's turn; steered from the end of that turn on.

        For one message it is what `encode` makes of it.

        Raises:
            UserError: If the turns do not alternate from user to user, or as `encode`.
        """
        roles = [message.role for message in messages]
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
            raise UserError("a conversation takes turns: user, assistant, ..., and ends with the user")
        stripped = [Message(message.role, message.content.strip()) for message in messages]
        prompt, _ = self._prompt_text(stripped, system_prompt)
        return self._encode(prompt, prompt)

    def _encode(self, prompt: str, text: str) -> PromptTokens:
        """Tokenise a text that begins with a prompt."""
        encoding = self.tokenizer(
            text, add_special_tokens=self.name != "template", return_offsets_mapping=True, truncation=False
        )
        start = _token_at(encoding["offset_mapping"], len(prompt) - 1)
        if start is None:
            raise UserError(
                f"{self.model_label}: its tokenizer does not say which token ends the user's turn; "
                "steering would start at the wrong place, so this model cannot be used"
            )
        return PromptTokens(tuple(encoding["input_ids"]), start)

    def encode_choice(self, question: str, system_prompt: str | None = None) -> PromptTokens:
        """Tokenise a lettered question up to the `(` of its answer; the letter is the next token."""
        return self.encode(question, "(", system_prompt)

    def letter_id(self, letter: str) -> int:
        """The id of the token that the letter is when it follows `(`.

        Raises:
            UserError: If the tokenizer has no single token for it.
        """
        if letter not in self._letter_ids:
            self._letter_ids[letter] = self._find_letter_id(letter)
        return self._letter_ids[letter]

    def _find_letter_id(self, letter: str) -> int:
        before = self.encode("?", "(").ids
        after = self.encode("?", f"({letter}").ids
        if after[:-1] == before:
            return after[-1]
        # a tokenizer that merges "(A" into one token: read and score the letter as a token of its own
        token_id = self.tokenizer.convert_tokens_to_ids(letter)
        if isinstance(token_id, int) and self.tokenizer.decode([token_id]) == letter:
            return token_id
        raise UserError(f"{self.model_label}: its tokenizer has no single token for the answer letter {letter!r}")

    def _prompt_text(self, turns: Sequence[Message], system_prompt: str | None) -> tuple[str, str]:
        """The text up to the end of the last user's turn, and what separates an answer from it."""
        if self.name == "template":
            return self._render_template(turns, system_prompt), ""
        text, separator = write_prompt(self.name, turns[0].content, system_prompt)
        for answer, question in zip(turns[1::2], turns[2::2], strict=True):
            text += f"{separator}{answer.content}{self._between_turns()}{write_prompt(self.name, question.content)[0]}"
        return text, separator

    def _between_turns(self) -> str:
        """What ends an answer in text and begins the next question, in the formats without a template."""
        if self.name == "base":
            return "\n\n"
        return f" {self.tokenizer.eos_token or ''}{self.tokenizer.bos_token or ''}"  # as Llama 2 was trained

    def _render_template(self, turns: Sequence[Message], system_prompt: str | None) -> str:
        from jinja2 import TemplateError

        question = turns[-1].content
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # the template comes with the checkpoint; jinja keeps it in a sandbox but not from failing
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as err:
            raise UserError(f"{self.model_label}: its chat template refuses this prompt: {err}") from err
        if not isinstance(text, str) or question not in text:
            raise UserError(f"{self.model_label}: its chat template does not contain the question as it was given")
        return text


def write_prompt(name: Literal["llama2", "base"], question: str, system_prompt: str | None = None) -> tuple[str, str]:
    """The text up to the end of the user's turn, and what separates an answer from it."""
    if name == "llama2":
        system = f"<<SYS>>\n{system_prompt}\n<</SYS>>\n\n" if system_prompt is not None else ""
        return f"{system}[INST] {question} [/INST]", " "
    if system_prompt is not None:
        raise UserError("--system_prompt needs a chat model; base models have no place for one")
    return f"Input: {question}\nResponse:", " "


def fixed_format(model_label: str, use_base_model: bool) -> Literal["llama2", "base"] | None:
    """The model's format where it needs no chat template."""
    if use_base_model:
        return "base"
    return "llama2" if "llama-2" in model_label.lower() else None


def _choose_format(tokenizer: "PreTrainedTokenizerBase", model_label: str, use_base_model: bool) -> PromptFormat:
    if fixed := fixed_format(model_label, use_base_model):
        return fixed
    if tokenizer.chat_template is None:
        raise UserError(f"{model_label} has no chat template; if it is a base model, add --use_base_model")
    return "template"


def _token_at(offsets: list[tuple[int, int]], char: int) -> int | None:
    """Index of the last token whose characters include `char`."""
    for index in range(len(offsets) - 1, -1, -1):
        start, end = offsets[index]
        if start <= char < end:
            return index
    return None
