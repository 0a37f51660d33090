"""Reading and writing the suite's files: atomic writes, safe and checked loads, provenance.

A file under its final name is complete: everything is written to a temporary neighbour first and
moved into place. Tensors load without running code from the file.
"""

import fcntl
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PROVENANCE_NAME = "provenance.json"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing; move it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON the way the published artifacts are written: four spaces, ASCII, no NaN."""
    write_text(path, json.dumps(value, indent=4, allow_nan=False))


def save_tensor(path: Path, value: "Tensor | dict[str, Tensor]") -> None:
    import torch

    with atomic_file(path) as file:
        torch.save(value, file)


def read_json(path: Path, hint: str = "") -> Any:
    """Read a JSON file strictly: UTF-8, no duplicate keys, no NaN or infinity.

    Args:
        path: The file.
        hint: What to do when it is missing, e.g. "run: ./generate_vectors.py".

    Raises:
        UserError: If it is missing, unreadable or not such JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise UserError(f"{path} not found" + (f"; {hint}" if hint else "")) from err
    except UnicodeDecodeError as err:
        raise UserError(f"{path} is not UTF-8 text (byte {err.start}); restore or make it again") from err
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicate_keys)
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}"
        raise UserError(f"{path} is not valid JSON ({err.msg} at {where}); restore or make it again") from err
    except (ValueError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else str(err)
        raise UserError(f"{path} is not valid JSON ({reason}); restore or make it again") from err


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {duplicate[:80]!r} occurs twice in one object")
    return dict(pairs)


def load_tensor_file(path: Path, hint: str = "") -> Any:
    """Load what `torch.save` wrote, without running any code from the file.

    Raises:
        UserError: If the file is missing, damaged, or holds anything but plain tensors.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise UserError(f"{path} not found" + (f"; {hint}" if hint else "")) from err
    except pickle.UnpicklingError as err:
        raise UserError(
            f"{path} is damaged or holds more than plain tensors and was not loaded; make it again"
        ) from err
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, IndexError, OverflowError) as err:
        raise UserError(f"{path} is not a readable tensor file; make it again") from err


def load_vector(path: Path, d_model: int | None = None, hint: str = "") -> "Tensor":
    """Load a steering vector: one float tensor [d_model], finite, on the CPU, as float32.

    Raises:
        UserError: If it is missing, no such tensor, of another width, or has NaN or infinite values.
    """
    import torch

    value = load_tensor_file(path, hint)
    if not isinstance(value, torch.Tensor) or value.dim() != 1 or not value.is_floating_point():
        raise UserError(f"{path} does not hold a steering vector (one float tensor [d_model]); make it again")
    if d_model is not None and value.shape[0] != d_model:
        raise UserError(
            f"{path} has width {value.shape[0]}, but the model's residual stream has {d_model}; "
            "use vectors that were made with this model"
        )
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{path} contains NaN or infinite values; make it again")
    return value.to(torch.float32)


def load_activations(path: Path, hint: str = "") -> "Tensor":
    """Load saved activations: one finite float tensor [n_pairs, d_model], as float32.

    Raises:
        UserError: If it is missing or no such tensor.
    """
    import torch

    value = load_tensor_file(path, hint)
    if not isinstance(value, torch.Tensor) or value.dim() != 2 or not value.is_floating_point():
        raise UserError(f"{path} does not hold activations (one float tensor [n_pairs, d_model]); make it again")
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{path} contains NaN or infinite values; make it again")
    return value.to(torch.float32)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder, so that two processes do not update one file at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def record_provenance(folder: Path, artifact_names: Iterable[str], run: dict[str, Any]) -> None:
    """Note in `folder/provenance.json` which run makes the named artifacts.

    The file maps artifact names to run ids and run ids to what the run was. It is written before
    the artifacts, so that a run that is killed in between leaves nothing unexplained.
    """
    run_id = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / PROVENANCE_NAME
    with locked_folder(folder):
        known: Any = _load_or(path, dict)
        if not isinstance(known, dict):
            known = {}
        artifacts: dict[str, str] = {**known.get("artifacts", {}), **dict.fromkeys(artifact_names, run_id)}
        runs = {**known.get("runs", {}), run_id: run}
        used = set(artifacts.values())
        write_json(
            path,
            {
                "artifacts": dict(sorted(artifacts.items())),
                "runs": {key: runs[key] for key in sorted(used) if key in runs},
            },
        )


def _load_or(path: Path, default: Callable[[], Any]) -> Any:
    return read_json(path) if path.exists() else default()


def read_provenance(path: Path) -> dict[str, Any] | None:
    """The run that made the artifact at `path`, or None where that is not known."""
    return read_folder_provenance(path.parent).get(path.name)


def read_folder_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs that made a folder's artifacts, by artifact name, as far as they are known."""
    known = _load_or(folder / PROVENANCE_NAME, dict)
    if not isinstance(known, dict):
        return {}
    artifacts, runs = known.get("artifacts", {}), known.get("runs", {})
    return {name: runs[run_id] for name, run_id in artifacts.items() if isinstance(runs.get(run_id), dict)}
