"""What reading vectors by SAEs is asked for, and whether it is done; needs no torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files.reading import sha256_of
from utils.files.tables import with_suffix
from utils.research.decompose_request import DecomposeRequest
from utils.saes.formats import CONFIG_NAME, WEIGHTS_NAME, check_sae_folders, layer_of_hook, read_config
from utils.saes.requests import is_done
from utils.saes.text import TextSource

_NOT_IN_A_PART = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class SaeRequest:
    """Which SAEs read the vectors, and which latents are left out."""

    vectors: DecomposeRequest
    folders: tuple[Path, ...]
    source: TextSource | None = None
    """Text on which densities and examples are read; None for each SAE's own."""
    n_tokens: int = 8192
    """Of it."""
    max_density: float = 0.1
    """Latents that fire on a larger share of tokens are dense."""
    drop_latents: tuple[int, ...] = ()
    obvious: int = 5
    """Latents of `obvious only`."""

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: If a folder holds no SAE or one of a layer not asked for, or the vectors are not of pairs.
        """
        if self.vectors.kind.origin != "pairs":
            raise UserError(f"--from {self.vectors.kind.origin}: SAEs read contrast pairs; leave out --saes or --from")
        check_sae_folders(self.folders)
        for folder in self.folders:
            if (layer := layer_of(folder)) not in self.vectors.layers:
                asked = ", ".join(map(str, self.vectors.layers))
                raise UserError(f"--saes {folder}: it reads layer {layer}, but --layers names {asked}; add {layer}")

    @property
    def jobs(self) -> Iterator[tuple[str, Path]]:
        """Every behavior and SAE."""
        return ((behavior, folder) for behavior in self.vectors.behaviors for folder in self.folders)

    def stem(self, what: str, behavior: str, folder: Path) -> Path:
        """Of a result's files; the model's name is not said twice."""
        label = folder.resolve().name.removeprefix(f"{self.vectors.choice.label}_")
        return self.vectors.stem(f"{what}_{label}", behavior, layer_of(folder))

    def result(self, behavior: str, folder: Path) -> Path:
        """What is written last of a job."""
        return with_suffix(self.stem("sae_latents", behavior, folder), ".json")

    def part_name(self, folder: Path, what: str) -> str:
        """How a filtered vector is called: the SAE's name, without the model's, and what was done."""
        label = folder.resolve().name.removeprefix(self.vectors.choice.label)
        words = _NOT_IN_A_PART.sub("-", f"sae {label} {what}".lower()).strip("-")
        return words[:60]

    def settings(self, behavior: str, folder: Path) -> dict[str, Any]:
        """All that a job's numbers depend on, but for the model's weights.

        Raises:
            UserError: If its inputs are missing.
        """
        shared = self.vectors.settings(behavior, layer_of(folder))
        for of_ranks in ("ranks", "leave_out", "n_flips"):
            del shared[of_ranks]
        return {
            **shared,
            "sae": sha256_of(folder / WEIGHTS_NAME),
            "text": None if self.source is None else self.source.identity(),
            "tokens": self.n_tokens,
            "max_density": self.max_density,
            "drop_latents": list(self.drop_latents),
            "obvious": self.obvious,
        }

    def waiting(self) -> list[tuple[str, Path]]:
        """The jobs that are not done.

        Raises:
            UserError: If a job's inputs are missing, or it was done with other settings.
        """
        overwrite = self.vectors.overwrite
        return [job for job in self.jobs if not is_done(self.result(*job), self.settings(*job), overwrite=overwrite)]


def layer_of(folder: Path) -> int:
    """The layer that an SAE reads, by its configuration.

    Raises:
        UserError: If it is broken, or the SAE reads another place.
    """
    hook = read_config(folder).get("hook_name")
    return layer_of_hook(hook if isinstance(hook, str) else "", str(folder / CONFIG_NAME))
