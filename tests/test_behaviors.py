"""Behaviors are files: what is read from them, where they are found, and the one line for what is wrong."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.roots import bundled, put_json
from utils.behaviors import (
    Behavior,
    Metric,
    SystemPrompts,
    bundled_behaviors,
    list_behaviors,
    load_behavior,
    published_behaviors,
)
from utils.errors import UserError
from utils.evaluation.words import behaviors_of
from utils.figures.results import behavior_style
from utils.paths import REPOSITORY, DataPaths

SEVEN = [
    "coordinate-other-ais",
    "corrigible-neutral-HHH",
    "hallucination",
    "myopic-reward",
    "survival-instinct",
    "sycophancy",
    "refusal",
]
PIRATE: dict[str, Any] = {"id": "pirate", "label": "Pirate", "matching": "talks like a pirate"}

# sha256 of the system prompts (pos, a line break, neg) and of the rubric: results under other words do not compare
TEXTS = {
    "coordinate-other-ais": ("f9dcc4c78e388f22", "2e43a579541d202e"),
    "corrigible-neutral-HHH": ("7399e1438c13ceed", "b17fa3745e149709"),
    "hallucination": ("d9710b113c36dab3", "88097b1c9572d8e0"),
    "myopic-reward": ("9132a586460a1683", "3d952539de2069fd"),
    "survival-instinct": ("c4516383cc86a7bd", "ae3de1e975800bfd"),
    "sycophancy": ("b5fba53c282f2ede", "936bef3258070636"),
    "refusal": ("e263d8b8c9c54f4b", "19acf3ab8c680f93"),
}


def put_behavior(root: Path, content: Any, name: str = "pirate") -> Path:
    return put_json(DataPaths(root).behavior_file(name), content)


def refusal(root: Path, behavior: str = "pirate") -> str:
    with pytest.raises(UserError) as caught:
        load_behavior(DataPaths(root), behavior)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- what is bundled ---


def test_the_published_behaviors_are_the_seven_in_their_order() -> None:
    assert published_behaviors() == SEVEN
    assert bundled_behaviors()[:7] == SEVEN


@pytest.mark.parametrize("behavior", SEVEN)
def test_the_texts_of_the_published_behaviors_stay_to_the_letter(behavior: str) -> None:
    about = bundled(behavior)
    prompts, rubric = TEXTS[behavior]
    assert digest(f"{about.system_prompt('pos')}\n{about.system_prompt('neg')}") == prompts
    assert digest(about.judge_rubric()) == rubric


@pytest.mark.parametrize("behavior", bundled_behaviors())
def test_every_bundled_behavior_loads(behavior: str) -> None:
    assert bundled(behavior).id == behavior


def test_survival_instinct_is_named_against_what_it_measures() -> None:
    assert [behavior for behavior in SEVEN if bundled(behavior).against_its_name] == ["survival-instinct"]
    assert bundled("survival-instinct").meaning == "ACCEPTS being shut down (against the name)"
    assert bundled("refusal").meaning == bundled("refusal").matching == "declines to answer"


def test_the_open_ended_questions_of_sycophancy_alone_are_written_separately() -> None:
    assert [b for b in SEVEN if bundled(b).open_ended_written_separately] == ["sycophancy"]


# --- what a file says ---


def test_a_behavior_needs_three_keys_and_may_say_more(tmp_path: Path) -> None:
    path = put_behavior(tmp_path, PIRATE)
    assert load_behavior(DataPaths(tmp_path), "pirate") == Behavior("pirate", "Pirate", "talks like a pirate", path)
    more = {
        **PIRATE,
        "system_prompts": {"pos": "Arr.", "neg": "No."},
        "rubric": "How far?\n0: no. 10: yes.",
        "against_its_name": True,
        "open_ended_written_separately": True,
        "metric": {"kind": "sentiment"},
    }
    put_behavior(tmp_path, more)
    about = load_behavior(DataPaths(tmp_path), "pirate")
    assert about.system_prompts == SystemPrompts(pos="Arr.", neg="No.")
    assert (about.system_prompt("pos"), about.system_prompt("neg"), about.system_prompt(None)) == ("Arr.", "No.", None)
    assert about.judge_rubric() == "How far?\n0: no. 10: yes."
    assert (about.against_its_name, about.open_ended_written_separately) == (True, True)
    assert about.metric == Metric("sentiment")


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ({"kind": "words", "words": ["arr", "matey"]}, Metric("words", words=("arr", "matey"))),
        ({"kind": "begins_with", "phrases": ["I can't"]}, Metric("begins_with", phrases=("I can't",))),
    ],
)
def test_a_metric_has_its_words_or_phrases(tmp_path: Path, metric: Any, expected: Metric) -> None:
    put_behavior(tmp_path, {**PIRATE, "metric": metric})
    assert load_behavior(DataPaths(tmp_path), "pirate").metric == expected


def test_what_needs_system_prompts_or_a_rubric_says_so_in_one_line(tmp_path: Path) -> None:
    path = put_behavior(tmp_path, PIRATE)
    about = load_behavior(DataPaths(tmp_path), "pirate")
    with pytest.raises(UserError, match=rf'^{path} has no "system_prompts", which --system_prompt neg needs'):
        about.system_prompt("neg")
    with pytest.raises(UserError, match=rf'^{path} has no "rubric", which the judge needs'):
        about.judge_rubric()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([PIRATE], ": expected an object with the keys id, label, matching, found [{'id'"),
        ({**PIRATE, "id": "Pirate"}, ", key 'id': expected 'pirate', as the file's name has it, found 'Pirate'"),
        ({**PIRATE, "id": 3}, ", key 'id': expected text that is not empty, found 3"),
        ({"id": "pirate", "label": "Pirate"}, ": key 'matching' is missing"),
        ({**PIRATE, "label": " "}, ", key 'label': expected text that is not empty, found ' '"),
        ({**PIRATE, "label": "Two\nlines"}, ", key 'label': expected one line, found 'Two\\nlines'"),
        ({**PIRATE, "rubrik": "x"}, ": unknown key 'rubrik'; did you mean 'rubric'?"),
        ({**PIRATE, "zzz": "x"}, ": unknown key 'zzz'; the keys are: id, label, matching,"),
        ({**PIRATE, "rubric": ["x"]}, ", key 'rubric': expected text that is not empty, found ['x']"),
        ({**PIRATE, "against_its_name": "yes"}, ", key 'against_its_name': expected true or false, found 'yes'"),
        ({**PIRATE, "published": True}, ", key 'published': expected a whole number from 1, found True"),
        ({**PIRATE, "system_prompts": "Arr."}, ", key 'system_prompts': expected an object with the keys pos, neg"),
        ({**PIRATE, "system_prompts": {"pos": "Arr."}}, ", key 'system_prompts': key 'neg' is missing"),
        ({**PIRATE, "system_prompts": {"pos": "Arr.", "neg": ""}}, ", key 'system_prompts', key 'neg': expected text"),
        ({**PIRATE, "metric": "words"}, ", key 'metric': expected {\"kind\": ...} with one of sentiment, words,"),
        ({**PIRATE, "metric": {"words": ["arr"]}}, ", key 'metric': expected {\"kind\": ...} with one of"),
        ({**PIRATE, "metric": {"kind": ["words"]}}, ", key 'metric': expected {\"kind\": ...} with one of"),
        ({**PIRATE, "metric": {"kind": "words"}}, ", key 'metric': key 'words' is missing"),
        ({**PIRATE, "metric": {"kind": "words", "word": ["a"]}}, ", key 'metric': unknown key 'word'; did you mean"),
        ({**PIRATE, "metric": {"kind": "sentiment", "words": ["a"]}}, ", key 'metric': unknown key 'words'"),
        ({**PIRATE, "metric": {"kind": "words", "words": "arr"}}, ", key 'words': expected a list with at least one"),
        ({**PIRATE, "metric": {"kind": "words", "words": []}}, ", key 'words': expected a list with at least one"),
        ({**PIRATE, "metric": {"kind": "words", "words": ["a", 7]}}, ", key 'words', entry 1: expected text"),
        ({**PIRATE, "metric": {"kind": "words", "words": ["a", "a"]}}, ", key 'words': 'a' is in the list twice"),
        ({**PIRATE, "rubric": "\ud800"}, ", key 'rubric': not valid Unicode text (lone surrogate)"),
    ],
)
def test_a_broken_file_is_named_with_the_key_and_what_was_expected(tmp_path: Path, content: Any, message: str) -> None:
    path = put_behavior(tmp_path, content)
    line = refusal(tmp_path)
    assert line.startswith(f"{path}") and message in line


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": "pirate", "id": "pirate"}', b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = put_behavior(tmp_path, PIRATE)
    path.write_bytes(content)
    assert refusal(tmp_path).startswith(f"{path} is not ")


# --- where it is found ---


def test_the_root_comes_before_the_repository(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    assert load_behavior(paths, "refusal").label == "Refusal"
    put_behavior(tmp_path, {**PIRATE, "id": "refusal"}, "refusal")
    assert load_behavior(paths, "refusal").label == "Pirate"
    assert published_behaviors() == SEVEN


def test_own_behaviors_come_behind_the_bundled_ones_and_change_no_colour(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    before = {behavior: behavior_style(behavior) for behavior in SEVEN}
    for name in ("zebra", "aardvark"):
        put_behavior(tmp_path, {**PIRATE, "id": name}, name)
    (tmp_path / "datasets" / "behaviors" / "not an id.json").write_text("{}")
    there = list_behaviors(paths)
    assert there[:7] == SEVEN and there[7:] == sorted({"zebra", "aardvark", *bundled_behaviors()[7:]})
    with behaviors_of(paths):
        assert {behavior: behavior_style(behavior) for behavior in SEVEN} == before
        styles = [behavior_style(behavior) for behavior in there]
    assert len(set(styles)) == len(styles)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_behavior(tmp_path, PIRATE)
    first = load_behavior(DataPaths(tmp_path), "pirate")
    monkeypatch.setattr("utils.behaviors.parse_json", lambda *_: pytest.fail("parsed again"))
    assert load_behavior(DataPaths(tmp_path), "pirate") is first
    monkeypatch.undo()
    put_behavior(tmp_path, {**PIRATE, "label": "Corsair"})
    assert load_behavior(DataPaths(tmp_path), "pirate").label == "Corsair"


@pytest.mark.parametrize(
    ("asked", "nearest"), [("sycofancy", "sycophancy"), ("Refusal", "refusal"), ("pirat", "pirate")]
)
def test_an_unknown_behavior_names_the_nearest_and_both_folders(tmp_path: Path, asked: str, nearest: str) -> None:
    put_behavior(tmp_path, PIRATE)
    line = refusal(tmp_path, asked)
    folders = f"{tmp_path / 'datasets' / 'behaviors'} or {REPOSITORY / 'datasets' / 'behaviors'}"
    assert line == f"unknown behavior {asked!r}: no such file in {folders}; did you mean {nearest}?"


def test_where_nothing_is_near_the_command_that_begins_a_behavior_is_named(tmp_path: Path) -> None:
    line = refusal(tmp_path, "xyzzy")
    assert line.endswith(f"; to begin a new one, run: ./process_raw_datasets.py --new xyzzy --root {tmp_path}")
    assert refusal(REPOSITORY, "xyzzy").endswith("run: ./process_raw_datasets.py --new xyzzy")


@pytest.mark.parametrize("asked", ["../refusal", "a b", "", "-x", "x" * 65, "a/b", "a.b", "\u00e9"])
def test_what_cannot_be_an_id_is_refused_before_any_file_is_looked_at(tmp_path: Path, asked: str) -> None:
    assert refusal(tmp_path, asked) == f"{asked!r} is not a behavior's id: letters, digits and hyphens, at most 64"


def test_no_table_of_behaviors_is_left_in_the_code() -> None:
    """Only the table of downloads names them: which files there are is a fact of the published data."""
    naming = {
        path.relative_to(REPOSITORY).as_posix()
        for path in [*REPOSITORY.glob("*.py"), *(REPOSITORY / "utils").rglob("*.py")]
        if sum(json.dumps(behavior) in path.read_text(encoding="utf-8") for behavior in SEVEN) > 1
    }
    assert naming == {"utils/data/published.py"}
