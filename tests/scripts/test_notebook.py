"""The notebook runs from top to bottom, and what is kept of its outputs is whole and clean."""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from utils.model.checkpoints import EMBEDDED_LABEL
from utils.model.embedded import MANIFEST
from utils.paths import MODELS_DIR, REPOSITORY

NOTEBOOK = REPOSITORY / "activation_steering_interp.ipynb"
SHORTER = {"max_new_tokens=40": "max_new_tokens=12", "range(first, first + 11)": "range(first, first + 4)"}
"""What of the notebook takes longest, and what runs of it but in the campaign (CAA_KILLS)."""


@pytest.fixture(scope="module")
def kept() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[tuple[str, ...]]:
    """What a cell put out: streams by name, displays by their formats."""
    return [(output.output_type, output.get("name", ""), *sorted(output.get("data", {}))) for output in cell.outputs]


def test_the_notebook_is_kept_with_the_outputs_of_one_clean_run(kept: Any) -> None:
    nbformat.validate(kept)
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [kind for cell in cells for kind in kinds(cell)]
    assert all(cell.outputs for cell in cells)
    assert {kind[:2] for kind in outputs} == {("stream", "stdout"), ("display_data", "")}  # no errors, no warnings
    assert sum("image/png" in kind for kind in outputs) >= 7 and sum("text/html" in kind for kind in outputs) == 3
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_the_notebook_names_no_path_of_a_machine(kept: Any) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    without_images = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(home|root|work|tmp|Users|usr|mnt|opt|var)/|[A-Z]:\\\\", without_images)
    assert str(Path.home()) not in without_images
    assert set(kept.metadata) == {"kernelspec", "language_info"}


@pytest.mark.embedded
@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    if not (MODELS_DIR / EMBEDDED_LABEL / MANIFEST).exists():
        pytest.skip("the embedded model is not here; run: .venv/bin/python -m utils.model.embedded")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    run = nbformat.from_dict(kept)
    for long, short in () if "CAA_KILLS" in os.environ else SHORTER.items():
        [cell] = [cell for cell in run.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
    client = NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(REPOSITORY)}})
    client.execute()  # raises what a cell raises
    for cell, cell_kept in zip(code_cells(run), code_cells(kept), strict=True):
        assert kinds(cell) == kinds(cell_kept), cell.source
