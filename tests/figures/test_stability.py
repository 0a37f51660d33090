"""analyze_vectors.py --stability and --inner_product causal: files, reruns, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analyze_vectors
from llama_wrapper import LlamaWrapper
from tests.models import D_MODEL
from tests.roots import TINY_LABEL, error_lines, snapshot
from utils.files.provenance import record_provenance
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.inside.inner_product import causal_root
from utils.paths import DataPaths
from utils.settings import Side, VectorKind
from utils.vectors.similarity import cosine_matrices

BEHAVIORS = ("sycophancy", "refusal")
ANSWER = VectorKind("answer")
N_PAIRS = 20
Analyze = Callable[..., int]


def write_pairs(paths: DataPaths, behavior: str, layer: int, seed: int, n: int = N_PAIRS, width: int = D_MODEL) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(width, generator=generator)
    negative = torch.randn(n, width, generator=generator)
    positive = negative + mean + torch.randn(n, width, generator=generator)
    halves: dict[Side, torch.Tensor] = {"pos": positive, "neg": negative}
    for side, half in halves.items():
        save_tensor(paths.activations(behavior, side, layer, TINY_LABEL, ANSWER), half)
    vector = (positive.double() - negative.double()).mean(dim=0).float()
    save_tensor(paths.vector(behavior, layer, TINY_LABEL, normalized=False, kind=ANSWER), vector)


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    paths = DataPaths(tmp_path / "root")
    for place, behavior in enumerate(BEHAVIORS):
        for layer in (1, 2):
            write_pairs(paths, behavior, layer, 10 * place + layer)
    return paths


@pytest.fixture
def analyze(paths: DataPaths, tiny_checkpoint: Path) -> Analyze:
    def run(*argv: object) -> int:
        command = [
            "--root",
            paths.root,
            "--model",
            tiny_checkpoint,
            "--behaviors",
            *BEHAVIORS,
            "--read",
            "answer",
            *argv,
        ]
        return analyze_vectors.main([str(word) for word in command])

    return run


def differences(paths: DataPaths, behavior: str, layer: int) -> Any:
    halves = [torch.load(paths.activations(behavior, side, layer, TINY_LABEL, ANSWER)) for side in ("pos", "neg")]  # type: ignore[arg-type]
    return (halves[0].double() - halves[1].double()).numpy()


def test_stability_writes_each_behavior_and_every_two_of_them(analyze: Analyze, paths: DataPaths) -> None:
    assert analyze("--stability") == 0
    label = f"{TINY_LABEL}_read=answer"
    rows = read_table(paths.analysis("refusal", f"stability_{label}.txt"))
    assert [row["layer"] for row in rows] == ["1", "2"] and rows[0]["n_pairs"] == str(N_PAIRS)
    assert float(rows[0]["null_high"]) < float(rows[0]["halves"]) < float(rows[0]["bootstrap"])
    pairs = read_table(paths.analysis(f"similarity_of_behaviors_behaviors=refusal,sycophancy_{label}.txt"))
    for row in pairs:
        one, other = (
            differences(paths, row[name], int(row["layer"])).mean(0) for name in ("behavior", "other_behavior")
        )
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-9)
        assert float(row["cosine_low"]) < cosine < float(row["cosine_high"]) and float(row["null"]) > 0
    content = json.loads(paths.analysis("refusal", f"stability_{label}.json").read_text())
    assert content["report"]["behavior"] == "refusal" and {one["pairs"] for one in content["curve"]} == {2, 4, 8, 10}
    assert paths.analysis("refusal", f"stability_{label}.png").stat().st_size > 5000


@pytest.mark.usefixtures("blank_figures")
def test_a_second_run_draws_nothing_and_changed_pairs_are_drawn_again(
    analyze: Analyze, paths: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze("--stability") == 0
    before = snapshot(paths.root)
    assert analyze("--stability") == 0
    assert snapshot(paths.root) == before and "wrote 0 figures, skipped 3" in capsys.readouterr().err
    write_pairs(paths, "refusal", 2, 99)
    assert analyze("--stability") == 0
    assert "wrote 2 figures, skipped 1" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_figures")
def test_stability_under_the_causal_inner_product_is_that_of_transformed_pairs(
    analyze: Analyze, paths: DataPaths, tiny_checkpoint: Path
) -> None:
    assert analyze("--stability", "--layers", 1, "--inner_product", "causal") == 0
    root = causal_root(LlamaWrapper.load(str(tiny_checkpoint), "cpu")).numpy()
    name = (
        f"similarity_of_behaviors_behaviors=refusal,sycophancy_layers=1_{TINY_LABEL}_read=answer_inner_product=causal"
    )
    [row] = read_table(paths.analysis(f"{name}.txt"))
    one, other = (root @ differences(paths, behavior, 1).mean(0) for behavior in BEHAVIORS)
    assert float(row["cosine"]) == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-8)


@pytest.mark.usefixtures("blank_figures")
def test_cosines_of_vectors_under_the_causal_inner_product_have_files_of_their_own(
    analyze: Analyze, paths: DataPaths, tiny_checkpoint: Path
) -> None:
    assert analyze("--inner_product", "causal") == 0
    root = causal_root(LlamaWrapper.load(str(tiny_checkpoint), "cpu")).numpy()
    vectors = np.stack([differences(paths, behavior, 2).mean(0) for behavior in BEHAVIORS])
    expected = cosine_matrices(vectors @ root)
    [path] = paths.analysis_dir.glob("cosine_between_behaviors_behaviors=*_read=answer_inner_product=causal.txt")
    rows = [row for row in read_table(path) if row["layer"] == "2"]
    assert [float(row["refusal"]) for row in rows] == pytest.approx(expected[:, 1].tolist(), abs=1e-6)
    assert abs(expected[0, 1] - cosine_matrices(vectors)[0, 1]) > 1e-3
    assert "95% are within" in path.read_text().splitlines()[0]
    assert not list(paths.analysis_dir.glob("vector_norms*"))


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("fault", ["missing", "pairs", "halves", "width", "other", "few", "method"])
def test_activations_that_do_not_fit_are_one_line(
    analyze: Analyze, paths: DataPaths, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    positive = paths.activations("refusal", "pos", 1, TINY_LABEL, ANSWER)
    vector = paths.vector("refusal", 1, TINY_LABEL, normalized=False, kind=ANSWER)
    make = "./generate_vectors.py --save_activations --behaviors refusal --layers 1 --read answer"
    argv, reason = ["--layers", "1"], make
    match fault:
        case "missing":
            positive.unlink()
        case "pairs":
            record_provenance(vector.parent, [vector.name], {"n_pairs": 110})
            reason = "has 20 pairs, but"
        case "halves":
            save_tensor(positive, torch.load(positive)[1:])
            reason = "is [19, 32], but"
        case "width":
            save_tensor(vector, torch.ones(16))
            reason = "has width 32, but"
        case "other":
            save_tensor(vector, torch.ones(D_MODEL))
            reason = "do not give"
        case "few":
            write_pairs(paths, "refusal", 1, 3, n=7)
            reason = "7 pairs are too few"
        case "method":
            argv, reason = ["--layers", "1", "--method", "pca"], "--stability is of mean-difference vectors"
    before = snapshot(paths.root)
    assert analyze("--stability", *argv) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert reason in line and snapshot(paths.root) == before


@pytest.mark.usefixtures("blank_figures")
def test_without_any_saved_activations_the_command_that_saves_them_is_named(
    paths: DataPaths, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--root", paths.root, "--model", tiny_checkpoint, "--behaviors", "refusal", "--stability"]
    assert analyze_vectors.main([str(word) for word in argv]) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "no saved activations of tiny-chat for refusal; run: ./generate_vectors.py --save_activations" in line
