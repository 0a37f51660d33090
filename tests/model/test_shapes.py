"""The sizes of a model, read without the libraries that load it."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.models import ARCHITECTURES, build_config
from tests.roots import put_json
from utils.errors import UserError
from utils.model import shapes
from utils.model.checkpoints import choose_model
from utils.model.loading import load_config
from utils.model.shapes import ModelShape, model_shape
from utils.paths import REPOSITORY

PLAIN = {
    "model_type": "llama",
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
SHAPE = ModelShape(5, 32, 256)


@pytest.fixture
def by_transformers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the models that transformers was asked about."""
    asked: list[str] = []

    def load(choice: Any) -> Any:
        asked.append(choice.label)
        return load_config(choice)

    monkeypatch.setattr("utils.model.loading.load_config", load)
    return asked


def shape_of(folder: Path) -> ModelShape:
    return model_shape(choose_model("7b", str(folder), False))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shape_is_what_transformers_reads(architecture: str, tmp_path: Path, by_transformers: list[str]) -> None:
    build_config(architecture).save_pretrained(tmp_path)
    config = load_config(choose_model("7b", str(tmp_path), False))
    expected = ModelShape(config.num_hidden_layers, config.hidden_size, config.max_position_embeddings)
    assert shape_of(tmp_path) == expected == ModelShape(4, 32, 512)
    assert by_transformers == ([tmp_path.name] if architecture == "gpt2" else [])


def test_the_text_model_inside_a_model_of_images_is_meant(tmp_path: Path, by_transformers: list[str]) -> None:
    inside = {**PLAIN, "model_type": "gemma3_text"}
    put_json(tmp_path / "config.json", {"model_type": "gemma3", "num_hidden_layers": 99, "text_config": inside})
    assert shape_of(tmp_path) == SHAPE
    assert by_transformers == []


@pytest.mark.parametrize(
    "unusual",
    [
        {"max_position_embeddings": None},  # has a default that only transformers knows
        {"model_type": "gpt2"},
        {"head_dim": 8, "_attn_implementation": "eager"},
        {"torch_dtype": "float32", "text_config": {}},
    ],
)
def test_what_is_unusual_is_left_to_transformers(
    unusual: dict[str, Any], tmp_path: Path, by_transformers: list[str]
) -> None:
    config = {key: value for key, value in {**PLAIN, **unusual}.items() if value is not None}
    put_json(tmp_path / "config.json", config)
    with suppress(UserError):  # that transformers refuses it is as good
        shape_of(tmp_path)
    assert by_transformers == [tmp_path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_encoder_decoder": True, "model_type": "t5"}, "is not a decoder-only language model"),
        ({"model_type": "t5"}, "is not a decoder-only language model"),
        ({"_attn_implementation": "someone/kernel"}, "asks for attention code from elsewhere"),
        ({"num_hidden_layers": 0}, "gives 0 decoder layers"),
        ({"num_hidden_layers": True}, "could not be loaded|decoder layers"),
        ({"hidden_size": "abc"}, "could not be loaded"),
        ({"num_attention_heads": 0}, "could not be loaded"),
        ({"num_attention_heads": 5}, "could not be loaded"),
        ({"model_type": "own-kind"}, "could not be loaded"),
    ],
)
def test_what_the_loading_refuses_has_no_shape(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    put_json(tmp_path / "config.json", {**PLAIN, **change})
    with pytest.raises(UserError, match=message):
        shape_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"model_type": "llama"'])
def test_a_damaged_configuration_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"could not be loaded: [^\n]+$"):
        shape_of(tmp_path)


def test_a_folder_without_a_model_or_of_an_unknown_user_is_named(tmp_path: Path) -> None:
    for source in (str(tmp_path), str(tmp_path / "gone"), "~nobody-of-this-name/model"):
        with pytest.raises(UserError, match=r"^--model [^\n]+$"):
            model_shape(choose_model("7b", source, False))


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_hub_model_s_shape_is_read_from_the_cache(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_transformers: list[str]
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    hub = tmp_path / {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    model = hub / "models--someone--model"
    put_json(model / "snapshots" / "old" / "config.json", {**PLAIN, "num_hidden_layers": 1})
    put_json(model / "snapshots" / "new" / "config.json", PLAIN)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("new")
    assert model_shape(choose_model("7b", "someone/model", False)) == SHAPE
    assert by_transformers == []


def test_the_embedded_model_s_shape_is_read_where_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "MODELS_DIR", tmp_path)
    path = put_json(tmp_path / "SmolLM2-135M-Instruct" / "config.json", PLAIN)
    put_json(path.with_name("manifest.json"), {"sizes": {"config.json": path.stat().st_size}})
    assert model_shape(choose_model("135m", None, False)) == SHAPE
    put_json(path.with_name("manifest.json"), {"sizes": {"config.json": 1}})
    fetched = json.dumps({**PLAIN, "num_hidden_layers": 7})
    monkeypatch.setattr("utils.model.loading.ensure_embedded_model", lambda: path.write_text(fetched) and path.parent)
    assert model_shape(choose_model("135m", None, False)) == ModelShape(7, 32, 256)


def test_neither_torch_nor_transformers_is_imported_for_a_shape(tmp_path: Path) -> None:
    put_json(tmp_path / "config.json", PLAIN)
    code = (
        "import sys\nfrom utils.model.checkpoints import choose_model\nfrom utils.model.shapes import model_shape\n"
        f"print(model_shape(choose_model('7b', {str(tmp_path)!r}, False)).n_layers)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n[]\n"
