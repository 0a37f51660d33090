"""The checkpoints that an interrupted fine-tuning goes on from, and `run.json`, which says what the run computes.

Both are in the run's own folder, which is removed when the weights are written.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import read_json
from utils.files.writing import write_json

RUN_NAME = "run.json"
_STATE_NAME = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes
_PREFIX = "checkpoint-"


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint; what a kill left half-written is none."""
    complete = [path for path in run_dir.glob(f"{_PREFIX}*") if _is_complete(path)]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else -1


def _is_complete(checkpoint: Path) -> bool:
    """Whether its last file is there, whole, and belongs to it."""
    try:
        state = json.loads((checkpoint / _STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("global_step") == _step_of(checkpoint)


def checkpoint_to_resume(run_dir: Path, run: dict[str, Any], *, resume: bool, overwrite: bool) -> Path | None:
    """Where the run goes on from; None to start at the beginning.

    Args:
        run_dir: The run's folder; it may be missing.
        run: What the run computes.
        resume: --resume.
        overwrite: --overwrite.

    Raises:
        UserError: If there is a checkpoint of another run that nobody asked to drop, or none but --resume.
    """
    last = last_checkpoint(run_dir)
    if last is None:
        if resume:
            raise UserError(f"--resume: there is no checkpoint in {run_dir}; leave --resume out")
        return None
    if overwrite and not resume:
        return None
    begun = read_json(run_dir / RUN_NAME, "add --overwrite to start again")
    differing = [key for key in {**run, **begun} if run.get(key) != begun.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{last} belongs to another run: {key} was {begun.get(key)}, now it is {run.get(key)}; "
            "give the same settings, or --overwrite without --resume to start again"
        )
    return last


def remove_finished_run(run_dir: Path, weights_path: Path) -> None:
    """Remove the folder of a run that was killed when its weights were written; not that of a later run."""
    begun = run_dir / RUN_NAME
    if not begun.exists() or begun.stat().st_mtime_ns < weights_path.stat().st_mtime_ns:
        shutil.rmtree(run_dir, ignore_errors=True)


def start_run_folder(run_dir: Path, run: dict[str, Any], resumed: Path | None) -> None:
    """Keep only the checkpoint that the run goes on from, and note what the run computes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for path in run_dir.glob(f"{_PREFIX}*"):
        if path != resumed:
            shutil.rmtree(path)
    write_json(run_dir / RUN_NAME, run)


def checkpoint_steps(n_steps: int, n_checkpoints: int) -> list[int]:
    """Steps behind which a checkpoint is written, evenly spaced, none of them the last step."""
    steps = {round(n_steps * place / (n_checkpoints + 1)) for place in range(1, n_checkpoints + 1)}
    return sorted(steps - {0, n_steps})
