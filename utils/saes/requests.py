"""What SAE work is asked to do, and whether it is done."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import read_json, sha256_of
from utils.files.writing import write_json
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelRequest:
    """A checkpoint, and fine-tuned weights over it."""

    choice: ModelChoice
    weights: Path | None = None

    @property
    def name(self) -> str:
        """In names of files and figures."""
        return DataPaths.model_name(self.choice.label, self.weights)

    @property
    def command_words(self) -> list[str]:
        """The flags that choose it again."""
        over = [] if self.weights is None else ["--override_model_weights_path", str(self.weights)]
        return [*self.choice.command_words, *over]

    def describe(self) -> dict[str, str]:
        over = {} if self.weights is None else {"weights_sha256": sha256_of(self.weights)}
        return {"model": self.name, **over}


def is_done(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a result is there and was made with these settings.

    Raises:
        UserError: If it was made with others; it is neither taken for this one nor replaced unasked.
    """
    if overwrite or not path.exists():
        return False
    known = read_json(path, "make it again with --overwrite")
    before = known.get("settings") if isinstance(known, dict) else None
    if not isinstance(before, dict):
        raise UserError(f"{path} does not say what it was made with; --overwrite makes it again")
    if differing := sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)):
        raise UserError(f"{path} was made with another {', '.join(differing)}; --overwrite makes it again")
    log.info("%s is there already (--overwrite makes it again)", path)
    return True


def write_result(path: Path, settings: Mapping[str, Any], made: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a result with what it was made with; last of its files, so that it says that they are whole."""
    write_json(path, {"settings": dict(settings), **content, "made": dict(made)})
    log.info("wrote %s", path)
