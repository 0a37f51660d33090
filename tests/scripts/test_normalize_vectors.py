"""`normalize_vectors.py`, through its `main`, on vectors written by the tests."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import normalize_vectors
from tests.roots import error_lines, put_json, snapshot
from utils.behaviors import published_behaviors
from utils.files.provenance import read_provenance

SEVEN = tuple(published_behaviors())
D_MODEL = 6


def raw_vector(behavior: str, layer: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * SEVEN.index(behavior) + layer)
    return torch.randn(D_MODEL, generator=generator) * (1 + SEVEN.index(behavior))


def path_of(root: Path, behavior: str, layer: int, label: str = "tiny", folder: str = "vectors") -> Path:
    return root / folder / behavior / f"vec_layer_{layer}_{label}.pt"


def write_vectors(
    root: Path, behaviors: Iterable[str], layers: Iterable[int], label: str = "tiny", vector: Tensor | None = None
) -> None:
    layers = list(layers)
    for behavior in behaviors:
        (root / "vectors" / behavior).mkdir(parents=True, exist_ok=True)
        for layer in layers:
            torch.save(raw_vector(behavior, layer) if vector is None else vector, path_of(root, behavior, layer, label))


def normalized(root: Path, behavior: str, layer: int, label: str = "tiny") -> Tensor:
    return torch.load(path_of(root, behavior, layer, label, "normalized_vectors"), weights_only=True)


def run(root: Path, *argv: object) -> int:
    return normalize_vectors.main(["--root", str(root), *map(str, argv)])


def made(root: Path) -> set[str]:
    return {name for name in snapshot(root) if name.startswith("normalized_vectors/") and name.endswith(".pt")}


# --- what is computed ---


def test_each_vector_keeps_its_direction_and_gets_the_mean_norm_of_its_layer(tmp_path: Path) -> None:
    write_vectors(tmp_path, SEVEN, [0, 3])
    assert run(tmp_path) == 0
    for layer in (0, 3):
        norms = {behavior: raw_vector(behavior, layer).double().square().sum().sqrt() for behavior in SEVEN}
        mean_norm = sum(norms.values()) / 7
        for behavior in SEVEN:
            expected = (raw_vector(behavior, layer).double() / norms[behavior] * mean_norm).float()
            found = normalized(tmp_path, behavior, layer)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(made(tmp_path)) == 14


def test_one_behavior_alone_keeps_its_vectors(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["refusal"], [0])
    assert run(tmp_path, "--behaviors", "refusal") == 0
    torch.testing.assert_close(normalized(tmp_path, "refusal", 0), raw_vector("refusal", 0))


def test_the_mean_norm_is_over_all_behaviors_that_there_are_whichever_is_written(tmp_path: Path) -> None:
    write_vectors(tmp_path, SEVEN, [0, 3])
    assert run(tmp_path, "--behaviors", "refusal") == 0
    assert made(tmp_path) == {f"normalized_vectors/refusal/vec_layer_{layer}_tiny.pt" for layer in (0, 3)}
    for layer in (0, 3):
        mean_norm = sum(float(raw_vector(behavior, layer).norm()) for behavior in SEVEN) / 7
        found = normalized(tmp_path, "refusal", layer)
        assert float(found.norm()) == pytest.approx(mean_norm, rel=1e-6)
        assert not torch.allclose(found, raw_vector("refusal", layer), rtol=0.1)


def test_a_behavior_of_the_root_counts_too_and_a_folder_that_is_no_behavior_does_not(tmp_path: Path) -> None:
    put_json(tmp_path / "datasets/behaviors/own.json", {"id": "own", "label": "Own", "matching": "is my own"})
    write_vectors(tmp_path, ["refusal"], [0])
    write_vectors(tmp_path, ["own", "refusal_backup"], [0], vector=3 * raw_vector("refusal", 0))
    assert run(tmp_path, "--behaviors", "refusal") == 0
    torch.testing.assert_close(normalized(tmp_path, "refusal", 0), 2 * raw_vector("refusal", 0))


def test_kinds_of_vectors_are_normalised_each_among_its_own(tmp_path: Path) -> None:
    for behavior, size in (("refusal", 1.0), ("sycophancy", 3.0)):
        for label, factor in (("tiny", 1.0), ("tiny_read=answer", 10.0)):
            write_vectors(tmp_path, [behavior], [0], label, torch.ones(D_MODEL) * size * factor)
    assert run(tmp_path, "--behaviors", "refusal", "sycophancy") == 0
    assert normalized(tmp_path, "refusal", 0).tolist() == pytest.approx([2.0] * D_MODEL)
    assert normalized(tmp_path, "refusal", 0, "tiny_read=answer").tolist() == pytest.approx([20.0] * D_MODEL)


def test_half_precision_vectors_are_normalised_in_full_precision(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["refusal", "sycophancy"], [0])
    for behavior in ("refusal", "sycophancy"):
        torch.save(raw_vector(behavior, 0).half() * 100, path_of(tmp_path, behavior, 0))
    assert run(tmp_path, "--behaviors", "refusal", "sycophancy") == 0
    norms = [(raw_vector(behavior, 0).half() * 100).double().norm() for behavior in ("refusal", "sycophancy")]
    found = [normalized(tmp_path, behavior, 0).double().norm() for behavior in ("refusal", "sycophancy")]
    assert found[0] == pytest.approx(float(sum(norms)) / 2, rel=1e-6) == found[1]


def test_the_provenance_says_over_which_behaviors(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["refusal", "sycophancy"], [0])
    assert run(tmp_path, "--behaviors", "refusal", "sycophancy") == 0
    record = read_provenance(path_of(tmp_path, "refusal", 0, folder="normalized_vectors"))
    assert record is not None and record["behaviors"] == ["sycophancy", "refusal"]
    assert record["command"].startswith("./normalize_vectors.py")


# --- which models and layers ---


def test_every_complete_model_is_done_and_what_the_others_lack_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, SEVEN, [0, 1], "whole")
    write_vectors(tmp_path, SEVEN[:5], [0], "five")
    write_vectors(tmp_path, SEVEN, [0, 1], "holes")
    path_of(tmp_path, "refusal", 1, "holes").unlink()
    assert run(tmp_path) == 0
    assert made(tmp_path) == {f"normalized_vectors/{b}/vec_layer_{n}_whole.pt" for b in SEVEN for n in (0, 1)}
    err = capsys.readouterr().err
    assert "five: not normalised, missing: sycophancy, refusal\n" in err
    assert "holes: not normalised, missing: refusal (layers 1)\n" in err
    assert err.splitlines()[-1] == "wrote 14 normalised vectors, skipped 0"


def test_behaviors_layers_and_model_narrow_the_work(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["refusal", "sycophancy"], [0, 1, 10], "tiny")
    write_vectors(tmp_path, ["refusal", "sycophancy"], [1], "other")
    command = ["--behaviors", "refusal", "sycophancy", "--layers", 1, "--model", "folder/tiny"]
    assert run(tmp_path, *command) == 0
    assert made(tmp_path) == {f"normalized_vectors/{b}/vec_layer_1_tiny.pt" for b in ("refusal", "sycophancy")}


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        (["--model_size", "7b"], "Llama-2-7b-chat-hf"),
        (["--model_size", "7b", "--use_base_model"], "Llama-2-7b-hf"),
        (["--model_size", "135m"], "SmolLM2-135M-Instruct"),
    ],
)
def test_a_model_size_names_its_vectors(tmp_path: Path, flags: list[str], label: str) -> None:
    for name in ("Llama-2-7b-chat-hf", "Llama-2-7b-hf", "SmolLM2-135M-Instruct"):
        write_vectors(tmp_path, SEVEN, [0], name)
    assert run(tmp_path, *flags) == 0
    assert made(tmp_path) == {f"normalized_vectors/{behavior}/vec_layer_0_{label}.pt" for behavior in SEVEN}


def test_other_files_in_the_folders_are_passed_over(tmp_path: Path) -> None:
    write_vectors(tmp_path, SEVEN, [0])
    for name in ("notes.txt", "vec_layer_x_tiny.pt", ".vec_layer_1_tiny.pt.abc.tmp", "vec_layer_1_tiny.pt.bak"):
        (tmp_path / "vectors" / "refusal" / name).write_text("x")
    assert run(tmp_path) == 0
    assert len(made(tmp_path)) == 7


# --- what is done again, and what not ---


def test_a_second_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vectors(tmp_path, SEVEN, [0, 1])
    assert run(tmp_path) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err == "wrote 0 normalised vectors, skipped 14\n"


def test_a_normalised_vector_that_is_there_is_kept_with_a_word_until_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, ["refusal"], [0])
    assert run(tmp_path, "--behaviors", "refusal") == 0
    alone = normalized(tmp_path, "refusal", 0)
    write_vectors(tmp_path, SEVEN, [0])
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert torch.equal(normalized(tmp_path, "refusal", 0), alone)
    err = capsys.readouterr().err
    assert "1 normalised vectors differ" in err and "--overwrite replaces them" in err
    assert err.splitlines()[-1] == "wrote 6 normalised vectors, skipped 1"
    assert run(tmp_path, "--overwrite") == 0
    assert not torch.allclose(normalized(tmp_path, "refusal", 0), alone)
    norms = [float(normalized(tmp_path, behavior, 0).norm()) for behavior in SEVEN]
    assert max(norms) == pytest.approx(min(norms), rel=1e-5)


def test_rounding_in_the_vectors_is_no_difference_and_more_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, SEVEN, [0])
    assert run(tmp_path) == 0
    before = snapshot(tmp_path / "normalized_vectors")
    for size, n_differing in ((2e-4, 0), (1e-2, 7)):
        for behavior in SEVEN:
            vector = raw_vector(behavior, 0)
            noise = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
            torch.save(vector + size * vector.norm() * noise / noise.norm(), path_of(tmp_path, behavior, 0))
        capsys.readouterr()
        assert run(tmp_path) == 0
        err = capsys.readouterr().err
        assert ("differ" in err) == (n_differing > 0) and "skipped 7" in err
        assert f"{n_differing} normalised vectors differ" in err or not n_differing
        assert snapshot(tmp_path / "normalized_vectors") == before


def test_a_normalised_vector_that_somebody_changed_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known of it by its sha256 is no longer true."""
    write_vectors(tmp_path, SEVEN, [0])
    assert run(tmp_path) == 0
    path = path_of(tmp_path, "refusal", 0, folder="normalized_vectors")
    torch.save(2 * normalized(tmp_path, "refusal", 0), path)
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert "1 normalised vectors differ" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_the_writing_leaves_whole_files_and_the_next_run_makes_the_rest(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vectors(tmp_path, SEVEN, [0, 1])
    real, calls = os.replace, []

    def stop_at_the_ninth(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 9:
            raise error
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_the_ninth)
        assert run(tmp_path) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert 0 < len(made(tmp_path)) < 14
    assert run(tmp_path) == 0
    assert len(made(tmp_path)) == 14
    for layer in (0, 1):
        norms = [float(normalized(tmp_path, behavior, layer).norm()) for behavior in SEVEN]
        assert max(norms) == pytest.approx(min(norms), rel=1e-5)


# --- what is refused ---


def refused(root: Path, capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    before = snapshot(root)
    assert run(root, *argv) == 2
    assert snapshot(root) == before
    [line] = error_lines(capsys.readouterr().err)
    return line


def test_without_vectors_the_command_that_makes_them_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no vectors yet; run: ./generate_vectors.py" in refused(tmp_path, capsys)
    assert "nothing normalised: no model has vectors for all of" in refused(tmp_path, capsys, "--model_size", "7b")


def test_where_no_model_is_complete_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vectors(tmp_path, SEVEN[1:], [0])
    assert f"nothing normalised: no model has vectors for all of {', '.join(SEVEN)}" in refused(tmp_path, capsys)


BROKEN = {
    "NaN": (torch.tensor([1.0, torch.nan, 0, 0, 0, 0]), "contains NaN or infinite values"),
    "infinite": (torch.tensor([1.0, torch.inf, 0, 0, 0, 0]), "contains NaN or infinite values"),
    "another width": (torch.ones(D_MODEL + 1), "have different widths"),
    "all zeros": (torch.zeros(D_MODEL), "the vector of refusal is all zeros"),
    "a matrix": (torch.ones(2, D_MODEL), "does not hold a steering vector"),
    "integers": (torch.ones(D_MODEL, dtype=torch.int64), "does not hold a steering vector"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_vector_is_one_line_and_code_2_and_leaves_no_file(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, message = BROKEN[case]
    write_vectors(tmp_path, SEVEN, [0])
    torch.save(value, path_of(tmp_path, "refusal", 0))
    assert message in refused(tmp_path, capsys)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class RunsCode:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path}/ran",))

    write_vectors(tmp_path, SEVEN, [0])
    torch.save(RunsCode(), path_of(tmp_path, "refusal", 0))
    assert "was not loaded" in refused(tmp_path, capsys)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--behaviors", "kindness"], "'kindness'"),
        (["--use_base_model"], "--use_base_model needs --model_size"),
        (["--layers", "7"], "nothing normalised"),
        (["--root", "/no/such/root"], "--root /no/such/root is not a folder"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, SEVEN, [0])
    assert message in refused(tmp_path, capsys, *argv)


def test_a_folder_that_cannot_be_written_is_one_line_and_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, SEVEN, [0])
    (tmp_path / "normalized_vectors").write_text("a file where a folder should be")
    before = snapshot(tmp_path)
    assert run(tmp_path) == 1
    [line] = error_lines(capsys.readouterr().err)
    assert "normalized_vectors" in line and "finished files are whole" in line
    assert snapshot(tmp_path) == before
