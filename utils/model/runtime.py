"""A loaded model as the passes see it: its blocks, its batches, its guard, and which items may share a pass."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from utils.errors import UserError
from utils.model.architectures import attention_window, find_decoder_layers, position_switch
from utils.model.batching import Batcher
from utils.model.guard import Guard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class Runtime:
    """What reading, scoring and generating need of a model."""

    def __init__(
        self, model: "PreTrainedModel", pad_id: int, label: str, arithmetic: torch.dtype | None = None
    ) -> None:
        """
        Args:
            model: The model.
            pad_id: What stands where a row has no token.
            label: The model's.
            arithmetic: The dtype in which it computes; None for that of its weights.

        Raises:
            UserError: If the architecture cannot be steered correctly.
        """
        self.model, self.pad_id, self.label = model, pad_id, label
        self.layers = find_decoder_layers(model, label)
        self.config = model.config.get_text_config(decoder=True)
        self.batcher = Batcher(self.device, self.dtype, self.config)
        self.guard = Guard(label, arithmetic or self.dtype)
        self._window = attention_window(self.config)
        self._switch = position_switch(self.config)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def fits(self, length: int) -> bool:
        """Whether so many tokens are within the model's context, as far as its configuration says."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return limit is None or length <= limit

    def check_lengths(self, lengths: Sequence[int], n_new_tokens: int = 0) -> None:
        """Refuse what is longer than the model's context; UserError names the item."""
        for index, length in enumerate(lengths):
            if not self.fits(length + n_new_tokens):
                raise UserError(
                    f"item {index} has {length} tokens (and {n_new_tokens} to come), but {self.label} "
                    f"takes at most {self.config.max_position_embeddings}; shorten it"
                )

    def packable(self, lengths: Sequence[int]) -> list[int]:
        """Items short enough for a packed pass: its mask replaces a sliding window, so none may be exceeded."""
        self.check_lengths(lengths)
        packable = [i for i, length in enumerate(lengths) if length <= self._window]
        if len(packable) < len(lengths):
            log.warning(
                "%d of %d prompts are longer than the attention window of %s; they run one combination at a time",
                len(lengths) - len(packable),
                len(lengths),
                self.label,
            )
        return packable

    def apart(self, items: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Groups of items that may share a pass (see `architectures.position_switch`); none is empty."""
        groups: dict[bool, list[int]] = {}
        for item in items:
            groups.setdefault(self.is_beyond_switch(lengths[item]), []).append(item)
        return list(groups.values())

    @property
    def switch(self) -> float:
        """Length beyond which positions are encoded otherwise; infinite where they are not."""
        return self._switch

    def is_beyond_switch(self, length: int) -> bool:
        """Whether positions are encoded as in long sequences."""
        return length > self._switch

    def switches_within(self, shortest: int, longest: int) -> bool:
        """Whether positions are encoded differently for some of these lengths than for others."""
        return self.is_beyond_switch(longest) and not self.is_beyond_switch(shortest)
