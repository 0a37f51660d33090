"""What the benchmark leaves: one JSON and one table of all rows, a figure for each behavior, and one of the ranks."""

import logging
from collections.abc import Sequence

from utils.errors import UserError
from utils.evaluation.words import behavior_label
from utils.figures.kept import KeptFigure, keep_figures
from utils.figures.style import log_written
from utils.files.reading import read_json
from utils.files.tables import save_table
from utils.files.writing import write_json
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.report.beside import Section
from utils.research.benchmark_figures import plot_pareto, plot_ranks
from utils.research.benchmark_request import BenchmarkRequest, Sizes
from utils.research.benchmark_results import Results, transfer_rows
from utils.research.benchmark_tables import lines, not_run_lines, rank_lines, table_of, transfer_table

log = logging.getLogger(__name__)


def write_results(request: BenchmarkRequest) -> list[str]:
    """Write all of it, from the units that are there; returns lines for the terminal.

    Raises:
        UserError: If there is no unit that was run.
    """
    results = Results(request)
    if not results.rows:
        raise UserError("; ".join(["no method could be run", *not_run_lines(results)]))
    write_json(request.folder / "results.json", results.to_json())
    log.info("wrote %s", request.folder / "results.json")
    log.info("wrote %s", save_table(request.folder / "results", table_of(results)))
    if results.transfer:
        table = transfer_table(transfer_rows(results.transfer, request.seed))
        log.info("wrote %s", save_table(request.folder / "transfer", table))
    _draw(results)
    return [*lines(results), *rank_lines(results)]


def _draw(results: Results, behaviors: Sequence[str] | None = None) -> None:
    """The figure of every behavior, and the ranks."""
    folder = results.request.folder
    for behavior in results.behaviors():
        has_points = any(row.behavior == behavior and row.kind != "none" for row in results.rows)
        if has_points and (behaviors is None or behavior in behaviors):
            log_written(plot_pareto(results, behavior, folder / f"pareto_{behavior}"))
    if results.ranks:
        log_written(plot_ranks(results, folder / "ranks"))


def benchmark_sections(paths: DataPaths, choice: ModelChoice, behaviors: Sequence[str]) -> list[Section]:
    """The figures of the last benchmark of a model, for the report; none where there was none.

    Raises:
        UserError: If its results are not as the benchmark writes them.
    """
    path = BenchmarkRequest(paths, choice, (), (), (), 1.0).folder / "results.json"
    if not path.exists():
        return []
    content = read_json(path)
    try:
        at = content["settings"]
        request = BenchmarkRequest(
            paths,
            choice,
            tuple(content["behaviors"]),
            tuple(content["methods"]),
            tuple(at["layers"]),
            at["kl_budget"],
            Sizes(**at["sizes"]),
            at["seed"],
        )
    except (KeyError, TypeError) as err:
        raise UserError(
            f"{path} is not as the benchmark writes it; run ./research/steering_benchmark.py again"
        ) from err
    figures: list[KeptFigure] = []
    with keep_figures(figures):
        _draw(Results(request), behaviors)
    stems = {behavior: request.folder / f"pareto_{behavior}" for behavior in behaviors}
    named = [(behavior, behavior_label(behavior), stems[behavior]) for behavior in behaviors]
    named.append(("all", "All behaviors", request.folder / "ranks"))
    return [
        Section(f"figures-benchmark-{anchor}", "Benchmark of methods", label, tuple(shown))
        for anchor, label, stem in named
        if (shown := [figure for figure in figures if figure.stem == stem])
    ]
