"""Word lists of concepts in a hierarchy, and the tokens of their words. Light: needs no torch.

label        what it is about, for titles
plurals      (optional) true: words are nouns, whose plurals count too; made by rule, or written "mouse/mice"
categories   {parent: {child: [word, ...], ...}, ...}; a word stands once
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import check_text, read_json, short

FEWEST_TOKENS = 15
"""Of a category that a concept vector is made of."""
_KEYS = ("label", "plurals", "categories")


@dataclass(frozen=True)
class ConceptWords:
    """A hierarchy of two levels, as a file states it."""

    label: str
    plurals: bool
    categories: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Parent -> child -> words."""


@dataclass(frozen=True)
class WordTokens:
    """The forms of one word that are one token each."""

    word: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class CategoryTokens:
    """The words of a child category that have such forms."""

    name: str
    parent: str
    words: tuple[WordTokens, ...]
    n_left_out: int
    """Words none of whose forms is one token."""

    @property
    def n_tokens(self) -> int:
        return sum(len(word.token_ids) for word in self.words)


def load_concept_words(path: Path) -> ConceptWords:
    """
    Raises:
        UserError: If it is missing, broken, or a word stands twice (names it).
    """
    record = read_json(path, "name a file of words with --words")
    if not isinstance(record, dict) or not {"label", "categories"} <= set(record) <= set(_KEYS):
        raise UserError(f"{path}: expected an object with the keys {', '.join(_KEYS)}, found {short(record)}")
    plurals = record.get("plurals", False)
    if not isinstance(plurals, bool):
        raise UserError(f"{path}, key 'plurals': expected true or false, found {short(plurals)}")
    parents = _named(record["categories"], f"{path}, key 'categories'")
    categories = {parent: _children(value, f"{path}, category {parent!r}") for parent, value in parents.items()}
    _check_names(categories, path)
    return ConceptWords(check_text(record["label"], f"{path}, key 'label'"), plurals, categories)


def _named(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: expected an object with a name for each category, found {short(value)}")
    for name in value:
        check_text(name, where)
    return value


def _children(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    children = {}
    for child, words in _named(value, where).items():
        if not isinstance(words, list) or not words:
            raise UserError(f"{where}, {child!r}: expected a list of words, found {short(words)}")
        children[child] = tuple(check_text(word, f"{where}, {child!r}, entry {i}") for i, word in enumerate(words))
    return children


def _check_names(categories: Mapping[str, Mapping[str, Sequence[str]]], path: Path) -> None:
    names = [*categories, *(child for children in categories.values() for child in children)]
    if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UserError(f"{path}: two categories are called {repeated[0]!r}; name them apart")
    place_of: dict[str, str] = {}
    for children in categories.values():
        for child, words in children.items():
            for word in words:
                if (singular := singular_and_plural(word)[0].lower()) in place_of:
                    raise UserError(
                        f"{path}: {singular!r} stands in {place_of[singular]!r} and in {child!r}; keep one of them"
                    )
                place_of[singular] = child


# --- forms and tokens ------------------------------------------------------------------------------


def singular_and_plural(entry: str) -> tuple[str, str]:
    """Both forms of a noun: as written, "mouse/mice", or the plural by the rules of English spelling."""
    singular, _, plural = entry.partition("/")
    return singular, plural or _plural(singular)


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def word_forms(entry: str, *, plurals: bool) -> list[str]:
    """A word as it is looked for, also with a capital letter; its plural too where it is a noun."""
    forms = list(singular_and_plural(entry)) if plurals else [entry]
    return list(dict.fromkeys(form for one in forms for form in (one, one[:1].upper() + one[1:])))


def find_tokens(words: ConceptWords, token_of: Callable[[str], int | None]) -> list[CategoryTokens]:
    """The tokens of every child category, those with fewer than FEWEST_TOKENS too.

    Args:
        words: The hierarchy.
        token_of: From text to its token, with a blank before it; None where it takes several.
    """
    return [
        _category_tokens(child, parent, entries, token_of, plurals=words.plurals)
        for parent, children in words.categories.items()
        for child, entries in children.items()
    ]


def _category_tokens(
    name: str, parent: str, entries: Sequence[str], token_of: Callable[[str], int | None], *, plurals: bool
) -> CategoryTokens:
    found = []
    for entry in entries:
        ids = [token for form in word_forms(entry, plurals=plurals) if (token := token_of(form)) is not None]
        if ids:
            found.append(WordTokens(entry, tuple(dict.fromkeys(ids))))
    return CategoryTokens(name, parent, tuple(found), len(entries) - len(found))


def usable_categories(found: Sequence[CategoryTokens], path: Path) -> tuple[list[CategoryTokens], list[str]]:
    """The categories with enough tokens and a sibling with enough, and a line for each of the others.

    Raises:
        UserError: If fewer than two parents are left.
    """
    large = [one for one in found if one.n_tokens >= FEWEST_TOKENS]
    lines = [
        f"{one.name} ({one.parent}): {one.n_tokens} tokens, but a category needs {FEWEST_TOKENS}; left out"
        for one in found
        if one not in large
    ]
    parents = [one.parent for one in large]
    kept = [one for one in large if parents.count(one.parent) > 1]
    lines += [
        f"{one.name} ({one.parent}): no other category of {one.parent}; left out" for one in large if one not in kept
    ]
    if len({one.parent for one in kept}) < 2:
        reasons = "; ".join(lines)
        raise UserError(f"{path}: it takes two parents with two categories each{': ' if lines else ''}{reasons}")
    return kept, lines
