"""Results in words, the same in figures, tables, on the terminal and on the report page."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from utils.behaviors import Behavior, list_behaviors, load_behavior, published_behaviors
from utils.data.estimates import Estimate
from utils.evaluation.effects import ALPHA
from utils.paths import REPOSITORY, DataPaths
from utils.settings import ResultType, Side, SteeringSettings, VectorKind

P = ParamSpec("P")
T = TypeVar("T")

TYPE_LABELS: dict[ResultType, str] = {
    "ab": "A/B questions",
    "open_ended": "Open-ended answers",
    "truthful_qa": "TruthfulQA",
    "mmlu": "MMLU",
    "answer_text": "Preference for answer texts",
}
VALUE_LABELS: dict[ResultType, str] = {
    "ab": "p(answer matching behavior)",
    "open_ended": "judge's score (0-10)",
    "truthful_qa": "p(correct answer)",
    "mmlu": "p(correct answer)",
    "answer_text": "preference for matching answer (nats per token)",
}
PLAIN = "no system prompt"
PROMPT_LABELS: dict[Side | None, str] = {None: PLAIN, "pos": "positive system prompt", "neg": "negative system prompt"}
WEIGHTS_LABELS = {"pos": "fine-tuned towards it", "neg": "fine-tuned against it"}

# --- statistics: the one place that names methods -----------------------------------------------------

INTERVAL = "95% interval over items"
INTERVAL_METHOD = (
    "95% bootstrap interval over items (BCa; wider where fewer than 5 items differ from the most common value)"
)
SHARE_INTERVAL_METHOD = "95% Wilson interval"
TEST = (
    "two-sided bootstrap-t test that the change is 0 (none where fewer than 5 items differ from the most common change)"
)
FAMILY = "corrected for all layers and multipliers of the condition and behavior (step-down)"
P_HEADING = "p (family)"
HOLDS_HEADING = "holds"
HOLDS = "differs from multiplier 0 after correction for all layers and multipliers"
EFFECT_NOTES = (
    f"mean: over the n items that can be scored, of n_total; ci: {INTERVAL_METHOD}",
    "change: mean difference to multiplier 0 on the same n_paired items, with its interval",
    f"p: {TEST}; p_family: {FAMILY}; holds: p_family < {ALPHA:g}",
)
P_NOTE = f"p: {TEST}, on the same items as multiplier 0; {FAMILY}"

# --- behaviors ---------------------------------------------------------------------------------------

_BUNDLED = DataPaths(REPOSITORY)
_known: ContextVar[DataPaths] = ContextVar("known", default=_BUNDLED)


@contextmanager
def behaviors_of(paths: DataPaths) -> Iterator[None]:
    """Within the block, behaviors are those of a root (and, behind them, the bundled ones)."""
    token = _known.set(paths)
    try:
        yield
    finally:
        _known.reset(token)


def of_its_root(job: Callable[P, T]) -> Callable[P, T]:
    """A job whose request, its first argument, says by `paths` where its behaviors are."""

    @wraps(job)
    def within(*args: P.args, **options: P.kwargs) -> T:
        request: Any = args[0]
        with behaviors_of(request.paths):
            return job(*args, **options)

    return within


def describe(behavior: str) -> Behavior:
    """What is known of a behavior, within `behaviors_of`."""
    return load_behavior(_known.get(), behavior)


def behavior_label(behavior: str) -> str:
    return describe(behavior).label


def behavior_meaning(behavior: str) -> str:
    """What a matching answer does."""
    return describe(behavior).meaning


def behavior_place(behavior: str) -> int:
    """Its place among all behaviors, by which it looks the same in every figure."""
    return list_behaviors(_known.get()).index(behavior)


def in_order(behaviors: Iterable[str]) -> list[str]:
    return sorted(set(behaviors), key=behavior_place)


def are_all(behaviors: Iterable[str]) -> bool:
    """Whether these are all behaviors that there are, so that a name or command need not list them."""
    return set(behaviors) == set(published_behaviors())


def meaning_note(behavior: str, result_type: ResultType) -> str:
    """What a high value means; empty for the knowledge tests, which ask no behavior."""
    if result_type in ("truthful_qa", "mmlu"):
        return ""
    return f"matching = {behavior_meaning(behavior).split(' (')[0]}"


def against_the_name(behaviors: Sequence[str], result_type: ResultType) -> str:
    """For figures of several behaviors: the one whose name says the opposite of what is measured."""
    if result_type in ("truthful_qa", "mmlu"):
        return ""
    against = [behavior for behavior in behaviors if describe(behavior).against_its_name]
    return "; ".join(f"{behavior_label(behavior)}: {meaning_note(behavior, result_type)}" for behavior in against)


# --- conditions --------------------------------------------------------------------------------------

_WEIGHTS_NAME = re.compile(r"(?:.*-)?[A-Za-z-]+_(pos|neg)_finetune_(all|\d+)(_lora)?\.pt")


def condition_label(at: SteeringSettings) -> str:
    """Everything but model, behavior, layer and multiplier; plain steering: `no system prompt`."""
    parts = [] if at.system_prompt is None else [PROMPT_LABELS[at.system_prompt]]
    if at.override_vector is not None or at.override_vector_model is not None:
        parts.append(transfer_label(at))
    if at.vector_behavior is not None:
        parts.append(f"vector of {behavior_label(at.vector_behavior)}")
    if at.override_model_weights_path is not None:
        parts.append(weights_label(at.override_model_weights_path))
    if at.vector_kind != VectorKind():
        own = ", from the model's own answers" if at.origin == "answers" else ""
        part = "" if at.part is None else f"{at.part} of the "
        parts.append(f"{part}vector read at {at.read}, by {at.method}{own}")
    if at.vector is not None:
        parts.append(f"vector {at.vector}")
    if at.operator != "add":
        cut = f" at the {at.quantile:g} quantile" if at.operator == "cap" else ""
        parts.append(f"operator {at.operator}{cut}")
    if at.beside is not None:
        parts.append(f"beside {at.beside}")
    if at.condition is not None:
        parts.append(f"on condition {at.condition}")
    if at.limit is not None:
        parts.append(f"first {at.limit} items")
    if at.steer_positions == "all":
        parts.append("every token steered")
    return ", ".join([*parts, *sampling_words(at)]) or PLAIN


def sampling_words(at: SteeringSettings) -> list[str]:
    """How answers were sampled; empty for greedy decoding."""
    if not at.temperature:
        return []
    samples = "1 sample" if at.num_samples == 1 else f"{at.num_samples} samples"
    return [f"temperature {at.temperature:g}", f"{samples} a question", f"seed {at.seed}"]


def with_sampling(label: str, at: SteeringSettings) -> str:
    return ", ".join([label, *sampling_words(at)])


def transfer_label(at: SteeringSettings) -> str:
    parts = ["vector"]
    if at.override_vector is not None:
        parts.append(f"of layer {at.override_vector}")
    if at.override_vector_model is not None:
        parts.append(f"of {at.override_vector_model}")
    return " ".join(parts)


def weights_label(name: str) -> str:
    """Fine-tuned weights as in a result's name, in words."""
    match = _WEIGHTS_NAME.fullmatch(name)
    if match is None:
        return name
    details = [] if match.group(2) == "all" else [f"layer {match.group(2)}"]
    details += ["LoRA"] if match.group(3) else []
    return WEIGHTS_LABELS[match.group(1)] + (f" ({', '.join(details)})" if details else "")


def are_positive_weights(name: str) -> bool:
    match = _WEIGHTS_NAME.fullmatch(name)
    return match is not None and match.group(1) == "pos"


# --- numbers -----------------------------------------------------------------------------------------


def interval_text(estimate: Estimate, digits: int = 3) -> str:
    """E.g. `0.753 [0.682, 0.811]`; the value alone where there is no interval."""
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def count_note(estimates: Sequence[Estimate]) -> str:
    """How many items the values cover, e.g. `n=50`, `n=46 of 50`, `n=49-50 of 50`."""
    counts = sorted({estimate.n for estimate in estimates})
    totals = sorted({estimate.n_total for estimate in estimates})
    n, total = (str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}" for found in (counts, totals))
    return f"n={n}" if n == total else f"n={n} of {total}"
