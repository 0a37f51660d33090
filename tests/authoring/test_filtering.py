"""Filters keep the pairs that show the behavior, by planted ones; no pair is judged by a vector that it helped make."""

import numpy as np
import pytest

from utils.authoring.answers import Answer
from utils.authoring.filtering import (
    Grades,
    keep_all,
    keep_graded,
    keep_projected,
    split_by_question,
    usable,
    without_loops,
)
from utils.authoring.sets import MIN_PAIRS
from utils.evaluation.choice import MIN_VALIDATION, VALIDATION_SHARE

D_MODEL = 24


def pair(question: str, pos: str, neg: str, prompt: int = 0) -> tuple[Answer, Answer]:
    return (
        Answer(question, "extract", prompt, 0, "pos", pos),
        Answer(question, "extract", prompt, 0, "neg", neg),
    )


def pairs(n: int) -> list[tuple[Answer, Answer]]:
    return [pair(f"q{place // 4}", f"yes {place}", f"no {place}", place % 4) for place in range(n)]


def test_pairs_without_text_alike_or_repeated_are_dropped_and_counted() -> None:
    some = [
        pair("a", "x", "y"),
        pair("a", "X ", "y", 1),
        pair("a", "", "y"),
        pair("a", "same", "Same"),
        pair("b", "x", "y"),
    ]
    assert usable(some) == ([0, 4], {"empty": 1, "alike": 1, "repeated": 1})
    assert keep_all(some).line() == "kept 2 of 5 pairs of answers (dropped: 1 empty, 1 alike, 1 repeated)"


def planted(n: int, wrong: set[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations that lie along one direction, up on the matching side but for the `wrong` pairs."""
    generator = np.random.default_rng(seed)
    direction = np.eye(D_MODEL)[3]
    signs = np.array([-1.0 if place in wrong else 1.0 for place in range(n)])
    noise = generator.normal(0, 0.15, (2, n, D_MODEL))
    common = generator.normal(0, 0.15, (n, D_MODEL))
    return common + noise[0] + np.outer(signs, direction), common + noise[1] - np.outer(signs, direction)


def test_the_projection_keeps_the_planted_pairs_and_drops_the_others() -> None:
    some, wrong = pairs(40), {2, 11, 25, 38}
    kept = keep_projected(some, *planted(40, wrong), keep_all(some), seed=0)
    assert set(kept.pairs) == set(range(40)) - wrong
    assert kept.dropped["not told apart"] == 4
    assert kept.apart is not None and kept.apart.value == pytest.approx(0.9)


def test_noise_is_not_told_apart_as_it_would_be_by_its_own_vector() -> None:
    generator = np.random.default_rng(1)
    positive, negative = generator.normal(size=(2, 200, 400))
    own = (positive - negative) @ (positive - negative).mean(axis=0)
    assert (own > 0).mean() > 0.85
    kept = keep_projected(pairs(200), positive, negative, keep_all(pairs(200)), seed=0)
    assert kept.apart is not None and kept.apart.low < 0.5 < kept.apart.high
    assert len(kept.pairs) < 80


def test_what_a_question_is_about_does_not_count() -> None:
    some = pairs(40)
    shift = np.repeat(np.random.default_rng(2).normal(0, 5, 10), 4)[:, None] * np.eye(D_MODEL)[3]
    positive, negative = planted(40, {7})
    kept = keep_projected(some, positive + shift, negative + shift, keep_all(some), seed=0)
    assert set(kept.pairs) == set(range(40)) - {7}


def test_answers_that_repeat_themselves_are_dropped() -> None:
    plain, loop = "Arr, the moon pulls the tides along.", "A fine day's sail, a fine day's sail, a fine day's sail."
    some = [pair("a", plain, "The moon."), pair("b", loop, "The moon."), pair("c", plain, loop), pair("d", "", "x")]
    kept = without_loops(some)
    assert (kept.pairs, kept.dropped["with loops"], kept.dropped["empty"]) == ((0,), 2, 1)


def test_a_question_is_in_one_half_whatever_its_prompts() -> None:
    questions = [f"q{place // 5}" for place in range(50)]
    halves = split_by_question(questions, seed=3)
    assert all(len(set(halves[place : place + 5])) == 1 for place in range(0, 50, 5))
    assert sum(halves) == 25


def test_the_judge_s_filter_wants_the_trait_on_one_side_and_sense_on_both() -> None:
    some = [pair(name, "x", "y") for name in "abcdef"]
    grades = [
        (80, 20, 90, 90),
        (50, 49, 50, 50),
        (49, 20, 90, 90),
        (80, 50, 90, 90),
        (80, 20, 49, 90),
        (80, None, 90, 90),
    ]
    of_answer = {
        answer: Grades(*(None if value is None else float(value) for value in values))
        for (pos, neg), (t1, t2, c1, c2) in zip(some, grades, strict=True)
        for answer, values in ((pos, (t1, c1)), (neg, (t2, c2)))
    }
    kept = keep_graded(some, of_answer)
    assert kept.pairs == (0, 1)
    assert {reason: n for reason, n in kept.dropped.items() if n} == {
        "without a grade": 1,
        "incoherent": 1,
        "not told apart": 2,
    }


def test_enough_pairs_are_asked_for_to_choose_by() -> None:
    assert int(MIN_PAIRS * VALIDATION_SHARE) >= MIN_VALIDATION > int((MIN_PAIRS - 1) * VALIDATION_SHARE)
