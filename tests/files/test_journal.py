"""A journal keeps what is finished through any kill, and only one process holds it."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.files.journal import open_journal, read_entries

HEADER = {"combinations": [[13, 1.0]]}
ENTRIES = {"0": [[0.25, 0.5]], "1": ["a text\nof two lines", "Ä"], "2": [[1e-30]]}


def write_journal(path: Path) -> None:
    with open_journal(path, HEADER) as journal:
        assert journal.header == HEADER and journal.entries == {}
        for key, value in ENTRIES.items():
            journal.append(key, value)


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "results" / ".sweep.jsonl"
    write_journal(path)
    with open_journal(path, {"another": "header"}) as journal:
        assert journal.header == HEADER
        assert journal.entries == ENTRIES
        journal.append("3", 4)
    assert read_entries(path) == {**ENTRIES, "3": 4}
    assert len(path.read_bytes().splitlines()) == 5


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    numbers = [1 / 3, 2**-40 / 7, 0.1 + 0.2]
    with open_journal(tmp_path / "j", HEADER) as journal:
        journal.append("0", numbers)
    with open_journal(tmp_path / "j", HEADER) as journal:
        assert journal.entries["0"] == numbers


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    write_journal(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        n_whole = content[:length].count(b"\n") - 1  # the first line is the header
        kept = dict(list(ENTRIES.items())[: max(0, n_whole)])
        assert read_entries(path) == kept
        with open_journal(path, HEADER) as journal:
            assert (journal.header, journal.entries) == (HEADER, kept)
            journal.append("new", length)
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert rows == [HEADER, *([key, value] for key, value in kept.items()), ["new", length]]


@pytest.mark.parametrize("garbage", [b"\x00\x00\x00\n", b"{half\n", b"\xff\xfe\n"])
def test_what_stands_behind_a_damaged_line_is_dropped(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "j"
    write_journal(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], garbage, *lines[2:]]))
    with open_journal(path, HEADER) as journal:
        assert list(journal.entries) == ["0"]
        journal.append("1", 2)
    assert read_entries(path) == {"0": ENTRIES["0"], "1": 2}


def test_each_entry_is_on_its_way_to_the_disk_when_append_returns(tmp_path: Path) -> None:
    with open_journal(tmp_path / "j", HEADER) as journal:
        for key, value in ENTRIES.items():
            journal.append(key, value)
            assert read_entries(tmp_path / "j")[key] == value


def test_a_value_that_is_no_json_number_is_not_written(tmp_path: Path) -> None:
    with open_journal(tmp_path / "j", HEADER) as journal:
        journal.append("0", 1.0)
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append("1", float("nan"))
    assert read_entries(tmp_path / "j") == {"0": 1.0}


def test_a_removed_journal_is_gone_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with open_journal(path, HEADER) as journal:
        journal.append("0", 1)
        journal.remove()
    assert not path.exists()
    assert read_entries(path) == {}
    with open_journal(path, {"n": 2}) as journal:
        assert (journal.header, journal.entries) == ({"n": 2}, {})


@pytest.mark.parametrize("finishes", [True, False])
def test_a_second_process_waits_until_the_first_lets_go(tmp_path: Path, finishes: bool) -> None:
    path = tmp_path / "j"
    found: dict[str, object] = {}

    def second() -> None:
        with open_journal(path, {"n": 2}) as journal:
            found.update(header=journal.header, entries=dict(journal.entries))

    thread = threading.Thread(target=second)
    with open_journal(path, HEADER) as journal:
        thread.start()
        journal.append("0", 1)
        thread.join(timeout=0.3)
        assert thread.is_alive() and not found
        if finishes:
            journal.remove()
    thread.join(timeout=10)
    assert not thread.is_alive()
    # a finished run leaves nothing to go on with, a broken one everything it had done
    assert found == ({"header": {"n": 2}, "entries": {}} if finishes else {"header": HEADER, "entries": {"0": 1}})


def test_many_at_once_do_all_pieces_once(tmp_path: Path) -> None:
    """Each opens, does what is not there, and lets go; the last one removes."""
    path, done, failures = tmp_path / "j", [], []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as err:
                failures.append(err)

        return run

    def work() -> None:
        with open_journal(path, HEADER) as journal:
            for key in "abcd":
                if key not in journal.entries:
                    journal.append(key, 1)
                    done.append(key)

    threads = [threading.Thread(target=guarded(work)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert done == list("abcd")
