"""Clusters of vectors: against hand-made groups, and `analyze_vectors.py --cluster` on vectors and an SAE's latents."""

from pathlib import Path

import numpy as np
import pytest
import torch

import analyze_vectors
from tests.models import D_MODEL
from utils.errors import UserError
from utils.files.tables import read_table
from utils.research.cluster_run import nearest_latents
from utils.research.clusters import cluster, clusters_table
from utils.saes.dictionary import SAE

BEHAVIORS = ("sycophancy", "hallucination", "refusal", "myopic-reward")


def two_groups() -> np.ndarray:
    """Vectors 0 and 2 nearly one, 1 and 3 nearly one, the pairs at right angles."""
    rows = np.zeros((4, D_MODEL))
    rows[[0, 2], 0], rows[[1, 3], 1] = 5.0, 2.0
    rows[2, 2], rows[3, 3] = 0.5, 0.4
    return rows


def test_near_vectors_meet_first_and_stand_side_by_side() -> None:
    found = cluster(two_groups())
    groups = [sorted(pair) for pair in (found.order[:2].tolist(), found.order[2:].tolist())]
    assert sorted(groups) == [[0, 2], [1, 3]]
    rows = [row for row in clusters_table(found, list("abcd"), "t").rows if row[0] == "merge"]
    assert [{row[1], row[2]} for row in rows[:2]] in ([{"a", "c"}, {"b", "d"}], [{"b", "d"}, {"a", "c"}])
    assert rows[2][3] == pytest.approx(0, abs=1e-9)  # the mean cosine between the two pairs
    assert found.cophenetic > 0.99


def test_the_length_of_a_vector_does_not_matter_but_its_sign_does() -> None:
    rows = two_groups()
    scaled = cluster(rows * np.array([[1.0], [20.0], [0.1], [3.0]]))
    np.testing.assert_allclose(scaled.cosines, cluster(rows).cosines, atol=1e-12)
    turned = cluster(rows * np.array([[1.0], [1.0], [-1.0], [1.0]]))
    assert turned.cosines[0, 2] == pytest.approx(-cluster(rows).cosines[0, 2])


def test_random_vectors_merge_where_the_grey_band_is() -> None:
    low, high = cluster(two_groups()).random_heights
    assert 0.4 < low < 0.9 < 1.0 < high < 1.3
    heights = cluster(np.random.default_rng(7).standard_normal((4, D_MODEL))).merges[:, 2]
    assert low - 0.15 < heights.min() <= heights.max() < high + 0.15


def test_too_few_vectors_and_zeros_are_refused() -> None:
    with pytest.raises(UserError, match="2 vectors are too few for a tree"):
        cluster(two_groups()[:2])
    with pytest.raises(UserError, match="a vector of zeros"):
        cluster(np.zeros((3, 4)))


def sae(rows: torch.Tensor, layer: int = 1) -> SAE:
    about = {"architecture": "standard", "k": None, "layer": layer, "model": "tiny-chat", "source": "s", "name": "toy"}
    return SAE(rows.T.contiguous(), torch.zeros(len(rows)), rows, torch.zeros(rows.shape[1]), **about)


def test_the_latents_nearest_to_a_vector_are_found_whatever_their_sign() -> None:
    rows = torch.eye(8)[:6]
    rows[4] = -0.1 * torch.eye(8)[0]
    vector = (3 * torch.eye(8)[0] + 2 * torch.eye(8)[1] + 0.1 * torch.eye(8)[2]).double().numpy()
    assert list(nearest_latents({"x": vector}, sae(rows))) == ["latent 0", "latent 1", "latent 4"]
    with pytest.raises(UserError, match="has width 8, but the vectors have 5"):
        nearest_latents({"x": vector[:5]}, sae(rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for behavior, row in zip(BEHAVIORS, two_groups(), strict=True):
        folder = tmp_path / "vectors" / behavior
        folder.mkdir(parents=True)
        torch.save(torch.from_numpy(row).float(), folder / "vec_layer_1_tiny-chat.pt")
    return tmp_path


def test_the_script_draws_the_tree_beside_the_heatmap_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--root", str(root), "--cluster", "--behaviors", *BEHAVIORS]
    assert analyze_vectors.main(argv) == 0
    [text] = (root / "analysis").glob("clusters_*.txt")
    assert text.stem == f"clusters_layer=1_behaviors={','.join(sorted(BEHAVIORS))}_tiny-chat"
    assert {path.suffix for path in text.parent.iterdir()} == {".txt", ".png", ".pdf"}
    first = read_table(text)[0]
    assert {first["first"], first["second"]} in ({"Sycophancy", "Refusal"}, {"Hallucination", "Myopic Reward"})
    assert "wrote 1 figures, skipped 0" in capsys.readouterr().err
    assert analyze_vectors.main(argv) == 0
    assert "wrote 0 figures, skipped 1" in capsys.readouterr().err


def test_latents_come_into_the_tree(root: Path) -> None:
    folder = root / "toy"
    sae(torch.eye(D_MODEL)[:10]).save(folder)
    argv = ["--root", str(root), "--cluster", "--behaviors", *BEHAVIORS, "--saes", str(folder)]
    assert analyze_vectors.main(argv) == 0
    [text] = (root / "analysis").glob("clusters_*_sae=toy.txt")
    names = {row["second"] for row in read_table(text) if row["what"] == "cosine"}
    assert {"Sycophancy", "latent 0", "latent 1"} <= names | {"Sycophancy"}
    assert "latent 9" not in names


def test_flags_that_do_not_belong_together_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze_vectors.main(["--root", str(root), "--saes", "x"]) == 2
    assert "--saes: only with --cluster" in capsys.readouterr().err
    assert analyze_vectors.main(["--root", str(root), "--cluster", "--decode"]) == 2
    assert "--cluster needs no model" in capsys.readouterr().err
    assert analyze_vectors.main(["--root", str(root), "--cluster", "--layers", "9"]) == 2
    assert "no vectors at layers 9" in capsys.readouterr().err
