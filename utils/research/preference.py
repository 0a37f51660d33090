"""What steering does to the preference for the matching answer's text, on held-out items."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.data.records import TextPair
from utils.evaluation.preferences import answer_pair, preferences
from utils.model.steering import Steering, Steerings, as_tuple

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]


def both_signs(
    model: "LlamaWrapper", items: Sequence[TextPair], steerings: Sequence[Steering | Sequence[Steering]], label: str
) -> FloatArray:
    """The preference under each steering minus that under its opposite, [n_steerings, n_items], nats per token."""
    signed: list[Steerings] = [
        tuple(replace(part, multiplier=sign * part.multiplier) for part in as_tuple(one))
        for one in steerings
        for sign in (1, -1)
    ]
    pairs = [answer_pair(model.chat_format, item) for item in items]
    found = preferences(model, pairs, signed, label=label)
    return found[0::2] - found[1::2]
