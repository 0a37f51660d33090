"""Two processes find what one finds, and leave nothing half-made when one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import generate_vectors
import prompting_with_steering
from tests.reference import carried_path
from utils.files.reading import load_vector
from utils.paths import REPOSITORY

LABEL = "Llama-2-tiny-chat-hf"
BEHAVIOR = "refusal"

pytestmark = pytest.mark.slow


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal roots with odd numbers of items, so that they do not divide evenly."""
    parity = carried_path()
    for name in ("alone", "together"):
        root = tmp_path / name
        for part in (f"datasets/generate/{BEHAVIOR}", f"datasets/test/{BEHAVIOR}", f"normalized_vectors/{BEHAVIOR}"):
            shutil.copytree(parity / part, root / part)
        for path in root.rglob("*.json"):
            path.chmod(0o644)
            records = json.loads(path.read_text())
            path.write_text(json.dumps(records[: len(records) - 1 + len(records) % 2]))
    return tmp_path / "alone", tmp_path / "together"


def launch(script: str, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, str(REPOSITORY / script), *arguments]


def flags(root: Path, *more: str) -> list[str]:
    model = str(carried_path(LABEL))
    return ["--root", str(root), "--behaviors", BEHAVIOR, "--model", model, "--device", "cpu", *more]


def run_together(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        launch(script, *arguments), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_make_the_vectors_and_activations_of_one(roots: tuple[Path, Path]) -> None:
    alone, together = roots
    assert generate_vectors.main(flags(alone, "--save_activations")) == 0
    done = run_together("generate_vectors.py", *flags(together, "--save_activations"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote 6 vectors") == 1
    made = sorted(path.relative_to(alone) for path in alone.rglob("*.pt"))
    assert made == sorted(path.relative_to(together) for path in together.rglob("*.pt"))
    for path in made:
        if path.parts[0] == "vectors":
            torch.testing.assert_close(load_vector(alone / path), load_vector(together / path), rtol=0, atol=1e-6)
        elif path.parts[0] == "activations":
            one, two = (torch.load(root / path, weights_only=True) for root in (alone, together))
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("result_type", ["ab", "open_ended"])
def test_two_processes_write_the_results_of_one(roots: tuple[Path, Path], result_type: str) -> None:
    alone, together = roots
    arguments = ["--type", result_type, "--layers", "3", "5", "--multipliers", "-1", "0", "1", "--max_new_tokens", "8"]
    assert prompting_with_steering.main(flags(alone, *arguments)) == 0
    done = run_together("prompting_with_steering.py", *flags(together, *arguments))
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (alone / "results" / BEHAVIOR).glob("results_*"))
    assert len(names) == 6
    assert names == sorted(path.name for path in (together / "results" / BEHAVIOR).glob("results_*"))
    for name in names:
        one, two = (json.loads((root / "results" / BEHAVIOR / name).read_text()) for root in (alone, together))
        for of_one, of_two in zip(one, two, strict=True):
            assert of_one.keys() == of_two.keys()
            for key, value in of_one.items():
                assert of_two[key] == (pytest.approx(value, rel=1e-4) if key.endswith("_prob") else value)
    assert not list((together / "results" / BEHAVIOR).glob(".sweep*"))


def test_the_death_of_one_process_ends_all_and_leaves_no_half_written_file(roots: tuple[Path, Path]) -> None:
    _, together = roots
    arguments = flags(together, "--type", "open_ended", "--max_new_tokens", "400", "--batch_size", "1")
    process = subprocess.Popen(
        launch("prompting_with_steering.py", *arguments),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    journals: list[Path] = []
    deadline = time.monotonic() + 200
    while len(journals) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        journals = list((together / "results").rglob(".sweep*_[01].jsonl"))
    assert len(journals) == 2, "the processes did not come to work"
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.wait(timeout=100) != 0
    for path in (together / "results").rglob("results_*.json"):
        assert json.loads(path.read_text())
    assert not list(together.rglob("*.tmp"))
