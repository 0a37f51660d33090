"""Results of the research scripts on the report page: which are shown, and that a picture stays a picture."""

import base64
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.roots import TINY_LABEL, put_json
from utils.figures.entries import report_entry
from utils.figures.requests import PlotRequest
from utils.figures.style import figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table, with_suffix
from utils.model.checkpoints import choose_model
from utils.paths import DataPaths
from utils.report.research import research_sections
from utils.settings import VectorKind

ANSWER = VectorKind("answer")


def put_result(paths: DataPaths, name: str, behavior: str | None, **changed: Any) -> Path:
    """A figure with its table, and a result that names it."""
    stem = paths.research("trace", behavior or "all", name)
    with figure_style():
        figure, ax = new_figure(6.0, 1.0)
        ax.plot([0, 1])
        set_title(figure, f"title of {name}")
        save_figure(figure, stem, Table(("layer", "value"), [(1, 0.25)], (f"title of {name}", "a <note>")))
    entry = {**report_entry(TINY_LABEL, behavior, ANSWER, "Downstream of steering", [stem]), **changed}
    put_json(with_suffix(stem, ".json"), {"results": {}, "report": entry})
    return stem


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return DataPaths(tmp_path)


def sections(paths: DataPaths, kind: VectorKind = ANSWER) -> list[tuple[str, str, list[str]]]:
    request = PlotRequest(paths, choose_model("7b", f"/nowhere/{TINY_LABEL}", False), ("refusal",), kind=kind)
    found = research_sections(request)
    assert len({one.anchor for one in found}) == len(found)
    return [(one.type_label, one.behavior_label, [figure.title for figure in one.figures]) for one in found]


def test_results_of_this_model_these_behaviors_and_this_kind_of_vectors_are_shown(paths: DataPaths) -> None:
    put_result(paths, "one", "refusal")
    put_result(paths, "two", "refusal")
    put_result(paths, "of_all", None)
    put_result(paths, "other_behavior", "sycophancy")
    put_result(paths, "other_model", "refusal", model="other")
    put_json(paths.research("trace", "refusal", "not_ours.json"), {"report": {"model": 3}})
    assert sections(paths) == [
        ("Downstream of steering", "all behaviors", ["title of of_all"]),
        ("Downstream of steering", "Refusal", ["title of one", "title of two"]),
    ]
    assert sections(paths, VectorKind()) == []


def test_a_figure_is_shown_as_it_was_saved_with_its_numbers(paths: DataPaths) -> None:
    stem = put_result(paths, "one", "refusal")
    request = PlotRequest(paths, choose_model("7b", f"/nowhere/{TINY_LABEL}", False), ("refusal",), kind=ANSWER)
    [section] = research_sections(request)
    [figure] = section.figures
    image = ElementTree.fromstring(figure.svg)[0]
    head, _, data = image.attrib["href"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == with_suffix(stem, ".png").read_bytes()
    assert (image.attrib["width"], image.attrib["height"]) == ("1200", "200") and figure.is_wide
    assert list(figure.table.rows) == [["1", 0.25]] and figure.table.notes == ("title of one", "a <note>")


def test_a_result_whose_figure_is_gone_or_lies_elsewhere_is_left_out(
    paths: DataPaths, caplog: pytest.LogCaptureFixture
) -> None:
    stem = put_result(paths, "one", "refusal")
    with_suffix(stem, ".png").unlink()
    put_result(paths, "two", "refusal", figures=["../../secret"])
    broken = paths.research("trace", "refusal", "broken.json")
    broken.write_text("{")
    assert sections(paths) == []
    assert "one.png is not there any more" in caplog.text and "broken.json is not valid JSON" in caplog.text
