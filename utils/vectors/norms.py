"""How large a model's residual stream is, layer by layer: what a strength is a share of. Measured once, and kept."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from utils.data.records import load_open_ended_questions
from utils.errors import UserError
from utils.files.reading import read_json, sha256_of
from utils.files.writing import write_json
from utils.model import processes
from utils.model.side_effects import residual_norms
from utils.paths import REPOSITORY, DataPaths
from utils.paths import neutral_prompts_path as neutral_prompts_path  # others take it from here

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


def layer_norms(model: "LlamaWrapper", paths: DataPaths) -> list[float]:
    """Median residual norm of every layer over the neutral prompts' tokens without the first.

    Kept in `vectors/residual_norms_<model>.json` beside what it depends on; measured again where that differs.

    Raises:
        UserError: If they cannot be measured.
    """
    prompts = neutral_prompts_path(paths)
    depends_on = {
        "model": model.label,
        "weights_fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts_sha256": sha256_of(prompts),
    }
    path = paths.residual_norms(model.label)
    if (kept := _read(path) if path.exists() else None) and kept[0] == depends_on:
        return kept[1]
    questions = load_open_ended_questions(prompts)
    norms: list[float] = residual_norms(model, [model.chat_format.encode(q) for q in questions]).tolist()
    if processes.is_main():
        write_json(path, {**depends_on, "median_norms": norms})
        log.info("wrote %s", path)
    return norms


def _read(path: Path) -> tuple[dict[str, str], list[float]] | None:
    """What kept norms depend on, and the norms; None where the file is of another shape."""
    try:
        content = read_json(path)
        norms = content.pop("median_norms")
        return (content, [float(norm) for norm in norms])
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return None


def neutral_texts_path(paths: DataPaths) -> Path:
    """Questions with answers, of the root, or else the bundled ones."""
    own = paths.neutral_prompts().with_name("texts.json")
    return own if own.exists() else DataPaths(REPOSITORY).neutral_prompts().with_name("texts.json")


def multiplier_of_strength(strength: float, norm: float, vector: Tensor) -> float:
    """The multiplier at which the added norm is `strength` x the layer's residual norm.

    Raises:
        UserError: If the vector is zero.
    """
    length = float(vector.double().norm())
    if length == 0.0:
        raise UserError("a vector of zeros has no strength; make it again")
    return strength * norm / length
