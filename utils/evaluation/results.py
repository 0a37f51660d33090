"""Result files: load and check their records, score their items."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from scipy.special import expit

from utils.data.records import MATCHING_KEY, OTHER_KEY, probability_key
from utils.errors import UserError
from utils.evaluation.metrics import FloatArray
from utils.files.reading import read_json
from utils.settings import ResultType

log = logging.getLogger(__name__)

MAX_SCORE = 10.0
_PROBABILITY_SLACK = 1e-3  # float16 probabilities may sum to a little more than 1


@dataclass(frozen=True)
class ItemValues:
    """What one result file says about each item; NaN where it cannot be scored."""

    keys: tuple[str, ...]
    """Question and answer letters: names the item in every result file of its test set."""
    values: FloatArray
    """[n_items]: p(matching or correct answer) of the two, or the judge's score (0-10)."""
    target: FloatArray
    """[n_items]: raw probability of the matching or correct answer (NaN for open-ended answers)."""
    other: FloatArray
    """[n_items]: raw probability of the other answer."""
    target_letters: tuple[str, ...] = ()
    other_letters: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    first_letter: FloatArray | None = None
    """[n_items]: share of the letter that the matching answer bears as given, over both orders of the answers; None
    where each item was asked in one order."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_scored(self) -> int:
        return int(np.isfinite(self.values).sum())

    @property
    def log_odds(self) -> FloatArray:
        """[n_items]: of the matching answer against the other; NaN where a probability is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            odds: FloatArray = np.log(self.target) - np.log(self.other)
        return np.where(np.isfinite(odds), odds, np.nan)

    @property
    def letter_mass(self) -> FloatArray:
        """[n_items]: probability on the item's two answer letters together."""
        return self.target + self.other

    @property
    def share_of_a(self) -> FloatArray:
        """[n_items]: p(A) / (p(A) + p(B)) for items whose answers are A and B, else NaN."""
        shares = np.full(len(self), np.nan)
        of_first = self.values if self.first_letter is None else self.first_letter
        for index, letters in enumerate(zip(self.target_letters, self.other_letters, strict=True)):
            if set(letters) == {"A", "B"}:
                shares[index] = of_first[index] if letters[0] == "A" else 1 - of_first[index]
        return shares

    @property
    def a_matches(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """[n_items]: whether the matching answer is (A)."""
        return np.array([letter == "A" for letter in self.target_letters], dtype=bool)

    def reordered(self, keys: Sequence[str]) -> "ItemValues":
        """The same values for `keys`, in their order; NaN for an item that this file does not have."""
        if tuple(keys) == self.keys:
            return self
        place = {key: index for index, key in enumerate(self.keys)}
        at = [place.get(key, -1) for key in keys]

        def numbers(values: FloatArray) -> FloatArray:
            return np.array([values[index] if index >= 0 else np.nan for index in at], dtype=np.float64)

        def texts(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[index] if index >= 0 else "" for index in at) if values else ()

        return ItemValues(
            tuple(keys),
            numbers(self.values),
            numbers(self.target),
            numbers(self.other),
            texts(self.target_letters),
            texts(self.other_letters),
            texts(self.categories),
            None if self.first_letter is None else numbers(self.first_letter),
        )


def align(results: Sequence[ItemValues]) -> list[ItemValues]:
    """The same items in the same order for every result: all that occur, in order of first sight."""
    keys = tuple(dict.fromkeys(key for result in results for key in result.keys))
    return [result.reordered(keys) for result in results]


# --- loading ---------------------------------------------------------------------------------------


def load_choice_results(path: Path, result_type: ResultType) -> ItemValues:
    """Load an A/B, TruthfulQA or MMLU result file.

    An item is scored by the probabilities of the letters that its two answers bear; one whose
    letters the file does not record, or gives no probability at all, is NaN. One that was asked in both orders of its
    answers is scored by the mean of their log-odds.

    Raises:
        UserError: If the file is missing or a record is not such a result (names item and key).
    """
    first, second = (
        ("answer_matching_behavior", "answer_not_matching_behavior")
        if result_type == "ab"
        else ("correct", "incorrect")
    )
    records = _load_records(path)
    targets = [_letter(record, first, path, index) for index, record in enumerate(records)]
    others = [_letter(record, second, path, index) for index, record in enumerate(records)]
    given, exchanged = np.full((2, 2, len(records)), np.nan)  # [target or other letter, n_items] each
    keys = []
    for index, record in enumerate(records):
        for row, letter in enumerate((targets[index], others[index])):
            given[row, index] = _probability(record, letter, path, index)
            exchanged[row, index] = _probability(record, letter, path, index, "_exchanged")
        keys.append(f"{_text(record, 'question', path, index)}\0{targets[index]}{others[index]}")
    categories: tuple[str, ...] = ()
    if result_type != "ab":
        categories = tuple(_text(record, "category", path, index) for index, record in enumerate(records))
    target, other, first_letter = given[0], given[1], None
    if np.isfinite(exchanged).any():
        target, other, first_letter = _over_orders(given, exchanged)
    with np.errstate(invalid="ignore"):
        values = target / (target + other)  # 0 / 0 is NaN: no value
    return ItemValues(_unique(keys), values, target, other, tuple(targets), tuple(others), categories, first_letter)


def _over_orders(given: FloatArray, exchanged: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Both orders of each item's answers as one.

    Args:
        given: Probability of the matching answer's letter and of the other one, [2, n_items].
        exchanged: Of the same letters where each stands at the other answer.

    Returns:
        Probabilities of the matching and of the other answer: their log-odds are the mean over the orders, their sum
        the mean mass; and the share of the matching answer's letter, by the mean of its log-odds over the orders.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        of_given, of_exchanged = (np.log(row[0]) - np.log(row[1]) for row in (given, exchanged))
    share, first_letter = expit((of_given - of_exchanged) / 2), expit((of_given + of_exchanged) / 2)
    mass = (given.sum(axis=0) + exchanged.sum(axis=0)) / 2
    return share * mass, (1 - share) * mass, first_letter


def load_scores(path: Path, num_samples: int = 1) -> ItemValues:
    """Load scored open-ended answers; an answer without a score is NaN.

    An item is a question: of several sampled answers to it, its value is the mean of those with a score.

    Raises:
        UserError: If the file is missing, a score is not a number from 0 to 10, or a question has not `num_samples`
            answers in a row.
    """
    records = _load_records(path)
    values = np.full(len(records), np.nan)
    for index, record in enumerate(records):
        score = record.get("score")
        if score is None:
            continue
        if not _is_number(score) or not 0 <= score <= MAX_SCORE:
            raise UserError(f"{path}, item {index}, key 'score': expected a number from 0 to 10, found {score!r}")
        values[index] = score
    keys = [_text(record, "question", path, index) for index, record in enumerate(records)]
    if num_samples > 1:
        keys, values = _over_samples(keys, values, num_samples, path)
    nothing = np.full(len(keys), np.nan)
    return ItemValues(_unique(keys), values, nothing, nothing)


def load_items(path: Path, result_type: ResultType, num_samples: int = 1) -> ItemValues:
    """Load a result file of any type; open-ended answers by their scores."""
    match result_type:
        case "open_ended":
            return load_scores(path, num_samples)
        case "answer_text":
            return load_answer_texts(path)
        case _:
            return load_choice_results(path, result_type)


def load_answer_texts(path: Path) -> ItemValues:
    """Load an answer_text result file: the preference for the matching answer, in nats per token.

    An item's value is the log-probability per token of the matching answer minus that of the other.

    Raises:
        UserError: If the file is missing or a record is not such a result (names item and key).
    """
    records = _load_records(path)
    columns = []
    for key in ("matching_logprob_per_token", "other_logprob_per_token"):
        column = [_log_probability(record, key, path, index) for index, record in enumerate(records)]
        columns.append(np.array(column, dtype=np.float64))
    keys = [
        "\0".join(_text(record, key, path, index) for key in ("question", MATCHING_KEY, OTHER_KEY))
        for index, record in enumerate(records)
    ]
    nothing = np.full(len(records), np.nan)
    return ItemValues(_unique(keys), columns[0] - columns[1], nothing, nothing)


def _log_probability(record: dict[str, Any], key: str, path: Path, index: int) -> float:
    value = record.get(key)
    if not _is_number(value) or value > 0:
        raise UserError(f"{path}, item {index}, key {key!r}: expected a log-probability, found {value!r}")
    return float(value)


def _over_samples(
    questions: Sequence[str], values: FloatArray, num_samples: int, path: Path
) -> tuple[list[str], FloatArray]:
    """Questions once each, and the mean of their scores; NaN where no answer to a question has one."""
    groups = [questions[start : start + num_samples] for start in range(0, len(questions), num_samples)]
    for place, group in enumerate(groups):
        if len(group) != num_samples or len(set(group)) > 1:
            raise UserError(f"{path}, item {place * num_samples}: expected {num_samples} answers to one question")
    of_question = values.reshape(-1, num_samples)  # [n_questions, num_samples]
    n_scored = np.isfinite(of_question).sum(axis=1)
    sums = np.nansum(of_question, axis=1)
    means = np.divide(sums, n_scored, out=np.full(len(groups), np.nan), where=n_scored > 0)
    return [group[0] for group in groups], means


def _load_records(path: Path) -> list[dict[str, Any]]:
    records = read_json(path)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: expected a list of result records; make it again")
    return records


def _text(record: dict[str, Any], key: str, path: Path, index: int) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{path}, item {index}: key {key!r} is missing or not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise UserError(f"{path}, item {index}, key {key!r}: not valid Unicode text (lone surrogate)") from err
    return value


def _letter(record: dict[str, Any], key: str, path: Path, index: int) -> str:
    text = _text(record, key, path, index).strip()
    if len(text) != 3 or text[0] + text[2] != "()" or not "A" <= text[1] <= "Z":
        raise UserError(f"{path}, item {index}, key {key!r}: expected a letter such as '(A)', found {text[:60]!r}")
    return text[1]


def _probability(record: dict[str, Any], letter: str, path: Path, index: int, suffix: str = "") -> float:
    key = probability_key(letter) + suffix
    if key not in record and (suffix or letter not in "AB"):
        return math.nan  # the published files have no more than A and B, and one order
    value = record.get(key)
    if not (_is_number(value) and 0 <= value <= 1 + _PROBABILITY_SLACK):
        raise UserError(f"{path}, item {index}, key {key!r}: expected a probability, found {value!r}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unique(keys: Iterable[str]) -> tuple[str, ...]:
    """Number the repeats of a key, so that items stay apart."""
    seen: dict[str, int] = {}
    unique = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        unique.append(key if seen[key] == 1 else f"{key}\0{seen[key]}")
    return tuple(unique)
