"""Lettered choices: how they stand in a question, and what is wrong with some."""

import re
from collections.abc import Collection
from itertools import pairwise

from utils.errors import UserError

_CHOICE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*", re.MULTILINE)
_CHOICES_HEADING = re.compile(r"(?:\A|\n)[ \t]*Choices:\s*\Z")


def split_choices(question: str) -> tuple[str, dict[str, str]]:
    """The prompt before the choices, and each choice's text by its letter, both without outer blanks.

    A choice starts on a line of its own with its letter: " (A) Yes".
    """
    marks = list(_CHOICE.finditer(question))
    if not marks:
        return question.strip(), {}
    prompt = _CHOICES_HEADING.sub("", question[: marks[0].start()].rstrip()).strip()
    ends = [following.start() for _, following in pairwise(marks)] + [len(question)]
    texts = [question[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return prompt, {mark.group(1): text for mark, text in zip(marks, texts, strict=True)}


def exchange_choices(question: str, one: str, other: str) -> str:
    """The question with the texts of two choices exchanged; all else stays as it stands.

    Raises:
        UserError: If one of the letters has no text.
    """
    marks = list(_CHOICE.finditer(question))
    ends = [following.start() for _, following in pairwise(marks)] + [len(question)]
    spans = {}
    for mark, end in zip(marks, ends, strict=True):
        text = question[mark.end() : end]
        spans[mark.group(1)] = (mark.end(), mark.end() + len(text.rstrip()))
    if absent := [letter for letter in (one, other) if letter not in spans or spans[letter][0] == spans[letter][1]]:
        raise UserError(f"the question has no text for choice ({absent[0]}), so its answers cannot be exchanged")
    (start, end), (later_start, later_end) = sorted((spans[one], spans[other]))
    first, second = question[start:end], question[later_start:later_end]
    return question[:start] + second + question[end:later_start] + first + question[later_end:]


def check_choices(question: str, answer_letters: Collection[str], where: str) -> None:
    """Refuse a question whose choices are missing, empty, out of order, or lack an answer's letter.

    Raises:
        UserError: Starting with `where`.
    """
    prompt, choices = split_choices(question)
    letters = "".join(mark.group(1) for mark in _CHOICE.finditer(question))
    if len(letters) < 2:
        raise UserError(f"{where}: expected at least two choices on lines such as ' (A) Yes', found {len(letters)}")
    if letters != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]:
        raise UserError(f"{where}: the choices are lettered {', '.join(letters)}; expected A, B, ... in order")
    if absent := [letter for letter in answer_letters if letter not in choices]:
        raise UserError(f"{where}: answer ({absent[0]}) is not among the choices {', '.join(letters)}")
    if empty := [letter for letter, text in choices.items() if not text]:
        raise UserError(f"{where}: choice ({empty[0]}) is empty")
    if not prompt:
        raise UserError(f"{where}: there is no question before the choices")
