"""What a report page is asked for. Light: nothing heavy is imported here."""

from dataclasses import dataclass

from utils.figures.requests import PlotRequest


@dataclass(frozen=True)
class ReportRequest:
    """A page about what was plotted."""

    plot: PlotRequest
    command: str
    """The command line, for the provenance."""

    @property
    def title(self) -> str:
        return self.plot.title or f"Steering {self.plot.choice.label}"

    @property
    def only_type(self) -> str:
        """The kind of results that is asked for; empty for every kind, or where it is the answers."""
        return self.plot.type or "" if self.plot.type != "open_ended" else ""
