"""anatomy.sh with scripts that only take note of their flags: what is asked of which script, and what is refused."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.paths import REPOSITORY

SCRIPTS = (
    "generate_vectors",
    "normalize_vectors",
    "research/decompose_vectors",
    "research/trace_steering",
    "analyze_vectors",
    "prompting_with_steering",
    "plot_results",
)
NOTES_FLAGS = """#!{python}
import json, sys
with open({notes!r}, "a") as file:
    file.write(json.dumps([{script!r}, sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the real anatomy.sh."""
    tree = tmp_path / "tree"
    (tree / "research").mkdir(parents=True)
    (tree / "utils" / "model").mkdir(parents=True)
    (tree / "utils" / "model" / "embedded.py").write_text("")
    shutil.copy2(REPOSITORY / "research" / "anatomy.sh", tree / "research")
    for script in SCRIPTS:
        path = tree / f"{script}.py"
        path.write_text(NOTES_FLAGS.format(python=sys.executable, notes=str(tree / "notes"), script=script))
        path.chmod(0o755)
    return tree


def anatomy(tree: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "CAA_ENVIRONMENT_IS_READY": "1", "PATH": path}
    command = [str(word) for word in (tree / "research" / "anatomy.sh", *flags)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def notes(tree: Path) -> list[tuple[str, list[str]]]:
    return [tuple(json.loads(line)) for line in (tree / "notes").read_text().splitlines()]


def test_every_analysis_is_asked_for_with_flags_that_its_script_knows(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "a root"
    root.mkdir()
    done = anatomy(tree, "the-sea", "--layer", 14, "--saes", "one sae", "other", "--root", root)
    assert done.returncode == 0, done.stderr
    asked = notes(tree)
    assert {script for script, _ in asked} == set(SCRIPTS)
    for script, flags in asked:
        parsed: Any = importlib.import_module(script.replace("/", ".")).build_parser().parse_args(flags)
        assert parsed.behaviors == ["the-sea"] and str(parsed.root) == str(root) and parsed.read == "answer"
        assert parsed.model_size == "135m" and (
            parsed.layers == [14] or parsed.__dict__.get("inner_product") == "causal"
        )
        if script.startswith("research/"):
            assert [str(folder) for folder in parsed.saes] == ["one sae", "other"]
    analyses = [flags for script, flags in asked if script == "analyze_vectors"]
    assert ["--decode" in flags for flags in analyses] == [True, False, False]
    assert (root / "analysis" / "research" / "anatomy_seconds_the-sea.txt").read_text().count("\n") == len(asked)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--layer", "x"], "--layer x is not the number of a layer"),
        (["--depth", "3"], "unknown flag --depth"),
        (["--root", "/nowhere/at/all"], "/nowhere"),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(tree: Path, flags: list[str], reason: str) -> None:
    done = anatomy(tree, *flags)
    assert done.returncode != 0 and reason in done.stderr and not (tree / "notes").exists()


def test_help_says_how_it_is_used(tree: Path) -> None:
    done = anatomy(tree, "--help")
    assert done.returncode == 0 and "Usage: ./research/anatomy.sh" in done.stdout and "--saes DIR" in done.stdout
