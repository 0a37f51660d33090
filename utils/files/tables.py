"""The data beside a figure: small tables as text. Light: nothing heavy is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files.writing import write_text


@dataclass(frozen=True)
class Table:
    """What a figure shows, as text: one value a cell."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Tab-separated: notes behind '#', a line of column names, then the rows; floats in full."""
        lines = [f"# {note}" for note in self.notes]
        lines += ["\t".join(_cell(value) for value in row) for row in [self.columns, *self.rows]]
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(float(value))
    return " ".join(str(value).split())  # a tab or line break would make another cell


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a text table that `Table.to_text` wrote, by column name."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    columns = lines[0].split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]


def with_suffix(stem: Path, suffix: str) -> Path:
    """The file `stem` + `suffix`; dots in the stem (as in multiplier=1.0) stay."""
    return stem.with_name(stem.name + suffix)


def save_table(stem: Path, table: Table) -> Path:
    path = with_suffix(stem, ".txt")
    write_text(path, table.to_text())
    return path
