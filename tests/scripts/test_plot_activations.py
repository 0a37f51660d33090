"""plot_activations.py on the reference activations: figures, points, letters, messages and repeated runs."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from plot_activations import main
from tests.reference import carried_path
from tests.roots import error_lines, put_json, snapshot
from utils.data.records import ContrastPair
from utils.evaluation.separation import LayerActivations, look_at_layer
from utils.figures.activation_plans import is_current
from utils.figures.activations import Drawn, letter_marker, plot_layer, plot_sheet
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.paths import DataPaths

MODEL = "Llama-2-tiny-chat-hf"
BEHAVIOR = "sycophancy"
FLAGS = ("--behaviors", BEHAVIOR, "--model", MODEL)


def copy_activations(root: Path, *layers: int) -> Path:
    """Activations of some layers of one behavior, with its dataset."""
    for layer in layers:
        for side in ("pos", "neg"):
            path = DataPaths(root).activations(BEHAVIOR, side, layer, MODEL)
            save_tensor(path, torch.from_numpy(activations(side, layer)).float())
    dataset = f"datasets/generate/{BEHAVIOR}/generate_dataset.json"
    (root / dataset).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(carried_path(dataset), root / dataset)
    return root


def activations(side: str, layer: int) -> np.ndarray:
    """Those carried of layer 3, with noise of the layer's own."""
    path = carried_path("activations", BEHAVIOR, f"activations_{side}_3_{MODEL}.pt")
    noise = torch.randn(24, 64, generator=torch.Generator().manual_seed(layer)) / 4
    return (torch.load(path, weights_only=True) + noise).double().numpy()


def stem(root: Path, layer: int) -> Path:
    return root / "analysis" / BEHAVIOR / f"pca_layer={layer}_{MODEL}"


@pytest.fixture(scope="module")
def plotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the figures of layers 0 and 5; to be read only."""
    root = copy_activations(tmp_path_factory.mktemp("plotted"), 0, 5)
    assert main(["--root", str(root), *FLAGS]) == 0
    return root


@pytest.fixture
def root(plotted: Path, tmp_path: Path) -> Path:
    """A copy of it, with its times."""
    return Path(shutil.copytree(plotted, tmp_path / "root"))


def test_every_layer_and_the_sheet_get_their_files_and_nothing_else(plotted: Path) -> None:
    names = [f"pca_layer={layer}_{MODEL}" for layer in (0, 5)] + [f"pca_all_layers_{MODEL}"]
    made = {path.name for path in (plotted / "analysis" / BEHAVIOR).iterdir()}
    assert made == {name + suffix for name in names for suffix in (".png", ".pdf", ".txt")}


def test_the_points_beside_the_figure_are_the_principal_components_of_both_halves(plotted: Path) -> None:
    rows = read_table(stem(plotted, 5).with_name(stem(plotted, 5).name + ".txt"))
    points = np.concatenate([activations("pos", 5), activations("neg", 5)])
    centered = points - points.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    for component in (1, 2):
        shown = np.array([float(row[f"pc_{component}"]) for row in rows])
        expected = left[:, component - 1] * singular[component - 1]
        assert shown == pytest.approx(np.sign(shown @ expected) * expected, abs=1e-6)
    layers = {row["layer"]: row for row in read_table(stem(plotted, 5).with_name(f"pca_all_layers_{MODEL}.txt"))}
    explained = singular[:2] ** 2 / (singular**2).sum()
    assert float(layers["5"]["explained_1"]) == pytest.approx(explained[0], rel=1e-9)
    assert float(layers["5"]["explained_2"]) == pytest.approx(explained[1], rel=1e-9)
    norm = np.linalg.norm((activations("pos", 5) - activations("neg", 5)).mean(axis=0))
    assert float(layers["5"]["steering_vector_norm"]) == pytest.approx(norm, rel=1e-9)
    assert set(layers) == {"0", "5"} and layers["0"]["n_pairs"] == "24"


def test_every_point_bears_its_own_side_and_letter(plotted: Path) -> None:
    dataset = json.loads((plotted / f"datasets/generate/{BEHAVIOR}/generate_dataset.json").read_text())
    rows = read_table(stem(plotted, 0).with_name(stem(plotted, 0).name + ".txt"))
    expected = [(str(i), "matching", item["answer_matching_behavior"]) for i, item in enumerate(dataset)]
    expected += [(str(i), "not matching", item["answer_not_matching_behavior"]) for i, item in enumerate(dataset)]
    assert [(row["pair"], row["side"], f"({row['letter']})") for row in rows] == expected


def test_a_second_run_makes_nothing_and_overwrite_makes_everything(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.p*")}
    assert main(["--root", str(root), *FLAGS]) == 0
    assert "wrote 0 figures, skipped 3" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.p*")} == times
    assert main(["--root", str(root), *FLAGS, "--overwrite"]) == 0
    assert "wrote 3 figures, skipped 0" in capsys.readouterr().err
    assert snapshot(root) == before  # the same data gives the same bytes


def test_new_layers_join_the_sheet_and_finished_figures_stay(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_activations(root, 7)
    untouched = stem(root, 0).with_name(stem(root, 0).name + ".png")
    time = untouched.stat().st_mtime_ns
    # copying renewed the dataset's time, so the older figures count as outdated; set it back
    dataset = root / f"datasets/generate/{BEHAVIOR}/generate_dataset.json"
    os.utime(dataset, ns=(time - 10**9, time - 10**9))
    assert main(["--root", str(root), *FLAGS, "--layers", "7"]) == 0
    assert "wrote 2 figures, skipped 0" in capsys.readouterr().err
    assert untouched.stat().st_mtime_ns == time
    rows = read_table(root / "analysis" / BEHAVIOR / f"pca_all_layers_{MODEL}.txt")
    assert [row["layer"] for row in rows] == ["0", "5", "7"]


def test_a_figure_older_than_its_activations_is_made_again(root: Path) -> None:
    path = root / f"activations/{BEHAVIOR}/activations_pos_5_{MODEL}.pt"
    inputs = [path]
    assert is_current(stem(root, 5), inputs)
    assert not is_current(stem(root, 4), inputs)
    save_tensor(path, torch.from_numpy(activations("pos", 5)).flip(0))
    assert not is_current(stem(root, 5), inputs)


def test_the_published_command_names_the_layers_that_are_missing(
    root: Path, seven_b_is_tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [str(layer) for layer in range(32)]
    assert main(["--root", str(root), "--behaviors", BEHAVIOR, "--layers", *layers, "--model_size", "7b"]) == 0
    messages = capsys.readouterr().err
    assert "no activations of Llama-2-tiny-chat-hf at layers 1-4,6-31; run: ./generate_vectors.py" in messages
    assert "--save_activations --behaviors sycophancy --layers 1 2 3 4 6" in messages
    assert "30 31 --model_size 7b" in messages
    assert "skipped 3" in messages


@pytest.mark.parametrize("extra", [[], ["--layers", "3", "4"]])
def test_no_activations_at_all_is_one_error_that_names_the_command(
    tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path), "--behaviors", "refusal", "--model_size", "13b", *extra]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    command = "./generate_vectors.py --save_activations --behaviors refusal"
    assert " ".join([command, *extra, "--model_size 13b"]) in line
    assert not (tmp_path / "analysis").exists()


def test_without_activations_of_the_model_those_that_there_are_are_named_with_their_flag(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(root), "--behaviors", BEHAVIOR]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert f"there are activations of other models, to plot them add --model {MODEL}; run: " in line


def test_behaviors_without_activations_are_named_and_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--model", MODEL]) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("no activations"))
    assert "refusal" in warning and BEHAVIOR not in warning


def test_rows_that_are_not_the_datasets_pairs_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / f"datasets/generate/{BEHAVIOR}/generate_dataset.json"
    put_json(path, json.loads(path.read_text())[:-1])
    assert main(["--root", str(root), *FLAGS]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert f"activations_pos_0_{MODEL}.pt has 24 rows" in line and "has 23 pairs" in line
    assert f"./generate_vectors.py --save_activations --behaviors {BEHAVIOR} --layers 0 --model {MODEL}" in line


def test_halves_of_different_widths_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tensor(root / f"activations/{BEHAVIOR}/activations_neg_5_{MODEL}.pt", torch.randn(24, 50))
    assert main(["--root", str(root), *FLAGS]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "has width 50, its other half 64" in line


def test_activations_that_do_not_differ_are_an_error_with_their_layer(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("pos", "neg"):
        save_tensor(root / f"activations/{BEHAVIOR}/activations_{side}_5_{MODEL}.pt", torch.ones(24, 64))
    assert main(["--root", str(root), *FLAGS]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "sycophancy, layer 5" in line and "do not differ" in line


def test_a_dataset_that_changed_since_the_vectors_were_made_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from utils.files.provenance import record_provenance

    folder = DataPaths(root).vectors_dir(BEHAVIOR, normalized=False)
    record_provenance(folder, [f"vec_layer_5_{MODEL}.pt"], {"dataset_sha256": "0" * 64})
    assert main(["--root", str(root), *FLAGS, "--overwrite"]) == 0
    assert "the dataset has changed since layers 5 were made" in capsys.readouterr().err


# --- figures with more letters, more layers ----------------------------------------------------------


def lettered(letters: str, n_pairs: int) -> Drawn:
    """Pairs whose matching answers go through `letters`, against (A) or, for A, (B)."""
    pairs = [
        ContrastPair("?", letter, "B" if letter == "A" else "A")
        for letter in (letters[index % len(letters)] for index in range(n_pairs))
    ]
    return Drawn("survival-instinct", "m", pairs, seed=0)


def view(drawn: Drawn, layer: int = 0) -> LayerActivations:
    positive, negative = np.random.default_rng(layer).normal(size=(2, len(drawn.pairs), 5))
    letters = [(pair.matching_letter, pair.other_letter) for pair in drawn.pairs]
    return look_at_layer(layer, positive, negative, letters, seed=0)


@pytest.fixture
def saved_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be written, instead of writing them."""
    from utils.figures import activations as pca_figures

    figures: list[Figure] = []

    def keep(figure: Figure, *args: object) -> list[Path]:
        figure.draw_without_rendering()
        figures.append(figure)
        return []

    monkeypatch.setattr(pca_figures, "save_figure", keep)
    return figures


def test_all_letters_are_drawn_with_their_own_marker_and_stand_in_the_legend(
    saved_figures: list[Figure], tmp_path: Path
) -> None:
    drawn = lettered("ABCDEFGHZ", 30)
    plot_layer(tmp_path / "x", drawn, view(drawn))
    (figure,) = saved_figures
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 60
    shapes = {tuple(points.get_paths()[0].vertices.ravel()) for points in figure.axes[0].collections}
    assert len(shapes) == 9
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = {letter: drawn.letters.count(letter) for letter in "ABCDEFGHZ"}
    assert texts == ["matching", "not matching", *(f"({letter}) {n}" for letter, n in counts.items())]
    assert len({letter_marker(chr(ord("A") + index)) for index in range(26)}) == 26


def test_colours_follow_the_side_of_each_point(saved_figures: list[Figure], tmp_path: Path) -> None:
    from matplotlib.colors import to_hex

    drawn = lettered("AB", 10)
    at = view(drawn)
    plot_layer(tmp_path / "x", drawn, at)
    found = {
        tuple(xy): to_hex(color)
        for points in saved_figures[0].axes[0].collections
        for xy, color in zip(points.get_offsets().tolist(), points.get_facecolors(), strict=True)
    }
    coordinates = [tuple(xy) for xy in at.projection.coordinates.tolist()]
    assert {found[xy] for xy in coordinates[:10]} == {"#0072b2"}
    assert {found[xy] for xy in coordinates[10:]} == {"#d55e00"}


def test_explained_variance_and_separation_stand_in_the_figure(saved_figures: list[Figure], tmp_path: Path) -> None:
    drawn = lettered("AB", 10)
    at = view(drawn)
    plot_layer(tmp_path / "x", drawn, at)
    plot_sheet(tmp_path / "y", drawn, [at, view(drawn, 1)])
    single, sheet = saved_figures
    first, second = at.projection.explained
    assert single.axes[0].get_xlabel() == f"PC 1 ({100 * first:.1f}% of variance)"
    assert single.axes[0].get_ylabel() == f"PC 2 ({100 * second:.1f}% of variance)"
    title = single.get_suptitle()
    assert f"AUC {at.separation.auc:.2f}" in title and "m (PCA)" in title and "ACCEPTS being shut down" in title
    assert sheet.axes[0].get_title() == f"layer 0: {at.separation.auc:.2f}"
    assert sheet.axes[1].get_xlabel().startswith("PC 1: ")


@pytest.mark.parametrize("n_layers", [8, 32, pytest.param(80, marks=pytest.mark.slow)])
def test_no_panel_title_of_a_sheet_overlaps_its_neighbour(
    n_layers: int, saved_figures: list[Figure], tmp_path: Path
) -> None:
    drawn = lettered("AB", 4)
    plot_sheet(tmp_path / "x", drawn, [view(drawn, layer) for layer in range(n_layers)])
    (figure,) = saved_figures
    texts = [text for ax in figure.axes[:n_layers] for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [ax.get_window_extent() for ax in figure.axes[:n_layers]]
    legend = figure.legends[0].get_window_extent()
    assert not any(box.overlaps(legend) for box in boxes)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_the_png_is_a_picture_with_both_colours(plotted: Path) -> None:
    image = Image.open(stem(plotted, 5).with_name(stem(plotted, 5).name + ".png")).convert("RGB")
    colors = {color for _, color in image.getcolors(maxcolors=1 << 20)}
    assert any(b > r + 60 for r, _, b in colors) and any(r > b + 60 for r, _, b in colors)
