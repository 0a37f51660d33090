"""Control vectors in GGUF: llama.cpp's (also repeng's) and EasySteer's files, and llama.cpp's rules for them."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.exports.bundle import METADATA_KEY, ImportedBundle, VectorBundle
from utils.exports.numbering import layer_of_number, number_of_layer

if TYPE_CHECKING:
    from gguf import GGUFReader
    from numpy import float32
    from numpy.typing import NDArray
    from torch import Tensor

ARCHITECTURE = "controlvector"
_NUMBER = re.compile(r"\s*([+-]?[0-9]+)")  # what C++'s stoi takes from the beginning of a text
_LARGEST_INT = 2**31 - 1

# what GGUFReader raises for files that are torn, altered or of another kind
_DAMAGED = (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, AttributeError, EOFError)


def gguf_bytes(bundle: VectorBundle, format_name: str) -> bytes:
    """A control vector file.

    Args:
        bundle: What to write.
        format_name: `gguf` for llama.cpp, whose vectors are scaled; `easysteer`, whose spec bears the scale.

    Raises:
        UserError: If a layer has no number in the format.
    """
    from gguf import GGUFWriter

    is_scaled = format_name == "gguf"
    vectors = bundle.scaled if is_scaled else dict(bundle.vectors)
    numbers = {layer: number_of_layer(format_name, layer, bundle.n_layers) for layer in sorted(vectors)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.gguf"
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", bundle.model_type or bundle.facts.get("model", "unknown"))
        if format_name == "easysteer":
            writer.add_string(f"{ARCHITECTURE}.method", bundle.facts.get("method", "mean"))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for key, text in bundle.metadata(is_scaled=is_scaled).items():
            writer.add_string(f"{METADATA_KEY}.{key}", text)
        for layer, number in numbers.items():
            writer.add_tensor(f"direction.{number}", vectors[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if format_name == "gguf":
            llama_cpp_vectors(path)
        return path.read_bytes()


def read_gguf(path: Path) -> ImportedBundle:
    """The vectors of a control vector file of llama.cpp, repeng or EasySteer.

    Raises:
        UserError: If it is not such a file, or damaged.
    """
    import torch

    tensors, texts = _read(path)
    if (architecture := texts.get("general.architecture")) != ARCHITECTURE:
        raise UserError(f"{path} is a GGUF file of {architecture or 'no architecture'}, not a control vector")
    found: dict[int, Tensor] = {}
    for name, data in tensors:
        match = re.fullmatch(r"direction\.([0-9]{1,6})", name)
        if match is None:
            raise UserError(f"{path}: tensor {name[:80]!r} is not a layer's vector (`direction.<number>`)")
        layer = layer_of_number("easysteer", int(match.group(1)))  # as llama.cpp's, with a number for layer 0 too
        if layer is None or layer in found:
            raise UserError(f"{path}: {name} names a layer twice; write one vector a layer")
        found[layer] = torch.from_numpy(data.astype("float32").reshape(-1).copy())
    prefix = f"{METADATA_KEY}."
    facts = {key.removeprefix(prefix): text for key, text in texts.items() if key.startswith(prefix)}
    is_easysteer = f"{ARCHITECTURE}.method" in texts
    return ImportedBundle("easysteer" if is_easysteer else "gguf", found, facts=facts)


def llama_cpp_vectors(path: Path, strength: float = 1.0) -> "Mapping[int, NDArray[float32]]":
    """What llama.cpp would add, by block, by its rules for control vector files (common.cpp, as of 2025).

    It reads tensors only, no metadata: each must be named `direction.N` with N of at least 1, one-dimensional,
    F32, and as wide as the others; several of one N are added up. One that is not so makes it refuse the file.

    Raises:
        UserError: If llama.cpp would refuse the file; names the rule.
    """
    import numpy as np

    added: dict[int, NDArray[float32]] = {}
    refused = f"{path}: llama.cpp refuses this file"
    width = None
    for name, data in _read(path)[0]:
        beginning, dot, rest = name.partition(".")
        match = _NUMBER.match(rest) if dot and beginning == "direction" else None
        block = int(match.group(1)) if match else -1
        if not 0 <= block <= _LARGEST_INT:
            raise UserError(f"{refused}: tensor {name[:80]!r} is not named `direction.N`")
        if block == 0:
            raise UserError(f"{refused}: it has `direction.0`, and its layers count from 1")
        if data.dtype != np.float32:
            raise UserError(f"{refused}: {name} is not F32 ({data.dtype})")
        if any(size > 1 for size in data.shape[:-1]):
            raise UserError(f"{refused}: {name} has shape {list(data.shape)}, not one dimension")
        if width not in (None, data.size):
            raise UserError(f"{refused}: {name} is {data.size} wide, the tensors before it {width}")
        width = data.size
        scaled = data.reshape(-1) * np.float32(strength)
        added[block] = added[block] + scaled if block in added else scaled
    if not added:
        raise UserError(f"{refused}: it holds no vector")
    return added


def _read(path: Path) -> "tuple[list[tuple[str, NDArray[Any]]], dict[str, str]]":
    """Tensors by name in their order, with the dtype that the file gives them, and the text fields."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        tensors = [(tensor.name, tensor.data) for tensor in reader.tensors]
        return tensors, _texts(reader)
    except FileNotFoundError as err:
        raise UserError(f"{path} not found; name a file that is there") from err
    except _DAMAGED as err:
        raise UserError(f"{path} is not a readable GGUF file; make it again") from err


def _texts(reader: "GGUFReader") -> dict[str, str]:
    from gguf import GGUFValueType

    fields = {key: field for key, field in reader.fields.items() if field.types == [GGUFValueType.STRING]}
    return {key: str(field.contents()) for key, field in fields.items()}
