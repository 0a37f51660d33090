"""Scripts one after the other, in processes that a launcher has started (torchrun ... --module tests.launched RUNS).

RUNS is a JSON file: a list of [module, arguments...]. One start of the processes serves all of them.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.paths import REPOSITORY


def run_in_two_processes(runs: Sequence[Sequence[str]], file: Path) -> str:
    """Run scripts in two processes; what they said on standard error."""
    file.write_text(json.dumps(runs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--module", "tests.launched", str(file)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


if __name__ == "__main__":
    for script, *arguments in json.loads(Path(sys.argv[1]).read_text()):
        if code := importlib.import_module(script).main(arguments):
            sys.exit(code)
