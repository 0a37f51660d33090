"""What the benchmark leaves: one JSON and one table of all rows, a figure for each behavior, and one of the ranks."""

import logging
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.figures.style import log_written
from utils.files.tables import save_table
from utils.files.writing import write_json
from utils.research.benchmark_figures import plot_pareto, plot_ranks
from utils.research.benchmark_results import Results, transfer_rows
from utils.research.benchmark_tables import lines, not_run_lines, rank_lines, table_of, transfer_table

if TYPE_CHECKING:
    from utils.research.benchmark_request import BenchmarkRequest

log = logging.getLogger(__name__)


def write_results(request: "BenchmarkRequest") -> list[str]:
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
    for behavior in results.behaviors():
        if any(row.behavior == behavior and row.kind != "none" for row in results.rows):
            log_written(plot_pareto(results, behavior, request.folder / f"pareto_{behavior}"))
    if results.ranks:
        log_written(plot_ranks(results, request.folder / "ranks"))
    return [*lines(results), *rank_lines(results)]
