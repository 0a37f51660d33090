"""Which activations an SAE is trained or measured on; needs no torch."""

from dataclasses import dataclass
from typing import Literal

from utils.errors import UserError
from utils.saes.text import Split, TextSource

StoredDtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class ActivationPlan:
    """Which activations: of what text, where, how many."""

    source: TextSource
    layer: int
    """The block whose output is read."""
    n_tokens: int
    """At least so many; the last sequence is used whole."""
    context: int = 256
    """Tokens a sequence; one less of activations."""
    buffer: int = 65_536
    """Tokens a portion."""
    dtype: StoredDtype = "float16"
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.context < 2:
            raise UserError(f"--context {self.context}: the first token of a sequence is left out; give 2 or more")
        if self.buffer < self.context - 1:
            raise UserError(f"--buffer {self.buffer} holds no sequence of --context {self.context}; give a larger one")

    @property
    def n_sequences(self) -> int:
        return -(-self.n_tokens // (self.context - 1))

    @property
    def sequences_per_portion(self) -> int:
        return self.buffer // (self.context - 1)

    @property
    def n_portions(self) -> int:
        return -(-self.n_sequences // self.sequences_per_portion)

    def n_rows(self, portion: int) -> int:
        """Tokens of a portion; the last may be shorter."""
        start = portion * self.sequences_per_portion
        return (min(self.n_sequences, start + self.sequences_per_portion) - start) * (self.context - 1)

    @property
    def total_rows(self) -> int:
        return self.n_sequences * (self.context - 1)
