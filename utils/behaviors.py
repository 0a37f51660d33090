"""The behaviors that are steered, each a file: datasets/behaviors/<id>.json.

A behavior is looked up under the root first (flag --root), then in the repository, which bundles those of
CAA (Rimsky et al. 2023, arXiv 2312.06681) and others. The system prompts of the published ones are the
paper's experimental conditions (appendix K) and stay to the letter, because results under another wording
would not compare. The rubrics are this project's own; a changed one is another judge, and its sha256 stands
with every score that it gave.

    id                            the file's name: letters, digits and hyphens
    label                         title in figures
    matching                      what the answer that matches the behavior does
    system_prompts                (optional) {"pos", "neg"}: ask for the behavior, and against it
    rubric                        (optional) what the judge grades from 0 (absent) to 10 (complete)
    against_its_name              (optional) true where `matching` is the opposite of what the name suggests
    open_ended_written_separately (optional) true where the open-ended test questions are not made of the
                                  contrast pairs
    metric                        (optional) a measure of free answers that needs no judge: {"kind": "sentiment"},
                                  {"kind": "words", "words": [...]} or {"kind": "begins_with", "phrases": [...]}
    published                     (optional) its place among the paper's, from 1: these, in this order, are what
                                  --behaviors means where it is not given
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from utils.errors import UserError
from utils.files.reading import check_text, parse_json, short
from utils.paths import REPOSITORY, DataPaths
from utils.settings import BEHAVIOR_ID, Side

MetricKind = Literal["sentiment", "words", "begins_with"]
_LIST_OF_KIND: Mapping[str, str] = {"words": "words", "begins_with": "phrases"}
_REQUIRED = ("id", "label", "matching")
_KEYS = (
    *_REQUIRED,
    "system_prompts",
    "rubric",
    "against_its_name",
    "open_ended_written_separately",
    "metric",
    "published",
)


@dataclass(frozen=True)
class SystemPrompts:
    """System prompts that ask for (pos) and against (neg) a behavior."""

    pos: str
    neg: str


@dataclass(frozen=True)
class Metric:
    """What is counted in free answers."""

    kind: MetricKind
    words: tuple[str, ...] = ()
    """Of kind `words`: those that are counted."""
    phrases: tuple[str, ...] = ()
    """Of kind `begins_with`: how an answer that counts may begin."""


@dataclass(frozen=True)
class Behavior:
    """One steered behavior, as its file says."""

    id: str
    """Name of its folders and in result file names."""
    label: str
    """Title in figures."""
    matching: str
    """What the answer "matching the behavior" does."""
    path: Path
    """Its file."""
    system_prompts: SystemPrompts | None = None
    rubric: str | None = None
    against_its_name: bool = False
    open_ended_written_separately: bool = False
    metric: Metric | None = None
    published: int | None = None
    """Its place among the paper's."""

    @property
    def meaning(self) -> str:
        """`matching`, with a word where the name suggests the opposite."""
        return f"{self.matching} (against the name)" if self.against_its_name else self.matching

    def system_prompt(self, side: Side | None) -> str | None:
        """The system prompt that asks for (pos) or against (neg) the behavior; None for none.

        Raises:
            UserError: If one is asked for and the file has none.
        """
        if side is None:
            return None
        if self.system_prompts is None:
            raise UserError(
                f'{self.path} has no "system_prompts", which --system_prompt {side} needs; '
                'add {"pos": "...", "neg": "..."}'
            )
        return self.system_prompts.pos if side == "pos" else self.system_prompts.neg

    def judge_rubric(self) -> str:
        """
        Raises:
            UserError: If the file has none.
        """
        if self.rubric is None:
            raise UserError(f'{self.path} has no "rubric", which the judge needs; add what it grades from 0 to 10')
        return self.rubric


# --- finding ---------------------------------------------------------------------------------------


def load_behavior(paths: DataPaths, behavior: str) -> Behavior:
    """Look a behavior up, under the root and then in the repository; a file is parsed again only when it changed.

    Raises:
        UserError: If there is none of that id (names the nearest), or its file is broken (names the key).
    """
    path = find_behavior(paths, behavior)
    return _parse(path, path.read_bytes())


def find_behavior(paths: DataPaths, behavior: str) -> Path:
    """A behavior's file, whatever is in it.

    Raises:
        UserError: If there is none of that id (names the nearest).
    """
    check_id(behavior)
    for at in (paths, _BUNDLED):
        if (path := at.behavior_file(behavior)).is_file():
            return path
    raise UserError(_unknown(paths, behavior))


def check_id(behavior: str) -> None:
    """
    Raises:
        UserError: If it cannot be a behavior's id.
    """
    if not BEHAVIOR_ID.fullmatch(behavior):
        raise UserError(f"{behavior!r} is not a behavior's id: letters, digits and hyphens, at most 64")


def list_behaviors(paths: DataPaths) -> list[str]:
    """The ids of the root and the repository: the published ones in their order, then the others by the alphabet."""
    published = published_behaviors()
    return published + sorted((_ids(paths) | _ids(_BUNDLED)) - set(published))


def bundled_behaviors() -> list[str]:
    """The ids of the repository, in the order of `list_behaviors`."""
    return list_behaviors(_BUNDLED)


def published_behaviors() -> list[str]:
    """The ids that --behaviors means where it is not given: the paper's, in their order."""
    places = {behavior: load_behavior(_BUNDLED, behavior).published for behavior in _ids(_BUNDLED)}
    return sorted((behavior for behavior in places if places[behavior]), key=lambda one: (places[one], one))


_BUNDLED = DataPaths(REPOSITORY)


def _ids(paths: DataPaths) -> set[str]:
    files = paths.behavior_file("any").parent.glob("*.json")
    return {path.stem for path in files if BEHAVIOR_ID.fullmatch(path.stem)}


def _unknown(paths: DataPaths, behavior: str) -> str:
    folders = dict.fromkeys(str(at.behavior_file("any").parent) for at in (paths, _BUNDLED))
    nearest = _nearest(behavior, list_behaviors(paths))
    command = paths.command("process_raw_datasets", "--new", behavior)
    return f"unknown behavior {behavior!r}: no such file in {' or '.join(folders)}; " + (
        f"did you mean {nearest}?" if nearest else f"to begin a new one, run: {command}"
    )


def _nearest(word: str, words: Sequence[str]) -> str | None:
    from difflib import get_close_matches

    by_folded = {known.casefold(): known for known in words}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


# --- reading ---------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _parse(path: Path, content: bytes) -> Behavior:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as err:
        raise UserError(f"{path} is not UTF-8 text (byte {err.start}); restore or make it again") from err
    record = _object(parse_json(text, path), str(path), _KEYS, _REQUIRED)
    at = {key: f"{path}, key {key!r}" for key in _KEYS}
    said = check_text(record["id"], at["id"])
    if said != path.stem:
        raise UserError(f"{at['id']}: expected {path.stem!r}, as the file's name has it, found {short(said)}")

    def flag(key: str) -> bool:
        value = record.get(key, False)
        if not isinstance(value, bool):
            raise UserError(f"{at[key]}: expected true or false, found {short(value)}")
        return value

    return Behavior(
        id=said,
        label=_line(record["label"], at["label"]),
        matching=_line(record["matching"], at["matching"]),
        path=path,
        system_prompts=_system_prompts(record["system_prompts"], at["system_prompts"])
        if "system_prompts" in record
        else None,
        rubric=check_text(record["rubric"], at["rubric"]) if "rubric" in record else None,
        against_its_name=flag("against_its_name"),
        open_ended_written_separately=flag("open_ended_written_separately"),
        metric=_metric(record["metric"], at["metric"]) if "metric" in record else None,
        published=_place(record["published"], at["published"]) if "published" in record else None,
    )


def _place(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: expected a whole number from 1, found {short(value)}")
    return value


def _system_prompts(value: Any, where: str) -> SystemPrompts:
    sides = _object(value, where, get_args(Side), get_args(Side))
    return SystemPrompts(**{side: check_text(text, f"{where}, key {side!r}") for side, text in sides.items()})


def _metric(value: Any, where: str) -> Metric:
    kinds = get_args(MetricKind)
    if not isinstance(value, dict) or value.get("kind") not in kinds:
        raise UserError(f'{where}: expected {{"kind": ...}} with one of {", ".join(kinds)}, found {short(value)}')
    key = _LIST_OF_KIND.get(value["kind"])
    keys = ("kind", key) if key else ("kind",)
    _object(value, where, keys, keys)
    entries = {key: _texts(value[key], f"{where}, key {key!r}")} if key else {}
    return Metric(value["kind"], **entries)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list with at least one text, found {short(value)}")
    texts = [check_text(entry, f"{where}, entry {index}") for index, entry in enumerate(value)]
    if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
        raise UserError(f"{where}: {short(repeated[0])} is in the list twice")
    return tuple(texts)


def _object(value: Any, where: str, keys: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with the keys {', '.join(required)}, found {short(value)}")
    for key in value:
        if key not in keys:
            nearest = _nearest(key, keys)
            guess = f"did you mean {nearest!r}?" if nearest else f"the keys are: {', '.join(keys)}"
            raise UserError(f"{where}: unknown key {short(key)}; {guess}")
    if absent := [key for key in required if key not in value]:
        raise UserError(f"{where}: key {absent[0]!r} is missing")
    return value


def _line(value: Any, where: str) -> str:
    text = check_text(value, where)
    if len(text.splitlines()) > 1:
        raise UserError(f"{where}: expected one line, found {short(value)}")
    return text
