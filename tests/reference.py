"""Where the numbers are that tests compare with: those carried in `tests/reference/`, and the published data."""

import os
from pathlib import Path

import pytest

_CARRIED = Path(__file__).with_name("reference")
_PUBLISHED = Path(os.environ.get("CAA_REFERENCE", Path(__file__).resolve().parents[2] / "shared" / "reference"))


def carried_path(*parts: str) -> Path:
    """A file or folder of `tests/reference/`, which is there in every clone, e.g. `carried_path("vectors")`."""
    path = _CARRIED.joinpath(*parts)
    assert path.exists(), path
    return path


def reference_path(*parts: str) -> Path:
    """A file or folder of the published data, e.g. `reference_path("caa", "results")`; the test skips without it."""
    path = _PUBLISHED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the published data is not here (CAA_REFERENCE names its folder): {'/'.join(parts)}")
    return path
