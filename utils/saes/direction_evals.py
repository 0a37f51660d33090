"""What the scripts on SAEs and the refusal direction share: the request, the SAEs, and prompts at their layers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.files.reading import sha256_of
from utils.paths import DataPaths
from utils.saes.prompts import PromptSource, SystemPrompt
from utils.saes.requests import ModelRequest, is_done

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.saes.dictionary import SAE
    from utils.saes.fidelity import Sides

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalRequest:
    """An evaluation of some SAEs on one model's refusal direction."""

    script: str
    """Names the results."""
    source: PromptSource
    model: ModelRequest
    folders: tuple[Path, ...]
    layer: int | None
    """The layer that all SAEs must read; None for each its own."""
    position: int
    n_prompts: int
    system_prompt: SystemPrompt
    n_random: int
    """Draws of each control."""
    seed: int
    command: str
    own: tuple[tuple[str, Any], ...] = ()
    """Further settings of the script that its numbers depend on."""

    @property
    def paths(self) -> DataPaths:
        return self.source.paths

    @property
    def stem(self) -> Path:
        return self.paths.sae_analysis(f"{self.script}_{self.model.name}")

    @property
    def result_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".json")

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            **self.model.describe(),
            "saes": {folder.resolve().name: _weights_sha256(folder) for folder in self.folders},
            "position": self.position,
            "n_prompts": self.n_prompts,
            "system_prompt": self.system_prompt,
            "n_random": self.n_random,
            "prompts": self.source.describe(("train",)),
            "seed": self.seed,
            **dict(self.own),
        }

    def is_done(self, *, overwrite: bool) -> bool:
        """
        Raises:
            UserError: If an SAE is missing, two bear one name, or the result was made with other settings.
        """
        names = [folder.resolve().name for folder in self.folders]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"--saes: {twice[0]} is named twice; SAEs are told apart by their folders' names")
        return is_done(self.result_path, self.settings(), overwrite=overwrite)


def _weights_sha256(folder: Path) -> str:
    if not folder.is_dir():
        raise UserError(f"--saes {folder}: there is no such folder; train one with ./saes/train_sae.py")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"--saes {folder}: no weights (*.safetensors) in it; name an SAE's folder")
    return sha256_of(weights[0])


@dataclass(frozen=True, eq=False)
class Read:
    """An SAE with what the prompts give at its layer."""

    sae: "SAE"
    sides: "Sides"


def read_all(model: "LlamaWrapper", request: EvalRequest, *, other_models: bool = False) -> list[Read]:
    """Load the SAEs, check them, and read the prompts at all of their layers in one pass each.

    Args:
        model: Whose direction it is.
        request: What is evaluated.
        other_models: Whether SAEs of other checkpoints of this shape are meant.

    Raises:
        UserError: If an SAE is damaged, or none of this model, width or layer.
    """
    from utils.saes.dictionary import SAE, check_fits
    from utils.saes.directions import encode_all, prompt_activations
    from utils.saes.fidelity import Sides

    saes = [SAE.load(folder) for folder in request.folders]
    for sae in saes:
        check_fits(sae, model.label, model.d_model, model.n_layers, other_model=other_models)
        if request.layer is not None and sae.layer != request.layer:
            raise UserError(f"SAE {sae.name} reads layer {sae.layer}, not --layer {request.layer}; leave --layer out")
        if not other_models and sae.own.get("weights_fingerprint", model.fingerprint) != model.fingerprint:
            log.warning("SAE %s was trained on other weights of %s: %s", sae.name, model.label, sae.trained_on_model)
    layers = sorted({sae.layer for sae in saes})
    prompts = request.source.load("train", request.n_prompts)
    log.info("reading %d harmful and %d harmless prompts at layers %s", len(prompts), len(prompts), layers)
    harmful, harmless = (
        prompt_activations(model, encode_all(model, texts, request.system_prompt), layers, (request.position,))
        for texts in (prompts.harmful, prompts.harmless)
    )
    at = {layer: Sides(harmful[:, place, 0], harmless[:, place, 0]) for place, layer in enumerate(layers)}
    return [Read(sae, at[sae.layer]) for sae in saes]


def labels_of(saes: Sequence["SAE"]) -> list[str]:
    """Names for figures: what they were trained on, and in what their folders' names differ where it is the same."""
    labels = []
    for sae in saes:
        names = [one.name.split("_") for one in saes if _trained_on(one) == _trained_on(sae)]
        n_alike = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False)))
        own = sae.name.split("_")[n_alike:]
        labels.append(", ".join([_trained_on(sae), *(["_".join(own)] if own else [])]))
    return labels


def _trained_on(sae: "SAE") -> str:
    return f"{sae.trained_on_model}\n{sae.source}"


def describe_sae(sae: "SAE") -> dict[str, Any]:
    from utils.saes.directions import hook_name

    return {
        "sae": sae.name,
        "trained_on_model": sae.trained_on_model,
        "trained_on_data": sae.source,
        "layer": sae.layer,
        "hook": hook_name(sae.layer),
        "architecture": sae.architecture,
        "d_sae": sae.d_sae,
        "k": sae.k,
    }
