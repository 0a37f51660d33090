"""What every step of a training saw, and the figure of it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np

from utils.saes.trainer import StepStats
from utils.saes.training_request import TrainRequest

MOST_POINTS = 400
"""Of a curve; more steps are averaged."""
NAMES = tuple(one.name for one in fields(StepStats))
_LABELS = {
    "loss": "loss a token\n(mean input norm\N{SUPERSCRIPT TWO} = d_model)",
    "l0": "L0\n(latents a token)",
    "explained_variance": "explained\nvariance",
    "dead": "dead latents\n(share)",
}


@dataclass
class History:
    """The steps of a training so far."""

    steps: list[StepStats] = field(default_factory=list)

    def add(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def last(self) -> StepStats:
        """Means over the last tenth of the steps."""
        tail = self.steps[-max(1, len(self.steps) // 10) :]
        return StepStats(*(float(np.mean([getattr(one, name) for one in tail])) for name in NAMES))

    def points(self) -> list[tuple[int, StepStats]]:
        """Step numbers, counted from 1, with means over the steps since the one before."""
        ends = np.unique(np.linspace(0, len(self.steps), min(len(self.steps), MOST_POINTS) + 1).round().astype(int))
        parts = [(int(end), self.steps[start:end]) for start, end in pairwise(ends)]
        return [(end, StepStats(*_means(part))) for end, part in parts]

    def as_json(self) -> dict[str, Any]:
        points = self.points()
        curve = {name: [getattr(stats, name) for _, stats in points] for name in NAMES}
        return {"last": vars(self.last()).copy(), "curve": {"step": [end for end, _ in points], **curve}}


def _means(part: Sequence[StepStats]) -> list[float]:
    return np.mean([astuple(one) for one in part], axis=0).tolist()


def plot_training(history: History, request: TrainRequest) -> None:
    """Draw loss, L0, explained variance and dead share over the steps, beside the SAE."""
    from utils.figures.style import PAGE_WIDTH, figure_style, new_figure, save_figure, set_title
    from utils.files.tables import Table

    points = history.points()
    with figure_style():
        figure, axes = new_figure(PAGE_WIDTH, 1.9, ncols=len(NAMES))
        for ax, name in zip(axes, NAMES, strict=True):
            ax.plot([end for end, _ in points], [getattr(stats, name) for _, stats in points], linewidth=0.9)
            ax.set_title(_LABELS[name])
            ax.set_xlabel("step")
            if name in ("l0", "loss"):
                ax.set_ylim(0, 1.05 * max(getattr(stats, name) for _, stats in points) or 1)
        axes[NAMES.index("explained_variance")].set_ylim(top=1)
        axes[NAMES.index("dead")].set_ylim(-0.02, 1)
        settings = request.settings
        sparsity = ", ".join(f"{key} {value:g}" for key, value in settings.sparsity.items())
        set_title(
            figure,
            f"Training of {request.name}: {settings.architecture}, {settings.d_sae} latents, {sparsity}",
            f"{request.plan.total_rows} tokens of {request.plan.source.label}, {settings.epochs} times; points are "
            "means over steps, on the tokens they were trained on",
        )
        rows = [(end, *astuple(stats)) for end, stats in points]
        save_figure(figure, request.folder / "training_curve", Table(("step", *NAMES), rows))
