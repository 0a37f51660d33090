"""Which behaviors belong together, and what behavior_geometry.py is asked for; needs no torch.

label      what it is about, for titles
parents    {parent: {behavior: 1 or -1, ...}, ...}; -1 where the matching answer shows less of the parent
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.files.reading import check_text, read_json, sha256_of, short
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.vectors.plan import pairs_path

_KEYS = ("label", "parents")
InnerProduct = Literal["euclidean", "causal"]
Estimator = Literal["concept", "mean"]


@dataclass(frozen=True)
class BehaviorTree:
    """A hierarchy of behaviors."""

    label: str
    parents: Mapping[str, Mapping[str, int]]
    """Parent -> behavior -> sign."""

    @property
    def signs(self) -> dict[str, int]:
        """By behavior, in the file's order."""
        return {behavior: sign for children in self.parents.values() for behavior, sign in children.items()}


def load_tree(path: Path, paths: DataPaths) -> BehaviorTree:
    """
    Raises:
        UserError: If it is missing or broken, or a behavior is unknown or stands twice.
    """
    record = read_json(path, "name a file with --hierarchy")
    if not isinstance(record, dict) or set(record) != set(_KEYS) or not isinstance(record["parents"], dict):
        raise UserError(f"{path}: expected an object with the keys {', '.join(_KEYS)}, found {short(record)}")
    seen: set[str] = set()
    for parent, children in record["parents"].items():
        where = f"{path}, parent {parent!r}"
        if not isinstance(children, dict) or len(children) < 2:
            raise UserError(f"{where}: expected two behaviors or more with 1 or -1 each, found {short(children)}")
        for behavior, sign in children.items():
            load_behavior(paths, behavior)
            if sign not in (1, -1) or isinstance(sign, bool):
                raise UserError(f"{where}, {behavior!r}: expected 1 or -1, found {short(sign)}")
            if behavior in seen:
                raise UserError(f"{where}: {behavior!r} stands twice; keep one of them")
            seen.add(behavior)
    if len(record["parents"]) < 2:
        raise UserError(f"{path}: it takes two parents or more")
    return BehaviorTree(check_text(record["label"], f"{path}, key 'label'"), record["parents"])


@dataclass(frozen=True)
class BehaviorsRequest:
    """Which hierarchy, where it is read, and how hard is steered."""

    paths: DataPaths
    choice: ModelChoice
    hierarchy: Path
    layer: int
    inner_product: InnerProduct
    estimator: Estimator
    """Of the knobs: the concept vector, or the mean difference."""
    strength: float
    """Of each knob, as a share of the layer's median residual norm."""
    n_pairs: int
    """Of each behavior, at most."""
    n_items: int
    """Held-out items of each behavior, at most."""
    n_draws: int
    """Of each control."""
    seed: int
    command: str

    def stem(self, figure: str = "") -> Path:
        of_mean = "_knobs=mean" if self.estimator == "mean" else ""
        name = f"{self.hierarchy.stem}_{self.choice.label}{of_mean}"
        return self.paths.research("behavior_geometry", f"{figure}_{name}" if figure else name)

    @property
    def result_path(self) -> Path:
        return self.stem().with_name(self.stem().name + ".json")

    def describe(self, tree: BehaviorTree) -> dict[str, Any]:
        data = {
            behavior: [
                sha256_of(path) if path.is_file() else None
                for path in (
                    pairs_path(self.paths, behavior, "answer"),
                    self.paths.test_dataset(behavior, "answer_text"),
                )
            ]
            for behavior in tree.signs
        }
        return {
            "model": self.choice.label,
            "hierarchy_sha256": sha256_of(self.hierarchy),
            "data_sha256": data,
            "layer": self.layer,
            "inner_product": self.inner_product,
            "estimator": self.estimator,
            "strength": self.strength,
            "n_pairs": self.n_pairs,
            "n_items": self.n_items,
            "n_draws": self.n_draws,
            "seed": self.seed,
        }
