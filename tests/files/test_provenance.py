"""Comparing the run that made an artifact with the one that would make it now."""

from typing import Any

import pytest

from utils.files.provenance import describe_differences, differences

RUN = {"command": "./a", "model": "m", "dtype": "float32", "n_items": 3, "torch": "2.1", "transformers": "5.0"}


def test_the_same_run_does_not_differ() -> None:
    assert differences(RUN, RUN) == {}


def test_every_fact_counts_with_what_it_was_and_what_it_is() -> None:
    now = {**RUN, "dtype": "bfloat16", "n_items": 4, "packed": False}
    assert differences(now, {**RUN, "packed": True}) == {
        "dtype": ("float32", "bfloat16"),
        "n_items": (3, 4),
        "packed": (True, False),
    }


def test_how_it_was_typed_and_the_versions_of_libraries_do_not_count() -> None:
    assert differences({**RUN, "command": "./b", "torch": "2.2", "transformers": "6.0"}, RUN) == {}


@pytest.mark.parametrize("made_by", [{}, {"command": "./b"}, {"model": None, "dtype": None, "n_items": None}])
def test_what_a_record_does_not_say_is_no_difference(made_by: dict[str, Any]) -> None:
    assert differences(RUN, made_by) == {}
    assert differences({"command": "./a", "revision": None}, {**RUN, "revision": "abc", "more": 1}) == {}


def test_differences_are_described_once_for_all_artifacts() -> None:
    digest = "0123456789abcdef" * 4
    found = [
        {"max_new_tokens": (100, 50)},
        {"max_new_tokens": (100, 50), "vector_sha256": (digest, digest[::-1])},
        {"dtype": ("float16", "float32")},
        {"dtype": ("bfloat16", "float32")},
    ]
    assert describe_differences(found) == (
        "max_new_tokens (100, now 50), vector_sha256 (0123456789ab..., now fedcba987654...), "
        "dtype (2 different ones, now float32)"
    )
