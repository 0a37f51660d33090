"""Writing files: a file under its final name is complete.

Everything is written to a temporary neighbour first and moved into place. Locks are held on the very files and
folders that they guard, so that no lock file is left beside the artifacts and no link is followed.
"""

import io
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import lock_descriptor

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

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
        lock_descriptor(file.fileno())
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
                if lock_descriptor(file.fileno(), blocking=False):
                    (folder / name).unlink()
        except FileNotFoundError:
            continue  # moved into place meanwhile


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
        if not lock_descriptor(file.fileno(), blocking=False):
            log.info("another process is at work on this (%s); waiting for it", path.name)
            lock_descriptor(file.fileno())
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


def tensor_bytes(value: "Tensor") -> bytes:
    """What `save_tensor` writes; the same for the same values."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder, so that two processes do not update one file at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock_descriptor(handle)
        yield
    finally:
        os.close(handle)
