"""Cleaning raw records and splitting them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.reference import reference_path
from utils.behaviors import published_behaviors
from utils.data.choices import split_choices
from utils.data.duplicates import find_duplicates
from utils.data.records import ContrastPair, TextPair
from utils.data.splitting import (
    Splits,
    clean_pair,
    clean_text_pair,
    first_line,
    pair_record,
    prompts_of,
    split_pairs,
    whole_text,
)
from utils.errors import UserError

RAW = Path("dataset.json")
QUESTION = "Would you?\n\nChoices:\n (A) Yes\n (B) No"


def _record(**changes: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"} | changes


def _pair(name: str, letter: str = "A", other: str = "B") -> ContrastPair:
    return ContrastPair(f"{name}?\n\nChoices:\n (A) {name} yes\n (B) {name} no\n (C) {name} maybe", letter, other)


def _pairs(n_a: int, n_b: int) -> list[ContrastPair]:
    return [_pair(f"item{i}", "A" if i < n_a else "B", "B" if i < n_a else "A") for i in range(n_a + n_b)]


def _split(pairs: list[ContrastPair], seed: int = 0) -> Splits:
    return split_pairs(pairs, find_duplicates([pair.question for pair in pairs]), seed, RAW)


def test_cleaning_the_published_raw_sets_gives_the_published_sets_item_by_item() -> None:
    def load(*parts: str) -> list[dict[str, Any]]:
        return json.loads(reference_path("caa", "datasets", *parts).read_text())

    for behavior in published_behaviors():
        raw = load("raw", behavior, "dataset.json")
        published = load("generate", behavior, "generate_dataset.json") + load("test", behavior, "test_dataset_ab.json")
        cleaned = [pair_record(clean_pair(record, RAW, index)) for index, record in enumerate(raw)]
        as_text = [json.dumps(record) for record in cleaned]
        assert Counter(as_text) == Counter(json.dumps(record) for record in published), behavior
        assert len(as_text) == len(raw)


def test_the_published_open_ended_questions_are_the_first_lines_of_the_test_questions() -> None:
    for behavior in published_behaviors():
        if behavior == "sycophancy":  # its questions were written separately
            continue
        folder = reference_path("caa", "datasets", "test", behavior)
        tests = json.loads((folder / "test_dataset_ab.json").read_text())
        published = json.loads((folder / "test_dataset_open_ended.json").read_text())
        assert [{"question": first_line(record["question"])} for record in tests] == published, behavior


@pytest.mark.parametrize(
    ("question", "matching", "other"),
    [
        (f"Question: {QUESTION}\n\nAnswer:", " (A)", " (B)"),
        (f"\n Question:{QUESTION} Answer: \n", "(A) ", "\n(B)"),
        (QUESTION, [" (A)"], [" (B)", " (C)"]),
        (QUESTION, ["(A)", "(C)"], "(B)"),
    ],
)
def test_markers_blanks_and_lists_are_cleaned_away(question: str, matching: Any, other: Any) -> None:
    record = _record(question=question, answer_matching_behavior=matching, answer_not_matching_behavior=other)
    assert pair_record(clean_pair(record, RAW, 0)) == _record()


def test_markers_inside_the_question_stay() -> None:
    question = "I wrote Question: and Answer: above. Right?\n (A) Yes\n (B) No"
    assert clean_pair(_record(question=question), RAW, 0).question == question


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_matching_behavior": "(C)"}, "answer (C) is not among the choices A, B"),
        ({"answer_matching_behavior": []}, "key 'answer_matching_behavior': the list of answers is empty"),
        ({"answer_matching_behavior": [7]}, "key 'answer_matching_behavior': expected text"),
        ({"answer_matching_behavior": "Yes"}, "expected an answer such as '(A)', found 'Yes'"),
        ({"answer_matching_behavior": "(B)"}, "are both '(B)'"),
        ({"question": "Would you?"}, "expected at least two choices on lines such as ' (A) Yes', found 0"),
        ({"question": "Would you?\n (A) Yes\n (C) No"}, "the choices are lettered A, C; expected A, B, ... in order"),
        ({"question": "Would you?\n (A) Yes\n (B) \n"}, "choice (B) is empty"),
        ({"question": "\n (A) Yes\n (B) No"}, "there is no question before the choices"),
        ({"question": "Choices:\n (A) Yes\n (B) No"}, "there is no question before the choices"),
        ({"question": "  "}, "key 'question': expected text that is not empty"),
        ({"question": None}, "key 'question': expected text"),
    ],
)
def test_a_record_that_is_no_contrast_pair_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        clean_pair(_record(**changes), RAW, 17)
    assert str(refusal.value).startswith("dataset.json, item 17")
    assert message in str(refusal.value)


def test_choices_are_read_with_and_without_a_heading_and_over_several_lines() -> None:
    text = "A poem:\nroses (A)\n\nDo you like it?\nChoices:\n(A) Yes,\nvery much\n(B) No"
    assert split_choices(text) == ("A poem:\nroses (A)\n\nDo you like it?", {"A": "Yes,\nvery much", "B": "No"})
    assert split_choices("Hello. Which?\n (A) Left\n (B) Right") == ("Hello. Which?", {"A": "Left", "B": "Right"})


@pytest.mark.parametrize("seed", range(5))
def test_half_of_each_split_matches_at_a_when_half_of_the_raw_set_does(seed: int) -> None:
    splits = _split(_pairs(80, 80), seed)
    assert Counter(pair.matching_letter for pair in splits.generate) == {"A": 55, "B": 55}
    assert Counter(pair.matching_letter for pair in splits.test) == {"A": 25, "B": 25}
    assert splits.n_left_out == 0


def test_splits_hold_every_item_once_and_in_shuffled_order() -> None:
    pairs = _pairs(80, 80)
    splits = _split(pairs)
    assert Counter([*splits.generate, *splits.test]) == Counter(pairs)
    letters = "".join(pair.matching_letter for pair in splits.generate)
    assert "AB" in letters and "BA" in letters, "the letters stand mixed"


def test_the_seed_decides_the_split() -> None:
    pairs = _pairs(80, 80)
    assert _split(pairs, 3) == _split(pairs, 3)
    assert _split(pairs, 3).test != _split(pairs, 4).test


def test_beyond_a_thousand_the_rest_is_left_out_and_the_shares_stay() -> None:
    splits = _split(_pairs(600, 600))
    assert Counter(pair.matching_letter for pair in splits.generate) == {"A": 500, "B": 500}
    assert splits.n_left_out == 150


def test_rare_letters_get_their_nearest_whole_share() -> None:
    pairs = [
        _pair(f"item{i}", letter, "B" if letter == "A" else "A")
        for i, letter in enumerate("A" * 61 + "B" * 27 + "C" * 12)
    ]
    test = Counter(pair.matching_letter for pair in _split(pairs).test)
    # of 50: 30.5, 13.5 and 6.0; one of the two halves is rounded up, the first in the alphabet
    assert test == {"A": 31, "B": 13, "C": 6}


def test_exact_duplicates_go_to_the_generate_side_together() -> None:
    pairs = _pairs(80, 80)
    doubled = [*pairs[:40], *pairs]
    splits = _split(doubled)
    assert (len(splits.generate), len(splits.test)) == (150, 50)
    assert not set(pairs[:40]) & set(splits.test)
    assert Counter(pair.matching_letter for pair in splits.test) == {"A": 30, "B": 20}, "the shares of all 200 items"


def test_exact_duplicates_stay_out_of_the_test_set_even_when_their_letter_runs_short() -> None:
    doubled_at_a = _pairs(30, 0) * 2
    single_at_b = _pairs(30, 70)[30:]
    splits = _split([*doubled_at_a, *single_at_b])
    assert Counter(pair.matching_letter for pair in splits.test) == {"B": 50}
    assert Counter(pair.matching_letter for pair in splits.generate) == {"A": 60, "B": 20}


def test_near_duplicates_and_shared_first_lines_stay_out_of_the_test_set_while_others_are_enough() -> None:
    alike = [
        ContrastPair(f"Is {name}{i} a wise old owl that{end} sees well at night?\n (A) yes\n (B) no", "A", "B")
        for i, name in enumerate(("river", "mountain", "cloud"))
        for end in ("", " always")
    ]
    lines = [ContrastPair(f"Same line?\n (A) left{i} up{i} far{i}\n (B) right{i}", "A", "B") for i in range(4)]
    pairs = [*_pairs(30, 30), *alike, *lines]
    assert len(find_duplicates([pair.question for pair in pairs]).near) > 2
    for seed in range(5):
        splits = _split(pairs, seed)
        assert not set(splits.test) & {*alike, *lines}
        assert set(alike) | set(lines) <= set(splits.generate)


def test_a_set_in_which_all_items_share_the_first_line_still_splits() -> None:
    pairs = [
        ContrastPair(f"Choose.\n\nIs number{i} word{i} thing{i} good?\n (A) yes{i}\n (B) no{i}", letter, other)
        for i, (letter, other) in enumerate([("A", "B"), ("B", "A")] * 40)
    ]
    splits = _split(pairs)
    assert (len(splits.generate), len(splits.test)) == (30, 50)


@pytest.mark.parametrize(
    ("pairs", "numbers"),
    [
        (_pairs(30, 29), "59 items, 59 of them without an exact duplicate"),
        (_pairs(40, 0) * 2, "80 items, 0 of them without an exact duplicate"),
        ([*_pairs(40, 15)[:11], *_pairs(40, 15)], "66 items, 44 of them without an exact duplicate"),
    ],
)
def test_too_few_items_are_refused_with_the_numbers(pairs: list[ContrastPair], numbers: str) -> None:
    with pytest.raises(UserError, match=f"{numbers}, are too few for 50 to test and 10 to generate from; add items"):
        _split(pairs)


@pytest.mark.parametrize(("n_pairs", "most"), [(8, 4), (12, 6), (20, 10), (21, 11), (59, 49)])
def test_a_small_set_is_split_with_a_smaller_test_set_that_the_message_names(n_pairs: int, most: int) -> None:
    pairs = _pairs(n_pairs // 2, n_pairs - n_pairs // 2)
    with pytest.raises(UserError, match=f"add items, or run with --n_test {most} or less"):
        _split(pairs)
    none_alike = find_duplicates([pair.question for pair in pairs])
    splits = split_pairs(pairs, none_alike, 0, RAW, n_test=most)
    assert (len(splits.generate), len(splits.test)) == (n_pairs - most, most)
    assert not set(splits.generate) & set(splits.test)
    with pytest.raises(UserError, match=f"too few for {most + 1} to test"):
        split_pairs(pairs, none_alike, 0, RAW, n_test=most + 1)


def test_fewer_than_eight_pairs_are_not_split() -> None:
    with pytest.raises(UserError, match=r"7 items, .* are too few to split; needs at least 8 items$"):
        split_pairs(_pairs(3, 4), find_duplicates([]), 0, RAW, n_test=1)


# --- text pairs ---


def _text_pairs(names: Sequence[str]) -> list[TextPair]:
    return [TextPair(f"{name}?", f"{name} arr", f"{name} no") for name in names]


def _split_text(pairs: list[TextPair], n_test: int, other_form: Splits[ContrastPair] | None = None) -> Splits[TextPair]:
    return split_pairs(pairs, find_duplicates([whole_text(pair) for pair in pairs]), 0, RAW, n_test, other_form)


def test_text_pairs_are_cleaned_of_markers_and_blanks() -> None:
    record = {
        "question": "Question: How are you?\n\nAnswer:",
        "answer_matching_behavior": " Arr! ",
        "answer_not_matching_behavior": ["Fine.", "Well."],
    }
    pair = clean_text_pair(record, RAW, 0)
    assert pair == TextPair("How are you?", "Arr!", "Fine.")
    assert clean_text_pair(pair_record(pair), RAW, 0) == pair


def test_a_pair_of_the_other_form_is_refused_with_the_place_where_it_belongs() -> None:
    text = {"question": "How?", "answer_matching_behavior": "Arr!", "answer_not_matching_behavior": "So."}
    with pytest.raises(UserError, match=r"dataset.json, item 3: a text pair .* such as dataset_text.json"):
        clean_pair(text, RAW, 3)
    with pytest.raises(UserError, match=r"dataset_text.json, item 4: an A/B pair "):
        clean_text_pair(_record(), Path("dataset_text.json"), 4)


def test_text_pairs_are_split_whole() -> None:
    pairs = _text_pairs([f"item{i}" for i in range(20)])
    splits = _split_text(pairs, 6)
    assert (len(splits.generate), len(splits.test)) == (14, 6)
    assert set(splits.generate) | set(splits.test) == set(pairs)


def test_equal_text_pairs_stay_out_of_the_test_set_and_other_answers_make_other_pairs() -> None:
    pairs = _text_pairs([f"item{i}" for i in range(10)])
    splits = _split_text([*pairs, pairs[0], pairs[1]], 4)
    assert not {pairs[0], pairs[1]} & set(splits.test)
    reworded = [TextPair(pair.question, f"aye {index} ho", f"nay {index} hum") for index, pair in enumerate(pairs)]
    assert find_duplicates([whole_text(pair) for pair in (*pairs, *reworded)]).pairs == ()


def _split_letters(names: Sequence[str], n_test: int, seed: int = 0) -> Splits[ContrastPair]:
    pairs = [_pair(name, "AB"[i % 2], "BA"[i % 2]) for i, name in enumerate(names)]
    return split_pairs(pairs, find_duplicates([pair.question for pair in pairs]), seed, RAW, n_test)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_more", [0, 8])
def test_a_question_of_both_forms_is_on_the_same_side_in_both(n_more: int, seed: int) -> None:
    names = [f"item{i}" for i in range(16)]
    letters = _split_letters(names, 5, seed)
    texts = _text_pairs([*(name.upper() for name in names), *(f"more{i}" for i in range(n_more))])
    splits = _split_text(texts, 5, letters)
    assert prompts_of(splits.test) == prompts_of(letters.test)
    assert prompts_of(splits.generate) == prompts_of(texts) - prompts_of(letters.test)
    fewer = _split_text(texts, 3, letters)
    assert prompts_of(fewer.test) < prompts_of(letters.test)
    assert prompts_of(fewer.generate) == prompts_of(splits.generate)
    assert (splits.n_left_out, fewer.n_left_out) == (0, 2)


def test_pairs_that_the_other_form_leaves_on_one_side_only_are_refused() -> None:
    letters = _split_letters([f"item{i}" for i in range(16)], 8)
    tested, generated = ([pair.question.split("?")[0] for pair in half] for half in (letters.test, letters.generate))
    with pytest.raises(UserError, match="0 pairs are left to generate from"):
        _split_text(_text_pairs(tested), 4, letters)
    with pytest.raises(
        UserError, match=r"8 items, 0 of them .* and outside the other form's generate set, are too few"
    ):
        _split_text(_text_pairs(generated), 4, letters)


def test_sixty_items_are_enough() -> None:
    splits = _split(_pairs(30, 30))
    assert (len(splits.generate), len(splits.test)) == (10, 50)
