"""SAE folders as sae-lens writes them: read in every version from 2 to 6, written in that of 6.

A folder holds `cfg.json` and `sae_weights.safetensors`. What is read comes out in one form, whatever the version:
`f = activation(x W_enc + b_enc)`, `x_hat = f W_dec + b_dec`, on the residual stream as it is. A subtraction of
b_dec from the input and a rescaling by decoder norms are folded into the weights.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from utils.errors import UserError
from utils.files.reading import read_json, short
from utils.files.writing import atomic_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

Architecture = Literal["standard", "topk", "batchtopk", "jumprelu"]
"""batchtopk: read with a threshold, as sae-lens does, which calls it jumprelu from then on."""

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"
FORMAT_VERSION = "6.54.12"
"""The sae-lens whose folders are written."""
OWN_KEY = "caa"
"""What the suite notes beside sae-lens' own facts, inside `metadata`."""
WEIGHT_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")

_BLOCK_PLACE = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_MODULE_PLACE = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)")


@dataclass(frozen=True)
class StoredSAE:
    """What a folder holds, in one form for all versions."""

    weights: "dict[str, Tensor]"
    """W_enc, b_enc, W_dec, b_dec, and threshold where the architecture has one; float32, on the CPU."""
    architecture: Architecture
    k: int | None
    layer: int
    model: str
    source: str
    own: dict[str, Any] = field(default_factory=dict)
    """What the suite noted; empty for a folder from elsewhere."""


def layer_of_hook(hook_name: str, where: str) -> int:
    """The suite's layer, the block whose *output* is meant.

    `blocks.13.hook_resid_pre` of TransformerLens is the input of block 13 and so the output of block 12;
    `blocks.12.hook_resid_post` and the module `model.layers.12` are the output of block 12.

    Raises:
        UserError: Starting with `where`, if it is another place of the model.
    """
    if found := _BLOCK_PLACE.fullmatch(hook_name):
        layer = int(found[1]) - (found[2] == "pre")
    elif found := _MODULE_PLACE.fullmatch(hook_name):
        layer = int(found[1])
    else:
        layer = -1
    if layer < 0:
        raise UserError(
            f"{where}: it was trained at {short(hook_name)}; only SAEs of the residual stream behind a block are read "
            "(blocks.N.hook_resid_pre with N of 1 or more, blocks.N.hook_resid_post, model.layers.N)"
        )
    return layer


def hooks_of_layer(layer: int) -> tuple[str, str]:
    """A layer in TransformerLens' words: the output of block `layer`, which is the input of the next."""
    return f"blocks.{layer}.hook_resid_post", f"blocks.{layer + 1}.hook_resid_pre"


def is_sae_folder(folder: Path) -> bool:
    """Whether a whole SAE is there: `cfg.json` is written last."""
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def check_sae_folders(folders: Iterable[Path]) -> None:
    """
    Raises:
        UserError: If a folder that --saes names holds no whole SAE.
    """
    for folder in folders:
        if not is_sae_folder(folder):
            raise UserError(f"--saes {folder}: no SAE is there ({CONFIG_NAME}, {WEIGHTS_NAME}); run: train_sae.py")


# --- writing --------------------------------------------------------------------------------------


def write_folder(folder: Path, stored: StoredSAE, context_size: int | None = None) -> None:
    """Write a folder that sae-lens 6 loads with `SAE.load_from_disk`."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).unlink(missing_ok=True)  # the old one must not stand beside new weights
    with atomic_file(folder / WEIGHTS_NAME) as file:
        file.write(save({name: weights.contiguous() for name, weights in stored.weights.items()}))
    write_json(folder / CONFIG_NAME, _config_of(stored, context_size))


def _config_of(stored: StoredSAE, context_size: int | None) -> dict[str, Any]:
    d_in, d_sae = stored.weights["W_enc"].shape
    has_threshold = stored.architecture in ("batchtopk", "jumprelu")
    of_topk = {"k": stored.k, "rescale_acts_by_decoder_norm": False} if stored.architecture == "topk" else {}
    hook, same_hook = hooks_of_layer(stored.layer)
    own = {**stored.own, "architecture": stored.architecture, "k": stored.k, "source": stored.source}
    return {
        "architecture": "jumprelu" if has_threshold else stored.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **of_topk,
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "model_name": stored.model,
            "hook_name": hook,
            "dataset_path": stored.source,
            "context_size": context_size,
            OWN_KEY: {**own, "layer": stored.layer, "same_hook_name": same_hook},
        },
    }


# --- reading --------------------------------------------------------------------------------------


def read_folder(folder: Path) -> StoredSAE:
    """Read a folder of sae-lens 2 to 6, or of the suite.

    Raises:
        UserError: If it is missing, damaged, or an SAE of a kind that is not read here.
    """
    config = read_config(folder)
    weights = read_weights(folder)
    _refuse_other_inputs(config, folder)
    return interpret(config, weights, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """`cfg.json` with the words of version 6, whatever version wrote it; facts of the model stay at its top.

    Raises:
        UserError: If it is missing, or no such configuration.
    """
    path = folder / CONFIG_NAME
    config = read_json(path, "an SAE is a folder with cfg.json and sae_weights.safetensors; train one: train_sae.py")
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object, found {short(config)}")
    metadata = config.get("metadata")
    flat = {**config, **(metadata if isinstance(metadata, dict) else {})}
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        flat.setdefault(new, flat.get(old))
    of_activation = flat.get("activation_fn_kwargs")
    if flat["activation_fn"] == "topk" and isinstance(of_activation, dict):
        flat.update(architecture="topk", k=of_activation.get("k"))
    normalised = flat.get("normalize_activations")
    if not isinstance(normalised, str):  # versions 2 and 3 wrote a truth value, or nothing
        flat["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    return {"architecture": "standard", "apply_b_dec_to_input": True, **flat}


def read_weights(folder: Path) -> "dict[str, Tensor]":
    """The weights of a folder, as float32 on the CPU.

    Raises:
        UserError: If the file is missing or damaged, or a weight is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_NAME
    try:
        found = load_file(path)
    except FileNotFoundError as err:
        raise UserError(f"{path} not found; an SAE is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}") from err
    except (SafetensorError, ValueError) as err:
        raise UserError(f"{path} is not a readable safetensors file; fetch or train it again") from err
    weights = {name: value.to(torch.float32) for name, value in found.items()}
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} has NaN or infinite values; fetch or train it again")
    return weights


def interpret(config: Mapping[str, Any], weights: "Mapping[str, Tensor]", folder: Path) -> StoredSAE:
    """What configuration and weights mean, in the one form of `StoredSAE`.

    Raises:
        UserError: If the architecture or the place in the model is one that is not read here, or a weight is missing.
    """
    path = folder / CONFIG_NAME
    own = config.get(OWN_KEY)
    own = own if isinstance(own, dict) else {}
    architecture = own.get("architecture", config["architecture"])
    if architecture not in get_args(Architecture):
        raise UserError(
            f"{path}: SAEs of architecture {short(architecture)} are not read here, "
            f"only {', '.join(get_args(Architecture))}; sae-lens reads more (requirements-sae.txt)"
        )
    k = own.get("k", config.get("k"))
    if k is not None and not (isinstance(k, int | float) and k >= 1):
        raise UserError(f"{path}: k is {short(k)}; expected a number of 1 or more")
    hook = config.get("hook_name")
    return StoredSAE(
        weights=_folded(config, weights, architecture, folder),
        architecture=architecture,
        k=None if k is None else int(k),
        layer=layer_of_hook(hook if isinstance(hook, str) else "", str(path)),
        model=str(config.get("model_name") or "unknown"),
        source=str(own.get("source") or config.get("dataset_path") or "unknown"),
        own=own,
    )


def _folded(
    config: Mapping[str, Any], weights: "Mapping[str, Tensor]", architecture: str, folder: Path
) -> "dict[str, Tensor]":
    """The weights in the one form: nothing is subtracted from the input, nothing rescaled."""
    names = (*WEIGHT_NAMES, *(["threshold"] if architecture in ("batchtopk", "jumprelu") else []))
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"{folder / WEIGHTS_NAME}: {', '.join(missing)} is missing; fetch or train it again")
    scaling = weights.get("scaling_factor")
    if scaling is not None and not bool((scaling == 1).all()):
        raise UserError(
            f"{folder / WEIGHTS_NAME}: its latents are rescaled by a scaling_factor (fine-tuning of sae-lens 3), "
            "which is not read here"
        )
    kept = {name: weights[name] for name in names}
    if kept["W_enc"].shape[::-1] != kept["W_dec"].shape or kept["b_dec"].shape != kept["W_dec"].shape[1:]:
        raise UserError(
            f"{folder / WEIGHTS_NAME}: W_enc {list(kept['W_enc'].shape)}, W_dec {list(kept['W_dec'].shape)} and b_dec "
            f"{list(kept['b_dec'].shape)} do not fit together; fetch or train it again"
        )
    if config["apply_b_dec_to_input"]:
        kept["b_enc"] = kept["b_enc"] - kept["b_dec"] @ kept["W_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        kept = fold_decoder_norms(kept)
    return kept


def fold_decoder_norms(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The same SAE with decoder rows of norm 1: what a latent loses in its row it gains in its activation.

    For TopK the winners may change, unless they were chosen by the rescaled activations.
    """
    norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)  # [d_sae]
    folded = {**weights, "W_dec": weights["W_dec"] / norms[:, None]}
    for name in ("W_enc", "b_enc", "threshold"):
        if name in weights:
            folded[name] = weights[name] * norms
    return folded


def _refuse_other_inputs(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an SAE that reads anything but the residual stream as it is."""
    normalised = config["normalize_activations"]
    if normalised != "none":
        raise UserError(
            f"{folder / CONFIG_NAME}: the SAE expects normalised input (normalize_activations {short(normalised)}) and "
            "the factor is not in the folder; the four published SAEs are repaired by saes/fetch_published_saes.py"
        )
    if config.get("reshape_activations", "none") != "none":
        raise UserError(f"{folder / CONFIG_NAME}: SAEs of attention heads (hook_z) are not read here")
