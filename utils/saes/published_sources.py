"""The four published SAEs of "SAEs are highly dataset dependent": where they are, and how they are fetched."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.saes.formats import CONFIG_NAME, WEIGHTS_NAME, is_sae_folder

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


def find_download(folder: Path, which: str) -> Path:
    """The folder of one of them among those that were fetched by hand.

    Raises:
        UserError: Says where it should be and where it can be had.
    """
    place = folder / which
    if not is_sae_folder(place):
        raise UserError(
            f"{place} does not hold {CONFIG_NAME} and {WEIGHTS_NAME}; fetch both from {PUBLISHED[which].url}"
        )
    return place


def fetch_artifact(which: str, scratch: Path) -> Path:
    """Download one of them with the wandb client; the folder that it came into.

    Raises:
        UserError: If the client is not installed or does not get it.
    """
    published = PUBLISHED[which]
    by_hand = f"or fetch {CONFIG_NAME} and {WEIGHTS_NAME} by hand from {published.url} and use --from_dir"
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError as err:
        raise UserError(f"the wandb client is not installed; run: pip install wandb, {by_hand}") from err
    try:
        artifact = wandb.Api().artifact(f"{WANDB_ENTITY}/{published.project}/{published.artifact}")
        came = Path(artifact.download(root=str(scratch)))
    except (wandb.errors.Error, OSError, ValueError) as err:
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise UserError(f"wandb.ai does not give it ({reason[:120]}); set WANDB_API_KEY, {by_hand}") from err
    found = [path.parent for path in came.rglob(CONFIG_NAME)]
    if len(found) != 1 or not is_sae_folder(found[0]):
        raise UserError(f"the artifact {published.artifact} does not hold {CONFIG_NAME} and {WEIGHTS_NAME}; {by_hand}")
    return found[0]
