"""How a fine-tuning run went: its loss curve and held-out metrics, as text and as a figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from utils.figures.style import BLUE, COLUMN_WIDTH, VERMILLION, figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "gradient_norm",
    "held_out_loss",
    "held_out_accuracy",
    "held_out_p_matching",
)
_DIVERGED_BY = math.log(10)  # nats: the answer became ten times less likely than it was


@dataclass(frozen=True)
class HeldOut:
    """The test questions at one step of the training."""

    step: int
    epoch: float
    loss: float
    """Cross-entropy of the letters that the training is after, nats."""
    accuracy: float
    """Share of questions on which the matching letter is the likelier of the two."""
    p_matching: float
    """Mean of p(match) / (p(match) + p(other))."""

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.3f}, p(matching) {self.p_matching:.4f}"


@dataclass(frozen=True)
class Step:
    """One step of the optimizer."""

    step: int
    epoch: float
    loss: float
    """Before the step, of its own pairs, nats."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""


@dataclass(frozen=True)
class History:
    """A whole run, in the order of its steps."""

    steps: tuple[Step, ...]
    held_out: tuple[HeldOut, ...]

    @classmethod
    def read(cls, entries: Sequence[dict[str, Any]]) -> "History":
        """From the Trainer's log; what a resumed run measured at its start, within an epoch, is left out."""
        steps = [
            Step(e["step"], e["epoch"], e["loss"], e["learning_rate"], float(e.get("grad_norm", math.nan)))
            for e in entries
            if "loss" in e
        ]
        measured = {
            e["step"]: HeldOut(
                e["step"], e.get("epoch") or 0.0, e["eval_answer_loss"], e["eval_accuracy"], e["eval_p_matching"]
            )
            for e in entries
            if "eval_answer_loss" in e and float(e.get("epoch") or 0).is_integer()
        }
        return cls(tuple(steps), tuple(measured[step] for step in sorted(measured)))

    @property
    def before(self) -> HeldOut:
        return self.held_out[0]

    @property
    def after(self) -> HeldOut:
        return self.held_out[-1]

    def divergence(self) -> str | None:
        """How the training diverged, or None: its last quarter is far worse than its beginning."""
        losses = [step.loss for step in self.steps]
        start = max(losses[0], self.before.loss)
        end = fmean(losses[-max(1, len(losses) // 4) :])
        if end <= start + _DIVERGED_BY:
            return None
        return f"the loss went from {start:.2f} to {end:.2f}"

    def to_table(self, notes: Sequence[str]) -> Table:
        """A row for each step, the held-out metrics in those after which they were measured."""
        metrics = {entry.step: (entry.loss, entry.accuracy, entry.p_matching) for entry in self.held_out}
        empty = ("", "", "")
        rows: list[tuple[Any, ...]] = [(0, 0.0, "", "", "", *metrics.get(0, empty))]
        rows += [
            (s.step, s.epoch, s.loss, s.learning_rate, s.gradient_norm, *metrics.get(s.step, empty)) for s in self.steps
        ]
        return Table(_COLUMNS, rows, tuple(notes))


def save_history(stem: Path, history: History, title: str, notes: Sequence[str]) -> list[Path]:
    """Write the curves as `stem`.png, .pdf and .txt."""
    with figure_style():
        return save_figure(draw_history(history, title), stem, history.to_table(notes))


def draw_history(history: History, title: str) -> "Figure":
    """Above the loss of every step, below p(matching) on the held-out questions."""
    figure, (loss_ax, held_out_ax) = new_figure(COLUMN_WIDTH, 3.2, nrows=2, sharex=True, height_ratios=[3, 2])
    loss_ax.plot([s.step for s in history.steps], [s.loss for s in history.steps], color=BLUE, label="training pairs")
    loss_ax.plot(
        [m.step for m in history.held_out],
        [m.loss for m in history.held_out],
        color=VERMILLION,
        marker="o",
        linestyle="--",
        label="held-out questions",
    )
    loss_ax.set_ylabel("loss of the answer letter (nats)")
    loss_ax.set_ylim(bottom=0)
    loss_ax.legend()
    held_out_ax.plot(
        [m.step for m in history.held_out],
        [m.p_matching for m in history.held_out],
        color=VERMILLION,
        marker="o",
        linestyle="--",
    )
    held_out_ax.axhline(0.5, color="#999999", linewidth=0.6)
    held_out_ax.set_ylim(0, 1)
    held_out_ax.set_ylabel("held-out p(matching)")
    held_out_ax.set_xlabel("step")
    set_title(figure, title)
    return figure
