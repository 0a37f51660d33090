"""Free answers to the questions to evaluate with, steered by multiples of the vector, and what they show.

Beside them stand a random vector of the same norm and direction by chance, and the system prompts themselves: what
asking in words does to the same questions.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.authoring.answers import load_answers
from utils.authoring.leaning import leanings
from utils.authoring.request import KIND, AuthoringRequest
from utils.authoring.written import Written
from utils.data.estimates import Estimate
from utils.evaluation.answer_effects import Fluency, FluencyRange
from utils.evaluation.answer_metrics import distinct_2
from utils.evaluation.chosen import Choice
from utils.evaluation.metrics import FloatArray, mean_estimates
from utils.evaluation.paired_tests import paired_tests
from utils.evaluation.plan import SweepPlan, SweepRequest, plan_sweeps
from utils.files.reading import load_vector, read_json
from utils.files.writing import save_tensor, write_json
from utils.model.perplexity import FreeAnswer, perplexities

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

RANDOM = "random"
VECTOR = "vector"
PROMPT = "prompt"


@dataclass(frozen=True)
class DemoPoint:
    """The answers under one condition."""

    condition: str
    """`vector`, `random`, or `prompt`."""
    multiplier: float
    """Of the vector; under `prompt` +1 for the prompt for the behavior and -1 for that against it."""
    value: Estimate
    """Mean leaning, or with a judge the mean grade of the trait."""
    change: Estimate
    """From no steering, paired by question; NaN there."""
    p_value: float
    p_family: float
    """Corrected over all that is compared with no steering."""
    fluency: Fluency
    faults: tuple[str, ...]
    """What is outside of the range in which text holds together."""
    coherence: Estimate | None = None
    """The judge's."""


def plan_demo(request: AuthoringRequest, choice: Choice, *, overwrite: bool) -> list[SweepPlan]:
    """The sweeps: the vector at every multiplier, and a random one at the outermost two."""
    ends = tuple(sorted({min(request.multipliers), max(request.multipliers)} - {0.0}))
    shared: dict[str, Any] = {
        "paths": request.paths,
        "choice": request.choice,
        "behaviors": (request.behavior,),
        "layers": (choice.chosen.layer,),
        "type": "open_ended",
        "max_new_tokens": request.max_new_tokens,
        "overwrite": overwrite,
        "batch_size": request.batch_size,
        "command": request.command,
    }
    own = SweepRequest(multipliers=request.multipliers, vector_kind=KIND, **shared)
    control = SweepRequest(multipliers=ends, vector_files=(random_path(request, choice),), **shared)
    return [plan_sweeps(own), plan_sweeps(control)]


def random_path(request: AuthoringRequest, choice: Choice) -> Path:
    name = f"random_{choice.chosen.layer}_{request.choice.label}.pt"
    return request.paths.analysis(request.behavior, name)


def write_random(request: AuthoringRequest, choice: Choice) -> None:
    """A vector of the same norm as the normalised one, in a direction of chance."""
    import torch

    path = request.paths.vector(request.behavior, choice.chosen.layer, request.choice.label, normalized=True, kind=KIND)
    vector = load_vector(path)
    drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(request.seed))
    save_tensor(random_path(request, choice), drawn * (vector.norm() / drawn.norm()))


def write_demo(model: "LlamaWrapper", plans: Sequence[SweepPlan]) -> int:
    """Make what is missing."""
    from utils.evaluation.sweep import run_sweeps
    from utils.evaluation.sweep_vectors import load_vectors

    return sum(run_sweeps(model, plan, load_vectors(plan)) for plan in plans if plan.waiting)


# --- what the answers show -------------------------------------------------------------------------


def demo_answers(
    request: AuthoringRequest, plans: Sequence[SweepPlan], written: Written
) -> dict[tuple[str, float], list[dict[str, str]]]:
    """The records of every condition and multiplier, in the order of the questions."""
    found: dict[tuple[str, float], list[dict[str, str]]] = {}
    for condition, plan in zip((VECTOR, RANDOM), plans, strict=True):
        [sweep] = plan.sweeps
        for layer, multiplier in sweep.combinations:
            found[condition, multiplier] = read_json(request.paths.result(sweep.settings.at(layer, multiplier)))
    place_of = {one.text: place for place, one in enumerate(written.evaluate)}
    pairs = [pair for pair in load_answers(request) if pair[0].split == "evaluate"]
    pairs.sort(key=lambda pair: place_of[pair[0].question])
    for column, multiplier in ((0, 1.0), (1, -1.0)):
        found[PROMPT, multiplier] = [
            {"question": pair[column].question, "model_output": pair[column].model_output} for pair in pairs
        ]
    return found


def measure_demo(
    model: "LlamaWrapper",
    written: Written,
    answers: Mapping[tuple[str, float], Sequence[Mapping[str, str]]],
    batch_size: int | None,
) -> dict[str, list[list[float | None]]]:
    """Leaning and perplexity of every answer, [n_conditions, n_questions] each, in the order of `answers`."""
    prompts = [written.system_prompts[place % len(written.system_prompts)] for place in range(len(written.evaluate))]
    rows = [[(one["question"], one["model_output"]) for one in records] for records in answers.values()]
    flat = [pair for row in rows for pair in row]
    leaned = leanings(model.runtime, model.chat_format, flat, [one for _ in rows for one in prompts], batch_size)
    free = [FreeAnswer(question, text) for question, text in flat]
    surprise = perplexities(model.runtime, model.chat_format, free, batch_size)
    n = len(prompts)
    known = [None if math.isnan(value) else float(value) for value in leaned]
    return {
        "leaning": [known[start : start + n] for start in range(0, len(flat), n)],
        "perplexity": [surprise[start : start + n] for start in range(0, len(flat), n)],
    }


def summarise_demo(
    answers: Mapping[tuple[str, float], Sequence[Mapping[str, str]]],
    values: FloatArray,
    perplexity: FloatArray,
    seed: int,
    coherence: FloatArray | None = None,
) -> list[DemoPoint]:
    """The points of the table.

    Args:
        answers: By condition and multiplier.
        values: Leaning or trait grade, [n_conditions, n_questions], in the order of `answers`; NaN where missing.
        perplexity: The same of perplexity.
        seed: Of resampling.
        coherence: The same of the judge's grades.
    """
    keys = list(answers)
    unsteered = keys.index((VECTOR, 0.0))
    differences = values - values[unsteered]
    differences[unsteered] = np.nan
    means, changes = mean_estimates(values, seed), mean_estimates(differences, seed)
    tests = paired_tests(differences, seed)
    grades = [None] * len(keys) if coherence is None else mean_estimates(coherence, seed, (0.0, 100.0))
    fluencies = [_fluency(answers[key], perplexity[row]) for row, key in enumerate(keys)]
    limits = FluencyRange.beside(fluencies[unsteered])
    return [
        DemoPoint(
            condition,
            multiplier,
            means[row],
            changes[row],
            float(tests.p_value[row]),
            float(tests.p_family[row]),
            fluencies[row],
            limits.faults(fluencies[row]),
            grades[row],
        )
        for row, (condition, multiplier) in enumerate(keys)
    ]


def _fluency(records: Sequence[Mapping[str, str]], perplexity: FloatArray) -> Fluency:
    texts = [record["model_output"] for record in records]
    repeats = [value for value in map(distinct_2, texts) if value is not None]
    known = perplexity[np.isfinite(perplexity)]
    return Fluency(
        float(np.median(known)) if len(known) else math.nan,
        float(np.mean(repeats)) if repeats else math.nan,
        float(np.mean([len(text.split()) for text in texts])),
        len(texts),
        sum(not text.strip() for text in texts),
    )


def as_array(rows: Sequence[Sequence[float | None]]) -> FloatArray:
    """[n_rows, n_columns]; NaN where there is no value."""
    return np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def save_measures(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, dict(content))
    log.info("wrote %s", path)
