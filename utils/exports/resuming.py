"""The lines of a run of monitor.py while it is under way, so that an interrupted one goes on where it was.

`.<output>.partial` holds the lines; its neighbour `.<output>.state` says how many texts they are of, and what the
summary knows by then, so that the memory for that does not grow with the texts.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError
from utils.files.reading import read_json
from utils.files.writing import atomic_file, held_file, write_json

log = logging.getLogger(__name__)


class Lines:
    """An output file under way."""

    def __init__(self, file: IO[bytes], state_path: Path | None = None, facts: dict[str, Any] | None = None) -> None:
        """
        Args:
            file: Where the lines go, whatever stands there already.
            state_path: Where it is kept how far it is; None for an output that is not gone on with.
            facts: What the lines depend on: those of another run are cut off.
        """
        self._file, self._state_path, self._facts = file, state_path, facts
        self.n_texts, self.state = 0, dict[str, Any]()
        """Texts whose lines stand there, and what was kept with them."""
        if state_path is not None:
            self._go_on(state_path)

    def _go_on(self, path: Path) -> None:
        try:
            kept = read_json(path) if path.exists() else None
        except UserError:
            kept = None
        n_bytes, n_there = 0, self._file.seek(0, os.SEEK_END)
        if isinstance(kept, dict) and kept.get("facts") == self._facts and kept["n_bytes"] <= n_there:
            n_bytes, self.n_texts, self.state = kept["n_bytes"], kept["n_texts"], kept["state"]
            log.info("going on behind %d texts that an interrupted run has measured", self.n_texts)
        self._file.truncate(n_bytes)
        self._file.seek(n_bytes)

    def write(self, line: bytes) -> None:
        self._file.write(line)

    def keep(self, n_texts: int, state: dict[str, Any]) -> None:
        """Note that the lines of so many texts are written, and what is to be known of them."""
        if self._state_path is None:
            return
        self._file.flush()
        kept = {"facts": self._facts, "n_texts": n_texts, "n_bytes": self._file.tell(), "state": state}
        write_json(self._state_path, kept)


@contextmanager
def resumable_lines(output: Path, facts: dict[str, Any]) -> Iterator[Lines]:
    """Lines that get the name `output` when the block succeeds.

    What an interrupted block has kept is gone on with under the same facts. Where the input is at fault, nothing stays.
    """
    partial, state = (output.with_name(f".{output.name}.{kind}") for kind in ("partial", "state"))
    with held_file(partial) as file:
        try:
            yield Lines(file, state, facts)
        except UserError:
            state.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
            raise
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, output)
        state.unlink(missing_ok=True)


@contextmanager
def plain_lines(output: Path) -> Iterator[Lines]:
    """Lines of texts that come only once; they get the name `output` when the block succeeds."""
    with atomic_file(output) as file:
        yield Lines(file)
