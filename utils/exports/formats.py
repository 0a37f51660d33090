"""Every format: how a bundle becomes files, and how a file is read; and what to type to use it."""

from pathlib import Path

from utils.errors import UserError
from utils.exports.bundle import ImportedBundle, VectorBundle
from utils.exports.gguf_files import gguf_bytes, read_gguf
from utils.exports.tensor_files import (
    lm_eval_bytes,
    persona_bytes,
    persona_note,
    read_safetensors,
    read_torch,
    safetensors_bytes,
)
from utils.exports.text_files import easysteer_spec, neuronpedia_bytes, read_neuronpedia, read_svec, svec_bytes

_READERS = {
    ".gguf": read_gguf,
    ".safetensors": read_safetensors,
    ".svec": read_svec,
    ".json": read_neuronpedia,
    ".pt": read_torch,
    ".pth": read_torch,
}


def encode(bundle: VectorBundle, format_name: str, path: Path, shown: Path) -> dict[Path, bytes]:
    """The files of a bundle, the vectors' own last.

    Args:
        bundle: What to write.
        format_name: One of `requests.FORMATS`.
        path: Where the vectors go.
        shown: The same path as commands and other files name it.

    Raises:
        UserError: If the format cannot hold it.
    """
    match format_name:
        case "gguf":
            return {path: gguf_bytes(bundle, "gguf")}
        case "easysteer":
            spec = easysteer_spec(bundle, str(shown))
            return {path.with_suffix(".json"): spec, path: gguf_bytes(bundle, "easysteer")}
        case "safetensors":
            return {path: safetensors_bytes(bundle)}
        case "svec":
            return {path: svec_bytes(bundle)}
        case "lm_eval":
            return {path: lm_eval_bytes(bundle)}
        case "persona":
            return {path.with_suffix(".json"): persona_note(bundle), path: persona_bytes(bundle)}
        case "neuronpedia":
            return {path: neuronpedia_bytes(bundle)}
    raise UserError(f"unknown format {format_name!r}")


def beside(format_name: str, path: Path) -> list[Path]:
    """All files that `encode` makes."""
    return [path.with_suffix(".json"), path] if format_name in ("easysteer", "persona") else [path]


def read_bundle(path: Path) -> ImportedBundle:
    """The vectors of a file, in whatever format.

    Raises:
        UserError: If its name ends in none of the formats' endings, or it is not such a file.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: files of vectors end in {', '.join(_READERS)}")
    if not path.is_file():
        raise UserError(f"{path} not found; name a file that is there")
    return reader(path)


def how_to_use(format_name: str, shown: Path, bundle: VectorBundle) -> str:
    """What to type to steer with a file, in one line."""
    layers = sorted(bundle.vectors)
    match format_name:
        case "gguf":
            several = (
                f" (its {len(layers)} layers are all added; one alone with --control-vector-layer-range N N)"
                if len(layers) > 1
                else ""
            )
            command = f"llama-server -m MODEL.gguf --control-vector {shown}"
            return f"{command}: added at all positions, the prompt's too{several}"
        case "easysteer":
            return f"vllm serve MODEL --enable-steer-vector --steering-config {shown.with_suffix('.json')}"
        case "lm_eval":
            return (
                f"lm_eval --model steered --model_args pretrained=MODEL,steer_path={shown} --tasks TASKS: "
                "added at all positions"
            )
        case "neuronpedia":
            return (
                f'NPVector.new(**json.load(open("{shown}"))["arguments"]), steered with strength_multiplier=1; where '
                "the server makes vectors unit vectors, the strength is multiplier x norm"
            )
        case "persona":
            return f'torch.load("{shown}")[{layers[0] + 1}] is layer {layers[0]}'
        case "svec":
            return f'SteeringVector.load("{shown}") of AISteer360'
    return f"./export_vectors.py --import {shown}"
