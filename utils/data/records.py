"""The dataset records: contrast pairs of both forms, two-answer questions and open-ended questions.

A contrast pair is of one of two forms, with the same three keys: A/B, a question with lettered choices and
two letters as answers; or text, a question without choices and two answers in words. A set is of one form.
Every loader checks what it reads and names file, item index and key when something is off.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.data.choices import exchange_choices, split_choices
from utils.errors import UserError
from utils.files.reading import check_text, read_json, short
from utils.paths import DataPaths
from utils.settings import ResultType

ANSWER_KEYS = MATCHING_KEY, OTHER_KEY = "answer_matching_behavior", "answer_not_matching_behavior"
PROMPT_KEYS = "prompt_matching_behavior", "prompt_not_matching_behavior"
SYSTEM_KEYS = "system_matching_behavior", "system_not_matching_behavior"
_ANSWER = re.compile(r"\(([A-Z])\)")
_NEEDS_LETTERS = "an A/B set is needed here: questions with choices, and answers such as '(A)'"


@dataclass(frozen=True)
class ContrastPair:
    """A question with lettered choices, the answer that matches the behavior, and one that does not."""

    question: str
    matching_letter: str
    other_letter: str


@dataclass(frozen=True)
class TextPair:
    """A question without choices, an answer that matches the behavior, and one that does not."""

    question: str
    matching: str
    other: str


@dataclass(frozen=True)
class PromptPair:
    """Two prompts, one that calls for the behavior and one that does not (as in Arditi et al. 2024)."""

    matching: str
    other: str
    matching_system: str | None = None
    """System prompt before the one."""
    other_system: str | None = None


Pair = ContrastPair | TextPair
AnyPair = Pair | PromptPair


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

    def exchanged(self) -> "ChoiceItem":
        """The same item with the texts of its two answers exchanged, so that each bears the other's letter."""
        question = exchange_choices(self.question, self.target_letter, self.other_letter)
        return replace(self, question=question, target_letter=self.other_letter, other_letter=self.target_letter)

    def result_record(self, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """The item's result record; `probabilities` maps each of `letters` to its probability."""
        measured = {probability_key(letter): probabilities[letter] for letter in self.letters}
        return {**self.leading, **measured, **self.trailing}


def probability_key(letter: str) -> str:
    """The key of a letter's probability in a result record: `a_prob` for A, and so on."""
    return f"{letter.lower()}_prob"


def load_pairs(path: Path, hint: str = "") -> list[ContrastPair] | list[TextPair]:
    """Load contrast pairs of either form.

    Raises:
        UserError: If the file is missing, a record is not a contrast pair, or the set is not of one form.
    """
    pairs = [contrast_pair(record, path, index) for index, record in enumerate(load_records(path, hint))]
    ab = [pair for pair in pairs if isinstance(pair, ContrastPair)]
    texts = [pair for pair in pairs if isinstance(pair, TextPair)]
    if ab and texts:
        first = pairs.index(ab[0]), pairs.index(texts[0])
        raise UserError(
            f"{path}: item {first[0]} is an A/B pair and item {first[1]} a text pair; a set is of one form, "
            "so put them into two files"
        )
    return ab or texts


def load_contrast_pairs(path: Path, hint: str = "", for_text: str = _NEEDS_LETTERS) -> list[ContrastPair]:
    """Load a generate set of A/B form.

    Args:
        path: The set.
        hint: What to do where it is missing.
        for_text: What to do where it is of text form.

    Raises:
        UserError: If the file is missing, a record is not a contrast pair, or the set is of text form.
    """
    text_set = path.with_name(f"{path.stem}_text.json")
    if text_set.exists() and not path.exists():
        raise UserError(f"{path} not found, and {text_set.name} beside it is a set of text pairs; {for_text}")
    pairs = load_pairs(path, hint)
    ab = [pair for pair in pairs if isinstance(pair, ContrastPair)]
    if len(ab) < len(pairs):
        raise UserError(f"{path} is a set of text pairs; {for_text}")
    return ab


def load_text_pairs(path: Path, hint: str = "") -> list[TextPair]:
    """Load contrast pairs of either form as text pairs.

    Raises:
        UserError: As `load_pairs`, or if an A/B question has no texts for its answers.
    """
    pairs: Sequence[Pair] = load_pairs(path, hint)
    texts = []
    for index, pair in enumerate(pairs):
        try:
            texts.append(pair if isinstance(pair, TextPair) else as_text_pair(pair))
        except UserError as err:
            raise UserError(f"{path}, item {index}: {err}") from err
    return texts


def load_prompt_pairs(path: Path, hint: str = "") -> list[PromptPair]:
    """Load pairs of prompts, `{prompt_matching_behavior, prompt_not_matching_behavior}` each.

    A record may have system prompts too: `{system_matching_behavior, system_not_matching_behavior}`.

    Raises:
        UserError: If the file is missing, a record is not such a pair, or its two prompts are the same.
    """
    pairs = []
    for index, record in enumerate(load_records(path, hint)):
        matching, other = (record_text(record, key, path, index) for key in PROMPT_KEYS)
        systems = [record_text(record, key, path, index) if key in record else None for key in SYSTEM_KEYS]
        if matching.strip() == other.strip() and systems[0] == systems[1]:
            raise UserError(f"{path}, item {index}: {PROMPT_KEYS[0]!r} and {PROMPT_KEYS[1]!r} are the same")
        pairs.append(PromptPair(matching, other, *systems))
    return pairs


def text_pairs_path(paths: DataPaths, behavior: str) -> Path:
    """The generate set to read answers from: the one of text form, or else the one that there is."""
    text_set = paths.generate_text_dataset(behavior)
    return text_set if text_set.exists() else paths.generate_dataset(behavior)


def as_text_pair(pair: ContrastPair) -> TextPair:
    """The pair without letters: the question without its choices, and the texts of its two answers.

    Raises:
        UserError: If the question has no choice with such a letter, or the two texts are the same.
    """
    prompt, choices = split_choices(pair.question)
    letters = (pair.matching_letter, pair.other_letter)
    if absent := [letter for letter in letters if not choices.get(letter)]:
        raise UserError(f"the question {short(pair.question)} has no text for choice ({absent[0]})")
    matching, other = (choices[letter] for letter in letters)
    if matching == other:
        raise UserError(f"the question {short(pair.question)} has the same text for both answers")
    return TextPair(prompt, matching, other)


def load_choice_items(path: Path, result_type: ResultType, hint: str = "") -> list[ChoiceItem]:
    """Load an A/B, TruthfulQA or MMLU test set.

    Raises:
        UserError: If the file is missing or a record is not of that kind.
    """
    load_one = ab_item if result_type == "ab" else knowledge_item
    text_set = path.with_name("test_dataset_text.json")
    if result_type == "ab" and text_set.exists() and not path.exists():
        raise UserError(f"{path} not found, and {text_set.name} beside it is a set of text pairs; {_NEEDS_LETTERS}")
    return [load_one(record, path, index) for index, record in enumerate(load_records(path, hint))]


def load_open_ended_questions(path: Path, hint: str = "") -> list[str]:
    """Load an open-ended test set.

    Raises:
        UserError: If the file is missing or a record has no question.
    """
    return [record_text(record, "question", path, index) for index, record in enumerate(load_records(path, hint))]


def load_questions(path: Path, hint: str = "") -> list[str]:
    """Load questions to be answered freely: an open-ended set, or the questions of contrast pairs, without choices.

    Raises:
        UserError: If the file is missing or a record has no question.
    """
    records = load_records(path, hint)
    if not all(key in record for record in records for key in ANSWER_KEYS):
        return load_open_ended_questions(path, hint)
    return [pair.question for pair in load_text_pairs(path, hint)]


def contrast_pair(record: dict[str, Any], path: Path, index: int) -> Pair:
    """Check one contrast record of either form; UserError names `path`, item `index` and key where it is none."""
    question = record_text(record, "question", path, index)
    matching, other = (record_text(record, key, path, index) for key in ANSWER_KEYS)
    has_letter = _ANSWER.fullmatch(matching.strip()) or _ANSWER.fullmatch(other.strip())
    if has_letter or split_choices(question)[1]:
        return ContrastPair(question, *_answer_letters(record, *ANSWER_KEYS, path, index))
    if matching.strip() == other.strip():
        raise UserError(f"{path}, item {index}: {MATCHING_KEY!r} and {OTHER_KEY!r} are the same")
    return TextPair(question, matching, other)


def ab_item(record: dict[str, Any], path: Path, index: int) -> ChoiceItem:
    """Check one contrast record of A/B form; UserError names `path`, item `index` and key where it is none."""
    question = record_text(record, "question", path, index)
    target, other = _answer_letters(record, *ANSWER_KEYS, path, index)
    leading = {"question": question, MATCHING_KEY: f"({target})", OTHER_KEY: f"({other})"}
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
    return check_text(record[key], f"{path}, item {index}, key {key!r}")


def _answer_letters(record: dict[str, Any], target_key: str, other_key: str, path: Path, index: int) -> tuple[str, str]:
    letters = []
    for key in (target_key, other_key):
        match = _ANSWER.fullmatch(record_text(record, key, path, index).strip())
        if match is None:
            raise UserError(
                f"{path}, item {index}, key {key!r}: expected an answer such as '(A)', found {short(record[key])}"
            )
        letters.append(match.group(1))
    if letters[0] == letters[1]:
        raise UserError(f"{path}, item {index}: {target_key!r} and {other_key!r} are both '({letters[0]})'")
    return letters[0], letters[1]
