"""What a result says of itself for the report page. Light: nothing heavy is imported here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.settings import VectorKind

ENTRY = "report"
"""The key in a result's JSON."""


def report_entry(
    model_label: str, behavior: str | None, kind: VectorKind, heading: str, stems: Sequence[Path]
) -> dict[str, Any]:
    """What stands under that key.

    Args:
        model_label: The model's.
        behavior: Its id; None for a result about several.
        kind: Of the vectors.
        heading: Of its section on the page.
        stems: Its figures, in the result's own folder, without suffix.
    """
    names = [stem.name for stem in stems]
    return {"model": model_label, "behavior": behavior, "vectors": kind.suffix, "heading": heading, "figures": names}
