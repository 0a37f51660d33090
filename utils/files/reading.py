"""Reading files: strict JSON, and tensors loaded without running code from the file, all checked."""

import errno
import hashlib
import json
import math
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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
    return parse_json(text, path)


def parse_json(text: str, path: Path) -> Any:
    """What `read_json` makes of a file's text; `path` is for the messages."""
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


def check_text(value: Any, where: str) -> str:
    """A text as it stands.

    Raises:
        UserError: Starting with `where`, if it is empty, not a text, or not Unicode.
    """
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected text that is not empty, found {short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise UserError(f"{where}: not valid Unicode text (lone surrogate)") from err
    return value


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


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
