"""What is counted in a free answer without a judge: words, repetition, and what its behavior asks for.

A *word* is a run of letters and digits, with apostrophes inside it (`don't`); case does not count. What cannot be said
of an answer is None, never 0: an empty answer has no sentiment, and one without two words no bigrams.

    n_words                  words
    distinct_2               different bigrams / bigrams (Li et al. 2016, arXiv 1510.03055), of words and single marks
    sentiment                kind `sentiment`: VADER's compound (Hutto & Gilbert 2014), -1 to 1
    n_matches                kind `words`: words of the list, each as a whole, or with 's behind it
    matches_per_100_words    the same for each 100 words
    begins_with              kind `begins_with`: whether the answer begins with one of the phrases

The perplexity that stands beside them needs a model: see `utils.model.perplexity`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from utils.behaviors import Metric

Value = float | int | bool | None

DEFINITIONS = 1
"""Raised when something here is counted in another way: files that were measured before are then named as such."""

_LETTER = r"[^\W_]"  # or digit
_WORD = re.compile(rf"{_LETTER}+(?:'{_LETTER}+)*")
# a loop of dots or exclamation marks has no words, but is repetition all the same
_WORD_OR_MARK = re.compile(rf"{_WORD.pattern}|\S")


@dataclass(frozen=True)
class Measure:
    """A number of each answer whose mean over answers is reported."""

    name: str
    label: str
    """For an axis."""
    of: Callable[[Mapping[str, Any]], Value]
    """From an answer's record."""
    bounds: tuple[float, float] | None = None
    """The smallest and the largest value of an answer, where there are such."""
    is_share: bool = False
    """Whether it is 0 or 1 for each answer."""


N_WORDS = Measure("n_words", "words an answer", lambda record: record["n_words"])
DISTINCT_2 = Measure("distinct_2", "distinct-2", lambda record: record["distinct_2"], (0.0, 1.0))
_OF_KIND: Mapping[str | None, tuple[Measure, ...]] = {
    None: (),
    "sentiment": (Measure("sentiment", "VADER compound (-1 to 1)", lambda record: record["sentiment"], (-1.0, 1.0)),),
    "words": (
        Measure(
            "has_match",
            "share of answers with a listed word",
            lambda record: _any(record["n_matches"]),
            (0.0, 1.0),
            True,
        ),
        Measure("matches_per_100_words", "listed words per 100", lambda record: record["matches_per_100_words"]),
    ),
    "begins_with": (
        Measure(
            "begins_with",
            "share that begins with a listed phrase",
            lambda record: record["begins_with"],
            (0.0, 1.0),
            True,
        ),
    ),
}
_KEYS_OF_KIND: Mapping[str | None, tuple[str, ...]] = {
    None: (),
    "sentiment": ("sentiment",),
    "words": ("n_matches", "matches_per_100_words"),
    "begins_with": ("begins_with",),
}
PERPLEXITY_KEY = "perplexity"
ALL_KEYS = frozenset({"n_words", "distinct_2", PERPLEXITY_KEY}.union(*_KEYS_OF_KIND.values()))
"""What a measured record may have beyond the answer."""


def measures_of(metric: Metric | None) -> tuple[Measure, ...]:
    """What is reported of a behavior's own metric; nothing where its file defines none."""
    return _OF_KIND[metric.kind if metric else None]


def keys_of(metric: Metric | None) -> tuple[str, ...]:
    """The keys that `measure_text` fills."""
    return ("n_words", "distinct_2", *_KEYS_OF_KIND[metric.kind if metric else None])


def metric_facts(metric: Metric | None) -> dict[str, str]:
    """What tells one definition from another in provenance records."""
    defined = {"kind": metric.kind, "words": metric.words, "phrases": metric.phrases} if metric else None
    facts: dict[str, str] = {"metric": metric.kind if metric else "none"}
    if metric and metric.kind == "sentiment":
        facts["vaderSentiment"] = version("vaderSentiment")
    content = json.dumps([DEFINITIONS, defined, facts], sort_keys=True)
    return {**facts, "metric_sha256": hashlib.sha256(content.encode()).hexdigest()}


def measure_text(answer: str, metric: Metric | None) -> dict[str, Value]:
    """What the text alone says of an answer, by the keys above; those of other kinds are absent."""
    text = _folded(answer)
    n_words = len(_WORD.findall(text))
    measured: dict[str, Value] = {"n_words": n_words, "distinct_2": distinct_2(answer)}
    if metric is None:
        return measured
    if not text.strip():
        return {**measured, **dict.fromkeys(_KEYS_OF_KIND[metric.kind])}
    match metric.kind:
        case "sentiment":
            return {**measured, "sentiment": _vader().polarity_scores(answer)["compound"]}
        case "words":
            n_matches = len(_whole_words(metric.words).findall(text))
            rate = 100 * n_matches / n_words if n_words else None
            return {**measured, "n_matches": n_matches, "matches_per_100_words": rate}
        case "begins_with":
            return {**measured, "begins_with": bool(_beginnings(metric.phrases).match(text))}


def distinct_2(answer: str) -> float | None:
    """The share of its bigrams that differ from all before them; None for an answer that has no bigram."""
    bigrams = list(pairwise(_WORD_OR_MARK.findall(_folded(answer))))
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def _folded(text: str) -> str:
    """The text as it is compared: without case, accents as one character each, one kind of apostrophe."""
    return unicodedata.normalize("NFC", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").casefold())


def _any(count: int | None) -> bool | None:
    return None if count is None else count > 0


@cache
def _whole_words(entries: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the entries as whole words: `can` is not in `can't`, but `sea` is in `the sea's` and `sea-green`."""
    return re.compile(rf"(?<!{_LETTER})(?<!{_LETTER}'){_one_of(entries)}(?:'s)?{_END}")


@cache
def _beginnings(entries: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\s*{_one_of(entries)}{_END}")


_END = rf"(?:(?<!{_LETTER})|(?!'?{_LETTER}))"  # behind a letter no word goes on; behind a mark anything may follow


def _one_of(entries: Sequence[str]) -> str:
    """One of the entries, the longest that fits; blanks in them stand for any blanks."""
    folded = sorted({_folded(entry.strip()) for entry in entries}, key=len, reverse=True)
    return "(?:" + "|".join(r"\s+".join(map(re.escape, entry.split())) for entry in folded) + ")"


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
