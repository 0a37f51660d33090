"""The table at the end of saes/run_all.sh: what was measured, beside what was published, and how long it took.

Example: python -m utils.saes.summary . analysis/sae/run_all_seconds.txt
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files.reading import read_json
from utils.paths import DataPaths

MODEL = "SmolLM2-135M-Instruct"
REFUSER = f"{MODEL}_refuser"
Rows = list[tuple[str, ...]]


def summary(root: Path, times: Path) -> str:
    """All tables as text. What is missing is left out and said so."""
    paths = DataPaths(root)
    parts = [
        _titled("SAEs on held-out text of their own (95% over sequences)", _standard(paths)),
        _titled("the refusal direction in them (read on the stand-in)", _transfer(paths)),
        _titled("one text minus the other, same model", _differences(paths)),
        _titled("seconds", _seconds(times)),
    ]
    dashboards = sorted(str(path) for path in paths.sae_analysis("x").parent.glob("dashboard_*.html"))
    return "\n\n".join([*parts, *(f"dashboard: {path}" for path in dashboards)]) + "\n"


def _titled(title: str, rows: Rows) -> str:
    return f"{title}\n" + ("\n".join(aligned(rows)) if len(rows) > 1 else "(not there)")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()


def _result(paths: DataPaths, name: str) -> Any:
    path = paths.sae_analysis(f"{name}.json")
    return read_json(path)["results"] if path.exists() else None


def span(estimate: Mapping[str, float | None], digits: int = 3) -> str:
    """A value with its interval, as far as they exist."""
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "undefined"
    interval = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}"


def _standard(paths: DataPaths) -> Rows:
    rows: Rows = [("SAE", "text", "explained variance", "CE loss score", "L0", "dead")]
    for model in (REFUSER, MODEL):
        for one in _result(paths, f"standard_evals_{model}") or ():
            if one["own"] or one["trained_on"] == "none":
                numbers = (span(one["explained_variance"]), span(one["ce_loss_score"]), f"{one['l0']['value']:.1f}")
                rows.append((one["sae"], one["measured_on"], *numbers, f"{one['dead']:.1%}"))
    return rows


def _transfer(paths: DataPaths) -> Rows:
    found = _result(paths, f"dataset_vs_model_transfer_{REFUSER}")
    rows: Rows = [("model", "text", "cosine", "corrected cosine", "largest latent", "random dictionary's largest")]
    if found is None:
        return rows
    for cell in found["cells"]:
        cosine = "undefined" if cell["cosine"] is None else f"{cell['cosine']:.3f}"
        chance = cell["saes"][0]["random_dictionaries_max_latent_cosine"]
        numbers = (cosine, span(cell["corrected_cosine"]), f"{cell['max_latent_cosine']:.3f}", _range_text(chance))
        rows.append((cell["trained_on_model"], cell["trained_on_data"], *numbers))
    for row, *numbers in found["published"]["rows"]:
        cosines, largest = numbers[:2], numbers[2:]
        for place, text in enumerate(("LmSys", "Pile")):
            name = f"published, Qwen1.5-0.5B, {row}"
            rows.append((name, text, f"{cosines[place]:.3f}", "", f"{largest[place]:.3f}", ""))
    return rows


def _range_text(found: Any) -> str:
    """The range over draws of a control, however it is written."""
    if isinstance(found, Mapping):
        low, high = found.get("low"), found.get("high")
        if low is not None and high is not None:
            return f"{low:.3f} to {high:.3f}"
    return "undefined"


def _differences(paths: DataPaths) -> Rows:
    rows: Rows = [
        ("model", "texts", "corrected cosine, over prompts", "cosine, over SAEs", "largest latent, over SAEs")
    ]
    found = _result(paths, f"dataset_vs_model_transfer_{REFUSER}")
    for one in found["differences"] if found else ():
        names = ("corrected_cosine_over_prompts", "cosine_over_saes", "max_latent_cosine_over_saes")
        rows.append((one["trained_on_model"], f"{one['of']} - {one['minus']}", *(span(one[name]) for name in names)))
    return rows


def _seconds(times: Path) -> Rows:
    rows: Rows = [("step", "seconds")]
    lines = [line.split("\t") for line in times.read_text(encoding="utf-8").splitlines()] if times.exists() else []
    return [*rows, *((what, seconds) for seconds, what in lines)]


if __name__ == "__main__":
    sys.stdout.write(summary(Path(sys.argv[1]), Path(sys.argv[2])))
