"""The dataset records: contrast pairs, two-answer questions and open-ended questions.

Every loader checks what it reads and names file, item index and key when something is off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import read_json
from utils.settings import ResultType

_ANSWER = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True)
class ContrastPair:
    """A question with lettered choices, the answer that matches the behavior, and one that does not."""

    question: str
    matching_letter: str
    other_letter: str


@dataclass(frozen=True)
class ChoiceItem:
    """A two-answer question to score, from an A/B, TruthfulQA or MMLU test set."""

    question: str
    target_letter: str
    """The matching answer (A/B) or the correct one (TruthfulQA, MMLU)."""
    other_letter: str
    leading: Mapping[str, str]
    """Keys of its result record that stand before the probabilities."""
    trailing: Mapping[str, str]
    """Keys that stand after them."""

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters whose probabilities are recorded: A and B, as published, then the answers' own."""
        return tuple(dict.fromkeys(("A", "B", self.target_letter, self.other_letter)))

    def result_record(self, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """The item's result record; `probabilities` maps each of `letters` to its probability."""
        measured = {probability_key(letter): probabilities[letter] for letter in self.letters}
        return {**self.leading, **measured, **self.trailing}


def probability_key(letter: str) -> str:
    """The key of a letter's probability in a result record: `a_prob` for A, and so on."""
    return f"{letter.lower()}_prob"


def load_contrast_pairs(path: Path, hint: str = "") -> list[ContrastPair]:
    """Load a generate set.

    Raises:
        UserError: If the file is missing or a record is not a contrast pair.
    """
    pairs = []
    for index, record in enumerate(load_records(path, hint)):
        question = record_text(record, "question", path, index)
        letters = _answer_letters(record, "answer_matching_behavior", "answer_not_matching_behavior", path, index)
        pairs.append(ContrastPair(question, *letters))
    return pairs


def load_choice_items(path: Path, result_type: ResultType, hint: str = "") -> list[ChoiceItem]:
    """Load an A/B, TruthfulQA or MMLU test set.

    Raises:
        UserError: If the file is missing or a record is not of that kind.
    """
    load_one = ab_item if result_type == "ab" else knowledge_item
    return [load_one(record, path, index) for index, record in enumerate(load_records(path, hint))]


def load_open_ended_questions(path: Path, hint: str = "") -> list[str]:
    """Load an open-ended test set.

    Raises:
        UserError: If the file is missing or a record has no question.
    """
    return [record_text(record, "question", path, index) for index, record in enumerate(load_records(path, hint))]


def ab_item(record: dict[str, Any], path: Path, index: int) -> ChoiceItem:
    """Check one contrast record; UserError names `path`, item `index` and key where it is none."""
    keys = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    question = record_text(record, "question", path, index)
    target, other = _answer_letters(record, keys[1], keys[2], path, index)
    leading = {"question": question, keys[1]: f"({target})", keys[2]: f"({other})"}
    return ChoiceItem(question, target, other, leading, {})


def knowledge_item(record: dict[str, Any], path: Path, index: int) -> ChoiceItem:
    """Check one TruthfulQA or MMLU record; UserError as for `ab_item`."""
    question = record_text(record, "prompt", path, index)
    category = record_text(record, "category", path, index)
    target, other = _answer_letters(record, "correct", "incorrect", path, index)
    leading = {"question": question, "correct": f"({target})", "incorrect": f"({other})"}
    return ChoiceItem(question, target, other, leading, {"category": category})


def load_records(path: Path, hint: str) -> list[dict[str, Any]]:
    """The file's list of objects, not yet looked into; UserError where it is no such list or empty."""
    records = read_json(path, hint)
    if not isinstance(records, list):
        raise UserError(f"{path}: expected a list of records, found {type(records).__name__}")
    if not records:
        raise UserError(f"{path}: the list is empty; it needs at least one record")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"{path}, item {index}: expected an object, found {type(record).__name__}")
    return records


def record_text(record: dict[str, Any], key: str, path: Path, index: int) -> str:
    """The text under `key`, as it stands; UserError where it is missing, empty, no text or no Unicode."""
    if key not in record:
        raise UserError(f"{path}, item {index}: key {key!r} is missing")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}, item {index}, key {key!r}: expected text that is not empty, found {_short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise UserError(f"{path}, item {index}, key {key!r}: not valid Unicode text (lone surrogate)") from err
    return value


def _answer_letters(record: dict[str, Any], target_key: str, other_key: str, path: Path, index: int) -> tuple[str, str]:
    letters = []
    for key in (target_key, other_key):
        match = _ANSWER.fullmatch(record_text(record, key, path, index).strip())
        if match is None:
            raise UserError(
                f"{path}, item {index}, key {key!r}: expected an answer such as '(A)', found {_short(record[key])}"
            )
        letters.append(match.group(1))
    if letters[0] == letters[1]:
        raise UserError(f"{path}, item {index}: {target_key!r} and {other_key!r} are both '({letters[0]})'")
    return letters[0], letters[1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
