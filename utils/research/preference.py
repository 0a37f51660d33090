"""What steering does to the preference for the matching answer's text, on held-out items."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.cli.progress import progress
from utils.data.records import TextPair
from utils.model.answer_scoring import AnswerPair
from utils.model.pairs import encode_answer
from utils.model.steering import Steering, Steerings, as_tuple

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]


def preferences(
    model: "LlamaWrapper", items: Sequence[TextPair], steerings: Sequence[Steerings], label: str
) -> FloatArray:
    """Log-probability per token of the matching answer minus that of the other, [n_steerings, n_items], nats."""
    pairs = [
        AnswerPair(
            encode_answer(model.chat_format, item.question, item.matching),
            encode_answer(model.chat_format, item.question, item.other),
        )
        for item in items
    ]
    found = np.empty((len(steerings), len(items)))
    with progress(total=len(items), desc=label, unit="item") as bar:
        for index, scores in model.score_answers(pairs, steerings):
            found[:, index] = (scores[:, 0] - scores[:, 1]).numpy()
            bar.update()
    return found


def both_signs(
    model: "LlamaWrapper", items: Sequence[TextPair], steerings: Sequence[Steering | Sequence[Steering]], label: str
) -> FloatArray:
    """The preference under each steering minus that under its opposite, [n_steerings, n_items], nats per token."""
    signed: list[Steerings] = [
        tuple(replace(part, multiplier=sign * part.multiplier) for part in as_tuple(one))
        for one in steerings
        for sign in (1, -1)
    ]
    found = preferences(model, items, signed, label)
    return found[0::2] - found[1::2]
