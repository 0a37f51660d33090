"""Which run made which artifact: `provenance.json` beside the artifacts of a folder."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.files.reading import read_json
from utils.files.writing import locked_folder, write_json

PROVENANCE_NAME = "provenance.json"


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
