"""What a long run has finished so far, line by line, so that nothing computed or paid for is lost.

A journal is a JSON-lines file: a header that says what the run is, then one line for each finished
piece. It is removed when the run's real artifacts are written. Only one process at a time holds it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.files.writing import held_file


class Journal:
    """An open journal; see `open_journal`."""

    def __init__(self, path: Path, file: IO[bytes], header: dict[str, Any]) -> None:
        self.path = path
        self._file = file
        self.header, self.entries = self._read(header)

    def append(self, key: str, value: Any) -> None:
        """Add a finished piece; it is on its way to the disk when this returns."""
        self.entries[key] = value
        self._write([key, value])

    def remove(self) -> None:
        """Delete the journal: what it held is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self, header: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and entries of the file; what a kill left half-written at its end is cut off."""
        rows, complete = _complete_rows(self._file)
        self._file.truncate(complete)
        self._file.seek(complete)
        if not rows:
            self._write(header)
            return header, {}
        return rows[0], dict(rows[1:])

    def _write(self, row: Any) -> None:
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()


def read_entries(path: Path) -> dict[str, Any]:
    """What a journal holds at this moment; it is neither made nor locked. Empty where there is none."""
    try:
        with path.open("rb") as file:
            return dict(_complete_rows(file)[0][1:])
    except FileNotFoundError:
        return {}


def _complete_rows(file: IO[bytes]) -> tuple[list[Any], int]:
    """The rows that are whole, and their length in bytes: a header, then pairs of a key and its value."""
    complete = 0
    rows: list[Any] = []
    for line in file:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n") or not (_is_entry(row) if rows else isinstance(row, dict)):
            break
        rows.append(row)
        complete += len(line)
    return rows, complete


def _is_entry(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)


@contextmanager
def open_journal(path: Path, header: dict[str, Any]) -> Iterator[Journal]:
    """Open a run's journal, or begin it with `header`. Waits while another process holds it.

    Raises:
        OSError: If it cannot be opened, or is a link: it is cut and appended to, which must not reach elsewhere.
    """
    with held_file(path) as file:
        yield Journal(path, file, header)


def read_header(path: Path) -> dict[str, Any]:
    """What a journal says of its run; it is neither made nor locked. Empty where there is none."""
    try:
        with path.open("rb") as file:
            return next(iter(_complete_rows(file)[0]), {})
    except FileNotFoundError:
        return {}
