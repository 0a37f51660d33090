"""What a check found in a dataset: faults, notes, and a row of a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_CHARACTERS = 2000
BALANCE_LIMIT = 0.6
"""Largest share of matching answers at one letter that is not noted."""

_HEADINGS = ("set", "raw", "generate", "test", "open-ended", "(A) generate", "(A) test", "alike", "faults", "notes")


@dataclass
class Findings:
    """Of one form of one behavior's sets, or of one knowledge set."""

    name: str
    counts: dict[str, str] = field(default_factory=dict)
    """Cells of the table, by heading."""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_balance(self, path: Path, letters: Sequence[str], kind: str) -> None:
        if letters:
            letter, n = Counter(letters).most_common(1)[0]
            if n > BALANCE_LIMIT * len(letters):
                share = percent(n, len(letters))
                self.notes.append(f"{path}: {n} of {len(letters)} {kind} answers ({share}) are at ({letter})")

    def note_long(self, path: Path, texts: dict[int, str]) -> None:
        if long := [index for index, text in texts.items() if len(text) > MAX_CHARACTERS]:
            self.notes.append(f"{path}: items longer than {MAX_CHARACTERS} characters: {listed(long)}")


def format_table(found: Sequence[Findings]) -> str:
    rows = [_HEADINGS] + [
        (
            one.name,
            *(one.counts.get(heading, "-") for heading in _HEADINGS[1:-2]),
            str(len(one.faults)),
            str(len(one.notes)),
        )
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def percent(n: int, total: int) -> str:
    return f"{100 * n / total:.1f}%" if total else "-"


def listed(indices: Sequence[int]) -> str:
    """How many, and which."""
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)} (item {shown}{', ...' if len(indices) > 5 else ''})"


def examples(pairs: Sequence[tuple[int, int]], labels: Sequence[object]) -> str:
    shown = "; ".join(f"{labels[i]} and {labels[j]}" for i, j in pairs[:3])
    return f", e.g. {shown}"
