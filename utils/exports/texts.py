"""Texts to measure, one at a time from JSON or JSON Lines, so that memory does not grow with their number.

    "..."                                          a text by itself
    {"text": "..."}                                the same
    {"question": "...", "model_output": "..."}     a question and its answer, as prompting_with_steering.py writes
                                                   them; `prompt` for question, `answer` or `response` for the other
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
                                                   a conversation

A record may bear an `id`; every other key is passed over.
"""

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from utils.errors import UserError
from utils.files.reading import check_text, short

Role = Literal["system", "user", "assistant", "text"]
_MESSAGE_ROLES = ("system", "user", "assistant")
QUESTION_KEYS = ("question", "prompt")
ANSWER_KEYS = ("model_output", "answer", "response")
_BLOCK = 1 << 16
STDIN = Path("-")


@dataclass(frozen=True)
class Turn:
    """One message; of role `text` for a text that is by itself."""

    role: Role
    text: str


@dataclass(frozen=True)
class MonitoredText:
    """One record."""

    turns: tuple[Turn, ...]
    id: str | None = None

    @property
    def is_bare(self) -> bool:
        return self.turns[0].role == "text"


def read_texts(path: Path) -> Iterator[MonitoredText | UserError]:
    """The records of a file, in order; for one that is broken what is wrong with it, by its number.

    Args:
        path: JSON (a list) or JSON Lines; `-` for standard input.

    Raises:
        UserError: If the file is missing or is not JSON.
    """
    for index, value in enumerate(_values(path)):
        try:
            yield _text_of(value, f"item {index}")
        except UserError as err:
            yield err


def _text_of(value: Any, where: str) -> MonitoredText:
    if isinstance(value, str):
        return MonitoredText((Turn("text", check_text(value, where)),))
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a text or an object, found {short(value)}")
    name = value.get("id")
    if name is not None and not isinstance(name, str | int):
        raise UserError(f"{where}, key 'id': expected a text or a number, found {short(name)}")
    return MonitoredText(_turns(value, where), None if name is None else str(name))


def _turns(record: dict[str, Any], where: str) -> tuple[Turn, ...]:
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{where}, key 'messages': expected a list of messages, found {short(messages)}")
        return tuple(_message(message, f"{where}, message {place}") for place, message in enumerate(messages))
    question = next((key for key in QUESTION_KEYS if key in record), None)
    answer = next((key for key in ANSWER_KEYS if key in record), None)
    if question and answer:
        asked = Turn("user", check_text(record[question], f"{where}, key {question!r}"))
        return asked, Turn("assistant", check_text(record[answer], f"{where}, key {answer!r}"))
    if "text" in record:
        return (Turn("text", check_text(record["text"], f"{where}, key 'text'")),)
    hint = "; put a conversation's messages under 'messages'" if "role" in record else ""
    raise UserError(f"{where}: no 'text', no 'messages', and no question with its answer{hint}")


def _message(message: Any, where: str) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in _MESSAGE_ROLES:
        raise UserError(
            f"{where}: expected a role of {', '.join(_MESSAGE_ROLES)} and a content, found {short(message)}"
        )
    assert message["role"] in get_args(Role)
    return Turn(message["role"], check_text(message.get("content"), f"{where}, key 'content'"))


# --- JSON, a value at a time -----------------------------------------------------------------------


def _values(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, or the values of JSON Lines."""
    with _opened(path) as file:
        stream = _Stream(file, path)
        if stream.next_character() == "[":
            stream.take("[")
            if stream.next_character() != "]":
                yield stream.value()
            while stream.next_character() == ",":
                stream.take(",")
                yield stream.value()
            stream.take("]")
            stream.end()
        while stream.next_character():
            yield stream.value()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as err:
        raise UserError(f"{path} not found; name a file of texts (JSON or JSON Lines)") from err


class _Stream:
    """Text that is read and decoded block by block."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(parse_constant=_refuse)
        self._text, self._at, self._is_over = "", 0, False

    def next_character(self) -> str:
        """The next one that is no blank, not yet taken; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def take(self, expected: str) -> None:
        if self.next_character() != expected:
            raise self._broken(f"expected {expected!r}")
        self._at += 1

    def end(self) -> None:
        if self.next_character():
            raise self._broken("more behind the list")

    def value(self) -> Any:
        """The next JSON value."""
        self.next_character()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError as err:
                raise self._broken("nested too deeply") from err
            except ValueError as err:  # torn, or not JSON
                if not self._read_on(at_least=len(self._text)):
                    raise self._broken(str(err).partition(":")[0]) from err
                continue
            # a number may go on in the next block
            if end == len(self._text) and isinstance(value, int | float) and self._read_on():
                continue
            self._at = end
            return value

    def _read_on(self, at_least: int = 0) -> bool:
        """Read more; what is taken already is dropped. `at_least` as much as is there, so that long values do not
        cost the square of their length."""
        if self._is_over:
            return False
        block = self._file.read(max(_BLOCK, at_least))
        self._is_over = not block
        try:
            text = self._decoder.decode(block, final=self._is_over)
        except UnicodeDecodeError as err:
            raise UserError(f"{self._path} is not UTF-8 text; restore or make it again") from err
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text) or not self._is_over

    def _broken(self, what: str) -> UserError:
        found = short(self._text[self._at : self._at + 40])
        return UserError(f"{self._path} is not valid JSON ({what} at {found}); restore or make it again")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
