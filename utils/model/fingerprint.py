"""What tells a model's weights from others."""

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fingerprint_of(model: "PreTrainedModel", *made_into: str) -> str:
    """A hash of a few values of every parameter, and of what is made of them."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        if weights.numel() and weights.device.type != "meta":  # as accelerate leaves what it has put on a disk
            places = torch.arange(16, device=weights.device) * (weights.numel() - 1) // 15  # evenly spaced
            values = weights.detach()[torch.unravel_index(places, weights.shape)]
            digest.update(values.float().cpu().numpy().tobytes())
    for word in made_into:
        digest.update(word.encode())
    return digest.hexdigest()[:16]
