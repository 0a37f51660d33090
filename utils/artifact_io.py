"""Reading and writing the suite's files: atomic writes, safe and checked loads, provenance.

A file under its final name is complete: everything is written to a temporary neighbour first and
moved into place. Tensors load without running code from the file.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import pickle
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

PROVENANCE_NAME = "provenance.json"
_TEMPORARY = ".tmp"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing; move it to `path` when the block succeeds.

    The neighbour is locked while it is written, which tells it from those that killed processes left: these
    are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:100]}."
    _remove_abandoned(path.parent, prefix)
    temporary = path.parent / f"{prefix}{secrets.token_hex(8)}{_TEMPORARY}"
    try:
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_locked(path: Path) -> IO[bytes]:
    """Make a file and lock it."""
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_open_at(file, path):
            return file
        file.close()  # another process took it for abandoned before it was locked


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what was left by processes that were killed while they wrote: nobody holds its lock."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if not (name.startswith(prefix) and name.endswith(_TEMPORARY)):
            continue
        try:
            with (folder / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / name).unlink()
        except (FileNotFoundError, BlockingIOError):
            continue  # moved into place meanwhile, or at work


@contextmanager
def held_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading and writing, made where it is missing, that no other process holds; wait for it.

    Who removes the file must do it while holding it.

    Raises:
        OSError: If it cannot be opened, or is a link, which might lead elsewhere.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is at work on this (%s); waiting for it", path.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_open_at(file, path):
            break
        file.close()  # the process that held it has finished and removed it
    with file:
        yield file


def is_open_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


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
    """Read a JSON file strictly: UTF-8, no duplicate keys, no NaN or infinity, no number beyond a float's range.

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
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_int,
            object_pairs_hook=_refuse_duplicate_keys,
        )
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}"
        raise UserError(f"{path} is not valid JSON ({err.msg} at {where}); restore or make it again") from err
    except (ValueError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else str(err)
        raise UserError(f"{path} is not valid JSON ({reason}); restore or make it again") from err


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:40]} is beyond the range of a number")
    return value


def _parse_int(text: str) -> int:
    if len(text) > 300 and abs(int(text)) > sys.float_info.max:
        raise ValueError(f"{text[:40]}... is beyond the range of a number")
    return int(text)


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
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise UserError(f"{path} not found" + (f"; {hint}" if hint else "")) from err
    except pickle.UnpicklingError as err:
        raise UserError(
            f"{path} is damaged or holds more than plain tensors and was not loaded; make it again"
        ) from err
    except _DAMAGED_TENSOR_FILE as err:
        raise UserError(f"{path} is not a readable tensor file; make it again") from err


# what torch and zipfile raise for files that are torn, altered or of another kind
_DAMAGED_TENSOR_FILE = (
    RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError,
    ImportError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def _check_archive(path: Path) -> None:
    """Compare every part of a `torch.save` archive with its checksum, which torch itself does not look at.

    Raises:
        BadZipFile: If a part has changed, or is packed so that it could grow beyond the file's own size.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise zipfile.BadZipFile("compressed, which torch.save never does")
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has changed")
    except OSError as err:
        if err.errno == errno.EINVAL:  # a part that is said to lie before the file's beginning
            raise zipfile.BadZipFile(str(err)) from err
        raise


def load_vector(path: Path, d_model: int | None = None, hint: str = "") -> "Tensor":
    """Load a steering vector: one float tensor [d_model], finite, on the CPU, as float32.

    Raises:
        UserError: If it is missing, no such tensor, of another width, or has NaN or infinite values.
    """
    value = load_tensor_file(path, hint)
    if not _holds_floats(value, n_dims=1):
        raise UserError(f"{path} does not hold a steering vector (one float tensor [d_model]); make it again")
    if d_model is not None and value.shape[0] != d_model:
        raise UserError(
            f"{path} has width {value.shape[0]}, but the model's residual stream has {d_model}; "
            "use vectors that were made with this model"
        )
    return _finite_float32(value, path)


def load_activations(path: Path, hint: str = "") -> "Tensor":
    """Load saved activations: one finite float tensor [n_pairs, d_model], as float32.

    Raises:
        UserError: If it is missing or no such tensor.
    """
    value = load_tensor_file(path, hint)
    if not _holds_floats(value, n_dims=2):
        raise UserError(f"{path} does not hold activations (one float tensor [n_pairs, d_model]); make it again")
    return _finite_float32(value, path)


def _holds_floats(value: Any, n_dims: int) -> bool:
    """Whether it is a dense float tensor that holds each of its values, and holds any."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dim() == n_dims
        and value.is_floating_point()
        and 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _finite_float32(value: "Tensor", path: Path) -> "Tensor":
    """As float32; the check comes after the conversion, because a float64 may be beyond float32."""
    import torch

    try:
        value = value.detach().to(torch.float32)
    except RuntimeError as err:  # a type that torch can store but not convert
        raise UserError(f"{path} holds {value.dtype}, which cannot be read as float32; make it again") from err
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{path} contains NaN or infinite values; make it again")
    return value


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
