"""Texts side by side on a terminal, written line by line as they grow."""

import textwrap
from collections.abc import Sequence

GAP = "  "
NARROWEST = 24
"""Characters; columns that would be narrower are written one below the other."""


class SideBySide:
    """Growing texts in columns. A line is given out once no column can change it any more."""

    def __init__(self, titles: Sequence[str], width: int) -> None:
        """
        Args:
            titles: Of the columns.
            width: Of the terminal, in characters.
        """
        n = len(titles)
        self.width = (width - len(GAP) * (n - 1)) // n
        self.is_stacked = self.width < NARROWEST
        if self.is_stacked:
            self.width = width
        self._titles, self._texts, self._ended = list(titles), [""] * n, [False] * n
        self._n_written = 0

    def head(self) -> list[str]:
        """The lines above the texts."""
        if self.is_stacked:
            return []
        rule = ["-" * min(self.width, max(len(title), 3)) for title in self._titles]
        return [self._joined([title[: self.width] for title in self._titles]), self._joined(rule)]

    def add(self, column: int, text: str) -> list[str]:
        """Append text to a column; returns the lines that are finished now."""
        self._texts[column] += text
        return self._finished()

    def end(self, column: int) -> list[str]:
        self._ended[column] = True
        return self._finished()

    def _finished(self) -> list[str]:
        if self.is_stacked:
            return self._stacked() if all(self._ended) else []
        wrapped = [self._wrapped(text) for text in self._texts]
        final = [len(lines) if ended else len(lines) - 1 for lines, ended in zip(wrapped, self._ended, strict=True)]
        growing = [n for n, ended in zip(final, self._ended, strict=True) if not ended]
        until = min(growing) if growing else max(final)
        rows = [
            self._joined([lines[row] if row < len(lines) else "" for lines in wrapped])
            for row in range(self._n_written, until)
        ]
        self._n_written = max(self._n_written, until)
        return rows

    def _stacked(self) -> list[str]:
        return [
            line
            for title, text in zip(self._titles, self._texts, strict=True)
            for line in (f"[{title}]", *self._wrapped(text), "")
        ]

    def _wrapped(self, text: str) -> list[str]:
        return [part for line in text.lstrip().split("\n") for part in textwrap.wrap(line, self.width) or [""]]

    def _joined(self, cells: Sequence[str]) -> str:
        return GAP.join(cell.ljust(self.width) for cell in cells).rstrip()
