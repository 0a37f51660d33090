"""What a request for a chat completion asks for, checked field by field."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.chat.asked import steering_of_field, steering_of_name
from utils.chat.replies import EndReason, room_for_answer, seed_of
from utils.chat.shelf import Shelf
from utils.errors import UserError
from utils.files.reading import short
from utils.model.chat_format import Message, PromptTokens
from utils.model.generation import GenerationRow
from utils.model.steering import check_range

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

DEFAULT_TOKENS = 200
_IGNORED = ("user", "metadata", "store")
_ONLY_AT = {"n": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False, "tools": []}
"""Fields that are not served: anything but these values is refused, not ignored."""
_FIELDS = {
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "seed",
    "stream",
    "stream_options",
    "stop",
    "steering",
}


@dataclass(frozen=True)
class Completion:
    """A request, checked."""

    model: str
    prompt: PromptTokens
    row: GenerationRow
    n_new: int
    at_limit: EndReason
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool


def parse_completion(model: "LlamaWrapper", shelf: Shelf, body: Any) -> Completion:
    """What a request's body asks for.

    Raises:
        UserError: If it is no such request; says the field.
    """
    if not isinstance(body, dict):
        raise UserError("the request is not a JSON object")
    for name, value in body.items():
        if name in _ONLY_AT and value not in (None, _ONLY_AT[name]):
            raise UserError(f"{name}: {short(value)} is not supported; leave it out")
        if name not in _FIELDS and name not in _ONLY_AT and name not in _IGNORED:
            raise UserError(f"{short(name)} is not a field of this server; there are {', '.join(sorted(_FIELDS))}")
    steerings = steering_of_name(shelf, body.get("model"))
    if body.get("steering") is not None:
        if steerings:
            raise UserError("steering is said twice: in the model's name and in the field 'steering'")
        steerings = steering_of_field(shelf, body["steering"])
    active = tuple(one for one in steerings if one.multiplier != 0)
    check_range([active], model.dtype)
    history, system_prompt = parse_messages(body.get("messages"))
    prompt = model.chat_format.encode_conversation(history, system_prompt)
    longest = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_TOKENS
    n_new, at_limit = room_for_answer(model, prompt, _whole(longest, "max_tokens", 1))
    seed = seed_of(active, _whole(body.get("seed") or 0, "seed", 0))
    row = GenerationRow(prompt, active, seed, _temperature(body.get("temperature")))
    options = body.get("stream_options") or {}
    return Completion(
        body["model"],
        prompt,
        row,
        n_new,
        at_limit,
        _stop_texts(body.get("stop")),
        body.get("stream") is True,
        isinstance(options, dict) and options.get("include_usage") is True,
    )


def parse_messages(messages: Any) -> tuple[list[Message], str | None]:
    """The turns, and the system prompt before them.

    Raises:
        UserError: If they are not messages of text, or do not take turns.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"messages: expected a list of messages, found {short(messages)}")
    turns: list[Message] = []
    system: str | None = None
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        text = _text_of(message.get("content"), index) if isinstance(message, dict) else ""
        if role in ("system", "developer") and index == 0:
            system = text
        elif role == "user" or role == "assistant":
            turns.append(Message(role, text))
        else:
            raise UserError(f"messages[{index}]: role {short(role)} cannot stand there")
    return turns, system


def _text_of(content: Any, index: int) -> str:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise UserError(f"messages[{index}]: content is not text")
    try:
        content.encode()
    except UnicodeEncodeError as err:
        raise UserError(f"messages[{index}]: content is not valid Unicode text") from err
    return content


def _whole(value: Any, name: str, at_least: int) -> int:
    if type(value) is not int or not at_least <= value < 2**32:
        raise UserError(f"{name}: {short(value)} is not a whole number from {at_least} on")
    return value


def _temperature(value: Any) -> float:
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= value <= 100:
        raise UserError(f"temperature: {short(value)} is not a number from 0 to 100")
    return float(value)


def _stop_texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(one, str) and one for one in texts):
        raise UserError(f"stop: {short(value)} is not a text or a list of up to 16 texts")
    return tuple(texts)
