"""From a raw dataset to its generate and test sets: cleaning and splitting."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from utils.data.choices import check_choices, split_choices
from utils.data.duplicates import Duplicates, fold
from utils.data.records import (
    ANSWER_KEYS,
    MATCHING_KEY,
    OTHER_KEY,
    ContrastPair,
    Pair,
    TextPair,
    contrast_pair,
    load_records,
)
from utils.errors import UserError

N_TEST = 50
MAX_GENERATE = 1000
MIN_GENERATE = 10
"""Or half of the set, where that is fewer."""
MIN_PAIRS = 8

P = TypeVar("P", ContrastPair, TextPair)


@dataclass(frozen=True)
class Splits(Generic[P]):
    generate: list[P]
    test: list[P]
    n_left_out: int
    """Items beyond MAX_GENERATE, and those whose question is tested in the other form."""


def load_raw_pairs(path: Path, hint: str = "") -> list[ContrastPair]:
    """Load and clean a raw dataset of A/B form.

    Raises:
        UserError: If the file is missing or an item is not such a pair; names file, item and key.
    """
    return [clean_pair(record, path, index) for index, record in enumerate(load_records(path, hint))]


def load_raw_text_pairs(path: Path, hint: str = "") -> list[TextPair]:
    """Load and clean a raw dataset of text form.

    Raises:
        UserError: As `load_raw_pairs`.
    """
    return [clean_text_pair(record, path, index) for index, record in enumerate(load_records(path, hint))]


def clean_pair(record: Mapping[str, Any], path: Path, index: int) -> ContrastPair:
    """A raw record of A/B form as the published sets have it.

    The markers "Question:" before and "Answer:" after the question go, and the blanks around the
    question and the answers. Of several answers in a list the first one counts.

    Raises:
        UserError: If it is not a contrast pair, or an answer is not among the question's choices.
    """
    pair = contrast_pair(_plain(record, path, index), path, index)
    if isinstance(pair, TextPair):
        raise UserError(
            f"{path}, item {index}: a text pair (a question without choices) in an A/B set; "
            f"text pairs belong in a file of their own, such as {path.stem}_text.json"
        )
    check_choices(pair.question, (pair.matching_letter, pair.other_letter), f"{path}, item {index}")
    return pair


def clean_text_pair(record: Mapping[str, Any], path: Path, index: int) -> TextPair:
    """A raw record of text form, cleaned like those of A/B form.

    Raises:
        UserError: If it is not a contrast pair of text form.
    """
    pair = contrast_pair(_plain(record, path, index), path, index)
    if isinstance(pair, ContrastPair):
        raise UserError(
            f"{path}, item {index}: an A/B pair (a question with choices, or letters as answers) in a set of text "
            "pairs; A/B pairs belong in a file of their own"
        )
    return TextPair(pair.question, pair.matching.strip(), pair.other.strip())


def _plain(record: Mapping[str, Any], path: Path, index: int) -> dict[str, Any]:
    """The record with a clean question and one answer a key."""
    plain = dict(record)
    if isinstance(question := plain.get("question"), str):
        plain["question"] = clean_question(question)
    for key in ANSWER_KEYS:
        if isinstance(answers := plain.get(key), list):
            if not answers:
                raise UserError(f"{path}, item {index}, key {key!r}: the list of answers is empty")
            plain[key] = answers[0]
    return plain


def clean_question(question: str) -> str:
    """Without the markers "Question:" before and "Answer:" after it, however often, and blanks around it."""
    while (bare := question.strip().removeprefix("Question:").removesuffix("Answer:").strip()) != question:
        question = bare
    return question


def pair_record(pair: Pair) -> dict[str, str]:
    """The pair as it stands in generate and test sets."""
    if isinstance(pair, TextPair):
        answers = (pair.matching, pair.other)
    else:
        answers = (f"({pair.matching_letter})", f"({pair.other_letter})")
    return {"question": pair.question, MATCHING_KEY: answers[0], OTHER_KEY: answers[1]}


def first_line(question: str) -> str:
    """The open-ended form of a question with choices: its first line."""
    return question.strip().split("\n", 1)[0].strip()


def whole_text(pair: Pair) -> str:
    """Question and answers, which duplicates are looked for in."""
    return f"{pair.question}\n{pair.matching}\n{pair.other}" if isinstance(pair, TextPair) else pair.question


def prompts_of(pairs: Sequence[Pair]) -> set[str]:
    """What is asked, without choices: equal for the same question in both forms."""
    return {_prompt(pair) for pair in pairs}


def _prompt(pair: Pair) -> str:
    return fold(split_choices(pair.question)[0])


def split_pairs(
    pairs: Sequence[P],
    duplicates: Duplicates,
    seed: int,
    source: Path,
    n_test: int = N_TEST,
    other_form: Splits[Any] | None = None,
) -> Splits[P]:
    """Shuffle and split: n_test items for the test set, up to MAX_GENERATE of the rest for the generate set.

    Both sets have the raw set's shares of matching letters, as nearly as whole items allow. Exact
    duplicates all go to the generate side. So do near duplicates and items with the same first
    line, as long as enough others are there for the test set. A question that the other form of
    the behavior has too goes to the same side.

    Args:
        pairs: The cleaned raw set.
        duplicates: Of the pairs' whole texts.
        seed: Of the shuffle.
        source: The raw set's path, for messages.
        n_test: Items of the test set.
        other_form: The splits of the behavior's pairs of the other form.

    Raises:
        UserError: If there are too few items.
    """
    generated, tested = (prompts_of(other_form.generate), prompts_of(other_form.test)) if other_form else (set(), set())
    prompts = [_prompt(pair) for pair in pairs]
    repeated = {position for pair in duplicates.exact for position in pair}
    testable = {i for i in range(len(pairs)) if i not in repeated and prompts[i] not in generated}
    _check_numbers(len(pairs), len(testable), n_test, source, is_second=other_form is not None)
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    related = _related_positions(pairs, duplicates)
    candidates = sorted((i for i in order if i in testable), key=lambda i: (prompts[i] not in tested, i in related))
    test = _take(pairs, candidates, n_test, order)
    rest = [i for i in order if i not in test and prompts[i] not in tested]
    if len(rest) < _min_generate(len(pairs)):
        raise UserError(
            f"{source}: {len(rest)} pairs are left to generate from, the other questions being tested, here or in "
            f"the other form; add pairs with questions of their own, or run with a smaller --n_test than {n_test}"
        )
    generate = _take(pairs, rest, min(len(rest), MAX_GENERATE), rest)
    return Splits(
        generate=[pairs[i] for i in rest if i in generate],
        test=[pairs[i] for i in order if i in test],
        n_left_out=len(pairs) - len(test) - len(generate),
    )


def _min_generate(n_pairs: int) -> int:
    return min(MIN_GENERATE, (n_pairs + 1) // 2)


def _check_numbers(n_pairs: int, n_testable: int, n_test: int, source: Path, *, is_second: bool) -> None:
    """`is_second`: the behavior's pairs of the other form have been split before."""
    most = min(n_testable, n_pairs - _min_generate(n_pairs))
    if n_pairs >= MIN_PAIRS and n_test <= most:
        return
    elsewhere = " and outside the other form's generate set" if is_second else ""
    found = f"{source}: {n_pairs} items, {n_testable} of them without an exact duplicate{elsewhere},"
    if n_pairs < MIN_PAIRS:
        otherwise = ", or delete it to do without text pairs" if is_second else ""
        raise UserError(f"{found} are too few to split; needs at least {MIN_PAIRS} items{otherwise}")
    otherwise = f", or run with --n_test {most} or less" if most else ""
    raise UserError(
        f"{found} are too few for {n_test} to test and {_min_generate(n_pairs)} to generate from; add items{otherwise}"
    )


def _related_positions(pairs: Sequence[Pair], duplicates: Duplicates) -> set[int]:
    """Positions of items that have a near duplicate or share their first line with another."""
    first_lines = [fold(first_line(pair.question)) for pair in pairs]
    times = Counter(first_lines)
    shared = {position for position, line in enumerate(first_lines) if times[line] > 1}
    return shared.union(*duplicates.near)


def _letter(pair: Pair) -> str:
    """The matching letter, whose shares the splits keep; text pairs have none."""
    return pair.matching_letter if isinstance(pair, ContrastPair) else ""


def _take(pairs: Sequence[Pair], candidates: Sequence[int], n: int, population: Sequence[int]) -> set[int]:
    """The first `n` candidates, with the population's shares of matching letters."""
    wanted = Counter(_letter(pairs[i]) for i in population)
    quota = _proportional(n, wanted, Counter(_letter(pairs[i]) for i in candidates))
    taken = set()
    for i in candidates:
        if quota[_letter(pairs[i])]:
            quota[_letter(pairs[i])] -= 1
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
