"""Which run made which artifact: `provenance.json` beside the artifacts of a folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.files.reading import read_json
from utils.files.writing import locked_folder, write_json

PROVENANCE_NAME = "provenance.json"

# Facts of a run on which its numbers do not depend: how it was typed, and the versions of the libraries, which add
# in another order and so move the last digits only. (Compared, they would make everything stale at every upgrade.)
_NO_MATTER = frozenset(
    {"command", "torch", "transformers", "numpy", "scipy", "accelerate", "peft", "torchao", "bitsandbytes"}
) | {"quantize_difference"}  # measured anew by every run

Differences = dict[str, tuple[Any, Any]]
"""What differs between two runs: the fact's name -> (what it was, what it is now)."""


def record_provenance(folder: Path, artifact_names: Iterable[str], run: dict[str, Any]) -> None:
    """Note in `folder/provenance.json` which run makes the named artifacts.

    The file maps artifact names to run ids and run ids to what the run was. It is written before
    the artifacts, so that a run that is killed in between leaves nothing unexplained.
    """
    run_id = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / PROVENANCE_NAME
    with locked_folder(folder):
        known_artifacts, known_runs = _read_provenance_file(path)
        artifacts = {**known_artifacts, **dict.fromkeys(artifact_names, run_id)}
        runs = {**known_runs, run_id: run}
        used = set(artifacts.values())
        write_json(
            path,
            {
                "artifacts": dict(sorted(artifacts.items())),
                "runs": {key: runs[key] for key in sorted(used) if key in runs},
            },
        )


def _read_provenance_file(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Run ids by artifact name and runs by id; what is of another shape is left out."""
    known = read_json(path) if path.exists() else {}
    sections = (known.get(key) if isinstance(known, dict) else None for key in ("artifacts", "runs"))
    artifacts, runs = (section if isinstance(section, dict) else {} for section in sections)
    return (
        {name: run_id for name, run_id in artifacts.items() if isinstance(run_id, str)},
        {run_id: run for run_id, run in runs.items() if isinstance(run, dict)},
    )


def read_provenance(path: Path) -> dict[str, Any] | None:
    """The run that made the artifact at `path`, or None where that is not known."""
    return read_folder_provenance(path.parent).get(path.name)


def read_folder_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs that made a folder's artifacts, by artifact name, as far as they are known."""
    artifacts, runs = _read_provenance_file(folder / PROVENANCE_NAME)
    return {name: runs[run_id] for name, run_id in artifacts.items() if run_id in runs}


def differences(record: Mapping[str, Any], made_by: Mapping[str, Any]) -> Differences:
    """The facts in which a run differs from the one that made an artifact.

    What either does not say, as a record from elsewhere or of an earlier version, cannot be compared and is no
    difference; nor is what does not change numbers (the command, versions of libraries).

    Args:
        record: What the run is that would make the artifact now, as far as it is known.
        made_by: The run that made it, as recorded; empty where nothing is known of it.
    """
    compared = [key for key in record if key not in _NO_MATTER]
    then_and_now = {key: (made_by.get(key), record[key]) for key in compared}
    return {key: (then, now) for key, (then, now) in then_and_now.items() if None not in (then, now) and then != now}


def describe_differences(found: Iterable[Differences]) -> str:
    """What differs for some artifacts, each fact once, e.g. `max_new_tokens (100, now 50)`."""
    then_of: dict[str, set[str]] = {}
    now_of: dict[str, set[str]] = {}
    for differing in found:
        for key, (then, now) in differing.items():
            then_of.setdefault(key, set()).add(_short(then))
            now_of.setdefault(key, set()).add(_short(now))
    return ", ".join(f"{key} ({_one_or_several(then_of[key])}, now {_one_or_several(now_of[key])})" for key in then_of)


def _short(value: Any) -> str:
    """A value in few characters: of a digest its beginning."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _one_or_several(texts: set[str]) -> str:
    return min(texts) if len(texts) == 1 else f"{len(texts)} different ones"
