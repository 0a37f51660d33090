"""What the benchmark leaves: one JSON and one table of all rows, a figure for each behavior, and one of the ranks."""

import logging

from utils.figures.entries import ENTRY, report_entry
from utils.figures.style import log_written
from utils.files.tables import save_table, with_suffix
from utils.files.writing import write_json
from utils.research.benchmark_figures import plot_pareto, plot_ranks
from utils.research.benchmark_results import Results, transfer_rows
from utils.research.benchmark_tables import lines, rank_lines, table_of, transfer_table
from utils.settings import VectorKind

log = logging.getLogger(__name__)


def write_results(results: Results) -> list[str]:
    """Write all of it, from the units that are there; returns lines for the terminal."""
    request = results.request
    log.info("wrote %s", save_table(request.folder / "results", table_of(results)))
    if results.transfer:
        table = transfer_table(transfer_rows(results.transfer, request.seed))
        log.info("wrote %s", save_table(request.folder / "transfer", table))
    kind, heading = VectorKind("answer"), "Benchmark of methods"
    for behavior in results.behaviors():
        stem = request.folder / f"pareto_{behavior}"
        if any(row.behavior == behavior and row.kind != "none" for row in results.rows):
            log_written(plot_pareto(results, behavior, stem))
            entry = report_entry(request.choice.label, behavior, kind, heading, [stem])
            write_json(with_suffix(stem, ".json"), {ENTRY: entry, "rows": results.rows_json(behavior)})
    ranks = request.folder / "ranks"
    if results.ranks:
        log_written(plot_ranks(results, ranks))
    entry = report_entry(request.choice.label, None, kind, heading, [ranks] if results.ranks else [])
    write_json(request.folder / "results.json", {ENTRY: entry, **results.to_json()})
    log.info("wrote %s", request.folder / "results.json")
    return [*lines(results), *rank_lines(results)]
