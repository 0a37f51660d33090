"""The one way to the reference data: tests that need it skip where it is missing."""

import os
from pathlib import Path

import pytest

_REFERENCE = Path(os.environ.get("CAA_REFERENCE", Path(__file__).resolve().parents[2] / "shared" / "reference"))


def reference_path(*parts: str) -> Path:
    """A file or folder of the reference data, e.g. `reference_path("parity", "vectors")`."""
    path = _REFERENCE.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data not here: {'/'.join(parts)}")
    return path
