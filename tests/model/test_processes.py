"""Two processes find what one finds, and leave nothing half-made when one of them dies."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.launched import run_in_two_processes
from tests.reference import carried_path
from tests.saes.conftest import write_documents
from utils.files.reading import load_vector
from utils.files.tables import read_table
from utils.paths import REPOSITORY

LABEL = "Llama-2-tiny-chat-hf"
BEHAVIOR = "refusal"

pytestmark = pytest.mark.slow


def make_roots(folder: Path) -> tuple[Path, Path]:
    """Two equal roots with odd numbers of items, so that they do not divide evenly."""
    parity = carried_path()
    for name in ("alone", "together"):
        root = folder / name
        for part in (f"datasets/generate/{BEHAVIOR}", f"datasets/test/{BEHAVIOR}", f"normalized_vectors/{BEHAVIOR}"):
            shutil.copytree(parity / part, root / part)
        for path in root.rglob("*.json"):
            path.chmod(0o644)
            records = json.loads(path.read_text())
            path.write_text(json.dumps(records[: len(records) - 1 + len(records) % 2]))
    return folder / "alone", folder / "together"


def flags(root: Path, *more: str) -> list[str]:
    return ["--root", str(root), "--behaviors", BEHAVIOR, *MODEL, *more]


MODEL = ["--model", str(carried_path(LABEL)), "--device", "cpu"]
SAE_FLAGS = ["--layer", "1", "--tokens", "600", "--context", "16", "--batch", "64", "--epochs", "2", "--d_sae", "48"]
SAE_FLAGS += ["--k", "4", "--buffer", "300", "--batch_size", "4"]
"""An odd number of passes, so that they do not divide."""
TUNING = ["--behavior", "refusal", "--direction", "pos", "--optimizer", "sgd", "--lr", "1e-1"]
SWEEP = ["--layers", "3", "5", "--multipliers", "-1", "0", "1", "--max_new_tokens", "8"]


@dataclass(frozen=True)
class Runs:
    """What one process made and what two made."""

    alone: Path
    together: Path
    said: str
    """By the two, on standard error."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    alone, together = make_roots(folder)

    def commands(root: Path) -> list[list[str]]:
        sweeps = [["prompting_with_steering", *flags(root, "--type", kind, *SWEEP)] for kind in ("ab", "open_ended")]
        sae = ["saes.train_sae", "--root", str(root), *MODEL, "--data", str(text), *SAE_FLAGS]
        tuned = ["finetune_llama", "--root", str(root.with_name(f"tuned {root.name}")), *MODEL, *TUNING]
        tuned += ["--batch_size", "6" if root == alone else "3"]
        # the last one takes the connection between the processes down
        choice = ["choose_steering", *flags(root, "--layers", "3", "5")]
        return [["generate_vectors", *flags(root, "--save_activations")], *sweeps, choice, sae, tuned]

    text = write_documents(folder / "talk.jsonl")
    for name in ("alone", "together"):
        shutil.copytree(carried_path("datasets"), folder / f"tuned {name}" / "datasets")

    for script, *arguments in commands(alone):
        assert importlib.import_module(script).main(arguments) == 0
    return Runs(alone, together, run_in_two_processes(commands(together), folder / "runs.json"))


def test_two_processes_make_the_vectors_and_activations_of_one(runs: Runs) -> None:
    assert runs.said.count("wrote 6 vectors") == 1
    made = sorted(path.relative_to(runs.alone) for path in runs.alone.rglob("*.pt"))
    assert made == sorted(path.relative_to(runs.together) for path in runs.together.rglob("*.pt"))
    assert {path.parts[0] for path in made} == {"vectors", "activations", "normalized_vectors"}
    for path in made:
        if path.parts[0] == "vectors":
            one, two = (load_vector(root / path) for root in (runs.alone, runs.together))
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
        elif path.parts[0] == "activations":
            one, two = (torch.load(root / path, weights_only=True) for root in (runs.alone, runs.together))
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("result_type", ["ab", "open_ended"])
def test_two_processes_write_the_results_of_one(runs: Runs, result_type: str) -> None:
    ours = f"results_*_type={result_type}_*"
    names = sorted(path.name for path in (runs.alone / "results" / BEHAVIOR).glob(ours))
    assert len(names) == 6
    assert names == sorted(path.name for path in (runs.together / "results" / BEHAVIOR).glob(ours))
    for name in names:
        one, two = (
            json.loads((root / "results" / BEHAVIOR / name).read_text()) for root in (runs.alone, runs.together)
        )
        for of_one, of_two in zip(one, two, strict=True):
            assert of_one.keys() == of_two.keys()
            for key, value in of_one.items():
                assert of_two[key] == (pytest.approx(value, rel=1e-4) if key.endswith("_prob") else value)
    assert not list((runs.together / "results" / BEHAVIOR).glob(".sweep*"))


def test_two_processes_choose_the_layer_and_strength_of_one(runs: Runs) -> None:
    one, two = (json.loads(next(root.rglob("chosen_*.json")).read_text()) for root in (runs.alone, runs.together))
    assert runs.said.count("chose for 1 behaviors") == 1
    assert one["layer"] == two["layer"] and len(one["validation"]) == 4
    for of_one, of_two in zip(one["validation"], two["validation"], strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-3, abs=1e-6)
    assert two["test"] == pytest.approx(one["test"], rel=1e-3, abs=1e-6)


def test_two_processes_share_the_activation_pass_and_train_the_sae_that_one_trains(runs: Runs) -> None:
    one, two = ([*(root / "saes_trained").glob("*/sae_weights.safetensors")] for root in (runs.alone, runs.together))
    assert len(one) == len(two) == 1 and one[0].read_bytes() == two[0].read_bytes()
    assert runs.said.count("metrics.json") == 1


def test_two_processes_fine_tune_the_weights_of_one(runs: Runs) -> None:
    roots = [root.with_name(f"tuned {root.name}") for root in (runs.alone, runs.together)]
    name = "refusal_pos_finetune_all"
    one, two = (torch.load(root / "finetuned_models" / f"{name}.pt", weights_only=True) for root in roots)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-6
    assert runs.said.count("wrote 1, skipped 0, failed 0") == 1
    logs = [read_table(root / "finetune_logs" / f"{name}.txt") for root in roots]
    losses = [[float(row["loss"]) for row in log[1:]] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for measure in ("accuracy", "p_matching", "loss"):
        ends = [[float(log[at][f"held_out_{measure}"]) for at in (0, -1)] for log in logs]
        assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_the_death_of_one_process_ends_all_and_leaves_no_half_written_file(tmp_path: Path) -> None:
    _, together = make_roots(tmp_path)
    arguments = flags(together, "--type", "open_ended", "--max_new_tokens", "400", "--batch_size", "1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, str(REPOSITORY / "prompting_with_steering.py"), *arguments],
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
