"""Exact and near duplicates."""

import json
import time

import pytest

from tests.reference import reference_path
from utils.behaviors import published_behaviors
from utils.data.duplicates import find_duplicates, without_repeats
from utils.paths import REPOSITORY, DataPaths


def _numbered(n_shared: int, own: str) -> str:
    return " ".join([*(f"w{i}" for i in range(n_shared)), own])


def test_exact_duplicates_ignore_case_and_blanks_only() -> None:
    found = find_duplicates(["Do you agree?\n (A) Yes", "do  you agree?\n(A) yes ", "Do you agree!\n (A) Yes"])
    assert found.exact == ((0, 1),)
    assert found.near == ((0, 2), (1, 2))


def test_the_near_duplicate_limit_is_four_fifths_of_all_distinct_words() -> None:
    # 8 shared of 10 distinct words is 0.8, 7 of 9 is 0.78
    assert find_duplicates([_numbered(8, "x"), _numbered(8, "y")]).near == ((0, 1),)
    assert find_duplicates([_numbered(7, "x"), _numbered(7, "y")]).near == ()


def test_letters_of_choices_and_their_order_do_not_count() -> None:
    first = "Tea now or cake later?\n\nChoices:\n (A) Tea now\n (B) Cake later"
    second = "Tea now or cake later?\n (A) Cake later\n (B) Tea now"
    assert find_duplicates([first, second]).near == ((0, 1),)


def test_dropping_keeps_the_first_of_those_alike_and_leaves_no_pair() -> None:
    # 0 and 1 are alike, 1 and 2 are alike, 0 and 2 are not: 1 goes, 2 stays because 1 is gone
    texts = ["a b c d e f g h i x", "a b c d e f g h i y", "a b c d e f g h z y", "q r s"]
    found = find_duplicates(texts)
    assert found.near == ((0, 1), (1, 2))
    assert without_repeats(4, found) == [0, 2, 3]


@pytest.mark.parametrize("texts", [[], ["one"], ["", "..."], ["???", "!!!"]])
def test_texts_without_words_have_no_near_duplicates(texts: list[str]) -> None:
    assert find_duplicates(texts).near == ()


def test_more_questions_than_one_block_are_compared_with_each_other() -> None:
    texts = [f"word{i} other{i} third{i}" for i in range(1200)]
    texts[1100] = "third3 other3 word3!"
    assert find_duplicates(texts).near == ((3, 1100),)


def test_pairs_on_the_published_sets_are_those_of_a_plain_comparison() -> None:
    for behavior in published_behaviors():
        records = json.loads(reference_path("caa", "datasets", "raw", behavior, "dataset.json").read_text())
        questions = [record["question"] for record in records]
        started = time.perf_counter()
        found = find_duplicates(questions)
        assert time.perf_counter() - started < 5, "a behavior takes a few seconds at most"
        assert found.exact == (), behavior
        n_compared = 500  # the plain comparison takes its time
        near = {(i, j) for i, j in found.near if j < n_compared}
        assert near == _plain_near_pairs(questions[:n_compared]), behavior


def test_pairs_among_variations_of_the_bundled_questions_are_those_of_a_plain_comparison() -> None:
    """One, three and nine words of a question are another's: some pairs are near, some are not."""
    records = json.loads(DataPaths(REPOSITORY).raw_dataset("refusal").read_text(encoding="utf-8"))
    questions = [record["question"] for record in records]
    for index in range(60):
        n_words, words = (1, 3, 9)[index % 3], questions[index].split(" ")
        questions.append(" ".join([*words[:-n_words], *questions[index + 1].split(" ")[-n_words:]]))
    found = find_duplicates(questions)
    assert 20 < len(found.near) < 80
    assert {*found.near, *found.exact} == _plain_near_pairs(questions)


def _plain_near_pairs(questions: list[str]) -> set[tuple[int, int]]:
    """Character by character and pair by pair, sharing nothing with the tested code."""
    sets = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        lines = [line[3:] if line[:1] == "(" and line[2:3] == ")" and line[1:2].isupper() else line for line in lines]
        text = " ".join(line for line in lines if line != "Choices:").casefold()
        sets.append(set("".join(char if char.isalnum() or char == "_" else " " for char in text).split()))
    pairs = set()
    for j, words in enumerate(sets):
        for i, others in enumerate(sets[:j]):
            small, large = sorted((len(words), len(others)))
            if 5 * small >= 4 * large:
                shared = len(words & others)
                if 5 * shared >= 4 * (len(words) + len(others) - shared):
                    pairs.add((i, j))
    return pairs
