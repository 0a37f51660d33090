"""What the scripts in research/, and analyze_vectors.py, have found out, as sections of the report page.

A result that is to be on the page says so itself: the entry in its JSON (`utils.figures.entries.report_entry`) names
the model, the behavior, and the figures that lie beside it. They are shown as they were saved, with the numbers of
their text.
"""

import base64
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evaluation.words import behavior_label, behavior_place
from utils.figures.entries import ENTRY
from utils.figures.kept import KeptFigure
from utils.figures.requests import PlotRequest
from utils.figures.style import PNG_DPI
from utils.files.reading import read_json
from utils.files.tables import Table, with_suffix
from utils.report.beside import Section

log = logging.getLogger(__name__)

_ALL = "all behaviors"
_WIDE = 5.0  # inches, as for figures that are drawn for the page


def research_sections(request: PlotRequest) -> list[Section]:
    """The sections of every result of this model, these behaviors and this kind of vectors."""
    found: dict[tuple[str, int, str], list[KeptFigure]] = {}
    for path in sorted(request.paths.analysis_dir.rglob("*.json")):
        entry = _entry_of(path)
        if entry is None or (entry["model"], entry["vectors"]) != (request.choice.label, request.kind.suffix):
            continue
        behavior = entry["behavior"]
        if behavior is not None and behavior not in request.behaviors:
            continue
        label, place = (_ALL, -1) if behavior is None else (behavior_label(behavior), behavior_place(behavior))
        kept = found.setdefault((entry["heading"], place, label), [])
        kept += [figure for name in entry["figures"] for figure in _saved_figure(path.with_name(name))]
    return [
        Section(_anchor(heading, label), heading, label, tuple(figures))
        for (heading, _, label), figures in sorted(found.items(), key=lambda item: item[0])
        if figures
    ]


def _entry_of(path: Path) -> dict[str, Any] | None:
    """What a file says for the page; None where it says nothing, or is not one of ours."""
    try:
        content = read_json(path)
    except UserError as err:
        log.warning("left out of the report: %s", err)
        return None
    entry = content.get(ENTRY) if isinstance(content, dict) else None
    wanted = {"model": str, "vectors": str, "heading": str, "figures": list}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in wanted.items()):
        return None
    behavior, names = entry.get("behavior"), entry["figures"]
    is_ours = (behavior is None or isinstance(behavior, str)) and all(_is_name(name) for name in names)
    return {**entry, "behavior": behavior} if is_ours else None


def _is_name(name: object) -> bool:
    """Whether it names a file in the result's own folder."""
    return isinstance(name, str) and Path(name).name == name


def _saved_figure(stem: Path) -> Iterator[KeptFigure]:
    """A figure from its files; nothing where one of them is gone."""
    try:
        png, text = with_suffix(stem, ".png").read_bytes(), with_suffix(stem, ".txt").read_text(encoding="utf-8")
    except FileNotFoundError as err:
        log.warning("left out of the report: %s is not there any more", err.filename)
        return
    lines = text.splitlines()
    notes = tuple(line.removeprefix("# ") for line in lines if line.startswith("#"))
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    table = Table(tuple(rows[0]) if rows else (), [[_number(cell) for cell in row] for row in rows[1:]], notes)
    width, height = struct.unpack(">II", png[16:24])  # of the PNG header
    title = notes[0] if notes else stem.name
    yield KeptFigure(stem, title, " ".join(notes), "", "", _as_svg(png, width, height), width / PNG_DPI > _WIDE, table)


def _number(cell: str) -> float | str:
    try:
        return float(cell) if "." in cell else cell
    except ValueError:
        return cell


def _as_svg(png: bytes, width: int, height: int) -> str:
    inches = width / PNG_DPI, height / PNG_DPI
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{72 * inches[0]:.1f}pt" height="{72 * inches[1]:.1f}pt" '
        f'viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" '
        f'href="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"/></svg>'
    )


def _anchor(heading: str, label: str) -> str:
    words = f"research {heading} {label}".lower()
    return "".join(character if character.isalnum() else "-" for character in words)
