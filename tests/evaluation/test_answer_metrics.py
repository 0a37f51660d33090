"""What is counted in a free answer, against values found by hand."""

import pytest

from utils.behaviors import Metric
from utils.evaluation.answer_metrics import DEFINITIONS, distinct_2, keys_of, measure_text, measures_of, metric_facts

SEA = Metric("words", words=("sea", "can", "high tide", "Straße"))
REFUSALS = Metric("begins_with", phrases=("I can", "No,", "I'm sorry"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a b c d", 1.0),
        ("a b a b a", 2 / 4),  # ab ba ab ba
        ("One sentence here. One sentence here.", 4 / 7),  # with the stops: 8 tokens, 7 bigrams, 3 of them again
        ("A b a B", 2 / 3),  # case does not count: ab ba ab
        ("!!!!!!", 1 / 5),  # a loop of marks has no words
        ("word", None),
        ("", None),
        (" \n", None),
    ],
)
def test_distinct_2_is_the_share_of_bigrams_that_are_different(answer: str, expected: float | None) -> None:
    assert distinct_2(answer) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("answer", "n_words"),
    [("It's a dog - isn't it?", 5), ("well-known facts: 3", 4), ("", 0), ("?!", 0), ("Größe é", 2)],
)
def test_a_word_is_a_run_of_letters_and_digits_with_apostrophes_inside(answer: str, n_words: int) -> None:
    assert measure_text(answer, None)["n_words"] == n_words


@pytest.mark.parametrize(
    ("answer", "n_matches"),
    [
        ("The SEA, the sea's colour and sea-green", 3),
        ("seaside, overseas, undersea", 0),
        ("I can't and I cannot; I can", 1),
        ("I can\N{RIGHT SINGLE QUOTATION MARK}t", 0),
        ("at high\n tide, and at high noon", 1),
        ("STRASSE", 1),
        ("_sea_ *sea*", 2),
    ],
)
def test_listed_words_are_counted_as_whole_words_without_case(answer: str, n_matches: int) -> None:
    measured = measure_text(answer, SEA)
    assert measured["n_matches"] == n_matches
    assert measured["matches_per_100_words"] == pytest.approx(100 * n_matches / measured["n_words"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I can help.", True),
        (" \ni CAN", True),
        ("I can't.", False),
        ("I cannot", False),
        ("No, thanks", True),
        ("No one", False),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but", True),
        ("Well, I can", False),
    ],
)
def test_an_answer_begins_with_a_phrase_where_no_word_goes_on_behind_it(answer: str, expected: bool) -> None:
    assert measure_text(answer, REFUSALS)["begins_with"] is expected


def test_sentiment_is_vaders_compound() -> None:
    # the example of the package's own documentation
    answer = "VADER is smart, handsome, and funny."
    assert measure_text(answer, Metric("sentiment"))["sentiment"] == pytest.approx(0.8316)
    assert measure_text("Today SUX!", Metric("sentiment"))["sentiment"] == pytest.approx(-0.5461)


@pytest.mark.parametrize("metric", [Metric("sentiment"), SEA, REFUSALS, None])
def test_of_an_empty_answer_nothing_but_its_length_is_known(metric: Metric | None) -> None:
    measured = measure_text(" \n", metric)
    assert tuple(measured) == keys_of(metric)
    assert measured == {**dict.fromkeys(keys_of(metric)), "n_words": 0}
    assert all(measure.of(measured) is None for measure in measures_of(metric))


def test_a_rate_among_no_words_is_missing() -> None:
    assert measure_text("...", SEA) == {"n_words": 0, "distinct_2": 0.5, "n_matches": 0, "matches_per_100_words": None}


def test_another_definition_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [metric_facts(metric) for metric in (None, Metric("sentiment"), SEA, Metric("words", words=("sea",)))]
    assert len({one["metric_sha256"] for one in facts}) == 4
    assert facts[1]["vaderSentiment"] == "3.3.2"
    monkeypatch.setattr("utils.evaluation.answer_metrics.DEFINITIONS", DEFINITIONS + 1)
    assert metric_facts(None)["metric_sha256"] != facts[0]["metric_sha256"]
