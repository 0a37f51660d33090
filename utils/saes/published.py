"""The four published SAEs of "SAEs are highly dataset dependent", and the repair that their checkpoints need.

They were trained with normalised input; folding the factor back into the weights left b_dec out (an error of the
sae-lens of that time). The published scripts mend that after loading, and then fold the norms of the decoder rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.saes import formats
from utils.saes.dictionary import SAE

WANDB_ENTITY = "ckkissane"


@dataclass(frozen=True)
class PublishedSAE:
    """One of them."""

    model: str
    """Checkpoint on the Hugging Face hub."""
    source: str
    project: str
    """wandb project."""
    artifact: str
    """wandb artifact with its version."""
    factor: float
    """What activations were multiplied with in training, and b_dec is to be divided by."""

    @property
    def url(self) -> str:
        name, _, version = self.artifact.partition(":")
        return f"https://wandb.ai/{WANDB_ENTITY}/{self.project}/artifacts/model/{name}/{version}/files"


_CHAT = ("Qwen/Qwen1.5-0.5B-Chat", "sae_qwen1.5-0.5b-chat_blocks.13.hook_resid_pre_32768")
_BASE = ("Qwen/Qwen1.5-0.5B", "sae_qwen1.5-0.5b_blocks.13.hook_resid_pre_32768")
PUBLISHED: Mapping[str, PublishedSAE] = {
    "chat_lmsys": PublishedSAE(
        _CHAT[0], "lmsys", "qwen-500M-chat-lmsys-1m-anthropic", f"{_CHAT[1]}:v11", 1.5326804001319736
    ),
    "chat_pile": PublishedSAE(
        _CHAT[0], "pile", "qwen-500M-chat-pile-inst-format-with-assistant", f"{_CHAT[1]}:v3", 1.573157268076237
    ),
    "base_lmsys": PublishedSAE(_BASE[0], "lmsys", "qwen-500M-base-lmsys-1m", f"{_BASE[1]}:v3", 1.875230672855483),
    "base_pile": PublishedSAE(
        _BASE[0], "pile", "qwen-500M-base-pile-inst-format-with-assistant", f"{_BASE[1]}:v3", 1.944763706304832
    ),
}
"""By the name that they get here: what the model is, and what the text."""


def repaired(folder: Path, which: str) -> SAE:
    """Read a published checkpoint as it was uploaded, and mend it.

    b_dec is divided by the factor, then every decoder row is brought to norm 1.

    Raises:
        UserError: If the folder does not hold a standard SAE of the published place in the model.
    """
    published = PUBLISHED[which]
    config = formats.read_config(folder)
    weights = formats.read_weights(folder)
    if config["architecture"] != "standard" or config["apply_b_dec_to_input"]:
        raise UserError(
            f"{folder / formats.CONFIG_NAME}: not the published checkpoint {published.artifact}, which is a standard "
            f"SAE that does not subtract b_dec from its input; fetch it from {published.url}"
        )
    if config["normalize_activations"] == "none":
        raise UserError(
            f"{folder / formats.CONFIG_NAME}: normalize_activations is none, so this checkpoint is mended already; "
            f"fetch the one at {published.url}"
        )
    if "b_dec" in weights:
        weights["b_dec"] = weights["b_dec"] / published.factor
    stored = formats.interpret(config, weights, folder)
    own = {"published_as": f"{WANDB_ENTITY}/{published.project}/{published.artifact}", "factor": published.factor}
    mended = formats.StoredSAE(
        formats.fold_decoder_norms(stored.weights),
        *(stored.architecture, stored.k, stored.layer, published.model, published.source, own),
    )
    return SAE.from_stored(mended, which)
