"""Hierarchies of behaviors: planted differences, the three controls, the knobs, and the script on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest

from research import behavior_geometry as script
from tests.models import build_wrapper
from tests.roots import put_json
from utils.data.estimates import Estimate
from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import REPOSITORY, DataPaths
from utils.research.behavior_request import BehaviorsRequest, BehaviorTree, load_tree
from utils.research.behavior_run import RANDOM, make_knobs, pair_differences, try_knobs
from utils.research.behavior_statistics import CONTROLS, compare, layout_of, other_parents

D, N = 60, 40
PARENTS = ["risk", "risk", "risk", "honesty", "honesty"]
BEHAVIORS = ["a", "b", "c", "d", "e"]
TREE = {
    "label": "four",
    "parents": {
        "risk": {"coordinate-other-ais": 1, "survival-instinct": -1},
        "honesty": {"sycophancy": 1, "hallucination": 1},
    },
}


def planted(parent_size: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((D, 7)))[0].T
    rows = rng.standard_normal((5 * N, D)) * 0.4
    for place, parent in enumerate(PARENTS):
        rows[N * place : N * place + N] += parent_size * axes[int(parent == "risk")] + 2 * axes[2 + place]
    return rows


def test_a_planted_hierarchy_stands_out_from_all_three_controls() -> None:
    layout = layout_of(PARENTS, BEHAVIORS, [N] * 5, seed=0)
    found = compare(planted(parent_size=4), layout, 10, np.random.default_rng(0))["share"]
    assert found.value > 0.6
    assert all(found.controls[control].high < found.value - 0.15 for control in CONTROLS[:2])
    alone = compare(planted(parent_size=0), layout, 10, np.random.default_rng(0))["share"]
    assert abs(alone.value) < 0.2
    assert alone.controls["random parents"].low < alone.value < alone.controls["random parents"].high


def test_shuffled_labels_leave_what_all_behaviors_share() -> None:
    """Their vectors are then nearly one: this control says how much of a statistic is no hierarchy at all."""
    layout = layout_of(PARENTS, BEHAVIORS, [N] * 5, seed=0)
    found = compare(planted(parent_size=4), layout, 5, np.random.default_rng(0))
    assert found["share"].controls["shuffled labels"].value > 0.5
    assert found["nearest"].controls["shuffled labels"].value < 0.65 < 0.95 < found["nearest"].value


def test_other_parents_are_all_other_groupings_of_the_same_sizes() -> None:
    others = other_parents([0, 0, 0, 1, 1])
    assert len(others) == 9  # 10 ways to choose the two, less the own one
    assert all(sorted(one) == [0, 0, 0, 1, 1] for one in others)
    assert len(other_parents([0, 0, 1, 1])) == 2  # exchanged names are no other grouping


def test_knobs_are_the_parents_and_what_children_have_beside_them() -> None:
    layout = layout_of(PARENTS, BEHAVIORS, [N] * 5, seed=0)
    rows = planted(parent_size=4)
    knobs = make_knobs(rows, layout, None, seed=0)
    assert list(knobs) == ["risk", "honesty", *BEHAVIORS, RANDOM]
    assert all(np.linalg.norm(vector) == pytest.approx(1) for vector in knobs.values())
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((D, 7)))[0].T
    assert knobs["risk"] @ axes[1] > 0.8
    assert abs(knobs["a"] @ axes[1]) < 0.35
    assert knobs["a"] @ axes[2] > 0.6


def test_the_bundled_hierarchy_names_known_behaviors() -> None:
    tree = load_tree(script.BUNDLED_TREE, DataPaths(REPOSITORY))
    assert tree.signs["survival-instinct"] == -1  # its matching answer accepts being shut down


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"risk": {"survival-instinct": 1}}, "expected two behaviors or more"),
        ({"risk": {"survival-instinct": 2, "refusal": 1}}, "expected 1 or -1, found 2"),
        ({"risk": {"sycophancy": 1, "refusal": 1}}, "'sycophancy' stands twice"),
        ({"risk": {"sycophantic": 1, "refusal": 1}}, "unknown behavior 'sycophantic'"),
    ],
)
def test_a_broken_hierarchy_is_refused(tmp_path: Path, change: dict[str, dict[str, int]], message: str) -> None:
    path = put_json(tmp_path / "tree.json", {**TREE, "parents": {**TREE["parents"], **change}})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=message):
        load_tree(path, DataPaths(REPOSITORY))


# --- the script ------------------------------------------------------------------------------------


@pytest.fixture
def argv(tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    root = tmp_path / "root"
    for behavior in ("coordinate-other-ais", "survival-instinct", "sycophancy", "hallucination"):
        pairs = [
            {
                "question": f"What of {behavior} {i}?",
                "answer_matching_behavior": f"I think {i} is {behavior}",
                "answer_not_matching_behavior": f"that {i} is not",
            }
            for i in range(11)
        ]
        put_json(root / "datasets" / "generate" / behavior / "generate_dataset_text.json", pairs[:8])
        put_json(root / "datasets" / "test" / behavior / "test_dataset_text.json", pairs[8:])
    tree = put_json(tmp_path / "own.json", TREE)
    words = ["--root", root, "--model", tiny_checkpoint, "--hierarchy", tree, "--n_draws", 2]
    return [str(word) for word in words]


def test_the_script_measures_and_steers_once(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(argv) == 0
    folder = tmp_path / "root" / "analysis" / "research" / "behavior_geometry"
    stems = [f"{figure}_own_tiny-chat" for figure in ("hierarchy", "knobs", "grids")]
    names = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf", ".txt")}
    assert {path.name for path in folder.iterdir()} == names | {"own_tiny-chat.json"}
    result = json.loads((folder / "own_tiny-chat.json").read_text())
    assert list(result["effects"]) == ["risk", "honesty", *TREE["parents"]["risk"], *TREE["parents"]["honesty"], RANDOM]  # type: ignore[index]
    [centre] = [cell for cell in result["grids"]["sycophancy"] if cell["parent"] == cell["own"] == 0]
    assert centre["value"] == 0
    along = {cell["parent"]: cell["value"] for cell in result["grids"]["sycophancy"] if cell["own"] == 0}
    both_ways = result["effects"]["honesty"]["sycophancy"]["value"]
    assert along[1] - along[-1] == pytest.approx(both_ways, abs=1e-5)  # the grid's axis is the knob's effect
    assert "share of that parent's vector" in capsys.readouterr().out
    assert script.main(argv) == 0
    assert "is there already" in capsys.readouterr().err


def test_steering_towards_a_parent_counts_in_its_sense(argv: list[str], tmp_path: Path) -> None:
    """With all signs of a parent turned its knob turns too, and what it does in the parent's sense stays."""
    before = effects_of(tmp_path, TREE["parents"]["risk"])  # type: ignore[index]
    after = effects_of(tmp_path, {"coordinate-other-ais": -1, "survival-instinct": 1})
    assert after["survival-instinct"].value == pytest.approx(before["survival-instinct"].value, abs=1e-5)
    assert after["sycophancy"].value == pytest.approx(-before["sycophancy"].value, abs=1e-5)
    assert abs(before["sycophancy"].value) > 1e-3


def effects_of(folder: Path, risk: dict[str, int]) -> dict[str, Estimate]:
    """What the knob of risk does to every behavior."""
    tree = BehaviorTree("four", {"risk": risk, "honesty": {"sycophancy": 1, "hallucination": 1}})
    choice = ModelChoice("tiny-chat", "tiny-chat", None, False)
    sizes = {"strength": 0.1, "n_pairs": 80, "n_items": 10, "n_draws": 2, "seed": 0}
    request = BehaviorsRequest(
        DataPaths(folder / "root"), choice, folder / "own.json", 2, "euclidean", "concept", command="", **sizes
    )
    model = build_wrapper()
    rows, counts = pair_differences(request, tree, model)
    layout = layout_of(["risk", "risk", "honesty", "honesty"], list(tree.signs), counts, seed=0)
    return try_knobs(request, tree, model, layout, make_knobs(rows, layout, None, seed=0))[0]["risk"]


def test_too_few_pairs_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([*argv, "--n_pairs", "4"]) == 2
    assert "coordinate-other-ais: 4 pairs, but its vector needs 8" in capsys.readouterr().err


def test_causal_knobs_are_steps_of_the_residual_stream() -> None:
    from utils.research.concept_space import whiten

    space = whiten(np.random.default_rng(3).standard_normal((400, D)) * np.linspace(0.5, 2, D))
    layout = layout_of(PARENTS, BEHAVIORS, [N] * 5, seed=0)
    rows = planted(parent_size=4)
    inside = make_knobs(rows @ space.root, layout, None, seed=0)["risk"]
    back = make_knobs(rows @ space.root, layout, space, seed=0)["risk"]
    mapped = space.root @ back
    np.testing.assert_allclose(mapped / np.linalg.norm(mapped), inside, atol=1e-9)
