"""Scripts as processes of their own that start at once: forked from one that has imported everything.

So a hundred of them can be killed in a minute, at moments of their work and not of their imports.
"""

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SCRIPTS = (
    "generate_vectors",
    "normalize_vectors",
    "prompting_with_steering",
    "scoring",
    "process_raw_datasets",
    "finetune_llama",
    "plot_results",
    "analyze_vectors",
)
_HEAVY = (
    "torch",
    "transformers",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "scipy.stats",
    "openai",
    "llama_wrapper",
    "transformers.models.llama.modeling_llama",
    "utils.finetuning.job",
    "utils.evaluation.sweep",
    "utils.figures.results",
    "utils.judge.score_run",
    "utils.data.splitting",
    "utils.figures.vectors",
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*_HEAVY, *SCRIPTS])


@dataclass(frozen=True)
class End:
    """How a script ended."""

    code: int
    """Its exit code; the negative number of the signal that killed it."""
    stderr: str
    seconds: float


class ScriptProcess:
    """A script at work in `folder`."""

    def __init__(self, folder: Path, script: str, flags: Sequence[str]) -> None:
        self._stderr = folder / f"stderr of {script} {time.monotonic_ns()}"
        self._process: ForkServerProcess = _context.Process(target=_work, args=(folder, script, flags, self._stderr))
        self._process.start()
        while not self._stderr.exists():  # then it has begun its work
            time.sleep(0.001)
        self._started = time.monotonic()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        if self._process.is_alive():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._process.pid, number)

    def end(self, timeout: float = 120.0) -> End:
        self._process.join(timeout)
        seconds = time.monotonic() - self._started
        assert self._process.exitcode is not None, "the script hangs"
        stderr = self._stderr.read_text()
        self._stderr.unlink()
        return End(self._process.exitcode, stderr, seconds)


def run_script(folder: Path, script: str, flags: Sequence[str]) -> End:
    return ScriptProcess(folder, script, flags).end()


def _work(folder: Path, script: str, flags: Sequence[str], stderr: Path) -> None:
    """In the new process."""
    from utils.cli.run import exit_with

    os.chdir(folder)
    for number, path in ((1, os.devnull), (2, str(stderr))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    exit_with(importlib.import_module(script).main(flags))
