"""The command that gives an answer of a chat again, in a run of its own."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from utils.behaviors import load_behavior
from utils.chat.shelf import Ask, Shelf
from utils.model.chat_format import Message
from utils.settings import Side

QUESTION_FILE = "chat_question.json"


@dataclass(frozen=True)
class Knobs:
    """What can be turned during a chat, as users see it."""

    asks: tuple[Ask, ...] = ()
    system_prompt: str | None = None
    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 200


def reproduce(shelf: Shelf, history: Sequence[Message], knobs: Knobs) -> str:
    """The `prompting_with_steering.py` command that gives this answer again; where none does, a line that says why."""
    asks = [ask for ask in knobs.asks if ask.multiplier != 0]
    if len(history) > 1:
        return "# no command: prompting_with_steering.py asks one question; this answer follows earlier turns"
    if len({(ask.layer, ask.multiplier, ask.operator) for ask in asks}) > 1:
        return "# no command: one run of prompting_with_steering.py has one layer, one multiplier and one operator"
    side, behavior = _system_side(shelf, knobs)
    if knobs.system_prompt is not None and side is None:
        return "# no command: --system_prompt knows the behaviors' own (pos, neg) only"
    words: list[object] = ["--behaviors", behavior, "--type", "open_ended", "--questions", QUESTION_FILE]
    words += ["--layers", asks[0].layer, "--multipliers", asks[0].multiplier] if asks else _unsteered
    words += _vector_words(shelf, asks, behavior)
    words += ["--operator", asks[0].operator] if asks and asks[0].operator != "add" else []
    words += ["--system_prompt", side] if side else []
    words += ["--temperature", knobs.temperature] if knobs.temperature else []
    words += ["--seed", knobs.seed, "--max_new_tokens", knobs.max_new_tokens, *shelf.choice.command_words]
    question = shlex.quote(json.dumps([{"question": history[-1].content}]))
    write = f"printf '%s' {question} > {QUESTION_FILE}"
    return f"{write} && {shelf.paths.command('prompting_with_steering', *words)}"


_unsteered: list[object] = ["--layers", 0, "--multipliers", 0]


def _system_side(shelf: Shelf, knobs: Knobs) -> tuple[Side | None, str]:
    """Which of a behavior's system prompts this is, and the behavior."""
    behaviors = [ask.source for ask in knobs.asks if not ask.is_file]
    candidates = [*behaviors, *(entry.behavior for entry in shelf.entries())]
    for behavior in candidates if knobs.system_prompt is not None else ():
        prompts = load_behavior(shelf.paths, behavior).system_prompts
        if prompts and knobs.system_prompt in (prompts.pos, prompts.neg):
            return ("pos" if knobs.system_prompt == prompts.pos else "neg"), behavior
    return None, candidates[0] if candidates else "sycophancy"


def _vector_words(shelf: Shelf, asks: Sequence[Ask], behavior: str) -> list[str]:
    """The flags that name the vectors."""
    if not asks:
        return []
    if len(asks) == 1 and not asks[0].is_file:
        own = [] if asks[0].source == behavior else ["--vector_behavior", asks[0].source]
        return [*own, *shelf.entry(asks[0].source).kind.command_words]
    files = [shelf.path(ask) for ask in asks]
    return [word for path in files for word in ("--vector", str(path))]
