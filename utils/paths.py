"""Every path of the suite, from one root."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from utils.errors import UserError
from utils.settings import Origin, Reading, ResultType, Side, SteeringSettings, VectorKind

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS_DIR = REPOSITORY / "models"

_KIND_IN_NAME = re.compile(r"_(read|method|from|part)=")


@dataclass(frozen=True)
class VectorFile:
    """A vector's file name, taken apart."""

    layer: int
    model_label: str
    kind: VectorKind = VectorKind()

    def __post_init__(self) -> None:
        if _KIND_IN_NAME.search(self.model_label):
            raise UserError(f"a model called {self.model_label!r} reads like a kind of vector; rename its folder")

    @property
    def name(self) -> str:
        return f"vec_layer_{self.layer}_{self.model_label}{self.kind.suffix}.pt"


_VECTOR_NAME = re.compile(
    r"vec_layer_(\d+)_(.+?)(?:_read=(letter|answer|last|prompt_mean|prompt))?(?:_method=([a-z0-9_]+?))?"
    r"(?:_from=(answers))?(?:_part=([a-z][a-z0-9-]*))?\.pt"
)


def parse_vector_name(name: str) -> VectorFile | None:
    """Read a vector's file name; None where it is not one that the suite writes."""
    if not (match := _VECTOR_NAME.fullmatch(name)):
        return None
    layer, label, reading, method, origin, part = match.groups()
    kind = VectorKind(
        cast(Reading, reading or VectorKind.reading),
        method or VectorKind.method,
        cast(Origin, origin or VectorKind.origin),
        part,
    )
    found = VectorFile(int(layer), label, kind)
    return found if found.name == name else None


class DataPaths:
    """Where data lies under a root folder (flag --root)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.datasets_dir = root / "datasets"
        self.results_dir = root / "results"
        self.analysis_dir = root / "analysis"
        self.scores_dir = self.results_dir / "open_ended_scores"
        self.metrics_dir = self.results_dir / "open_ended_metrics"

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

    def generate_prompts(self, behavior: str) -> Path:
        """The pairs of prompts."""
        return self.generate_dataset(behavior).with_name("generate_prompts.json")

    def written(self, behavior: str) -> Path:
        """What `create_behavior.py` wrote for a behavior beside its file: system prompts and questions."""
        return self.raw_dataset(behavior).with_name("written.json")

    def own_answers(self, behavior: str, model_label: str) -> Path:
        """A model's own answers under a behavior's system prompts."""
        return self.results_dir / behavior / f"own_answers_{model_label}.json"

    def neutral_prompts(self) -> Path:
        """Prompts that ask for no behavior: what side effects are measured on."""
        return self.datasets_dir / "neutral" / "prompts.json"

    def residual_norms(self, model_label: str) -> Path:
        return self.root / "vectors" / f"residual_norms_{model_label}.json"

    def chosen_steering(self, behavior: str, model_label: str, kind: VectorKind) -> Path:
        """The layer and strength that were chosen for a behavior's vectors of one kind."""
        return self.vectors_dir(behavior, normalized=False) / f"chosen_{model_label}{kind.suffix}.json"

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
            case "answer_text":
                text_set = self.test_text_dataset(behavior)
                return text_set if text_set.exists() else self.test_dataset(behavior, "ab")
            case _:
                return test_dir / behavior / f"test_dataset_{result_type}.json"

    def vectors_dir(self, behavior: str, *, normalized: bool) -> Path:
        return self.root / ("normalized_vectors" if normalized else "vectors") / behavior

    def vector(
        self, behavior: str, layer: int, model_label: str, *, normalized: bool, kind: VectorKind = VectorKind()
    ) -> Path:
        """Parts of vectors stand in a folder of their own, where nobody takes them for vectors of a behavior."""
        folder = self.vectors_dir(behavior, normalized=normalized)
        return (folder / "parts" if kind.part else folder) / VectorFile(layer, model_label, kind).name

    def vector_files(self, behavior: str, *, normalized: bool) -> Iterator[VectorFile]:
        """The vectors that a behavior has, whatever their model, layer and kind."""
        folder = self.vectors_dir(behavior, normalized=normalized)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if found := parse_vector_name(path.name):
                yield found

    def find_vector(self, behavior: str, layer: int, model_label: str | None, kind: VectorKind) -> Path:
        """A normalised vector, of the one model that has it where none is named.

        Raises:
            UserError: If there is none, or several models have one.
        """
        folder = self.vectors_dir(behavior, normalized=True)
        files = [
            file
            for file in self.vector_files(behavior, normalized=True)
            if file.layer == layer and file.kind == kind and file.model_label == (model_label or file.model_label)
        ]
        what = (
            f"vector of layer {layer}"
            + (f" of {model_label}" if model_label else "")
            + (kind.suffix and f" ({kind.suffix[1:]})")
        )
        if not files:
            raise UserError(
                f"{folder}: no {what}; run: {self.command('generate_vectors', '--behaviors', behavior)}, "
                f"then: {self.command('normalize_vectors')}"
            )
        if len(files) > 1:
            labels = ", ".join(file.model_label for file in files)
            raise UserError(f"{folder}: several models have a {what}: {labels}; name one of them")
        return folder / files[0].name

    def activations(
        self, behavior: str, side: Side, layer: int, model_label: str, kind: VectorKind = VectorKind()
    ) -> Path:
        """Whatever the kind's estimator and part are: activations are what it takes."""
        read = replace(kind, method=VectorKind.method, part=None).suffix
        return self.root / "activations" / behavior / f"activations_{side}_{layer}_{model_label}{read}.pt"

    def result(self, settings: SteeringSettings) -> Path:
        return self.results_dir / settings.behavior / settings.result_name

    def scores(self, settings: SteeringSettings) -> Path:
        return self.scores_dir / settings.behavior / settings.result_name

    def grades(self, answers: Path) -> Path:
        """The judge's grades from 0 to 100 of a file of answers."""
        return self.results_dir / "graded" / answers.parent.name / answers.name

    def metrics(self, settings: SteeringSettings) -> Path:
        return self.metrics_dir / settings.behavior / settings.result_name

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

    @staticmethod
    def model_name(label: str, weights: Path | None) -> str:
        """A model in the names of SAE work: its label, and its fine-tuned weights' file where it has such."""
        return label if weights is None else f"{label}_{weights.stem}"

    def refusal_prompts(self, side: str, split: str, *, published: bool = False) -> Path:
        """Harmful or harmless instructions of a split."""
        folder = self.datasets_dir / "refusal"
        return (folder / "published" if published else folder) / f"{side}_{split}.json"

    def refusal_dir(self, model_name: str) -> Path:
        """The folder of a model's refusal direction."""
        return self.root / "refusal" / model_name

    def sae_analysis(self, name: str) -> Path:
        """A result of the SAE scripts, without its suffix."""
        return self.analysis_dir / "sae" / name

    def finetune_log(self, name: str) -> Path:
        """The run's folder while it runs, and the figure and log (with suffixes) that stay."""
        return self.root / "finetune_logs" / name

    def research(self, *parts: str) -> Path:
        """What the scripts in research/ find out."""
        return self.analysis_dir.joinpath("research", *parts)

    @property
    def saes_dir(self) -> Path:
        """Trained and fetched SAEs, a folder each; beside them, with a leading `_`, what they are made from."""
        return self.root / "saes_trained"

    def sae(self, name: str) -> Path:
        return self.saes_dir / name

    def sae_text(self, name: str) -> Path:
        """Text for SAEs as JSON Lines, fetched once."""
        return self.saes_dir / "_text" / f"{name}.jsonl"

    def sae_activations(self, key: str) -> Path:
        """The folder of a run's activations, shared by the SAEs that are trained on them."""
        return self.saes_dir / "_activations" / key

    def analysis(self, *parts: str) -> Path:
        return self.analysis_dir.joinpath(*parts)


def neutral_prompts_path(paths: DataPaths) -> Path:
    """The neutral prompts of a root, or else the bundled ones."""
    own = paths.neutral_prompts()
    return own if own.exists() else DataPaths(REPOSITORY).neutral_prompts()


def vector_name(layer: int, model_label: str, kind: VectorKind = VectorKind()) -> str:
    return VectorFile(layer, model_label, kind).name


def _file_written_as(parts: Sequence[str], folder: Path) -> Path | None:
    """The file under `folder` whose path has these parts between its '/' and '-'; None where there is none."""
    for count in range(1, len(parts) + 1):
        path = folder / "-".join(parts[:count])
        if count == len(parts):
            return path if parts[-1] and path.is_file() else None
        if any(parts[:count]) and path.is_dir() and (found := _file_written_as(parts[count:], path)):
            return found
    return None
