"""What a report page was made of: the command, the files and when they were written, the runs behind them."""

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.provenance import read_folder_provenance
from utils.files.reading import sha256_of

_LIBRARIES = ("numpy", "scipy", "matplotlib", "jinja2")


@dataclass(frozen=True)
class Provenance:
    """Nothing in it depends on when the page was written."""

    command: str
    seed: int
    versions: str
    n_files: int
    newest: str
    """When the newest of the files was written, UTC."""
    digest: str
    """sha256 over the files' names and contents."""
    files: tuple[str, ...]
    """Each with the beginning of its sha256, from the root."""
    runs: tuple[tuple[str, int], ...]
    """What made the results, as far as it is recorded, each with the number of its files."""
    n_unrecorded: int
    notes: tuple[str, ...]


def collect_provenance(command: str, seed: int, root: Path, paths: Iterable[Path], notes: Sequence[str]) -> Provenance:
    files = sorted(set(paths))
    digests = {path: sha256_of(path) for path in files}
    names = {path: path.relative_to(root).as_posix() for path in files}
    whole = hashlib.sha256("".join(f"{names[path]}\0{digests[path]}\n" for path in files).encode()).hexdigest()
    runs, n_unrecorded, problems = _runs_of(files)
    newest = max((path.stat().st_mtime for path in files), default=None)
    return Provenance(
        command=command,
        seed=seed,
        versions=", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
        ),
        n_files=len(files),
        newest=datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC") if newest is not None else "unknown",
        digest=whole,
        files=tuple(f"{digests[path][:12]}  {names[path]}" for path in files),
        runs=tuple(runs.most_common()),
        n_unrecorded=n_unrecorded,
        notes=(*notes, *problems),
    )


def _runs_of(files: Sequence[Path]) -> tuple[Counter[str], int, list[str]]:
    runs: Counter[str] = Counter()
    n_unrecorded, problems = 0, []
    known: dict[Path, dict[str, dict[str, Any]]] = {}
    for path in files:
        if path.parent not in known:
            try:
                known[path.parent] = read_folder_provenance(path.parent)
            except UserError as err:
                known[path.parent] = {}
                problems.append(str(err))
        run = known[path.parent].get(path.name)
        if run is None:
            n_unrecorded += 1
        else:
            runs[_describe_run(run)] += 1
    return runs, n_unrecorded, problems


def _describe_run(run: dict[str, Any]) -> str:
    """What several files of a run have in common; counts and digests differ by file."""
    words = [
        f"{key} {value}"
        for key, value in run.items()
        if key != "command"
        and value is not None
        and isinstance(value, str | int | float)
        and not key.startswith("n_")
        and not key.endswith("sha256")
    ]
    return "; ".join([str(run["command"]), *words] if "command" in run else words)
