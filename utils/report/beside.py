"""What stands beside the sweeps: free answers as `scoring.py --metrics` measured them, and what was chosen."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from utils.evaluation.chosen import ChoiceRequest, load_choice
from utils.evaluation.metric_run import MetricsRequest, plan_metrics, warn_of_stale
from utils.evaluation.words import behavior_label
from utils.figures.answers import report_metrics
from utils.figures.choice import choice_line, plot_choice
from utils.figures.kept import KeptFigure, keep_figures
from utils.figures.requests import PlotRequest
from utils.settings import SteeringSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """The figures of one kind and one behavior, or of all behaviors together."""

    anchor: str
    type_label: str
    behavior_label: str
    figures: tuple[KeptFigure, ...]


@dataclass(frozen=True)
class Beside:
    """What was drawn."""

    sections: tuple[Section, ...] = ()
    lines: tuple[str, ...] = ()
    """The numbers, in lines for the terminal."""
    n_written: int = 0


def draw_measured(request: PlotRequest, *, keep: bool) -> Beside:
    """The figures of free answers that have been measured: the behavior's metric with fluency below it."""
    if request.type not in (None, "open_ended") or request.is_transfer or request.override_weights:
        return Beside()
    sections: list[Section] = []
    lines: list[str] = []
    n_written = 0
    for behavior in request.behaviors:
        plan = plan_metrics(
            MetricsRequest(request.paths, (behavior,), lambda at: _is_asked_for(request, at), with_perplexity=False)
        )
        warn_of_stale(plan, frozenset())
        figures: list[KeptFigure] = []
        with keep_figures(figures if keep else None):
            texts = report_metrics(plan, request.seed)
        n_written += len(texts)
        lines += [line for text in texts for line in text.splitlines()]
        sections += _section("measured", "Free answers, measured", behavior, figures)
    return Beside(tuple(sections), tuple(lines), n_written)


def _is_asked_for(request: PlotRequest, at: SteeringSettings) -> bool:
    same_model = (at.model_size, at.model, at.use_base_model) == (
        request.choice.size,
        None if request.choice.size else request.choice.label,
        request.choice.use_base_model,
    )
    if not same_model or (request.layers and at.multiplier != 0 and at.layer not in request.layers):
        return False
    if at.multiplier == 0:
        return True
    same_steering = (at.vector_kind, at.knob, at.steer_positions) == (
        request.kind,
        request.knob,
        request.steer_positions,
    )
    return same_steering and (not request.multipliers or at.multiplier in request.multipliers)


def draw_choices(request: PlotRequest) -> Beside:
    """The figures of what `choose_steering.py` chose for this model and kind of vectors."""
    sections: list[Section] = []
    lines: list[str] = []
    for behavior in request.behaviors:
        path = request.paths.chosen_steering(behavior, request.choice.label, request.kind)
        if not path.exists():
            continue
        choice, kl = load_choice(path)
        layers = tuple(sorted({one.layer for one in choice.by_layer}))
        asked = ChoiceRequest(
            request.paths, request.choice, (behavior,), layers, request.kind, kl, request.seed, False, ""
        )
        figures: list[KeptFigure] = []
        with keep_figures(figures):
            plot_choice(choice, asked)
        lines.append(choice_line(choice))
        sections += _section("chosen", "Chosen layer and strength", behavior, figures)
    return Beside(tuple(sections), tuple(lines), len(sections))


def _section(kind: str, label: str, behavior: str, figures: Sequence[KeptFigure]) -> Iterable[Section]:
    if figures:
        yield Section(f"figures-{kind}-{behavior}", label, behavior_label(behavior), tuple(figures))
