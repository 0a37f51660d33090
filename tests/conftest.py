"""Shared by all tests: no network, no spinning threads, and small roots to run the scripts on."""

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Waiting threads of a tiny product must not take the cores from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import HealthCheck, settings

from tests.reference import carried_path
from tests.roots import TINY_LABEL, copy_carried, write_small_datasets, write_vector

# A shell starts what runs behind it deaf to Ctrl-C, and that is handed on to the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same cases in every run; `CAA_HYPOTHESIS_PROFILE=nightly` draws new ones, about thirty times as many.
_SLOW_IS_FINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=50, derandomize=True, database=None, **_SLOW_IS_FINE)
settings.register_profile("nightly", max_examples=1500, print_blob=True, **_SLOW_IS_FINE)
settings.load_profile(os.environ.get("CAA_HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _no_log_handler_outlives_its_test() -> Iterator[None]:
    """`run_main` logs to the stderr of its time, which pytest closes behind the test."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="module", autouse=True)
def _pdf_fonts_are_written_fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cutting TrueType fonts to size is a third of a figure's time. In test_style.py they are as they are."""
    from utils.figures import style

    with pytest.MonkeyPatch.context() as patched:
        if request.module.__name__ != "tests.figures.test_style":
            patched.setitem(style._STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture
def seven_b_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`7b` names the tiny model that tests carry; it has no base model beside it."""
    from utils.model import checkpoints as models

    chat = str(carried_path("Llama-2-tiny-chat-hf"))
    monkeypatch.setitem(models.LLAMA_2_CHECKPOINTS, "7b", (chat, "nobody/no-base-model"))


@pytest.fixture
def parity_root(tmp_path: Path, seven_b_is_tiny: None) -> Path:
    """A fresh root with the carried datasets, vectors and normalised vectors, for the model size `7b`."""
    return copy_carried(tmp_path / "root", "datasets", "vectors", "normalized_vectors")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a random 4-layer chat model: `--model PATH`, label `tiny-chat`."""
    from tests.models import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / TINY_LABEL)


@pytest.fixture(scope="session")
def pipeline_root(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The root of one run of every script; see tests/pipeline.py. To be read only; shared by all workers."""
    from filelock import FileLock

    from tests.pipeline import run

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "pipeline"
    with FileLock(shared / "pipeline.lock"):
        if not (folder / "codes.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            shutil.copytree(tiny_checkpoint, folder / TINY_LABEL)
            run(folder, PYTHONHASHSEED="0")
    return folder / "root"


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A fresh root with three contrast pairs and three test questions of each kind for two behaviors."""
    root = tmp_path / "root"
    for behavior in ("sycophancy", "refusal"):
        write_small_datasets(root, behavior)
    return root


@pytest.fixture
def steered_root(small_root: Path) -> Path:
    """The small root with normalised vectors of all layers for both behaviors, and those of another model."""
    from tests.models import N_LAYERS, random_vector

    for place, behavior in enumerate(("sycophancy", "refusal")):
        for layer in range(N_LAYERS):
            write_vector(small_root, behavior, layer, random_vector(10 * place + layer))
            write_vector(small_root, behavior, layer, random_vector(50 + layer), "other-model")
    return small_root


@pytest.fixture
def evaluate(steered_root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    """Run `prompting_with_steering.py` for sycophancy on the tiny checkpoint; further arguments come behind."""
    import prompting_with_steering

    def run(*argv: object) -> int:
        command = ["--root", steered_root, "--model", tiny_checkpoint, "--behaviors", "sycophancy", *argv]
        return prompting_with_steering.main([str(word) for word in command])

    return run


@pytest.fixture
def loading_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load a model's weights fails the test."""

    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the model was loaded")

    from llama_wrapper import LlamaWrapper

    monkeypatch.setattr(LlamaWrapper, "load", load)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of all models loaded during the test, in order."""
    from llama_wrapper import LlamaWrapper

    real_load: Callable[..., LlamaWrapper] = LlamaWrapper.load
    labels: list[str] = []

    def load(choice: Any, *args: Any, **kwargs: Any) -> LlamaWrapper:
        labels.append(choice.label)
        return real_load(choice, *args, **kwargs)

    monkeypatch.setattr(LlamaWrapper, "load", load)
    return labels


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered, which takes a second each: for tests of what is written when."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: None)
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: file.write(b"not rendered"))
