"""Every path of the suite, from one root."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utils.settings import ResultType, Side, SteeringSettings

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS_DIR = REPOSITORY / "models"


class DataPaths:
    """Where data lies under a root folder (flag --root)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.datasets_dir = root / "datasets"
        self.results_dir = root / "results"
        self.analysis_dir = root / "analysis"
        self.scores_dir = self.results_dir / "open_ended_scores"

    @property
    def is_repository(self) -> bool:
        """Whether this is the root that scripts take on their own."""
        return self.root.resolve() == REPOSITORY

    def command(self, script: str, *words: object) -> str:
        """A script's command on this root, quoted for the shell, for messages that say what to run.

        Args:
            script: Its name without `.py`.
            words: Its flags and their values, but for --root.
        """
        root = [] if self.is_repository else ["--root", self.root]
        return shlex.join([f"./{script}.py", *map(str, [*words, *root])])

    def raw_dataset(self, behavior: str) -> Path:
        return self.datasets_dir / "raw" / behavior / "dataset.json"

    def generate_dataset(self, behavior: str) -> Path:
        return self.datasets_dir / "generate" / behavior / "generate_dataset.json"

    def test_dataset(self, behavior: str, result_type: ResultType) -> Path:
        """The evaluation set; TruthfulQA and MMLU are the same for every behavior."""
        test_dir = self.datasets_dir / "test"
        match result_type:
            case "truthful_qa":
                return test_dir / "truthfulqa" / "truthful_qa.json"
            case "mmlu":
                return test_dir / "mmlu" / "mmlu.json"
            case _:
                return test_dir / behavior / f"test_dataset_{result_type}.json"

    def vectors_dir(self, behavior: str, *, normalized: bool) -> Path:
        return self.root / ("normalized_vectors" if normalized else "vectors") / behavior

    def vector(self, behavior: str, layer: int, model_label: str, *, normalized: bool) -> Path:
        return self.vectors_dir(behavior, normalized=normalized) / vector_name(layer, model_label)

    def activations(self, behavior: str, side: Side, layer: int, model_label: str) -> Path:
        return self.root / "activations" / behavior / f"activations_{side}_{layer}_{model_label}.pt"

    def result(self, settings: SteeringSettings) -> Path:
        return self.results_dir / settings.behavior / settings.result_name

    def scores(self, settings: SteeringSettings) -> Path:
        return self.scores_dir / settings.behavior / settings.result_name

    def finetuned_weights(self, name: str) -> Path:
        return self.root / "finetuned_models" / f"{name}.pt"

    def weights_name(self, path: Path) -> str:
        """Fine-tuned weights as they stand in a result file name: the path from the root, '-' between its parts."""
        absolute, root = path.resolve(), self.root.resolve()
        return "-".join(absolute.relative_to(root).parts if absolute.is_relative_to(root) else absolute.parts[1:])

    def weights_of_name(self, name: str) -> Path:
        """The file that stands under that name in result file names; where there is none, the likeliest."""
        for folder in (self.root, Path("/")):
            with suppress(PermissionError):
                if found := _file_written_as(name.split("-"), folder):
                    return self.shown(found)
        in_its_folder = name.removeprefix("finetuned_models-")
        return Path(name) if in_its_folder == name else self.shown(self.root / "finetuned_models" / in_its_folder)

    def shown(self, path: Path) -> Path:
        """A path as commands take it: from the repository, where it lies in there and that is the root."""
        return path.relative_to(self.root) if self.is_repository and path.is_relative_to(self.root) else path

    def finetune_log(self, name: str) -> Path:
        """The run's folder while it runs, and the figure and log (with suffixes) that stay."""
        return self.root / "finetune_logs" / name

    def analysis(self, *parts: str) -> Path:
        return self.analysis_dir.joinpath(*parts)


def vector_name(layer: int, model_label: str) -> str:
    return f"vec_layer_{layer}_{model_label}.pt"


def _file_written_as(parts: Sequence[str], folder: Path) -> Path | None:
    """The file under `folder` whose path has these parts between its '/' and '-'; None where there is none."""
    for count in range(1, len(parts) + 1):
        path = folder / "-".join(parts[:count])
        if count == len(parts):
            return path if parts[-1] and path.is_file() else None
        if any(parts[:count]) and path.is_dir() and (found := _file_written_as(parts[count:], path)):
            return found
    return None
