"""Every path of the suite, from one root."""

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

    def behavior_file(self, behavior: str) -> Path:
        return self.datasets_dir / "behaviors" / f"{behavior}.json"

    def raw_dataset(self, behavior: str) -> Path:
        return self.datasets_dir / "raw" / behavior / "dataset.json"

    def raw_text_dataset(self, behavior: str) -> Path:
        return self.raw_dataset(behavior).with_name("dataset_text.json")

    def generate_dataset(self, behavior: str) -> Path:
        return self.datasets_dir / "generate" / behavior / "generate_dataset.json"

    def generate_text_dataset(self, behavior: str) -> Path:
        """The contrast pairs of text form."""
        return self.generate_dataset(behavior).with_name("generate_dataset_text.json")

    def test_text_dataset(self, behavior: str) -> Path:
        """The held-out contrast pairs of text form."""
        return self.datasets_dir / "test" / behavior / "test_dataset_text.json"

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

    def finetune_log(self, name: str) -> Path:
        """The run's folder while it runs, and the figure and log (with suffixes) that stay."""
        return self.root / "finetune_logs" / name

    def analysis(self, *parts: str) -> Path:
        return self.analysis_dir.joinpath(*parts)


def vector_name(layer: int, model_label: str) -> str:
    return f"vec_layer_{layer}_{model_label}.pt"
