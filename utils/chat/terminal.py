"""The chat on a terminal: one line a message, commands that begin with a slash, answers as they come."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from utils.chat.columns import SideBySide
from utils.chat.commands import Knobs, reproduce
from utils.chat.measures import Measured, measure
from utils.chat.replies import End, ReplySettings, Token, reply
from utils.chat.shelf import Ask, Shelf
from utils.chat.turning import TURNS, number
from utils.errors import UserError
from utils.files.redaction import printable
from utils.files.writing import write_json
from utils.model.chat_format import Message
from utils.model.steering import Steering

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

STRIP = (-2.0, -1.0, 0.0, 1.0, 2.0)
HELP = """\
/multiplier X       how much of the vector is added; 0 is the model as it is
/layer N            the decoder layer that is steered, counted from 0
/behavior ID        steer with a behavior's vector; /behavior alone lists those that there are
/vector FILE        steer with a vector file; /vector off: with none
/operator NAME      what is done with the vector: add, clamp, ablate, ...
/compare [X ...]    answer the last message again, unsteered beside steered, or at these multipliers (a strip)
/strip              the same at -2 -1 0 1 2
/again              answer the last message again
/system TEXT        system prompt: a text, pos or neg (the behavior's own), or off
/temperature T      0 takes the most likely token
/seed N             of sampled answers
/max N              longest answer, in tokens
/save FILE          the conversation and its settings as JSON
/command            the command that gives the last answer again
/new                begin a new conversation
/settings           what is set
/quit               or Ctrl-D; Ctrl-C ends an answer, not the chat"""


@dataclass(frozen=True)
class Answered:
    """The last answer and what it was given under."""

    history: tuple[Message, ...]
    knobs: Knobs


class Terminal:
    """A chat that reads lines and writes text."""

    def __init__(self, model: "LlamaWrapper", shelf: Shelf, knobs: Knobs, read: Callable[[], str], out: TextIO) -> None:
        """
        Args:
            model: Who answers.
            shelf: The vectors.
            knobs: What is set at the beginning.
            read: Gives a line; EOFError where there are no more.
            out: Where everything is written.
        """
        self.model, self.shelf, self.knobs, self._read, self._out = model, shelf, knobs, read, out
        self.history: list[Message] = []
        self.last: Answered | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            **{name: partial(self._turn, name) for name in TURNS},
            "compare": self._compare,
            "strip": lambda _: self._compare(" ".join(map(str, STRIP))),
            "again": lambda _: self._answer(self._last_asked()),
            "save": self._save,
            "command": lambda _: self._say(self._command()),
            "new": lambda _: self._new(),
            "settings": lambda _: self._say(self.describe()),
            "help": lambda _: self._say(HELP),
        }

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self._say(self.describe())
        self._say("/help lists the commands; /quit or Ctrl-D ends")
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("\n(/quit or Ctrl-D ends the chat)")
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                self.take(line)
            except UserError as err:
                self._say(f"error: {err}")

    def take(self, line: str) -> None:
        """A message or a command.

        Raises:
            UserError: If it cannot be done.
        """
        if not line:
            return
        if not line.startswith("/"):
            self._answer([*self.history, Message("user", line)])
            return
        name, _, rest = line[1:].partition(" ")
        matching = [known for known in self._commands if known == name] or [
            known for known in self._commands if known.startswith(name) and name
        ]
        if len(matching) != 1:
            raise UserError(f"there is no command /{name}; /help lists them")
        self._commands[matching[0]](rest.strip())

    def describe(self) -> str:
        """What is set, in one line."""
        knobs = self.knobs
        steered = ", ".join(
            f"{ask.source} x {ask.multiplier:g} at layer {ask.layer}"
            + (f" ({ask.operator})" if ask.operator != "add" else "")
            for ask in knobs.asks
        )
        parts = [self.model.label, steered or "no steering"]
        parts += [f"temperature {knobs.temperature:g}, seed {knobs.seed}"] if knobs.temperature else ["greedy"]
        parts += [f"system prompt: {knobs.system_prompt}"] if knobs.system_prompt is not None else []
        return " | ".join(parts)

    # --- answering ---

    def _answer(self, history: list[Message]) -> None:
        """One answer; it becomes part of the conversation, also where it was stopped."""
        text = ""
        settings = self._reply_settings((self._steerings(self.knobs.asks),))
        with _stopped_by_ctrl_c() as stop:
            for event in reply(self.model, history, settings):
                if isinstance(event, Token):
                    self._write(event.text if text else event.text.lstrip())
                    text += event.text
                else:
                    self._write(event.rest)
                    text += event.rest
                if isinstance(event, End) and event.reason == "context":
                    self._write(f"\n(the context of {self.model.label} is full; /new begins a new conversation)")
                if stop.is_set():
                    self._write(" (stopped)")
                    break
        self._say("")
        self.history = [*history, Message("assistant", text.strip())]
        self.last = Answered(tuple(history), self.knobs)

    def _compare(self, text: str) -> None:
        """The last message, or the one to come, in several columns; the conversation stays as it is."""
        history = self._last_asked()
        if not self.knobs.asks:
            raise UserError("there is nothing to compare with: /behavior ID or /vector FILE names a vector")
        first, *others = self.knobs.asks
        multipliers = [number(word, float) for word in text.split()] or [0.0, first.multiplier]
        columns = [self._steerings([replace(first, multiplier=one), *others] if one else []) for one in multipliers]
        titles = [f"{first.source} x {one:g}" if one else "unsteered" for one in multipliers]
        page = SideBySide(titles, shutil.get_terminal_size().columns - 1)
        self._lines(page.head())
        ends: dict[int, End] = {}
        with _stopped_by_ctrl_c() as stop:
            for event in reply(self.model, history, self._reply_settings(columns)):
                if isinstance(event, Token):
                    self._lines(page.add(event.column, event.text))
                else:
                    ends[event.column] = event
                    self._lines([*page.add(event.column, event.rest), *page.end(event.column)])
                if stop.is_set():
                    for column in set(range(len(columns))) - set(ends):
                        self._lines(page.end(column))
                    self._say("(stopped)")
                    return
        prompt = self.model.chat_format.encode_conversation(history, self.knobs.system_prompt)
        for one in measure(self.model, prompt, columns, ends):
            if columns[one.column]:
                self._say(f"{titles[one.column]}: {describe_measured(one)}")

    def _last_asked(self) -> list[Message]:
        if not self.history:
            raise UserError("there is no message yet")
        return self.history[:-1]

    def _reply_settings(self, columns: Sequence[tuple[Steering, ...]]) -> ReplySettings:
        knobs = self.knobs
        return ReplySettings(
            tuple(columns), None, knobs.system_prompt, knobs.temperature, knobs.seed, knobs.max_new_tokens
        )

    def _steerings(self, asks: Sequence[Ask]) -> tuple[Steering, ...]:
        return tuple(self.shelf.steering(ask) for ask in asks)

    # --- commands ---

    def _turn(self, name: str, text: str) -> None:
        if name == "behavior" and not text:
            self._list_behaviors()
            return
        self.knobs = TURNS[name](self.shelf, self.knobs, text)
        self._say(self.describe())

    def _list_behaviors(self) -> None:
        for entry in self.shelf.entries():
            chosen = f"; chosen: layer {entry.chosen.layer}" if entry.chosen else ""
            self._say(f"{entry.behavior}: {entry.meaning}{chosen}")

    def _save(self, text: str) -> None:
        if not text:
            raise UserError("/save needs a file name")
        path = Path(text).expanduser()
        if path.exists():
            raise UserError(f"{path} is there already; name another file")
        write_json(
            path,
            {
                "settings": asdict(self.knobs),
                "conversation": [asdict(message) for message in self.history],
                "command": self._command() if self.last else None,
                "made": self.model.provenance(),
            },
        )
        self._say(f"wrote {path}")

    def _command(self) -> str:
        if self.last is None:
            raise UserError("there is no answer yet")
        return reproduce(self.shelf, self.last.history, self.last.knobs)

    def _new(self) -> None:
        self.history, self.last = [], None
        self._say("(a new conversation)")

    # --- writing ---

    def _say(self, text: str) -> None:
        self._write(f"{text}\n")

    def _lines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._say(line)

    def _write(self, text: str) -> None:
        self._out.write(printable(text))
        self._out.flush()


def describe_measured(measured: Measured) -> str:
    """E.g. `KL to unsteered 0.42 nats a token, perplexity 5.1, falls apart (distinct-2)`."""
    parts = []
    if measured.kl is not None:
        parts.append(f"KL to unsteered {measured.kl:.2f} nats a token")
    if measured.perplexity is not None:
        parts.append(f"perplexity {measured.perplexity:.1f}")
    if measured.faults:
        parts.append(f"falls apart ({', '.join(measured.faults)})")
    return ", ".join(parts)


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """For the block: Ctrl-C sets the event instead of breaking off what runs; a second one breaks off."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and callable(before):
            before(number, frame)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
