"""Vectors in JSON: AISteer360's `.svec`, Neuronpedia's upload, and EasySteer's spec beside its GGUF."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.exports.bundle import METADATA_KEY, ImportedBundle, VectorBundle, text_facts
from utils.exports.numbering import layer_of_number, number_of_layer
from utils.files.reading import read_json, short

if TYPE_CHECKING:
    from torch import Tensor

NEURONPEDIA_HOOK = "hook_resid_pre"


def svec_bytes(bundle: VectorBundle) -> bytes:
    """AISteer360's steering vector: `directions` from layer to [1, d_model], scaled. Its reader knows no metadata
    and passes over ours."""
    directions = {
        str(number_of_layer("svec", layer)): [vector.tolist()] for layer, vector in sorted(bundle.scaled.items())
    }
    content = {
        "model_type": bundle.model_type or "unknown",
        "directions": directions,
        METADATA_KEY: bundle.metadata(is_scaled=True),
    }
    return _json_bytes(content)


def read_svec(path: Path) -> ImportedBundle:
    """
    Raises:
        UserError: If it is not such a file, or holds more than one direction a layer.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("directions"), dict):
        raise UserError(f"{path} is not an .svec file: it has no object `directions`")
    found = {}
    for key, rows in content["directions"].items():
        layer = layer_of_number("svec", _number(path, key))
        assert layer is not None, "its numbers are ours"
        if isinstance(rows, list) and rows and isinstance(rows[0], list):
            if len(rows) != 1:
                raise UserError(f"{path}: layer {key} has {len(rows)} directions; only one a layer is a vector here")
            rows = rows[0]
        found[layer] = _vector(path, key, rows)
    return ImportedBundle("svec", found, facts=text_facts(content.get(METADATA_KEY)))


def neuronpedia_bytes(bundle: VectorBundle) -> bytes:
    """The arguments of `NPVector.new`, of one layer: its number is that of the block that the vector enters.

    Raises:
        UserError: If there are several layers, or it is the model's last.
    """
    layer, vector = bundle.only
    arguments = {
        "label": f"{bundle.facts.get('behavior', 'vector')} (CAA, layer {layer})",
        "model_id": bundle.facts.get("model", "unknown").lower(),
        "layer_num": number_of_layer("neuronpedia", layer, bundle.n_layers),
        "hook_type": NEURONPEDIA_HOOK,
        "vector": vector.tolist(),
        "default_steer_strength": bundle.multiplier,
    }
    return _json_bytes({"arguments": arguments, METADATA_KEY: bundle.metadata(is_scaled=False)})


def read_neuronpedia(path: Path) -> ImportedBundle:
    """
    Raises:
        UserError: If it is not such a file, or is about another hook.
    """
    content = read_json(path)
    arguments = content.get("arguments", content) if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or "vector" not in arguments:
        raise UserError(f"{path} does not hold the arguments of Neuronpedia's NPVector.new (`vector`, `layer_num`)")
    if (hook := arguments.get("hook_type")) != NEURONPEDIA_HOOK:
        raise UserError(f"{path}: hook_type {short(hook)} is not read here; only {NEURONPEDIA_HOOK!r} is")
    number = _number(path, arguments.get("layer_num"))
    if (layer := layer_of_number("neuronpedia", number)) is None:
        raise UserError(f"{path}: layer_num {number} is the input of the first block, which is no block's output")
    strength = arguments.get("default_steer_strength", 1.0)
    if type(strength) not in (int, float):
        raise UserError(f"{path}: default_steer_strength {short(strength)} is not a number")
    vector = _vector(path, str(number), arguments["vector"])
    return ImportedBundle("neuronpedia", {layer: vector}, float(strength), text_facts(content.get(METADATA_KEY)))


def easysteer_spec(bundle: VectorBundle, source: str) -> bytes:
    """A SteeringSpec that adds a GGUF's vectors where this suite does: at the prompt's last token and every new one.

    Args:
        bundle: What is in the GGUF.
        source: Its path, as the server is to open it.
    """
    vector = {
        "source": source,
        "algorithm": "direct",
        "scale": bundle.multiplier,
        "layers": [number_of_layer("easysteer", layer) for layer in sorted(bundle.vectors)],
        "normalize": False,
        "apply": {"prompt_positions": [-1], "generation": "all"},
    }
    return _json_bytes({"vectors": [vector]})


def _number(path: Path, value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 7:
        return int(value)
    raise UserError(f"{path}: {short(value)} is not a layer's number")


def _vector(path: Path, key: str, values: Any) -> "Tensor":
    import torch

    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise UserError(f"{path}: layer {key} does not hold a list of numbers")
    return torch.tensor(values, dtype=torch.float64).float()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()
