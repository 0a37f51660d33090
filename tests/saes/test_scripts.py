"""The scripts in saes/: a quick --help without anything heavy, help for every option, what they read and write."""

import argparse
import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import HEAVY, LONGEST_HELP_S
from utils.paths import REPOSITORY

SCRIPTS = sorted(path.stem for path in (REPOSITORY / "saes").glob("*.py"))
SHOW_HELP = f"""
import resource, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import importlib
code = importlib.import_module("saes." + sys.argv[1]).main(["--help"])
used = resource.getrusage(resource.RUSAGE_SELF)
print("ended", code, [name for name in {HEAVY!r} if name in sys.modules], used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy_and_is_quick(script: str) -> None:
    seconds: list[float] = []
    while not seconds or (min(seconds) >= LONGEST_HELP_S and len(seconds) < 5):
        command = [sys.executable, "-c", SHOW_HELP, script]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        *_, last = done.stdout.splitlines()
        assert last.startswith("ended 0 [] "), last
        seconds.append(float(last.split()[-1]))
    assert min(seconds) < LONGEST_HELP_S


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_reads_and_writes_and_every_option_has_help(script: str) -> None:
    path = REPOSITORY / "saes" / f"{script}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert all(word in docstring for word in ("Reads:", "Writes:", f"Example: ./saes/{script}.py"))
    assert os.access(path, os.X_OK)
    parser: argparse.ArgumentParser = importlib.import_module(f"saes.{script}").build_parser()
    assert [action.dest for action in parser._actions if not action.help] == []
    parser.format_help()  # a "%" that is not escaped fails here


def test_a_script_runs_from_any_folder(tmp_path: Path) -> None:
    script = REPOSITORY / "saes" / "train_sae.py"
    done = subprocess.run([sys.executable, script, "--layer", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the following arguments are required: --data" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "many"], "error: --tokens many is not a number of tokens"),
        (["--what"], "error: unknown flag --what"),
    ],
)
def test_run_all_refuses_what_it_does_not_know_in_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    script = REPOSITORY / "saes" / "run_all.sh"
    done = subprocess.run([script, "--root", tmp_path, *flags], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_run_all_explains_itself() -> None:
    done = subprocess.run([REPOSITORY / "saes" / "run_all.sh", "--help"], capture_output=True, text=True, check=True)
    assert "--tokens N" in done.stdout
    assert "--seeds N..." in done.stdout
