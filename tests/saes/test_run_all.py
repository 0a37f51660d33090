"""run_all.sh with scripts that only take note of their flags: what is asked of which script, and in what order."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.saes.test_scripts import SCRIPTS
from utils.paths import REPOSITORY

NOTES_FLAGS = """#!{python}
import importlib, json, sys
sys.path.insert(0, {repository!r})
args = importlib.import_module("saes.{script}").build_parser().parse_args()  # exits with 2 where a flag is unknown
with open({notes!r}, "a") as file:
    file.write(json.dumps(["{script}", vars(args)], default=str) + "\\n")
if "{script}" == {fails!r}:
    sys.exit(1)
"""
MODEL = "SmolLM2-135M-Instruct"


def copy_with_noting_scripts(folder: Path, fails: str = "") -> Path:
    """A tree with the real run_all.sh, whose scripts parse their flags as the real ones do."""
    (folder / "saes").mkdir(parents=True)
    (folder / "utils" / "model").mkdir(parents=True)
    (folder / "utils" / "saes").mkdir()
    shutil.copy2(REPOSITORY / "saes" / "run_all.sh", folder / "saes")
    for module in ("utils/model/embedded", "utils/saes/summary"):
        (folder / f"{module}.py").write_text("import sys\nprint('table', *sys.argv[1:])\n")
    for script in SCRIPTS:
        path = folder / "saes" / f"{script}.py"
        known = {"python": sys.executable, "repository": str(REPOSITORY), "notes": str(folder / "notes")}
        path.write_text(NOTES_FLAGS.format(script=script, fails=fails, **known))
        path.chmod(0o755)
    return folder


def run_all(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "CAA_ENVIRONMENT_IS_READY": "1", "PATH": path}
    command = [str(word) for word in (folder / "saes" / "run_all.sh", *flags)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def notes(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [tuple(json.loads(line)) for line in (folder / "notes").read_text().splitlines()]


def order(asked: list[tuple[str, dict[str, Any]]], *scripts: str) -> list[str]:
    """The calls of some scripts, in their order."""
    return [script for script, _ in asked if script in scripts]


def is_of_stand_in(flags: dict[str, Any]) -> bool:
    return bool(flags.get("override_model_weights_path"))


@pytest.mark.slow
def test_everything_is_asked_for_once_in_two_lanes_with_flags_that_the_scripts_know(tmp_path: Path) -> None:
    folder, root = copy_with_noting_scripts(tmp_path / "tree"), tmp_path / "a root"
    done = run_all(folder, "--root", root, "--seeds", 0, 3)
    assert done.returncode == 0, done.stderr
    asked = notes(folder)
    of_stand_in = [script for script, flags in asked[:10] if script == "make_refuser" or is_of_stand_in(flags)]
    assert of_stand_in == ["make_refuser", "refusal_direction", *["train_sae"] * 4]
    assert [script for script, flags in asked[:10] if script == "train_sae" and not is_of_stand_in(flags)] == [
        "train_sae"
    ] * 4  # the other lane
    in_one_lane = (
        "dataset_vs_model_transfer",
        "refusal_dir_recons_fidelity_evals",
        "refusal_dir_sparsity_evals",
        "latent_dashboards",
    )
    in_the_other = ("refusal_latent_steering_evals", "standard_evals")
    assert order(asked[10:], *in_one_lane) == list(in_one_lane)
    assert order(asked[10:], *in_the_other) == [*in_the_other, "standard_evals"]
    trained = sorted((flags for script, flags in asked if script == "train_sae"), key=is_of_stand_in)
    names = [
        f"{MODEL}{model}_{data}{seed}"
        for model in ("", "_refuser")
        for data in ("chat", "web")
        for seed in ("", "_seed=3")
    ]
    assert [flags["name"] for flags in trained] == names
    assert [flags["seed"] for flags in trained] == [0, 3] * 4
    assert {(flags["tokens"], flags["epochs"], flags["layer"]) for flags in trained} == {(38_400, 8, 16)}
    weights = str(root / "finetuned_models" / "refuser.pt")
    assert [flags["override_model_weights_path"] for flags in trained] == [None] * 4 + [weights] * 4
    saes = [str(root / "saes_trained" / name) for name in names]
    [transfer] = [flags for script, flags in asked if script == "dataset_vs_model_transfer"]
    saes = saes[4:] + saes[:4]
    assert transfer["saes"] == saes
    assert [flags["saes"] for script, flags in asked if script == "standard_evals"] == [saes[:4], saes[4:]]
    assert all(flags["root"] == str(root) and not flags.get("overwrite") for _, flags in asked)
    assert done.stdout.splitlines()[-1] == f"table {root} {root / 'analysis' / 'sae' / 'run_all_seconds.txt'}"


@pytest.mark.slow
def test_what_fails_ends_it_and_other_saes_are_evaluated_anew(tmp_path: Path) -> None:
    root = tmp_path / "root"
    broken = copy_with_noting_scripts(tmp_path / "broken", fails="refusal_direction")
    assert run_all(broken, "--root", root).returncode == 1
    asked = [script for script, _ in notes(broken)]
    assert sorted(asked) == ["make_refuser", "refusal_direction", "train_sae", "train_sae"]  # the other lane goes on
    folder = copy_with_noting_scripts(tmp_path / "tree")
    assert run_all(folder, "--root", root).returncode == 0
    assert run_all(folder, "--root", root, "--tokens", 500_000).returncode == 0
    asked = notes(folder)
    first, longer = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    overwritten = {script for script, flags in longer if flags.get("overwrite")}
    assert not any(flags.get("overwrite") for _, flags in first)
    assert overwritten == {
        "dataset_vs_model_transfer",
        "refusal_dir_recons_fidelity_evals",
        "refusal_dir_sparsity_evals",
        "refusal_latent_steering_evals",
        "standard_evals",
    }
    [name, *_] = [flags["name"] for script, flags in longer if script == "train_sae"]
    assert name == f"{MODEL}_chat_tokens=500000"
    assert {flags["epochs"] for script, flags in longer if script == "train_sae"} == {2}
