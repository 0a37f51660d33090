"""A run of plot_results.py: find what there is, draw it, sum it up, and write the page where one is wanted."""

import logging
from dataclasses import dataclass

from utils.errors import UserError
from utils.evaluation.headline import Headline, build_headline, headline_lines
from utils.evaluation.words import of_its_root
from utils.figures import cross_behavior, results, variations
from utils.figures.found import how_to_make, nothing_found
from utils.figures.kept import KeptFigure, keep_figures
from utils.figures.requests import PlotRequest
from utils.figures.result_sets import ResultSet, find_result_sets
from utils.figures.style import log_written
from utils.figures.tables import effects_table
from utils.files.tables import save_table
from utils.report.answers import Answers, collect_answers
from utils.report.beside import draw_choices, draw_measured
from utils.report.page import PlottedSet, write_report
from utils.report.requests import ReportRequest
from utils.report.research import research_sections

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plotted:
    """What a run came to."""

    summary: tuple[str, ...]
    """The numbers to cite, in lines for the terminal."""
    n_unreadable: int
    """Result files that could not be read."""


@of_its_root
def plot_results(request: PlotRequest, report: ReportRequest | None = None) -> Plotted:
    """Make every figure that is asked for and has results; with `report` also the page about them.

    Raises:
        UserError: If there is nothing to plot; it names what there is, and the command that makes what is asked for.
    """
    sets = find_result_sets(request)
    answers = collect_answers(request) if report else Answers()
    measured = draw_measured(request, keep=report is not None)
    n_written = measured.n_written
    if not sets and not answers.files and not n_written:
        raise UserError(nothing_found(request))
    plotted: list[PlottedSet] = []
    for of_set in sets:
        n_of_set, done = plot_set(of_set, keep=report is not None)
        n_written += n_of_set
        plotted.append(done)
    if not n_written and not answers.files:
        raise UserError(f"nothing to plot: no results of {request.choice.label} as asked for; {how_to_make(request)}")
    log.info("wrote %d figures and tables to %s", n_written, request.paths.analysis_dir)
    if report:
        chosen = draw_choices(request)
        write_report(report, plotted, answers, (*measured.sections, *chosen.sections, *research_sections(request)))
    files = {id(one): one for of_set in sets for one in of_set.files.values()}  # sets of one kind share them
    lines = [line for one in plotted if one.headline for line in headline_lines(one.headline)]
    return Plotted((*lines, *measured.lines), sum(one.n_unreadable for one in files.values()))


def plot_set(of_set: ResultSet, keep: bool) -> tuple[int, PlottedSet]:
    """Every figure of one set of results, and its summary as a table; how many were written."""
    figures: list[KeptFigure] = []
    with keep_figures(figures if keep else None):
        n_written = draw_set(of_set)
    for line in of_set.missing.lines():
        log.warning("%s", line)
    headline = headline_of(of_set)
    if headline:
        like = of_set.plain(headline.behaviors[0].behavior)
        stem = of_set.stem(like, "layer", "multiplier", "behavior", prefix="headline_")
        n_written += log_written([save_table(stem, effects_table(headline.points))])
    return n_written, PlottedSet(of_set, figures, headline)


def draw_set(of_set: ResultSet) -> int:
    """The figures; those of transfers or weights alone where only they are asked for."""
    if of_set.request.override_weights:
        return variations.plot_finetuned(of_set)
    if of_set.request.is_transfer:
        return variations.plot_transfers(of_set)
    n_written = results.plot_over_layers(of_set) + results.plot_single_layers(of_set)
    if of_set.result_type == "ab":
        n_written += results.plot_steerabilities(of_set) + cross_behavior.plot_cross_behavior(of_set)
    return n_written + variations.plot_transfers(of_set) + variations.plot_finetuned(of_set)


def headline_of(of_set: ResultSet) -> Headline | None:
    """The summary of plain steering; None where there is none, or only variations of it are asked for."""
    request = of_set.request
    if request.override_weights or request.is_transfer:
        return None
    points_of = {behavior: points for behavior in of_set.files if (points := of_set.every_point(behavior))}
    if not points_of:
        return None
    return build_headline(request.choice.label, of_set.result_type, of_set.how, points_of, request.seed)
