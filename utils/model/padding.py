"""Sequences of different lengths as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (1 for real tokens), both [batch, seq_len], padded on the left."""
    length = max(len(sequence) for sequence in sequences)
    ids = [[*[pad_id] * (length - len(sequence)), *sequence] for sequence in sequences]
    mask = [[0] * (length - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
