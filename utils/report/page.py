"""One HTML page of a run of plot_results.py: numbers, figures, answers, token positions, provenance.

The page needs nothing but itself. Texts reach it only through a template that escapes them, or as JSON that
cannot end its script.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.evaluation.effects import ALPHA, Point, evaluation_command
from utils.evaluation.headline import BehaviorHeadline, Headline, steerability_text
from utils.evaluation.result_files import settings_of
from utils.evaluation.words import (
    HOLDS_HEADING,
    P_HEADING,
    P_NOTE,
    TYPE_LABELS,
    VALUE_LABELS,
    behavior_label,
    behavior_place,
    interval_text,
    meaning_note,
)
from utils.figures.kept import KeptFigure
from utils.figures.result_sets import ResultSet
from utils.files.tables import Table
from utils.files.writing import write_bytes
from utils.inside.token_texts import escaped, spelled_out
from utils.report.answers import Answers
from utils.report.beside import Section
from utils.report.provenance import Provenance, collect_provenance
from utils.report.requests import ReportRequest
from utils.report.tokens import TokenView, token_view

log = logging.getLogger(__name__)

ALL_BEHAVIORS = "all behaviors"
_TEMPLATES = Path(__file__).parent / "templates"
_PLAIN_IN_URI = " !'()*+,-./:;=?@_~"  # what a browser reads unescaped in a data: URI


@dataclass(frozen=True)
class PlottedSet:
    """A set of results, with what was made of it."""

    results: ResultSet
    figures: Sequence[KeptFigure]
    headline: Headline | None
    """None where there is no plain steering."""


@dataclass(frozen=True)
class Page:
    """What the page says."""

    title: str
    model: str
    headlines: tuple[Headline, ...]
    groups: tuple[Section, ...]
    answers: Answers
    only_type: str
    """See `ReportRequest`."""
    answers_command: str
    tokens: TokenView
    steer_all: bool
    provenance: Provenance
    missing: tuple[str, ...]


def report_path(request: ReportRequest) -> Path:
    plot = request.plot
    like = settings_of(plot.choice, plot.behaviors[0], plot.type or "ab", plot.steer_positions, plot.kind, plot.knob)
    left_out = ("layer", "multiplier", "behavior") if plot.type else ("layer", "multiplier", "behavior", "type")
    return plot.paths.analysis_dir / f"report_{like.describe(*left_out)}.html"


def write_report(
    request: ReportRequest, plotted: Sequence[PlottedSet], answers: Answers, beside: Sequence[Section] = ()
) -> Path:
    """Write the page; one that already says the same is left as it is."""
    path = report_path(request)
    page = render(collect_page(request, plotted, answers, beside)).encode("utf-8", "backslashreplace")
    if path.exists() and path.read_bytes() == page:
        log.info("%s is up to date (%.1f MB)", path, len(page) / 1e6)
    else:
        write_bytes(path, page)
        log.info("wrote %s (%.1f MB)", path, len(page) / 1e6)
    return path


def collect_page(
    request: ReportRequest, plotted: Sequence[PlottedSet], answers: Answers, beside: Sequence[Section] = ()
) -> Page:
    """Put together what the page says."""
    plot, sets = request.plot, [one.results for one in plotted]
    like = settings_of(plot.choice, plot.behaviors[0], "open_ended", plot.steer_positions, plot.kind, plot.knob)
    read = {path for results in sets for files in results.files.values() for path in files.read_paths}
    sources = [*read, *(file.path for file in answers.files)]
    return Page(
        title=request.title,
        model=plot.choice.label,
        headlines=tuple(one.headline for one in plotted if one.headline),
        groups=(*(group for one in plotted for group in group_figures(one)), *beside),
        answers=answers,
        only_type=request.only_type,
        answers_command=evaluation_command(
            plot.behaviors, plot.layers, plot.multipliers, like, plot.choice, plot.paths
        ),
        tokens=token_view(plot, sets, answers),
        steer_all=plot.steer_positions == "all",
        provenance=collect_provenance(request.command, plot.seed, plot.paths.root, sources, answers.notes),
        missing=tuple(line for results in sets for line in results.missing.lines()),
    )


def group_figures(one: PlottedSet) -> list[Section]:
    """Figures of all behaviors first, then behavior by behavior."""
    results = one.results

    def behavior_of(figure: KeptFigure) -> str:
        return "" if figure.stem.parent == results.request.paths.analysis_dir else figure.stem.parent.name

    def place(figure: KeptFigure) -> int:
        behavior = behavior_of(figure)
        return behavior_place(behavior) if behavior else -1

    ordered = sorted(one.figures, key=place)
    kind = ", ".join(part for part in (TYPE_LABELS[results.result_type], results.how) if part)
    anchor = "-".join(str(part) for part in (results.result_type, *_sampling_parts(results)))
    return [
        Section(
            f"figures-{anchor}-{behavior or 'all'}",
            kind,
            behavior_label(behavior) if behavior else ALL_BEHAVIORS,
            tuple(figures),
        )
        for behavior, figures in groupby(ordered, behavior_of)
    ]


def _sampling_parts(results: ResultSet) -> tuple[float, ...]:
    """What tells sampled answers' anchors from those of greedy ones and from each other."""
    sampling = results.sampling
    return (sampling.temperature, sampling.num_samples, sampling.seed) if sampling.temperature else ()


# --- drawing ---------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure_uri": figure_uri, "rounded": rounded_text, "visible": visible}
    return made


def render(page: Page) -> str:
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            headlines=[_headline_table(headline) for headline in page.headlines],
            p_heading=P_HEADING,
            holds_heading=HOLDS_HEADING,
            notes=list(dict.fromkeys(note for headline in page.headlines for note in headline.notes)),
            has_others=any(one.others for headline in page.headlines for one in headline.behaviors),
            p_note=f"{P_NOTE}; \u25cf holds: p < {ALPHA:g}. Empty: not tested.",
            answer_data=page.answers.page_data() if page.answers.files else None,
        )
    )


def _headline_table(headline: Headline) -> dict[str, Any]:
    """The headline as rows of text, the numbers written as in the terminal."""
    anchor = "-".join(part for part in (headline.result_type, headline.how) if part)
    return {
        "anchor": "".join(character if character.isalnum() else "-" for character in anchor),
        "label": ", ".join(part for part in (TYPE_LABELS[headline.result_type], headline.how) if part),
        "value": VALUE_LABELS[headline.result_type],
        "behaviors": [_behavior_rows(one, headline) for one in headline.behaviors],
    }


def _behavior_rows(one: BehaviorHeadline, headline: Headline) -> dict[str, Any]:
    """One behavior: a group of rows for each layer, that of the headline first."""
    groups = [
        {"layer": layer, "rows": [_point_row(point, one) for point in points]}
        for layer, points in groupby(one.points, lambda point: point.layer)
    ]
    return {
        "label": behavior_label(one.behavior),
        "meaning": meaning_note(one.behavior, headline.result_type),
        "choice": one.choice,
        "groups": groups,
        "n_rows": len(one.points),
        "steerability": steerability_text(one),
    }


def _point_row(point: Point, one: BehaviorHeadline) -> Mapping[str, Any]:
    tested = math.isfinite(point.p_family)
    return {
        "multiplier": f"{point.multiplier:g}",
        "mean": interval_text(point.mean),
        "n": f"{point.mean.n} of {point.mean.n_total}",
        "change": interval_text(point.change, 4) if point.change.exists else "",
        "p": f"{point.p_family:.2g}" if tested else "",
        "holds": ("holds" if point.holds else "does not hold") if tested else "",
        "cited": any(point is chosen for chosen in one.chosen),
    }


def figure_uri(figure: KeptFigure) -> Markup:
    """The figure as a data: URI: inside an image neither its ids nor its styles meet those of the page.

    What would end an attribute or begin a reference is percent-encoded, so it stands there as it is.
    """
    svg = figure.svg if "'" in figure.svg else figure.svg.replace('"', "'")  # one character for three
    return Markup("data:image/svg+xml," + quote(svg, safe=_PLAIN_IN_URI))


def rounded_text(table: Table) -> str:
    """The table as tab-separated text with six significant digits; the file beside the figure has them all."""
    rows = [[float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row] for row in table.rows]
    return Table(table.columns, rows, table.notes).to_text()


def visible(text: str) -> str:
    """A token's text with what cannot be seen spelled out; line breaks also break the line."""
    return "".join(f"{escaped(c)}\n" if c == "\n" else spelled_out(c) for c in text) or "(nothing)"
