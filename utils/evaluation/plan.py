"""What a sweep is to make and what of it is there; all of it without a model or torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.behaviors import load_behavior
from utils.errors import UserError
from utils.evaluation.chosen import load_chosen
from utils.evaluation.kinds import Combination, questions_of
from utils.evaluation.stale import known_of_model, warn_of_stale_results
from utils.evaluation.sweep_vectors import beside_path, condition_files, plane_paths
from utils.files.journal import read_header
from utils.files.reading import sha256_of
from utils.model import processes
from utils.model.checkpoints import ModelChoice, check_layers, checkpoint_label
from utils.model.shapes import ModelShape, model_shape
from utils.paths import DataPaths
from utils.settings import (
    ADDING_OPERATORS,
    Beside,
    Knob,
    Orders,
    ResultType,
    Side,
    StartPosition,
    SteeringSettings,
    VectorKind,
    known_operator,
)

JOURNAL_PREFIX, JOURNAL_SUFFIX = ".sweep_", ".jsonl"


@dataclass(frozen=True)
class SweepRequest:
    """What to sweep, of which model, and how to run it."""

    paths: DataPaths
    choice: ModelChoice
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] | None
    """None for all of the model."""
    multipliers: tuple[float, ...]
    type: ResultType = "ab"
    system_prompt: Side | None = None
    override_vector: int | None = None
    """Layer whose vector is used at every layer."""
    override_vector_model: str | None = None
    """Name or folder of the model whose vectors are used."""
    weights_path: Path | None = None
    """Fine-tuned weights to put over the checkpoint's."""
    steer_positions: StartPosition = "end_of_prompt"
    vector_behavior: str | None = None
    """Behavior whose vectors are used, whichever is evaluated; None for its own."""
    vector_kind: VectorKind = VectorKind()
    knob: Knob = "multiplier"
    """What `multipliers` are: multiples of the vector, or strengths."""
    chosen: bool = False
    """Each behavior at the layer and strength that were chosen for it, and the opposite."""
    vector_files: tuple[Path, ...] = ()
    """Vectors to use, added up, whichever the behavior has."""
    questions: Path | None = None
    """Own questions to ask instead of the behavior's."""
    limit: int | None = None
    """Items to ask, the first ones; None for all."""
    orders: Orders = "given"
    """Whether each lettered question is asked in both orders of its answers."""
    operator: str = "add"
    """What is done with the vector."""
    quantile: float = 0.75
    """Of the operator `cap`."""
    beside: tuple[Beside, ...] = ()
    """Vectors to use together with the swept one."""
    condition: Path | None = None
    """Pairs of prompts between which a gate is fitted; None for steering whatever is asked."""
    condition_vector: Path | None = None
    """The vector of that gate; None for one that the pairs make."""
    temperature: float = 0.0
    num_samples: int = 1
    """Answers to each question."""
    seed: int = 0
    """Of sampled answers."""
    max_new_tokens: int = 100
    """Longest free answer."""
    overwrite: bool = False
    device: str = "auto"
    dtype: str = "auto"
    over_all_devices: bool = False
    """Split the model over all GPUs."""
    batch_size: int | None = None
    """Questions or answers at once; None for as many as fit."""
    plainly: bool = False
    """One full sequence a combination instead of packed passes and shared prefixes."""
    command: str = ""
    """The command line, for the provenance record."""


@dataclass(frozen=True)
class Sweep:
    """One behavior's evaluation over layers and multipliers."""

    settings: SteeringSettings
    """Of its first combination; `at` gives the others."""
    combinations: tuple[Combination, ...]
    system_prompt: str | None
    vectors: Mapping[int, tuple[Path, ...]]
    """Vector files for each steered layer; several are added up."""
    items: Sequence[Any]
    """Of the test set, as its kind of questions loads them."""
    beside: tuple[tuple[Beside, Path], ...]
    """Vectors that are used together with these."""
    plane: tuple[Path, ...]
    """The vectors of all layers, where the operator turns in the plane that they span."""
    facts: Mapping[str, Any]
    """What its numbers depend on, for the run record, beyond the model."""

    @property
    def shared_settings(self) -> str:
        """What all combinations have in common."""
        return self.settings.describe("layer", "multiplier")

    def missing(self, paths: DataPaths, *, overwrite: bool) -> list[Combination]:
        """The combinations whose result file is not there yet; all of them where they are made again."""
        return [at for at in self.combinations if overwrite or not paths.result(self.settings.at(*at)).exists()]


@dataclass(frozen=True)
class SweepPlan:
    """The sweeps of a request and how much of each is to be made."""

    request: SweepRequest
    shape: ModelShape
    sweeps: tuple[Sweep, ...]
    n_missing: tuple[int, ...]
    """Result files to make, of each sweep."""
    stale: frozenset[Path]
    """Result files of which it has been said that they were made with other settings."""

    @property
    def waiting(self) -> list[Sweep]:
        """The sweeps that have something to make."""
        return [sweep for sweep, missing in zip(self.sweeps, self.n_missing, strict=True) if missing]

    @property
    def n_skipped(self) -> int:
        return sum(len(sweep.combinations) for sweep in self.sweeps) - sum(self.n_missing)

    def summary(self, n_written: int) -> str:
        """The last line of a run that has written so many result files."""
        others = sum(self.n_missing) - n_written
        by_others = f"; another run has written {others} meanwhile" if others else ""
        return f"wrote {n_written} result files, skipped {self.n_skipped}, failed 0{by_others}"


# --- planning --------------------------------------------------------------------------------------


def plan_sweeps(request: SweepRequest) -> SweepPlan:
    """Check a request and read what it needs, but for vectors and model; name results made with other settings.

    Raises:
        UserError: If the request makes no sense, or a test set or the model is missing or broken.
    """
    check_request(request)
    choice = request.choice
    shape = model_shape(choice)
    layers = check_layers(request.layers, shape.n_layers, choice.label)
    if request.override_vector is not None and request.override_vector_model is None:
        check_layers([request.override_vector], shape.n_layers, choice.label, "--override_vector")
    weights_sha256 = sha256_of(request.weights_path) if request.weights_path else None
    sweeps = tuple(
        _plan_sweep(_of_behavior(request, behavior), behavior, layers, weights_sha256) for behavior in request.behaviors
    )
    if not request.overwrite:
        for sweep in sweeps:
            forget_finished(sweep, request.paths)
    n_missing = processes.from_main(
        [len(sweep.missing(request.paths, overwrite=request.overwrite)) for sweep in sweeps]
    )
    stale = warn_of_stale_results(request, sweeps, known_of_model(request))
    return SweepPlan(request, shape, sweeps, tuple(n_missing), stale)


def _of_behavior(request: SweepRequest, behavior: str) -> SweepRequest:
    """The request with what was chosen for a behavior, where that is asked for.

    Raises:
        UserError: If nothing was chosen for it; nothing is fallen back on.
    """
    if not request.chosen:
        return request
    chosen = load_chosen(request.paths, behavior, request.choice.label, request.vector_kind)
    strengths = (-chosen.strength, 0.0, chosen.strength)
    return replace(request, layers=(chosen.layer,), multipliers=strengths, knob="strength")


def check_request(request: SweepRequest) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: Naming the flags that say so.
    """
    if request.system_prompt and request.choice.use_base_model:
        raise UserError("--system_prompt needs a chat model; leave --use_base_model out")
    kind = questions_of(request.type, request.orders)
    if not kind.is_sampled and (request.temperature or request.num_samples > 1):
        raise UserError(f"--temperature and --num_samples sample free answers; --type {request.type} has none")
    if request.num_samples > 1 and not request.temperature:
        raise UserError("--num_samples needs --temperature: without it every answer to a question is the same")
    if request.override_vector is not None and request.override_vector < 0:
        raise UserError(f"--override_vector {request.override_vector} is negative; layers are counted from 0")
    if request.vector_files and (request.vector_behavior or request.override_vector is not None):
        raise UserError("--vector names the vectors: leave out --vector_behavior and --override_vector")
    if request.questions is not None and request.type != "open_ended":
        raise UserError(f"--questions are answered freely: --type open_ended, not {request.type}")
    _check_operator(request)
    if request.chosen and request.vector_files:
        raise UserError("--chosen is a choice for a behavior's own vectors: leave out --vector")
    if request.weights_path is not None and not request.weights_path.is_file():
        raise UserError(f"--override_model_weights_path {request.weights_path}: there is no such file")


def _check_operator(request: SweepRequest) -> None:
    is_share = known_operator(request.operator) not in ADDING_OPERATORS
    if is_share and (request.knob == "strength" or request.chosen):
        raise UserError(
            f"a strength is how much is added; --operator {request.operator} takes --multipliers (1: wholly)"
        )
    if not 0 < request.quantile < 1:
        raise UserError(f"--quantile {request.quantile:g} is not between 0 and 1")
    if request.condition is not None and request.steer_positions == "all":
        raise UserError(
            "--condition is judged by the prompt before the first steered token: leave out --steer_positions"
        )
    for flag, path in (("--condition", request.condition), ("--condition_vector", request.condition_vector)):
        if path is not None and not path.is_file():
            raise UserError(f"{flag} {path}: there is no such file")
    if request.condition is None and request.condition_vector is not None:
        raise UserError("--condition_vector needs --condition: the pairs of prompts that its threshold is found on")


def _plan_sweep(request: SweepRequest, behavior: str, layers: Sequence[int], weights_sha256: str | None) -> Sweep:
    paths, choice, kind = request.paths, request.choice, questions_of(request.type, request.orders)
    layers = request.layers if request.chosen and request.layers else layers
    combinations = tuple((layer, multiplier) for layer in layers for multiplier in sorted(set(request.multipliers)))
    settings = sweep_settings(request, behavior).at(*combinations[0])
    system_prompt = load_behavior(paths, behavior).system_prompt(request.system_prompt)
    dataset = request.questions or paths.test_dataset(behavior, request.type)
    items = kind.load(dataset, f"run: {paths.command('process_raw_datasets', '--behaviors', behavior)}")[
        : request.limit
    ]
    label = settings.override_vector_model or choice.label
    vectors = {
        layer: request.vector_files
        or (
            paths.vector(
                settings.vector_behavior or behavior,
                layer if request.override_vector is None else request.override_vector,
                label,
                normalized=True,
                kind=request.vector_kind,
            ),
        )
        for layer, multiplier in combinations
        if multiplier != 0
    }
    beside = tuple((one, beside_path(request, one, label)) for one in request.beside)
    plane = plane_paths(request, settings.vector_behavior or behavior, label)
    facts = {
        "dataset_sha256": sha256_of(dataset),
        "n_items": len(items),
        "vectors_sha256": {
            str(layer): "+".join(map(sha256_of, files))
            for layer, files in sorted(vectors.items())
            if all(path.is_file() for path in files)
        },
        "steered_from": settings.steer_positions,
        "packed": not request.plainly,
        **kind.facts(request),
        **({"system_prompt": system_prompt} if system_prompt else {}),
        **({"weights_sha256": weights_sha256} if weights_sha256 else {}),
        **({"beside_sha256": [sha256_of(path) for _, path in beside]} if beside else {}),
        **({"plane_sha256": sorted(map(sha256_of, plane))} if plane else {}),
        **({"condition_sha256": "+".join(map(sha256_of, condition_files(request)))} if request.condition else {}),
    }
    return Sweep(settings, combinations, system_prompt, vectors, items, beside, plane, facts)


def sweep_settings(request: SweepRequest, behavior: str) -> SteeringSettings:
    """The settings of a behavior's results, at layer 0, multiplier 0."""
    choice, weights = request.choice, request.weights_path
    return SteeringSettings(
        layer=0,
        multiplier=0.0,
        behavior=behavior,
        type=request.type,
        system_prompt=request.system_prompt,
        override_vector=request.override_vector,
        override_vector_model=request.override_vector_model and checkpoint_label(request.override_vector_model),
        use_base_model=choice.use_base_model,
        model_size=choice.size,
        model=None if choice.size else choice.label,
        quantize=choice.quantize,
        override_model_weights_path=None if weights is None else request.paths.weights_name(weights),
        steer_positions=request.steer_positions,
        vector_behavior=request.vector_behavior if request.vector_behavior != behavior else None,
        temperature=request.temperature,
        num_samples=request.num_samples,
        seed=request.seed if request.temperature else 0,
        read=request.vector_kind.reading,
        method=request.vector_kind.method,
        origin=request.vector_kind.origin,
        part=request.vector_kind.part,
        vector="+".join(path.stem for path in request.vector_files) or None,
        questions=None if request.questions is None else request.questions.stem,
        limit=request.limit,
        orders=request.orders,
        operator=request.operator,
        quantile=request.quantile if request.operator == "cap" else SteeringSettings.quantile,
        beside="+".join(map(str, request.beside)) or None,
        condition="+".join(path.stem for path in condition_files(request)) or None,
        knob=request.knob,
    )


def forget_finished(sweep: Sweep, paths: DataPaths) -> None:
    """Remove the journals of runs that were killed when all their result files were written.

    Journals of runs with --overwrite stay: the result files that are there may be older ones.
    """
    results_dir = paths.results_dir / sweep.settings.behavior
    for path in results_dir.glob(f"{JOURNAL_PREFIX}*{JOURNAL_SUFFIX}"):
        header = read_header(path)
        is_ours = header.get("settings") == sweep.shared_settings and header.get("overwrite") is False
        if is_ours and all(paths.result(sweep.settings.at(*at)).exists() for at in header["combinations"]):
            path.unlink(missing_ok=True)
