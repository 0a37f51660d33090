"""Steering vectors with what is known of them: what every format is written from and read into."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LAYER_CONVENTION = "decoder block output, counted from 0"
METADATA_KEY = "caa"
"""Under which metadata stands in files that have room for it; the prefix of its fields in GGUF."""


@dataclass(frozen=True, eq=False)
class VectorBundle:
    """Vectors of one behavior and model."""

    vectors: "Mapping[int, Tensor]"
    """By our layer, each [d_model] float32 on the CPU."""
    multiplier: float = 1.0
    """What they are to be added with: a coefficient of its own in formats that have one. Where a format has none,
    the vectors in the file are multiplied by it."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What is known of them, as text: model, weights_fingerprint, behavior, read, method, n_pairs, licence, ..."""
    model_type: str = ""
    """The architecture's name in transformers, such as `llama`; empty where it is not known."""
    n_layers: int | None = None
    """Of the model; None where it is not known."""

    @property
    def d_model(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def scaled(self) -> "dict[int, Tensor]":
        """The vectors times the multiplier; at 1 the very same bits."""
        if self.multiplier == 1.0:
            return dict(self.vectors)
        return {layer: (vector.double() * self.multiplier).float() for layer, vector in self.vectors.items()}

    def metadata(self, *, is_scaled: bool) -> dict[str, str]:
        """What a file says of itself, as text.

        Args:
            is_scaled: Whether the vectors in the file are multiplied by the multiplier.
        """
        vectors = self.scaled if is_scaled else self.vectors
        norms = {str(layer): float(vector.double().norm()) for layer, vector in sorted(vectors.items())}
        return {
            **self.facts,
            "d_model": str(self.d_model),
            "layer_convention": LAYER_CONVENTION,
            "norms": json.dumps(norms),
            "multiplier": repr(self.multiplier),
            "multiplier_is_in_the_vectors": "yes" if is_scaled else "no",
        }

    @property
    def only(self) -> "tuple[int, Tensor]":
        """Layer and vector, for formats that hold one.

        Raises:
            UserError: If there are several.
        """
        if len(self.vectors) != 1:
            raise UserError(f"this format holds one layer a file, not {len(self.vectors)}; leave --one_file out")
        return next(iter(self.vectors.items()))


@dataclass(frozen=True, eq=False)
class ImportedBundle:
    """What a file of any format holds."""

    format_name: str
    vectors: "Mapping[int, Tensor]"
    """By our layer, as the file holds them, each [d_model] float32."""
    coefficient: float = 1.0
    """What the file says to add them with."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the file says of itself; empty for files from elsewhere."""
    left_out: tuple[str, ...] = ()
    """What it holds beside that has no place here, in words."""


def text_facts(value: Any) -> dict[str, str]:
    """Metadata as a file holds it: names to texts. What is of another shape is left out."""
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}
