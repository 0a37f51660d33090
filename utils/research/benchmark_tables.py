"""The benchmark as text: the table of all columns, lines for the terminal, and what was not run."""

import math
from collections.abc import Sequence

from utils.data.estimates import Estimate
from utils.files.tables import Table
from utils.research.benchmark_results import Results, Row

_ESTIMATES = ("effect", "slope", "against", "over_prompt", "letters", "free_metric", "judge", "mmlu", "truthful_qa")
_NUMBERS = ("p_value", "p_holm", "moved_right", "kl_95", "perplexity", "distinct_2", "others", "seconds", "speed")
NOTES = (
    "effect: log-probability per token of the matching answer minus that of the other, for minus against the behavior",
    "random, permuted: mean over draws, interval over draws; all others: over test items, paired",
    "p_holm: over the methods of a behavior; against: share of items with a slope below 0",
    "kl_95, perplexity (times the unsteered model's): the worse side, on neutral prompts and texts; others: mean "
    "absolute effect on other behaviors; speed: tokens a second, times the unsteered model's",
)


def table_of(results: Results) -> Table:
    """Every column, one row a method and behavior."""
    spread = [name for one in _ESTIMATES for name in (one, f"{one}_low", f"{one}_high")]
    columns = ("behavior", "method", "layer", "amount", *spread, *_NUMBERS)
    rows = []
    for row in results.rows:
        estimates = [number for name in _ESTIMATES for number in _numbers(getattr(row, name))]
        numbers = [_cell(getattr(row, name)) for name in _NUMBERS]
        rows.append((row.behavior, row.method, _cell(row.layer), _cell(row.amount), *estimates, *numbers))
    missing = tuple(f"not run: {line}" for line in not_run_lines(results))
    return Table(columns, rows, (*NOTES, *missing))


def _numbers(estimate: Estimate | None) -> tuple[object, object, object]:
    if estimate is None:
        return "-", "-", "-"
    return _cell(estimate.value), _cell(estimate.low), _cell(estimate.high)


def _cell(value: float | None) -> object:
    return "-" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def lines(results: Results) -> list[str]:
    """For the terminal."""
    header = ("behavior", "method", "layer", "effect", "p (Holm)", "right", "against", "KL", "ppl x", "MMLU", "others")
    rows: list[tuple[str, ...]] = [header, *(_shown(row) for row in results.rows)]
    if any(row.judge is not None for row in results.rows):
        judged = ["judge", *(_with_interval(row.judge) for row in results.rows)]
        rows = [(*cells, cell) for cells, cell in zip(rows, judged, strict=True)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    found = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*found, *(f"not run: {line}" for line in not_run_lines(results))]


def _shown(row: Row) -> tuple[str, ...]:
    p = row.p_holm if row.is_tested else row.p_value
    return (
        row.behavior,
        row.method,
        "-" if row.layer is None else str(row.layer),
        _with_interval(row.effect if row.kind != "none" else None),
        "-" if not math.isfinite(p) else f"{p:.4f}",
        "-" if row.kind == "none" else f"{row.moved_right:.0%}",
        "-" if row.kind == "none" else f"{row.against.value:.0%}",
        f"{row.kl_95:.2f}",
        f"{row.perplexity:.2f}",
        f"{row.mmlu.value:+.3f}",
        "-" if row.others is None else f"{row.others:.3f}",
    )


def _with_interval(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def not_run_lines(results: Results) -> list[str]:
    """Each with the command that provides what it lacks."""
    return [
        f"{unit['method']} on {unit['behavior']}: {unit['not_run']}"
        + (f"; {provide(unit['provide'])}" if unit["provide"] else "")
        for unit in results.not_run
    ]


def provide(command: str) -> str:
    return f"run: {command}" if command.startswith("./") else command


def rank_lines(results: Results) -> list[str]:
    """Mean ranks over behaviors, the best first."""
    n = len(results.behaviors())
    ranks: Sequence[tuple[str, Estimate]] = list(results.ranks.items())
    return [
        f"mean rank over {n} behaviors: {method} {rank.value:.1f} [{rank.low:.1f}, {rank.high:.1f}]"
        for method, rank in ranks
    ]


def transfer_table(rows: Sequence[tuple[str, str, str, Estimate]]) -> Table:
    columns = ("behavior", "made_under", "tested_under", "effect", "low", "high", "n")
    data = [(*where, one.value, one.low, one.high, one.n) for *where, one in rows]
    note = (
        "effect of the answer vector in nats per token, at the layer and amount that were chosen without system prompt"
    )
    return Table(columns, data, (note,))
