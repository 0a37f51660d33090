"""One HTML page of a run of plot_results.py: numbers, figures, answers, token positions, provenance.

The page needs nothing but itself. Texts reach it only through a template that escapes them, or as JSON that
cannot end its script.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from utils.behaviors import BEHAVIORS, get_behavior
from utils.evaluation.effects import Point, evaluation_command
from utils.evaluation.headline import CHOICE_NOTE, Headline, headline_of, interval, steerability_text
from utils.evaluation.results import settings_of
from utils.figures.effects import Y_LABELS, meaning_note
from utils.figures.kept import KeptFigure
from utils.figures.results import Task
from utils.figures.style import Table
from utils.files.writing import write_bytes
from utils.inside.token_texts import escaped, spelled_out
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.report.answers import Answers
from utils.report.provenance import Provenance, collect_provenance
from utils.report.tokens import TokenView, token_view
from utils.settings import ResultType

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

log = logging.getLogger(__name__)

TYPE_LABELS: dict[ResultType, str] = {
    "ab": "A/B questions",
    "open_ended": "Open-ended answers",
    "truthful_qa": "TruthfulQA",
    "mmlu": "MMLU",
}
ALL_BEHAVIORS = "all behaviors"
_TEMPLATES = Path(__file__).parent / "templates"
_PLAIN_IN_URI = " !'()*+,-./:;=?@_~"  # what a browser reads unescaped in a data: URI


@dataclass(frozen=True)
class FigureGroup:
    """The figures of one kind of results and one behavior (or of all behaviors together)."""

    anchor: str
    type_label: str
    behavior_label: str
    figures: tuple[KeptFigure, ...]


@dataclass(frozen=True)
class Report:
    """What the page says."""

    title: str
    model: str
    headlines: tuple[Headline, ...]
    groups: tuple[FigureGroup, ...]
    answers: Answers
    only_type: str
    """The kind of results that --type asks for; empty for every kind, or where it is the answers."""
    answers_command: str
    tokens: TokenView
    steer_all: bool
    provenance: Provenance
    missing: tuple[str, ...]


def report_path(args: argparse.Namespace, paths: DataPaths, choice: ModelChoice) -> Path:
    like = settings_of(choice, args.behaviors[0], args.type or "ab", args.steer_positions)
    left_out = ("layer", "multiplier", "behavior") if args.type else ("layer", "multiplier", "behavior", "type")
    return paths.analysis_dir / f"report_{like.describe(*left_out)}.html"


def write_report(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, tasks: Sequence[Task], answers: Answers
) -> Path:
    """Write the page; one that already says the same is left as it is."""
    path = report_path(args, paths, choice)
    page = render(collect_report(args, paths, choice, tasks, answers)).encode("utf-8", "backslashreplace")
    if path.exists() and path.read_bytes() == page:
        log.info("%s is up to date (%.1f MB)", path, len(page) / 1e6)
    else:
        write_bytes(path, page)
        log.info("wrote %s (%.1f MB)", path, len(page) / 1e6)
    return path


def collect_report(
    args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, tasks: Sequence[Task], answers: Answers
) -> Report:
    """Put together what the page says; `tasks` have been plotted."""
    steer_all = args.steer_positions == "all"
    like = settings_of(choice, args.behaviors[0], "open_ended", args.steer_positions)
    read = [path for task in tasks for files in task.files.values() for path in files.read_paths]
    return Report(
        title=args.title or f"Steering {choice.label}",
        model=choice.label,
        headlines=tuple(headline_of(task) for task in tasks if task.headline),
        groups=tuple(group for task in tasks for group in group_figures(task)),
        answers=answers,
        only_type=args.type if args.type not in (None, "open_ended") else "",
        answers_command=evaluation_command(args.behaviors, args.layers or (), args.multipliers or (), like, choice),
        tokens=token_view(tasks, answers, paths, args.behaviors, choice, steer_all),
        steer_all=steer_all,
        provenance=collect_provenance(args, paths.root, [*read, *(file.path for file in answers.files)], answers.notes),
        missing=tuple(line for task in tasks for line in task.missing.lines()),
    )


def group_figures(task: Task) -> list[FigureGroup]:
    """Figures of all behaviors first, then behavior by behavior."""
    order = ["", *BEHAVIORS]

    def behavior_of(figure: KeptFigure) -> str:
        return "" if figure.stem.parent == task.paths.analysis_dir else figure.stem.parent.name

    ordered = sorted(task.figures, key=lambda figure: order.index(behavior_of(figure)))
    return [
        FigureGroup(
            f"figures-{task.result_type}-{behavior or 'all'}",
            TYPE_LABELS[task.result_type],
            get_behavior(behavior).label if behavior else ALL_BEHAVIORS,
            tuple(figures),
        )
        for behavior, figures in groupby(ordered, behavior_of)
    ]


# --- drawing ---------------------------------------------------------------------------------------


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure_uri": figure_uri, "rounded": rounded_text, "visible": visible}
    return made


def render(report: Report) -> str:
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headlines=[_headline_table(headline) for headline in report.headlines],
            choice_note=CHOICE_NOTE,
            type_labels=TYPE_LABELS,
            answer_data=report.answers.page_data() if report.answers.files else None,
        )
    )


def _headline_table(headline: Headline) -> dict[str, Any]:
    """The headline as rows of text, the numbers written as in the terminal."""
    behaviors = []
    for one in headline.behaviors:
        behaviors.append(
            {
                "label": get_behavior(one.behavior).label,
                "meaning": meaning_note(one.behavior, headline.result_type),
                "layer": one.layer,
                "rows": [_headline_row(point) for point in one.points],
                "steerability": steerability_text(one.steerability) if one.steerability else "",
            }
        )
    return {
        "type": headline.result_type,
        "label": TYPE_LABELS[headline.result_type],
        "value": Y_LABELS[headline.result_type],
        "behaviors": behaviors,
        "chosen": headline.layer_was_chosen,
    }


def _headline_row(point: Point) -> dict[str, str]:
    tested = math.isfinite(point.p_family)
    return {
        "multiplier": f"{point.multiplier:g}",
        "mean": interval(point.mean),
        "n": f"{point.mean.n} of {point.mean.n_total}",
        "change": interval(point.change, 4) if point.change.exists else "",
        "p": f"{point.p_family:.2g}" if tested else "",
        "holds": ("holds" if point.holds else "does not hold") if tested else "",
    }


def figure_uri(figure: KeptFigure) -> "Markup":
    """The figure as a data: URI: inside an image neither its ids nor its styles meet those of the page.

    What would end an attribute or begin a reference is percent-encoded, so it stands there as it is.
    """
    from markupsafe import Markup

    svg = figure.svg if "'" in figure.svg else figure.svg.replace('"', "'")  # one character for three
    return Markup("data:image/svg+xml," + quote(svg, safe=_PLAIN_IN_URI))


def rounded_text(table: Table) -> str:
    """The table as tab-separated text with six significant digits; the file beside the figure has them all."""
    rows = [[float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row] for row in table.rows]
    return Table(table.columns, rows, table.notes).to_text()


def visible(text: str) -> str:
    """A token's text with what cannot be seen spelled out; line breaks also break the line."""
    return "".join(f"{escaped(c)}\n" if c == "\n" else spelled_out(c) for c in text) or "(nothing)"
