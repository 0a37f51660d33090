"""The preference for the matching answer's text: what `answer_text` measures, of many steerings at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.cli.progress import progress
from utils.data.records import TextPair
from utils.model import processes
from utils.model.answer_rows import AnswerPair
from utils.model.chat_format import ChatFormat
from utils.model.pairs import encode_answer
from utils.model.steering import Steerings

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]


def answer_pair(
    chat_format: ChatFormat, item: TextPair, before: str = "", system_prompt: str | None = None
) -> AnswerPair:
    """Both answers of an item as tokens; `before` stands in front of its question."""
    question = before + item.question
    answers = (encode_answer(chat_format, question, text, system_prompt) for text in (item.matching, item.other))
    return AnswerPair(*answers)


def preferences(
    model: "LlamaWrapper",
    pairs: Sequence[AnswerPair],
    steerings: Sequence[Steerings],
    batch_size: int | None = None,
    label: str = "items",
) -> FloatArray:
    """Log-probability per token of the matching answer minus that of the other, [n_steerings, n_items], nats.

    Several processes share the items, and each gets all. `label` is for the progress line.
    """
    own = {}
    with progress(total=len(pairs), desc=label, unit="item") as bar:
        for index, scores in model.score_answers(pairs, steerings, batch_size):
            own[index] = (scores[:, 0] - scores[:, 1]).numpy()
            bar.update()
    found = np.full((len(steerings), len(pairs)), np.nan)
    for share in processes.gather(own):
        for index, values in share.items():
            found[:, index] = values
    return found
