"""analyze_vectors.py on the reference vectors: similarities, norms, what is missing, repeated runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analyze_vectors import main
from tests.reference import carried_path
from tests.roots import copy_carried, error_lines, snapshot
from utils.behaviors import published_behaviors
from utils.figures.style import figure_style
from utils.figures.vector_sets import (
    chat_and_base,
    plan_behavior_similarities,
    plan_layer_similarities,
    plan_model_similarity,
    plan_norms,
)
from utils.figures.vectors import behaviors_sheet, layers_sheet, norms_figure, pairs_figure
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.paths import DataPaths
from utils.vectors.files import load_vector_table
from utils.vectors.similarity import cosine_matrices

CHAT, BASE = "Llama-2-tiny-chat-hf", "Llama-2-tiny-hf"
ALL = {behavior: range(6) for behavior in published_behaviors()}
TWO = ("sycophancy", "refusal")


def carried(folder: str, behavior: str, layer: int, label: str) -> Path:
    """What stands for a vector: layer 7 is carried as layer 5, and the base model's are another behavior's."""
    of = behavior if label == CHAT else {"sycophancy": "hallucination", "refusal": "myopic-reward"}[behavior]
    return carried_path(folder, of, f"vec_layer_{min(layer, 5)}_{CHAT}.pt")


def vector(folder: str, behavior: str, layer: int, label: str) -> np.ndarray:
    return torch.load(carried(folder, behavior, layer, label), weights_only=True).double().numpy()


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(np.dot(u, v) / np.sqrt(np.dot(u, u) * np.dot(v, v)))


def small_vectors(root: Path) -> Path:
    """Two behaviors, layers 0, 3 and 7, chat and base model, with their normalised vectors."""
    for folder in ("vectors", "normalized_vectors"):
        for behavior in TWO:
            (root / folder / behavior).mkdir(parents=True)
            for layer in (0, 3, 7):
                for label in (CHAT, BASE):
                    name = f"{folder}/{behavior}/vec_layer_{layer}_{label}.pt"
                    shutil.copyfile(carried(folder, behavior, layer, label), root / name)
    return root


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root after a run without flags; to be read only."""
    root = small_vectors(tmp_path_factory.mktemp("analyzed"))
    assert main(["--root", str(root)]) == 0
    return root


@pytest.fixture
def root(analyzed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(analyzed, tmp_path / "root"))


@pytest.fixture
def drawing_is_stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tables are written."""
    from utils.figures import vector_run
    from utils.files.tables import save_table

    monkeypatch.setattr(vector_run, "save_figure", lambda _figure, stem, table: [save_table(stem, table)])


def table(root: Path, *parts: str) -> list[dict[str, str]]:
    return read_table(root.joinpath("analysis", *parts))


def test_without_flags_every_model_gets_every_figure(analyzed: Path) -> None:
    made = {str(path.relative_to(analyzed / "analysis")) for path in (analyzed / "analysis").rglob("*.*")}
    stems = [f"cosine_chat_and_base_{CHAT}_{BASE}"]
    for label in (CHAT, BASE):
        stems += [f"{behavior}/cosine_between_layers_{label}" for behavior in TWO]
        stems += [f"cosine_between_layers_{label}", f"cosine_between_behaviors_{label}"]
        stems += [f"cosine_between_behaviors_by_layer_{label}", f"vector_norms_{label}"]
    assert made == {stem + suffix for stem in stems for suffix in (".png", ".pdf", ".txt")}
    assert all(path.stat().st_size > 100 for path in (analyzed / "analysis").rglob("*.*"))


def test_similarities_between_layers_are_the_cosines(analyzed: Path) -> None:
    rows = table(analyzed, "refusal", f"cosine_between_layers_{BASE}.txt")
    assert [row["layer"] for row in rows] == ["0", "3", "7"]
    for row in rows:
        for other in (0, 3, 7):
            expected = cosine(
                vector("vectors", "refusal", int(row["layer"]), BASE), vector("vectors", "refusal", other, BASE)
            )
            assert float(row[f"layer_{other}"]) == pytest.approx(expected, abs=1e-12)
    together = table(analyzed, f"cosine_between_layers_{BASE}.txt")
    assert [row for row in together if row["behavior"] == "refusal"] == rows


def test_similarities_between_behaviors_are_the_cosines(analyzed: Path) -> None:
    rows = table(analyzed, f"cosine_between_behaviors_{CHAT}.txt")
    assert [(row["layer"], row["behavior"]) for row in rows] == [(str(n), b) for n in (0, 3, 7) for b in TWO]
    for row in rows:
        for other in TWO:
            layer = int(row["layer"])
            expected = cosine(vector("vectors", row["behavior"], layer, CHAT), vector("vectors", other, layer, CHAT))
            assert float(row[other]) == pytest.approx(expected, abs=1e-12)
    (pair,) = table(analyzed, f"cosine_between_behaviors_by_layer_{CHAT}.txt")
    assert (pair["behavior"], pair["other_behavior"]) == TWO
    assert [pair[f"layer_{n}"] for n in (0, 3, 7)] == [row["refusal"] for row in rows if row["behavior"] == TWO[0]]


def test_chat_and_base_vectors_are_compared_layer_by_layer(analyzed: Path) -> None:
    rows = table(analyzed, f"cosine_chat_and_base_{CHAT}_{BASE}.txt")
    assert [row["layer"] for row in rows] == ["0", "3", "7"]
    for row in rows:
        for behavior in TWO:
            pair = (vector("vectors", behavior, int(row["layer"]), label) for label in (CHAT, BASE))
            assert float(row[behavior]) == pytest.approx(cosine(*pair), abs=1e-12)


def test_norms_are_those_before_and_after_normalisation(analyzed: Path) -> None:
    rows = table(analyzed, f"vector_norms_{CHAT}.txt")
    assert len(rows) == 6
    for row in rows:
        for folder, column in (("vectors", "before"), ("normalized_vectors", "after")):
            values = vector(folder, row["behavior"], int(row["layer"]), CHAT)
            assert float(row[f"norm_{column}_normalisation"]) == pytest.approx(np.sqrt((values**2).sum()), rel=1e-12)


def test_a_second_run_makes_nothing_and_overwrite_makes_everything(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    assert main(["--root", str(root)]) == 0
    assert "models: 2; wrote 0 figures, skipped 13" in capsys.readouterr().err
    assert snapshot(root) == before
    assert main(["--root", str(root), "--model", BASE, "--overwrite"]) == 0
    assert "models: 1; wrote 6 figures, skipped 0" in capsys.readouterr().err
    assert snapshot(root) == before  # the same vectors give the same bytes


def test_only_figures_whose_numbers_changed_are_made_again(
    root: Path, drawing_is_stubbed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DataPaths(root).vector("refusal", 3, CHAT, normalized=False)
    save_tensor(path, torch.load(path, weights_only=True) * 2)  # another norm, the same direction
    assert main(["--root", str(root)]) == 0
    messages = capsys.readouterr().err
    assert "wrote 1 figures, skipped 12" in messages and f"wrote {root / 'analysis'}/vector_norms_{CHAT}" in messages
    (root / "analysis" / f"vector_norms_{BASE}.pdf").unlink()
    assert main(["--root", str(root)]) == 0
    assert f"wrote {root / 'analysis'}/vector_norms_{BASE}" in capsys.readouterr().err


def test_flags_narrow_the_figures_down_and_show_in_their_names(
    root: Path, drawing_is_stubbed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    flags = ["--behaviors", "refusal", "--layers", "7", "0", "--model", CHAT]
    assert main(["--root", str(root), *flags]) == 0
    new = snapshot(root).keys() - before.keys()
    assert new == {
        f"analysis/refusal/cosine_between_layers_layers=0,7_{CHAT}.txt",
        f"analysis/vector_norms_behaviors=refusal_layers=0,7_{CHAT}.txt",
    }
    assert "only refusal, so nothing to compare between behaviors" in capsys.readouterr().err
    assert {key: value for key, value in snapshot(root).items() if key in before} == before


def test_what_is_missing_is_named_with_its_command_and_stays_out_as_nan(
    root: Path, drawing_is_stubbed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = DataPaths(root)
    paths.vector("refusal", 3, CHAT, normalized=False).unlink()
    for layer in (0, 3, 7):
        paths.vector("sycophancy", layer, BASE, normalized=True).unlink()
    assert main(["--root", str(root)]) == 0
    lines = capsys.readouterr().err.splitlines()
    command = f"./generate_vectors.py --behaviors refusal --layers 3 --model {CHAT} --root {root}"
    assert f"{CHAT}: no vectors at layers 3 for refusal; run: {command}" in lines
    command = f"./normalize_vectors.py --behaviors sycophancy --model {BASE} --root {root}"
    assert f"{BASE}: not normalised: sycophancy (layers 0,3,7); run: {command}" in lines
    nobody = [line for line in lines if "hallucination" in line]
    assert len(nobody) == 2 and all("no vectors at layers 0,3,7" in line for line in nobody)
    rows = table(root, f"cosine_between_behaviors_{CHAT}.txt")
    gaps = [(row["layer"], row["behavior"], name) for row in rows for name in TWO if row[name] == "nan"]
    assert gaps == [("3", TWO[0], TWO[1]), ("3", TWO[1], TWO[0]), ("3", TWO[1], TWO[1])]
    assert [row["layer"] for row in table(root, "refusal", f"cosine_between_layers_{CHAT}.txt")] == ["0", "7"]
    norms = {(row["behavior"], row["layer"]): row for row in table(root, f"vector_norms_{BASE}.txt")}
    assert norms["sycophancy", "3"]["norm_after_normalisation"] == "nan"
    assert float(norms["refusal", "3"]["norm_after_normalisation"]) > 0


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ([], "./generate_vectors.py"),
        (["--model_size", "13b", "--use_base_model"], "./generate_vectors.py --model_size 13b --use_base_model"),
        (["--behaviors", "refusal", "--layers", "4"], "./generate_vectors.py --behaviors refusal --layers 4"),
    ],
)
def test_no_vectors_is_one_error_that_names_the_command(
    tmp_path: Path, flags: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path), *flags]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert line.endswith(f"run: {command} --root {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_no_model_has_are_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--layers", "31"]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "at layers 31" in line and line.endswith(f"run: ./generate_vectors.py --layers 31 --root {root}")


def test_a_base_model_flag_alone_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--use_base_model"]) == 2
    assert "--use_base_model needs --model_size" in capsys.readouterr().err


def test_normalised_vectors_that_do_not_fit_are_said(
    root: Path, drawing_is_stubbed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = DataPaths(root)
    save_tensor(paths.vector("refusal", 3, CHAT, normalized=True), torch.randn(64))
    path = paths.vector("sycophancy", 7, BASE, normalized=True)
    save_tensor(path, torch.load(path, weights_only=True) * 1.5)
    assert main(["--root", str(root)]) == 0
    messages = capsys.readouterr().err
    assert f"{CHAT}: normalised vectors were made from other vectors than today's: refusal layer 3" in messages
    assert f"{BASE}: behaviors differ in norm after normalisation at layers 7 " in messages
    assert f"{BASE}: normalised vectors were made" not in messages


def test_untouched_reference_vectors_raise_no_warning(analyzed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(analyzed)])
    assert "normalis" not in capsys.readouterr().err


def test_models_of_different_widths_are_not_compared(
    root: Path, drawing_is_stubbed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "analysis")
    for behavior in TWO:
        for layer in (0, 3, 7):
            for normalized in (False, True):
                save_tensor(DataPaths(root).vector(behavior, layer, BASE, normalized=normalized), torch.ones(10))
    assert main(["--root", str(root)]) == 0
    assert f"{CHAT} and {BASE} differ in width (64, 10): not compared" in capsys.readouterr().err
    assert not list((root / "analysis").glob("cosine_chat_and_base*"))


def test_a_vector_that_is_no_vector_is_refused_with_its_path(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tensor(DataPaths(root).vector("refusal", 3, CHAT, normalized=False), torch.full((64,), torch.nan))
    assert main(["--root", str(root)]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert f"vec_layer_3_{CHAT}.pt contains NaN" in line


def test_chat_models_find_their_base_model_by_name() -> None:
    labels = ["Llama-2-7b-chat-hf", "Llama-2-7b-hf", "SmolLM2-135M-Instruct", "SmolLM2-135M"]
    labels += ["gemma-2-2b-it", "gemma-2-2b", "a-item", "aem", "Llama-2-13b-chat-hf"]
    assert chat_and_base(labels) == [(labels[0], labels[1]), (labels[2], labels[3]), (labels[4], labels[5])]


# --- the published vectors ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Path:
    return carried_path()


def test_the_published_vectors_give_the_cosines_of_a_plain_loop(published: Path, tmp_path: Path) -> None:
    vectors = load_vector_table(DataPaths(published), CHAT, ALL, normalized=False)
    figures = [
        *plan_layer_similarities(DataPaths(tmp_path), "", "", vectors),
        *plan_behavior_similarities(DataPaths(tmp_path), "", vectors),
    ]
    tables = {figure.stem.relative_to(tmp_path / "analysis").as_posix(): figure.table for figure in figures}
    assert len(tables) == 7 + 1 + 2
    layers = tables[f"sycophancy/cosine_between_layers_{CHAT}"]
    expected = cosine(*(vector("vectors", "sycophancy", layer, CHAT) for layer in (3, 5)))
    assert layers.rows[3][layers.columns.index("layer_5")] == pytest.approx(expected, abs=1e-12)
    behaviors = tables[f"cosine_between_behaviors_{CHAT}"]
    row = next(row for row in behaviors.rows if row[:2] == (3, "hallucination"))
    expected = cosine(*(vector("vectors", behavior, 3, CHAT) for behavior in ("hallucination", "refusal")))
    assert row[behaviors.columns.index("refusal")] == pytest.approx(expected, abs=1e-12)


def test_normalisation_leaves_one_norm_a_layer_and_every_direction(published: Path, tmp_path: Path) -> None:
    before, after = (
        load_vector_table(DataPaths(published), CHAT, ALL, normalized=normalized) for normalized in (False, True)
    )
    table = plan_norms(DataPaths(tmp_path), "", before, after).table
    for layer in (0, 3, 5):
        rows = [row for row in table.rows if row[1] == layer]
        assert len(rows) == 7
        mean = sum(row[2] for row in rows) / 7
        assert [row[3] for row in rows] == pytest.approx([mean] * 7, rel=1e-3)
    same = plan_model_similarity(DataPaths(tmp_path), "", before, after)
    assert same is not None
    assert min(min(row[1:]) for row in same.table.rows) > 0.9999


# --- how it looks ------------------------------------------------------------------------------------


def matrices(*shape: int) -> np.ndarray:
    return cosine_matrices(np.random.default_rng(1).normal(size=(*shape, 9)))


def visible_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """The drawn texts of a figure, with the boxes that they take."""
    figure.draw_without_rendering()
    texts = [figure._suptitle]
    for ax in figure.axes:
        if ax.axison:
            for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
                ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                texts += [
                    label for tick in ticks if low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)
                ]
                texts.append(axis.label)
            texts += [ax.title, ax._left_title]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]


def assert_legible(figure: Figure) -> None:
    """No text covers another or leaves the figure."""
    found = visible_texts(figure)
    assert len(found) > 4
    for index, (text, box) in enumerate(found):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
        for other, other_box in found[index + 1 :]:
            assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), (text, other)


@pytest.mark.parametrize("n_layers", [2, 8, 32, pytest.param(80, marks=pytest.mark.slow)])
def test_nothing_overlaps_for_few_and_many_layers(n_layers: int) -> None:
    behaviors, layers = published_behaviors(), range(n_layers)
    long_name = "Some-Model-With-A-Long-Name-70b-chat-hf: cosine similarity between behaviors"
    with figure_style():
        assert_legible(behaviors_sheet(long_name, "a note", matrices(n_layers, 7), behaviors, layers))
        assert_legible(layers_sheet(long_name, "", matrices(7, n_layers), behaviors, layers))
        assert_legible(pairs_figure(long_name, "a note", matrices(n_layers, 7), behaviors, layers))
        norms = np.random.default_rng(0).uniform(0.01, 20, size=(7, n_layers))
        assert_legible(norms_figure(long_name, "", [("before", norms), ("after", norms)], behaviors, layers))


def test_missing_vectors_are_grey_and_said_and_others_are_not() -> None:
    whole = matrices(2, 3)
    gappy = whole.copy()
    gappy[1, 2, :] = gappy[1, :, 2] = np.nan
    with figure_style():
        behaviors = published_behaviors()[:3]
        assert "grey" not in behaviors_sheet("t", "", whole, behaviors, [0, 1]).get_suptitle()
        figure = behaviors_sheet("t", "", gappy, behaviors, [0, 1])
    assert "grey: no vector" in figure.get_suptitle()
    image = figure.axes[1].images[0]
    shown = image.cmap(image.norm(image.get_array()))
    assert shown[2, 0].tolist() == pytest.approx([0xBB / 255] * 3 + [1.0])
    assert shown[0, 1].tolist() != pytest.approx(shown[2, 0].tolist())


def test_the_values_written_into_a_heatmap_are_its_own(tmp_path: Path) -> None:
    root = copy_carried(tmp_path / "root", "vectors")
    vectors = load_vector_table(DataPaths(root), CHAT, {b: [2, 4] for b in published_behaviors()}, normalized=False)
    sheet, _ = plan_behavior_similarities(DataPaths(root), "", vectors)
    with figure_style():
        figure = sheet.draw()
    values = sheet.table.rows[7:]  # the second layer's
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in figure.axes[1].texts}
    assert len(written) == 49
    assert all(
        float(text) == pytest.approx(values[row][2 + column], abs=0.0051) for (row, column), text in written.items()
    )
