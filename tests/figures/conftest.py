"""Figures as they are drawn, instead of files."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from utils.files.tables import Table


class Drawn(list[Figure]):
    """The figures that would be written, and what would stand beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    from utils.figures import by_layer, by_multiplier, categories

    found = Drawn()

    def keep(figure: Figure, stem: Path, table: Table) -> list[Path]:
        figure.draw_without_rendering()
        found.append(figure)
        found.tables.append(table)
        return [stem]

    for module in (by_layer, by_multiplier, categories):
        monkeypatch.setattr(module, "save_figure", keep)
    return found
