"""A sparse autoencoder of the residual stream behind one decoder block."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model.checkpoints import checkpoint_label
from utils.saes import formats
from utils.saes.formats import Architecture, StoredSAE


@dataclass(frozen=True, eq=False)
class SAE:
    """`f = activation(x W_enc + b_enc)`, `x_hat = f W_dec + b_dec`, on the residual stream x as it is."""

    W_enc: Tensor
    """[d_model, d_sae]"""
    b_enc: Tensor
    """[d_sae]"""
    W_dec: Tensor
    """[d_sae, d_model]; a row is a latent's direction."""
    b_dec: Tensor
    """[d_model]"""
    architecture: Architecture
    k: int | None
    """Latents a token: exactly at most (topk), on average over a batch (batchtopk); None for the others."""
    layer: int
    """The decoder block whose output it reads, counted from 0."""
    model: str
    """The checkpoint's label."""
    source: str
    """What text it was trained on."""
    name: str
    """How it is called in tables and figures; by default its folder's name."""
    threshold: Tensor | None = None
    """[d_sae]; activations up to it count as 0 (batchtopk, jumprelu)."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the suite noted when it was trained: the model's weights_fingerprint, seed, format and so on."""

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: If the shapes do not fit together, or k is not possible.
        """
        d_model, d_sae = self.W_enc.shape
        shapes = {"b_enc": (d_sae,), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
        if self.architecture in ("batchtopk", "jumprelu"):
            shapes["threshold"] = (d_sae,)
        for weight, shape in shapes.items():
            found = getattr(self, weight)
            if found is None or tuple(found.shape) != shape:
                there = "missing" if found is None else list(found.shape)
                raise UserError(
                    f"SAE {self.name}: {weight} is {there}, but W_enc [{d_model}, {d_sae}] wants {list(shape)}"
                )
        if self.architecture == "topk" and (self.k is None or not 1 <= self.k <= d_sae):
            raise UserError(f"SAE {self.name}: k is {self.k}, but it has {d_sae} latents; k must be from 1 to {d_sae}")

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def hook_name(self) -> str:
        """The place in TransformerLens' words: `blocks.12.hook_resid_post` is the suite's layer 12."""
        return formats.hooks_of_layer(self.layer)[0]

    @property
    def trained_on_model(self) -> str:
        """The model in words for tables: its label, with the name of fine-tuned weights where it had such."""
        weights = self.own.get("weights")
        return f"{self.model} ({weights})" if weights else self.model

    # --- arithmetic ---

    def pre_activations(self, x: Tensor) -> Tensor:
        """x [..., d_model] of any float dtype -> [..., d_sae], before the activation function."""
        return x.to(self.W_enc) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d_model] of any float dtype -> latent activations [..., d_sae], 0 or more."""
        return activate(self.pre_activations(x), self.architecture, self.k, self.threshold)

    def decode(self, f: Tensor) -> Tensor:
        """Latent activations [..., d_sae] -> reconstruction [..., d_model]."""
        return f.to(self.W_dec) @ self.W_dec + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> x_hat, the same shape, in the SAE's dtype."""
        return self.decode(self.encode(x))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SAE":
        """The same on a device, in a dtype."""
        names = (*formats.WEIGHT_NAMES, *([] if self.threshold is None else ["threshold"]))
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in names})

    # --- files ---

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> "SAE":
        """Read a folder of the suite or of sae-lens 2 to 6; float32, on the CPU.

        Raises:
            UserError: If it is missing, damaged, or of a kind that is not read here.
        """
        return cls.from_stored(formats.read_folder(folder), name or folder.resolve().name)

    @classmethod
    def from_stored(cls, stored: StoredSAE, name: str) -> "SAE":
        about: dict[str, Any] = {key: getattr(stored, key) for key in ("architecture", "k", "layer", "source", "own")}
        about.update(stored.weights)
        return cls(**about, model=checkpoint_label(stored.model), name=name)

    def save(self, folder: Path) -> None:
        """Write a folder that sae-lens 6 loads too."""
        names = (*formats.WEIGHT_NAMES, *([] if self.threshold is None else ["threshold"]))
        weights = {name: getattr(self, name).detach().to("cpu", torch.float32) for name in names}
        stored = StoredSAE(weights, self.architecture, self.k, self.layer, self.model, self.source, dict(self.own))
        formats.write_folder(folder, stored, self.own.get("context"))


def activate(pre: Tensor, architecture: Architecture, k: int | None, threshold: Tensor | None) -> Tensor:
    """The activation function, [..., d_sae] -> [..., d_sae]."""
    positive = pre.relu()
    match architecture:
        case "standard":
            return positive
        case "topk":
            values, winners = positive.topk(k or 0, dim=-1, sorted=False)
            return torch.zeros_like(positive).scatter_(-1, winners, values)
        case "batchtopk" | "jumprelu":
            assert threshold is not None
            return positive * (pre > threshold)


def check_fits(sae: SAE, model_label: str, d_model: int, n_layers: int, *, other_model: bool = False) -> None:
    """Refuse an SAE that cannot be read on a model.

    Args:
        sae: The SAE.
        model_label: The model's checkpoint label.
        d_model: Width of its residual stream.
        n_layers: Its decoder blocks.
        other_model: Whether an SAE of another checkpoint of the same shape is meant, as in a comparison of models.

    Raises:
        UserError: If the widths differ, the layer is none of the model, or it is another model's SAE.
    """
    if sae.d_model != d_model:
        raise UserError(
            f"SAE {sae.name} has width {sae.d_model}, but the residual stream of {model_label} has {d_model}; "
            "use an SAE of this model"
        )
    if not 0 <= sae.layer < n_layers:
        raise UserError(f"SAE {sae.name} reads layer {sae.layer}, but {model_label} has layers 0 to {n_layers - 1}")
    if not other_model and sae.model.lower() not in (model_label.lower(), "unknown"):
        raise UserError(f"SAE {sae.name} was trained on {sae.model}, not on {model_label}; use an SAE of this model")


def random_dictionary(sae: SAE, seed: int) -> SAE:
    """A control of the same size: decoder rows are random directions of norm 1, the encoder is their transpose.

    It reads the input without b_dec, so that its activations are the projections on its rows.
    """
    rows = torch.randn(sae.d_sae, sae.d_model, generator=torch.Generator().manual_seed(seed))
    rows = (rows / rows.norm(dim=-1, keepdim=True)).to(sae.W_dec)
    return replace(
        sae, W_dec=rows, W_enc=rows.T.contiguous(), b_enc=-(sae.b_dec @ rows.T), name=f"random dictionary ({seed})"
    )
