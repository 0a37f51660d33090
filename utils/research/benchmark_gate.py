"""The gate of the gated method: opens on prompts like those that a behavior's vectors are made from."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.records import PromptPair
from utils.model.conditions import FEWEST_PAIRS, fit_condition, open_gates
from utils.model.steering import Condition
from utils.research.benchmark_measures import neutral_texts
from utils.research.benchmark_methods import NotRun

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.research.benchmark_request import BenchmarkRequest

log = logging.getLogger(__name__)


def fit_gate(model: "LlamaWrapper", request: "BenchmarkRequest", questions: Sequence[str]) -> Condition:
    """Fitted to a behavior's questions and to neutral ones, of which nothing else is measured.

    Raises:
        NotRun: If there are too few of them.
    """
    others = [question for question, _ in neutral_texts(request.paths)][request.sizes.texts :]
    pairs = [PromptPair(own, other) for own, other in zip(questions, others, strict=False)]
    if len(pairs) < FEWEST_PAIRS:
        raise NotRun(f"a gate needs {FEWEST_PAIRS} neutral texts beside the {request.sizes.texts} that are measured")
    fitted = fit_condition(model, pairs, request.layers)
    log.info("gate: %s", fitted.describe())
    return fitted.condition


def gate_facts(model: "LlamaWrapper", gate: Condition, **questions: Sequence[str]) -> dict[str, Any]:
    """For the unit: where it is, and the share of some questions that it opens on."""

    def is_open(question: str) -> bool:
        return bool(open_gates(model, model.chat_format.encode(question), [gate]))

    opens = {name: float(np.mean([is_open(question) for question in some])) for name, some in questions.items()}
    return {"layer": gate.layer, "threshold": gate.threshold, "opens_above": gate.opens_above, "opens_on": opens}
