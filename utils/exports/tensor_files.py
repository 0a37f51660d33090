"""Vectors in tensor files: safetensors, lm-evaluation-harness's `--model steered`, persona vectors."""

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.exports.bundle import METADATA_KEY, ImportedBundle, VectorBundle, text_facts
from utils.exports.numbering import layer_of_number, number_of_layer
from utils.files.reading import load_tensor_file, short

if TYPE_CHECKING:
    from torch import Tensor

_HOOKPOINT = re.compile(r"(?:layers|h)\.([0-9]{1,6})")
_LAYER_KEY = re.compile(r"layer\.([0-9]{1,6})")


# --- safetensors -----------------------------------------------------------------------------------


def safetensors_bytes(bundle: VectorBundle) -> bytes:
    """A tensor `layer.<l>` for each layer, scaled, with metadata in the header."""
    from safetensors.torch import save

    tensors = {f"layer.{layer}": vector for layer, vector in sorted(bundle.scaled.items())}
    return save(tensors, metadata=dict(sorted(bundle.metadata(is_scaled=True).items())))


def read_safetensors(path: Path) -> ImportedBundle:
    """
    Raises:
        UserError: If it is not such a file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
            facts = dict(file.metadata() or {})
    except FileNotFoundError as err:
        raise UserError(f"{path} not found; name a file that is there") from err
    except (SafetensorError, ValueError, TypeError, OSError) as err:
        raise UserError(f"{path} is not a readable safetensors file; make it again") from err
    found: dict[int, Tensor] = {}
    for key, tensor in tensors.items():
        if not (match := _LAYER_KEY.fullmatch(key)):
            raise UserError(f"{path}: tensor {key[:80]!r} is not a layer's vector (`layer.<number>`)")
        found[int(match.group(1))] = tensor
    return ImportedBundle("safetensors", found, facts=facts)


# --- lm-evaluation-harness -------------------------------------------------------------------------


def lm_eval_bytes(bundle: VectorBundle) -> bytes:
    """A dict from one hookpoint to what is added there, for `lm_eval --model steered`.

    It is a dict, not the list that its documentation shows, and of one hookpoint: with several, its code adds the
    last one's vector at all of them.

    Raises:
        UserError: If there are several layers.
    """
    layer, vector = bundle.only
    steer_info: dict[str, Any] = {
        "action": "add",
        "steering_vector": vector.clone(),
        "steering_coefficient": float(bundle.multiplier),
        "bias": None,
        METADATA_KEY: bundle.metadata(is_scaled=False),
    }
    return _torch_bytes({f"layers.{number_of_layer('lm_eval', layer)}": steer_info})


def _read_lm_eval(path: Path, content: dict[Any, Any]) -> ImportedBundle:
    found: dict[int, Tensor] = {}
    coefficients, facts = set(), {}
    for hookpoint, info in content.items():
        match = _HOOKPOINT.fullmatch(hookpoint) if isinstance(hookpoint, str) else None
        if match is None or not isinstance(info, dict) or "steering_vector" not in info:
            raise UserError(f"{path}: {short(hookpoint)} is not a block's hookpoint (`layers.<number>`) with a vector")
        if info.get("action") != "add":
            raise UserError(f"{path}: {hookpoint} has the action {short(info.get('action'))}; only 'add' is a vector")
        layer = layer_of_number("lm_eval", int(match.group(1)))
        assert layer is not None, "its numbers are ours"
        found[layer] = info["steering_vector"]
        coefficients.add(info.get("steering_coefficient", 1.0))
        facts = text_facts(info.get(METADATA_KEY))
    coefficient = coefficients.pop()
    if coefficients or type(coefficient) not in (int, float):
        raise UserError(f"{path}: its layers have no one coefficient; import a file of one layer")
    return ImportedBundle("lm_eval", found, float(coefficient), facts)


# --- persona vectors -------------------------------------------------------------------------------


def persona_bytes(bundle: VectorBundle) -> bytes:
    """One tensor [n_layers + 1, d_model], a row for each of the model's `hidden_states`, scaled.

    Rows without a vector (the embeddings are always one) are NaN: missing, so that steering with one shows at once.

    Raises:
        UserError: If the number of the model's layers is not known.
    """
    import torch

    if bundle.n_layers is None:
        raise UserError(
            "the format persona has a row for every layer of the model, whose number of layers is not known; name the "
            "model by a folder that is here (--model DIR), or take another format"
        )
    rows = torch.full((bundle.n_layers + 1, bundle.d_model), float("nan"))
    for layer, vector in bundle.scaled.items():
        rows[number_of_layer("persona", layer)] = vector
    return _torch_bytes(rows)


def persona_note(bundle: VectorBundle) -> bytes:
    """What is known of the vectors, for the JSON file beside the tensor, which has no room for it."""
    return json.dumps({METADATA_KEY: bundle.metadata(is_scaled=True)}, indent=4).encode()


def _read_persona(path: Path, rows: "Tensor") -> ImportedBundle:
    from utils.files.reading import read_json

    found: dict[int, Tensor] = {}
    left_out: tuple[str, ...] = ()
    for number, row in enumerate(rows):
        if bool(row.isnan().all()):
            continue
        layer = layer_of_number("persona", number)
        if layer is None:
            left_out = ("row 0, the embeddings, which is no block's output",)
        else:
            found[layer] = row.clone()
    beside = path.with_suffix(".json")
    note = read_json(beside) if beside.exists() else {}
    facts = text_facts(note.get(METADATA_KEY)) if isinstance(note, dict) else {}
    return ImportedBundle("persona", found, facts=facts, left_out=left_out)


# --- both kinds of .pt -----------------------------------------------------------------------------


def read_torch(path: Path) -> ImportedBundle:
    """A `.pt` file of lm-evaluation-harness or of persona vectors.

    Raises:
        UserError: If it is neither, or damaged.
    """
    import torch

    content = load_tensor_file(path, "name a file that is there")
    if isinstance(content, dict) and content:
        return _read_lm_eval(path, content)
    if isinstance(content, torch.Tensor) and content.dim() == 2 and content.is_floating_point():
        return _read_persona(path, content)
    if isinstance(content, torch.Tensor) and content.dim() == 1:
        raise UserError(
            f"{path} is one bare vector, which says no layer; steer with it at once: "
            "./prompting_with_steering.py --vector FILE --layers N"
        )
    raise UserError(f"{path} holds neither a steering of lm-evaluation-harness (a dict) nor persona vectors (a table)")


def _torch_bytes(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
