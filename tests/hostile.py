"""Data as nobody should write it: strategies for the property tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from utils.errors import UserError

MARKERS = (
    "[/INST]",
    "[INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "</s>",
    "<s>",
    "<unk>",
    "\nResponse:",
    "Response: (",
    "]",
    "(",
    " ",
    "\n",
)
NASTY = (
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "\r",
    "\u2028",
    "\u202egnirts",
    "\ufeff",
    "e\u0301",
    "\U0001f9ff",
    "\ud800",
    "\udfff\ud800",
    "../../outside",
    "a/b",
    "a\\b",
    "NaN",
    "(A)",
    "(B)",
    "(Ä)",
    " (A) Yes\n (B) No",
    "Choices:",
    "x" * 5000,
    *MARKERS,
)

TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(NASTY), st.lists(st.sampled_from(NASTY)).map("".join))
NUMBERS = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.sampled_from([10**400, -(10**400), 1e308, 5e-324, -0.0, 1 + 1e-9])
)
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
END_MARKERS = ("[/INST]", "\nResponse:", "<|im_end|>\n<|im_start|>assistant\n")
PROMPTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(MARKERS), st.sampled_from(END_MARKERS)
    ),
    max_size=8,
)
"""Pieces of a question with chat markers in it, valid as Unicode."""


@st.composite
def changed_records(draw: st.DrawFn, records: list[dict[str, Any]]) -> Any:
    """The records with a few values, keys or whole records replaced, dropped or added."""
    records = [dict(record) for record in records]
    for _ in range(draw(st.integers(0, 3))):
        if not records:
            break
        index = draw(st.integers(0, len(records) - 1))
        match draw(st.sampled_from(["value", "drop", "add", "record", "remove", "everything"])):
            case "value":
                if isinstance(records[index], dict) and records[index]:
                    records[index][draw(st.sampled_from(sorted(records[index])))] = draw(JSON)
            case "drop":
                if isinstance(records[index], dict) and records[index]:
                    records[index].pop(draw(st.sampled_from(sorted(records[index]))))
            case "add":
                if isinstance(records[index], dict):
                    records[index][draw(TEXTS)] = draw(JSON)
            case "record":
                records[index] = draw(JSON)
            case "remove":
                records.pop(index)
            case "everything":
                return draw(JSON)
    return records


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut, with some bits flipped, or with bytes put in or taken out."""
    altered = bytearray(content)
    match draw(st.sampled_from(["cut", "flip", "flip", "insert", "remove", "zero"])):
        case "cut":
            del altered[draw(st.integers(0, len(altered))) :]
        case "flip":
            for _ in range(draw(st.integers(1, 3))):
                altered[draw(st.integers(0, len(altered) - 1))] ^= 1 << draw(st.integers(0, 7))
        case "insert":
            place = draw(st.integers(0, len(altered)))
            altered[place:place] = draw(st.binary(min_size=1, max_size=8))
        case "remove":
            place = draw(st.integers(0, len(altered) - 1))
            del altered[place : place + draw(st.integers(1, 64))]
        case "zero":  # a block that a crash left unwritten
            place = draw(st.integers(0, len(altered) - 1))
            altered[place : place + 512] = bytes(len(altered[place : place + 512]))
    return bytes(altered)


def json_files(records: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """What a file of records may hold: changed records, damaged bytes, any JSON, any bytes, bombs."""
    valid = json.dumps(records).encode()
    return st.one_of(
        changed_records(records).map(lambda value: json.dumps(value).encode()),
        changed_records(records).map(lambda value: json.dumps(value).encode()),
        damaged(valid),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"[" + b"9" * 5000 + b"]",
                b"[1e400]",
                b'[{"a": 1, "a": 2}]',
                b'[{"question": "\\ud800"}]',
                b"\xff\xfe[\x00]\x00",
                b"\xef\xbb\xbf" + valid,
                b"[{}]",
                b"[]",
                b"null",
            ]
        ),
    )


def loaded_or_refused(load: Callable[[Path], Any], path: Path) -> Any:
    """What was loaded, or None where the file was refused in one line that names it. Anything else fails."""
    try:
        return load(path)
    except UserError as err:
        assert str(path) in str(err)
        assert "\n" not in str(err)
        return None


def plainly(content: bytes) -> Any:
    """What a file says, read with nothing of the suite's."""
    return json.loads(content.decode("utf-8"))
