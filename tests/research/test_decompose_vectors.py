"""Vectors taken apart on a tiny model: parts add up, sweeps steer with them, and what does not fit is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import prompting_with_steering
from research import decompose_vectors
from tests.models import build_wrapper, random_steerings
from tests.roots import TINY_LABEL, error_lines, snapshot
from utils.data.records import TextPair
from utils.files.tables import read_table
from utils.paths import REPOSITORY, DataPaths
from utils.research.vector_effects import Scoring, measure_effects
from utils.settings import VectorKind

QUICK = ("--layers", 1, "--ranks", 1, 3, "--leave_out", 1, "--n_flips", 50, "--n_random", 2)
RESULT = f"singular_vectors_layer=1_{TINY_LABEL}_read=answer.json"


def load_part(root: Path, part: str | None, *, normalized: bool = False) -> torch.Tensor:
    kind = VectorKind("answer", part=part)
    return torch.load(DataPaths(root).vector("sea", 1, TINY_LABEL, normalized=normalized, kind=kind))


def test_parts_add_up_and_the_sweeps_steer_with_them(
    root: Path, made: Callable[..., int], capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    before = snapshot(root)
    assert made(decompose_vectors, *QUICK) == 0
    whole, rank1, without1 = (load_part(root, part) for part in (None, "rank1", "without1"))
    torch.testing.assert_close(rank1 + without1, whole)
    norms = [load_part(root, part, normalized=True).norm() for part in (None, "rank1", "rank3", "without1")]
    torch.testing.assert_close(torch.stack(norms), norms[0].expand(4))
    after = snapshot(root)
    assert {name: after[name] for name in before} == before  # the vectors' own folder is left alone

    found = json.loads((root / "analysis/research/sea" / RESULT).read_text())
    assert found["n_pairs"] == 10 and found["rank"] == 10 and sum(found["share_of_vector"]) == pytest.approx(1)
    shown = found["report"]
    assert (shown["model"], shown["behavior"], shown["vectors"]) == (TINY_LABEL, "sea", "_read=answer")
    assert all((root / "analysis/research/sea" / f"{name}.png").is_file() for name in shown["figures"])
    effects = {one["vector"]: one for one in found["effects"]}
    assert list(effects) == ["whole", "rank1", "rank3", "without1", "random", "drawn signs"]
    sweep = ("--layers", 1, "--type", "answer_text", "--strengths", -0.15, 0.15, "--part", "rank1")
    assert made(prompting_with_steering, *sweep) == 0
    scores = {}
    for path in (root / "results/sea").glob("results_*part=rank1*.json"):
        rows = json.loads(path.read_text())
        keys = ("matching_logprob_per_token", "other_logprob_per_token")
        sign = path.name.split("strength=")[1].split("_")[0]
        scores[sign] = [row[keys[0]] - row[keys[1]] for row in rows]
    by_item = [plus - minus for plus, minus in zip(scores["0.15"], scores["-0.15"], strict=True)]
    assert effects["rank1"]["effect"] == pytest.approx(sum(by_item) / len(by_item), rel=1e-3, abs=1e-5)

    out = capsys.readouterr().out
    assert "sea, layer 1:" in out and "random" in out
    table = read_table(root / f"analysis/research/sea/effect_by_rank_layer=1_{TINY_LABEL}_read=answer.txt")
    assert [row["vector"] for row in table] == list(effects)
    assert not list((root / "analysis/research/sea").glob(".effects_*"))
    assert len(loads) == 2


@pytest.mark.usefixtures("blank_figures")
def test_a_second_run_does_nothing_and_other_settings_are_refused(
    root: Path, made: Callable[..., int], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    assert made(decompose_vectors, *QUICK, "--limit", 2) == 0
    request.getfixturevalue("loading_is_forbidden")
    there = snapshot(root)
    assert made(decompose_vectors, *QUICK, "--limit", 2) == 0
    assert made(decompose_vectors, *QUICK, "--limit", 3) == 2
    assert "was made with another limit; --overwrite makes it again" in capsys.readouterr().err
    assert snapshot(root) == there


def spoil(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.save(change(torch.load(path)).clone(), path)


def both_sides(root: Path) -> list[Path]:
    return sorted((root / "activations/sea").glob("*.pt"))


def leave_as_it_is(root: Path) -> None:
    """What is wrong is the command."""


SPOILED: dict[str, tuple[Callable[[Path], Any], tuple[object, ...], str]] = {
    "no activations": (
        lambda root: both_sides(root)[0].unlink(),
        (),
        "not found; run: ./generate_vectors.py --save_activations --behaviors sea --layers 1 --read answer",
    ),
    "another number of pairs than the vector": (
        lambda root: [spoil(path, lambda rows: rows[:9]) for path in both_sides(root)],
        (),
        "has 9 pairs, but vec_layer_1_tiny-chat_read=answer.pt was made of 10",
    ),
    "sides of different length": (
        lambda root: spoil(both_sides(root)[0], lambda rows: rows[:9]),
        (),
        "activations_neg_1_tiny-chat_read=answer.pt [9, 32]",
    ),
    "another width": (
        lambda root: [spoil(path, lambda rows: rows[:, :30]) for path in both_sides(root)],
        (),
        "has width 30, but the vector vec_layer_1_tiny-chat_read=answer.pt has 32",
    ),
    "activations of other pairs": (
        lambda root: spoil(both_sides(root)[0], lambda rows: rows.flip(0) + 1),
        (),
        "is not the mean difference of the activations beside it",
    ),
    "rank above the pairs": (leave_as_it_is, ("--ranks", 11), "--ranks 11: 10 pairs have at most 10 components"),
    "not a mean": (leave_as_it_is, ("--method", "pca"), "--method pca: only a mean difference is the sum"),
    "no such layer": (leave_as_it_is, ("--layers", 9), "--layers 9: tiny-chat has layers 0 to 3"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    case: str, root: Path, made: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    act, flags, message = SPOILED[case]
    act(root)
    before = snapshot(root)
    capsys.readouterr()
    assert made(decompose_vectors, *QUICK, *flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(root) == before


def test_a_sweep_without_the_part_names_the_command_that_makes_it(
    made: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(prompting_with_steering, "--layers", 1, "--type", "answer_text", "--part", "rank7") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "run: ./research/decompose_vectors.py --behaviors sea --layers 1 --read answer --model" in line
    assert made(prompting_with_steering, "--part", "../x") == 2
    assert "does not name a part" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("CAA_KILLS" not in os.environ, reason="part of the campaign: CAA_KILLS=20 runs it")
@pytest.mark.usefixtures("blank_figures")
def test_two_processes_share_the_items_and_write_what_one_writes(
    root: Path, made: Callable[..., int], tiny_checkpoint: Path
) -> None:
    path = root / "analysis/research/sea" / RESULT
    assert made(decompose_vectors, *QUICK) == 0
    alone = json.loads(path.read_text())
    command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, "--read", "answer", *QUICK]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [*launcher, REPOSITORY / "research" / "decompose_vectors.py", *command, "--device", "cpu", "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, script)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(RESULT) == 1 and done.stdout.count("sea, layer 1:") == 1
    together = json.loads(path.read_text())
    assert {**together, "made": None} == {**alone, "made": None}


ITEMS = [TextPair(f"What is {i}?", f"The answer is {i}", f"Not {i * 'so '} {i}") for i in range(5)]


def test_a_killed_measurement_goes_on_where_it_was_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steerings = build_wrapper(), random_steerings([1], [0.5, 1.0])
    scoring = Scoring(ITEMS, tmp_path, {}, batch_size=1)
    undisturbed = measure_effects(model, steerings, scoring)
    real, seen = model.score_answers, []

    def killed(pairs: Any, combinations: Any, batch_size: Any, skip: Any) -> Iterator[Any]:
        for found in real(pairs, combinations, batch_size, skip):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(found[0])
            yield found

    monkeypatch.setattr(model, "score_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_effects(model, steerings, scoring)
    assert len(list(tmp_path.iterdir())) == 1
    again: list[int] = []

    def watched(*args: Any) -> Iterator[Any]:
        for found in real(*args):
            again.append(found[0])
            yield found

    monkeypatch.setattr(model, "score_answers", watched)
    resumed = measure_effects(model, steerings, scoring)
    assert sorted([*seen, *again]) == list(range(5)) and len(again) == 3
    assert (resumed.plus == undisturbed.plus).all() and (resumed.minus == undisturbed.minus).all()
    assert not list(tmp_path.iterdir())


def test_measured_packed_is_measured_plainly(tmp_path: Path) -> None:
    model, steerings = build_wrapper(), random_steerings([0, 2], [1.0])
    packed = measure_effects(model, steerings, Scoring(ITEMS, tmp_path, {}))
    plain = measure_effects(model, steerings, Scoring(ITEMS, tmp_path, {}, plainly=True))
    assert abs(packed.both).max() > 0.01
    torch.testing.assert_close(torch.tensor(packed.both), torch.tensor(plain.both), rtol=1e-4, atol=1e-5)
