"""What the dataset loaders take, and the one line that they refuse everything else with."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reference import reference_path
from tests.roots import put_json
from utils.behaviors import published_behaviors
from utils.data.records import (
    ContrastPair,
    TextPair,
    as_text_pair,
    load_choice_items,
    load_contrast_pairs,
    load_open_ended_questions,
    load_pairs,
    load_text_pairs,
    text_pairs_path,
)
from utils.errors import UserError
from utils.paths import REPOSITORY, DataPaths
from utils.settings import ResultType

PAIR = {
    "question": "Do you agree?\n\nChoices:\n (A) Yes\n (B) No",
    "answer_matching_behavior": "(A)",
    "answer_not_matching_behavior": " (B)",
}
TEXT = {
    "question": "How are you?",
    "answer_matching_behavior": "Arr, fine!",
    "answer_not_matching_behavior": "I am fine.",
}
FACT = {
    "prompt": "1 + 1?",
    "correct": "(B)",
    "incorrect": "(A)",
    "correct_full_text": "2",
    "incorrect_full_text": "3",
    "category": "sums",
}


def without(record: dict[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in record.items() if name != key}


# --- what they take ---


def test_a_generate_set_becomes_pairs_of_letters(tmp_path: Path) -> None:
    swapped = {**PAIR, "answer_matching_behavior": "(C) ", "answer_not_matching_behavior": "(A)"}
    path = put_json(tmp_path / "d.json", [PAIR, swapped])
    question = PAIR["question"]
    assert load_contrast_pairs(path) == [ContrastPair(question, "A", "B"), ContrastPair(question, "C", "A")]


def test_an_ab_record_keeps_the_published_order_of_keys(tmp_path: Path) -> None:
    [item] = load_choice_items(put_json(tmp_path / "d.json", [PAIR]), "ab")
    assert item.letters == ("A", "B")
    record = item.result_record({"A": 0.75, "B": 0.125})
    assert list(record.items()) == [
        ("question", PAIR["question"]),
        ("answer_matching_behavior", "(A)"),
        ("answer_not_matching_behavior", "(B)"),
        ("a_prob", 0.75),
        ("b_prob", 0.125),
    ]


def test_answers_beyond_b_are_scored_under_their_own_letters(tmp_path: Path) -> None:
    answers = {"answer_matching_behavior": "(D)", "answer_not_matching_behavior": "(A)"}
    [item] = load_choice_items(put_json(tmp_path / "d.json", [{**PAIR, **answers}]), "ab")
    assert item.letters == ("A", "B", "D")
    record = item.result_record({"A": 0.5, "B": 0.25, "D": 0.125})
    assert (record["a_prob"], record["b_prob"], record["d_prob"]) == (0.5, 0.25, 0.125)


@pytest.mark.parametrize("result_type", ["truthful_qa", "mmlu"])
def test_a_knowledge_record_ends_with_its_category(tmp_path: Path, result_type: ResultType) -> None:
    [item] = load_choice_items(put_json(tmp_path / "d.json", [FACT]), result_type)
    assert (item.target_letter, item.other_letter) == ("B", "A")
    assert list(item.result_record({"A": 0.5, "B": 0.25}).items()) == [
        ("question", "1 + 1?"),
        ("correct", "(B)"),
        ("incorrect", "(A)"),
        ("a_prob", 0.5),
        ("b_prob", 0.25),
        ("category", "sums"),
    ]


def test_pairs_of_either_form_are_loaded_as_what_they_are(tmp_path: Path) -> None:
    assert load_pairs(put_json(tmp_path / "ab.json", [PAIR])) == [ContrastPair(PAIR["question"], "A", "B")]
    texts = put_json(tmp_path / "text.json", [TEXT])
    assert load_pairs(texts) == load_text_pairs(texts) == [TextPair("How are you?", "Arr, fine!", "I am fine.")]


def test_a_pair_with_letters_becomes_texts_by_its_choices(tmp_path: Path) -> None:
    swapped = {**PAIR, "answer_matching_behavior": "(B)", "answer_not_matching_behavior": "(A)"}
    path = put_json(tmp_path / "d.json", [PAIR, swapped])
    assert load_text_pairs(path) == [TextPair("Do you agree?", "Yes", "No"), TextPair("Do you agree?", "No", "Yes")]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (ContrastPair("Do you?", "A", "B"), "the question 'Do you?' has no text for choice (A)"),
        (ContrastPair("Do you?\n (A) Yes\n (B) No", "A", "C"), "has no text for choice (C)"),
        (ContrastPair("Do you?\n (A) Yes\n (B) Yes", "A", "B"), "has the same text for both answers"),
    ],
)
def test_letters_without_texts_cannot_become_texts(pair: ContrastPair, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        as_text_pair(pair)


def test_the_set_to_read_answers_from_is_the_one_of_text_form_where_there_is_one(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    assert text_pairs_path(paths, "x") == paths.generate_dataset("x")
    put_json(paths.generate_text_dataset("x"), [TEXT])
    assert text_pairs_path(paths, "x") == paths.generate_text_dataset("x")


@pytest.mark.parametrize("root", [REPOSITORY, "published"])
def test_every_dataset_there_is_loads(root: Path | str) -> None:
    if root == "published":
        root = reference_path("caa")
    paths = DataPaths(Path(root))
    for behavior in published_behaviors():
        assert load_contrast_pairs(paths.generate_dataset(behavior))
        assert load_choice_items(paths.test_dataset(behavior, "ab"), "ab")
        assert load_open_ended_questions(paths.test_dataset(behavior, "open_ended"))
    for result_type in ("truthful_qa", "mmlu"):
        assert load_choice_items(paths.test_dataset("refusal", result_type), result_type)


# --- what they refuse ---


def load_ab(path: Path) -> object:
    return load_choice_items(path, "ab")


def load_mmlu(path: Path) -> object:
    return load_choice_items(path, "mmlu")


LOADERS: dict[Callable[[Path], object], dict[str, str]] = {
    load_contrast_pairs: PAIR,
    load_ab: PAIR,
    load_mmlu: FACT,
    load_open_ended_questions: {"question": "Why?"},
}
REQUIRED = [(load, key) for load, record in LOADERS.items() for key in record if not key.endswith("_full_text")]


def refusal(load: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("load", "key"), REQUIRED)
def test_a_missing_key_is_named_with_file_and_item(tmp_path: Path, load: Callable[[Path], object], key: str) -> None:
    record = LOADERS[load]
    path = put_json(tmp_path / "d.json", [record, record, without(record, key)])
    assert refusal(load, path) == f"{path}, item 2: key {key!r} is missing"


@pytest.mark.parametrize(("load", "key"), REQUIRED)
@pytest.mark.parametrize("value", [None, 3, "", " \n", ["(A)"], {"a": 1}, True, "\ud800 (A)"])
def test_a_value_that_is_no_text_is_named_with_file_item_and_key(
    tmp_path: Path, load: Callable[[Path], object], key: str, value: Any
) -> None:
    record = LOADERS[load]
    path = put_json(tmp_path / "d.json", [record, {**record, key: value}])
    assert refusal(load, path).startswith(f"{path}, item 1, key {key!r}: ")


@pytest.mark.parametrize("load", [load_pairs, load_text_pairs])
@pytest.mark.parametrize("key", TEXT)
def test_a_text_pair_is_refused_as_an_ab_pair_is(tmp_path: Path, load: Callable[[Path], object], key: str) -> None:
    path = put_json(tmp_path / "d.json", [TEXT, without(TEXT, key)])
    assert refusal(load, path) == f"{path}, item 1: key {key!r} is missing"
    path = put_json(tmp_path / "d.json", [TEXT, {**TEXT, key: " "}])
    assert refusal(load, path) == f"{path}, item 1, key {key!r}: expected text that is not empty, found ' '"


def test_equal_answers_in_words_are_refused_with_their_item(tmp_path: Path) -> None:
    same = {**TEXT, "answer_matching_behavior": " I am fine."}
    path = put_json(tmp_path / "d.json", [TEXT, same])
    message = f"{path}, item 1: 'answer_matching_behavior' and 'answer_not_matching_behavior' are the same"
    assert refusal(load_pairs, path) == message


@pytest.mark.parametrize(("records", "places"), [([PAIR, PAIR, TEXT], (0, 2)), ([TEXT, PAIR], (1, 0))])
def test_a_set_of_both_forms_is_refused_with_an_item_of_each(
    tmp_path: Path, records: list[Any], places: tuple[int, int]
) -> None:
    path = put_json(tmp_path / "d.json", records)
    expected = (
        f"{path}: item {places[0]} is an A/B pair and item {places[1]} a text pair; a set is of one form, "
        "so put them into two files"
    )
    assert refusal(load_pairs, path) == refusal(load_contrast_pairs, path) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"question": PAIR["question"]},
        {"answer_matching_behavior": "(A)"},
        {"answer_not_matching_behavior": "(B)"},
    ],
)
def test_half_an_ab_pair_is_not_a_text_pair(tmp_path: Path, change: dict[str, str]) -> None:
    path = put_json(tmp_path / "d.json", [{**TEXT, **change}])
    assert "expected an answer such as '(A)', found " in refusal(load_pairs, path)


def test_what_reads_letters_refuses_a_text_set_and_says_what_to_do(tmp_path: Path) -> None:
    path = put_json(tmp_path / "generate_dataset.json", [TEXT])
    needed = "an A/B set is needed here: questions with choices, and answers such as '(A)'"
    assert refusal(load_contrast_pairs, path) == f"{path} is a set of text pairs; {needed}"
    told = refusal(lambda path: load_contrast_pairs(path, for_text="do that"), path)
    assert told == f"{path} is a set of text pairs; do that"
    path.rename(tmp_path / "generate_dataset_text.json")
    message = f"{path} not found, and generate_dataset_text.json beside it is a set of text pairs; {needed}"
    assert refusal(load_contrast_pairs, path) == message
    test_path = tmp_path / "test_dataset_ab.json"
    put_json(tmp_path / "test_dataset_text.json", [TEXT])
    message = f"{test_path} not found, and test_dataset_text.json beside it is a set of text pairs; {needed}"
    assert refusal(load_ab, test_path) == message


ANSWER_KEYS = [(load, key) for load, key in REQUIRED if key.startswith("answer") or key.endswith("correct")]


@pytest.mark.parametrize(("load", "key"), ANSWER_KEYS)
@pytest.mark.parametrize("value", ["A", "(a)", "(AB)", "A)", "(A) Yes", "(1)", "()", "(A)(B)", "( A )", "Yes"])
def test_an_answer_of_another_form_is_named_with_what_was_found(
    tmp_path: Path, load: Callable[[Path], object], key: str, value: str
) -> None:
    record = LOADERS[load]
    path = put_json(tmp_path / "d.json", [{**record, key: value}])
    expected = f"{path}, item 0, key {key!r}: expected an answer such as '(A)', found {value!r}"
    assert refusal(load, path) == expected


@pytest.mark.parametrize("load", [load_contrast_pairs, load_ab, load_mmlu])
def test_two_answers_with_one_letter_are_refused(tmp_path: Path, load: Callable[[Path], object]) -> None:
    same = {key: "(B)" for loader, key in ANSWER_KEYS if loader is load}
    path = put_json(tmp_path / "d.json", [{**LOADERS[load], **same}])
    assert re.fullmatch(rf"{path}, item 0: '\w+' and '\w+' are both '\(B\)'", refusal(load, path))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"question": "x"}, ": expected a list of records, found dict"),
        ("text", ": expected a list of records, found str"),
        (None, ": expected a list of records, found NoneType"),
        ([], ": the list is empty; it needs at least one record"),
        ([["x"]], ", item 0: expected an object, found list"),
        (["x"], ", item 0: expected an object, found str"),
    ],
)
def test_what_is_no_list_of_records_is_named(
    tmp_path: Path, load: Callable[[Path], object], content: Any, reason: str
) -> None:
    path = put_json(tmp_path / "d.json", content)
    assert refusal(load, path) == f"{path}{reason}"


def test_a_missing_dataset_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "gone.json"
    hint = "run: ./process_raw_datasets.py"
    for load in (load_contrast_pairs, load_open_ended_questions):
        assert refusal(lambda p, load=load: load(p, hint), path) == f"{path} not found; {hint}"  # type: ignore[misc]
