"""Fetching the published SAEs: from a folder, mended; from wandb through its client; and what goes wrong."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from saes import fetch_published_saes
from utils.saes.dictionary import SAE
from utils.saes.published_sources import PUBLISHED

CONFIG = {
    "activation_fn_str": "relu", "hook_name": "blocks.13.hook_resid_pre", "apply_b_dec_to_input": False,
    "normalize_activations": "expected_average_only_in",
}  # fmt: skip


def put(folder: Path) -> dict[str, torch.Tensor]:
    """A small checkpoint in the published form."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(CONFIG))
    save_file(weights, folder / "sae_weights.safetensors")
    return weights


def fetch(root: Path, *argv: object) -> int:
    return fetch_published_saes.main([str(word) for word in ["--root", root, *argv]])


def test_all_four_are_mended_from_a_folder_and_not_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {name: put(tmp_path / "by_hand" / name) for name in PUBLISHED}
    assert fetch(tmp_path, "--from_dir", tmp_path / "by_hand") == 0
    for name, published in PUBLISHED.items():
        sae = SAE.load(tmp_path / "saes_trained" / f"published_{name}")
        torch.testing.assert_close(sae.b_dec, weights[name]["b_dec"] / published.factor)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(6))
        assert (sae.layer, sae.source, sae.trained_on_model) == (12, published.source, published.model.split("/")[1])
    assert fetch(tmp_path, "--from_dir", tmp_path / "by_hand") == 0
    assert "wrote 0, skipped 4 that are there already" in capsys.readouterr().err


def test_what_is_not_in_the_folder_is_named_with_its_address_and_the_others_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "by_hand" / "chat_pile")
    assert fetch(tmp_path, "--from_dir", tmp_path / "by_hand", "--names", "chat_lmsys", "chat_pile") == 1
    said = capsys.readouterr().err
    assert "chat_lmsys: " in said
    assert "fetch both from https://wandb.ai/ckkissane/qwen-500M-chat-lmsys-1m-anthropic/artifacts/model/" in said
    assert (tmp_path / "saes_trained" / "published_chat_pile" / "cfg.json").is_file()


def test_the_client_is_asked_for_the_pinned_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def artifact(name: str) -> SimpleNamespace:
        asked.append(name)

        def download(root: str) -> str:
            put(Path(root) / "inside")
            return root

        return SimpleNamespace(download=download)

    client = ModuleType("wandb")
    client.Api = lambda: SimpleNamespace(artifact=artifact)  # type: ignore[attr-defined]
    client.errors = SimpleNamespace(Error=RuntimeError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", client)
    assert fetch(tmp_path, "--names", "base_pile") == 0
    published = PUBLISHED["base_pile"]
    assert asked == [f"ckkissane/{published.project}/sae_qwen1.5-0.5b_blocks.13.hook_resid_pre_32768:v3"]
    assert SAE.load(tmp_path / "saes_trained" / "published_base_pile").d_sae == 6


def test_without_the_client_or_access_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fetch(tmp_path, "--names", "chat_lmsys") == 1
    assert "run: pip install wandb, or fetch cfg.json and sae_weights.safetensors by hand" in capsys.readouterr().err
    client = ModuleType("wandb")

    def refused() -> None:
        raise RuntimeError("permission denied\nmore")

    client.Api = refused  # type: ignore[attr-defined]
    client.errors = SimpleNamespace(Error=RuntimeError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", client)
    assert fetch(tmp_path, "--names", "chat_lmsys") == 1
    assert "wandb.ai does not give it (permission denied); set WANDB_API_KEY" in capsys.readouterr().err
