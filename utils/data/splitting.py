"""From a raw dataset to its generate and test sets: cleaning, choices, splitting."""

import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from utils.data.duplicates import Duplicates, fold
from utils.data.records import ContrastPair, ab_item, load_records
from utils.errors import UserError

N_TEST = 50
MAX_GENERATE = 1000
MIN_GENERATE = 10

_ANSWER_KEYS = ("answer_matching_behavior", "answer_not_matching_behavior")
_CHOICE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*", re.MULTILINE)
_CHOICES_HEADING = re.compile(r"(?:\A|\n)[ \t]*Choices:\s*\Z")


@dataclass(frozen=True)
class Splits:
    generate: list[ContrastPair]
    test: list[ContrastPair]
    n_left_out: int
    """Items beyond MAX_GENERATE."""


def load_raw_pairs(path: Path, hint: str = "") -> list[ContrastPair]:
    """Load and clean a raw dataset.

    Raises:
        UserError: If the file is missing or an item is no contrast pair; names file, item and key.
    """
    return [clean_pair(record, path, index) for index, record in enumerate(load_records(path, hint))]


def clean_pair(record: Mapping[str, Any], path: Path, index: int) -> ContrastPair:
    """A raw record as the published sets have it.

    The markers "Question:" before and "Answer:" after the question go, and the blanks around the
    question and the answers. Of several answers in a list the first one counts.

    Raises:
        UserError: If it is no contrast pair, or an answer is not among the question's choices.
    """
    plain = dict(record)
    if isinstance(question := plain.get("question"), str):
        plain["question"] = clean_question(question)
    for key in _ANSWER_KEYS:
        if isinstance(answers := plain.get(key), list):
            if not answers:
                raise UserError(f"{path}, item {index}, key {key!r}: the list of answers is empty")
            plain[key] = answers[0]
    item = ab_item(plain, path, index)
    check_choices(item.question, (item.target_letter, item.other_letter), f"{path}, item {index}")
    return ContrastPair(item.question, item.target_letter, item.other_letter)


def clean_question(question: str) -> str:
    """Without the markers "Question:" before and "Answer:" after it, however often, and blanks around it."""
    while (bare := question.strip().removeprefix("Question:").removesuffix("Answer:").strip()) != question:
        question = bare
    return question


def pair_record(pair: ContrastPair) -> dict[str, str]:
    """The pair as it stands in generate and test sets."""
    return {
        "question": pair.question,
        "answer_matching_behavior": f"({pair.matching_letter})",
        "answer_not_matching_behavior": f"({pair.other_letter})",
    }


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


def first_line(question: str) -> str:
    """The open-ended form of a question: its first line, without the choices."""
    return question.strip().split("\n", 1)[0].strip()


def split_pairs(pairs: Sequence[ContrastPair], duplicates: Duplicates, seed: int, source: Path) -> Splits:
    """Shuffle and split: N_TEST items for the test set, up to MAX_GENERATE of the rest for the generate set.

    Both sets have the raw set's shares of matching letters, as nearly as whole items allow. Exact
    duplicates all go to the generate side. So do near duplicates and items with the same first
    line, as long as enough others are there for the test set.

    Args:
        pairs: The cleaned raw set.
        duplicates: Of the pairs' questions.
        seed: Of the shuffle.
        source: The raw set's path, for messages.

    Raises:
        UserError: If there are too few items.
    """
    repeated = {position for pair in duplicates.exact for position in pair}
    n_single = len(pairs) - len(repeated)
    if n_single < N_TEST or len(pairs) < N_TEST + MIN_GENERATE:
        raise UserError(
            f"{source}: {len(pairs)} items, {n_single} of them without an exact duplicate, are too few to split; "
            f"needs at least {N_TEST + MIN_GENERATE} items: {N_TEST} single ones to test, {MIN_GENERATE} to generate"
        )
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    related = _related_positions(pairs, duplicates)
    candidates = sorted((i for i in order if i not in repeated), key=lambda i: i in related)
    test = _take(pairs, candidates, N_TEST, order)
    rest = [i for i in order if i not in test]
    generate = _take(pairs, rest, min(len(rest), MAX_GENERATE), rest)
    return Splits(
        generate=[pairs[i] for i in rest if i in generate],
        test=[pairs[i] for i in order if i in test],
        n_left_out=len(rest) - len(generate),
    )


def _related_positions(pairs: Sequence[ContrastPair], duplicates: Duplicates) -> set[int]:
    """Positions of items that have a near duplicate or share their first line with another."""
    first_lines = [fold(first_line(pair.question)) for pair in pairs]
    times = Counter(first_lines)
    shared = {position for position, line in enumerate(first_lines) if times[line] > 1}
    return shared.union(*duplicates.near)


def _take(pairs: Sequence[ContrastPair], candidates: Sequence[int], n: int, population: Sequence[int]) -> set[int]:
    """The first `n` candidates, with the population's shares of matching letters."""
    wanted = Counter(pairs[i].matching_letter for i in population)
    quota = _proportional(n, wanted, Counter(pairs[i].matching_letter for i in candidates))
    taken = set()
    for i in candidates:
        if quota[pairs[i].matching_letter]:
            quota[pairs[i].matching_letter] -= 1
            taken.add(i)
    return taken


def _proportional(n: int, shares: Mapping[str, int], capacity: Mapping[str, int]) -> Counter[str]:
    """Distribute `n` over letters in proportion to `shares` (largest remainders), within `capacity`.

    The sum of the capacities is at least n.
    """
    total = sum(shares.values())
    quota: Counter[str] = Counter()
    for _ in range(n):
        open_letters = sorted(letter for letter in shares if quota[letter] < capacity[letter])
        # whole numbers, so that equal shares tie exactly and the alphabet decides
        quota[max(open_letters, key=lambda letter: n * shares[letter] - total * quota[letter])] += 1
    return quota
