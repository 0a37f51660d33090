"""A run with nothing to do says so at once: what takes seconds to import is imported only for work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import HEAVY
from tests.judge_server import JudgeServer
from tests.pipeline import OPEN_AI_KEY, steps
from tests.roots import TINY_LABEL, snapshot
from utils.paths import REPOSITORY

LONGEST_S = 1.5
"""Of processor time; a start with a model takes four times as long."""
AGAIN = f"""
import importlib, json, resource, sys
code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in {HEAVY!r} if name in sys.modules and name not in ("tqdm", "asyncio")]
print(json.dumps([code, heavy, used.ru_utime + used.ru_stime]))
"""
STEPS = ("normalized", "activations", "scores", "weights")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_run_with_nothing_to_do_imports_nothing_heavy(step: str, pipeline_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pipeline_root, tmp_path / "root", copy_function=shutil.copy2)
    shutil.copytree(pipeline_root.parent / TINY_LABEL, tmp_path / TINY_LABEL)
    before = snapshot(root)
    with JudgeServer() as server:
        script, *flags = steps(server.url)[step]
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, script, "--root", "root", *flags],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OPEN_AI_KEY": OPEN_AI_KEY},
            capture_output=True,
            text=True,
            check=True,
        )
        assert server.n_requests == 0
    code, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    assert (code, heavy) == (0, []), done.stderr
    assert "wrote 0" in done.stderr
    assert seconds < LONGEST_S
    assert snapshot(root) == before
