"""SAE folders of sae-lens 2 to 6, and the repair of the published checkpoints, against the formulas."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from utils.errors import UserError
from utils.saes import formats
from utils.saes.dictionary import SAE
from utils.saes.published import repaired
from utils.saes.published_sources import PUBLISHED

D_MODEL, D_SAE = 6, 10


def drawn(seed: int = 0) -> dict[str, Tensor]:
    """Random weights whose decoder rows do not have norm 1."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


X = torch.randn(7, D_MODEL, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder from elsewhere: a configuration and weights."""

    def write(config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
        folder = tmp_path / "from_elsewhere"
        folder.mkdir(exist_ok=True)
        save_file(weights, folder / formats.WEIGHTS_NAME)
        (folder / formats.CONFIG_NAME).write_text(json.dumps(config))
        return folder

    return write


def own_sae(architecture: str = "topk") -> SAE:
    threshold = torch.full((D_SAE,), 0.3) if architecture == "batchtopk" else None
    k = None if architecture == "standard" else 3
    own = {"weights": "refuser", "seed": 4, "context": 256}
    about = {"layer": 16, "model": "tiny-chat", "source": "web", "name": "x", "own": own}
    return SAE(**drawn(), architecture=architecture, k=k, threshold=threshold, **about)


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_what_is_saved_is_read_back_the_same(tmp_path: Path, architecture: str) -> None:
    sae = own_sae(architecture)
    sae.save(tmp_path / "tiny-chat_web")
    read = SAE.load(tmp_path / "tiny-chat_web")
    for name in formats.WEIGHT_NAMES:
        assert torch.equal(getattr(read, name), getattr(sae, name))
    assert (read.architecture, read.k, read.layer, read.model) == (architecture, sae.k, 16, "tiny-chat")
    assert (read.source, read.name, read.trained_on_model) == ("web", "tiny-chat_web", "tiny-chat (refuser)")
    assert read.own["seed"] == 4
    assert torch.equal(read.encode(X), sae.encode(X))


def test_the_configuration_names_the_place_in_both_ways_and_batchtopk_as_jumprelu(tmp_path: Path) -> None:
    own_sae("batchtopk").save(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    assert config["metadata"]["hook_name"] == "blocks.16.hook_resid_post"
    assert config["metadata"]["caa"]["same_hook_name"] == "blocks.17.hook_resid_pre"
    assert config["metadata"]["caa"]["architecture"] == "batchtopk"
    assert config["metadata"]["context_size"] == 256


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.13.hook_resid_pre", 12),
        ("blocks.13.hook_resid_post", 13),
        ("model.layers.13", 13),
        ("gpt_neox.layers.3", 3),
        ("transformer.h.0", 0),
    ],
)
def test_hook_names_become_the_layer_whose_output_is_meant(hook: str, layer: int) -> None:
    assert formats.layer_of_hook(hook, "x") == layer


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "blocks.3.attn.hook_z", "blocks.3.hook_mlp_out", ""])
def test_places_that_are_no_output_of_a_block_are_refused(hook: str) -> None:
    with pytest.raises(UserError, match=f"cfg: it was trained at {re.escape(repr(hook))}"):
        formats.layer_of_hook(hook, "cfg")


def test_a_folder_of_version_2_is_read_with_b_dec_subtracted_from_the_input(folder_of: Callable[..., Path]) -> None:
    weights = drawn()
    config = {"d_in": D_MODEL, "d_sae": D_SAE, "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"}
    folder = folder_of({**config, "dataset_path": "Skylion007/openwebtext"}, weights)
    sae = SAE.load(folder)
    by_formula = ((X - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(X), by_formula)
    torch.testing.assert_close(sae.reconstruct(X), by_formula @ weights["W_dec"] + weights["b_dec"])
    assert (sae.layer, sae.model, sae.source) == (7, "gpt2-small", "Skylion007/openwebtext")


def test_topk_of_versions_4_and_5_is_told_by_its_activation_function(folder_of: Callable[..., Path]) -> None:
    config = {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 2},
        "hook_name": "blocks.3.hook_resid_post",
        "model_name": "m",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    weights = drawn()
    sae = SAE.load(folder_of(config, weights))
    pre = X @ weights["W_enc"] + weights["b_enc"]
    kept = pre.where(pre >= pre.topk(2).values[:, -1:], 0).relu()
    torch.testing.assert_close(sae.encode(X), kept)
    assert (sae.architecture, sae.k) == ("topk", 2)


def test_topk_that_was_chosen_by_decoder_norms_is_folded_without_changing_what_it_gives(
    folder_of: Callable[..., Path],
) -> None:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "model.layers.2", "model_name": "m"}
    config = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": True}
    weights = drawn(3)
    sae = SAE.load(folder_of({**config, "normalize_activations": "none", "metadata": metadata}, weights))
    norms = weights["W_dec"].norm(dim=-1)
    pre = ((X - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    kept = pre.where(pre >= pre.topk(3).values[:, -1:], 0).relu()
    torch.testing.assert_close(sae.reconstruct(X), (kept / norms) @ weights["W_dec"] + weights["b_dec"])
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_jumprelu_of_elsewhere_is_read_with_its_thresholds(folder_of: Callable[..., Path]) -> None:
    weights = {**drawn(), "threshold": torch.linspace(0, 2, D_SAE)}
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False, "hook_name": "blocks.3.hook_resid_post"}
    sae = SAE.load(folder_of({**config, "normalize_activations": "none"}, weights))
    pre = X @ weights["W_enc"] + weights["b_enc"]
    assert torch.equal(sae.encode(X), torch.where(pre > weights["threshold"], pre, 0))
    assert sae.model == "unknown"


@pytest.mark.parametrize("which", sorted(PUBLISHED))
def test_the_repair_of_a_published_checkpoint_equals_the_formula(folder_of: Callable[..., Path], which: str) -> None:
    weights = drawn(5)
    config = {
        "activation_fn_str": "relu",
        "hook_name": "blocks.13.hook_resid_pre",
        "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
        "model_name": "qwen1.5-0.5b-chat",
    }
    sae = repaired(folder_of(config, weights), which)
    n = weights["W_dec"].norm(dim=-1)
    f = (X @ (weights["W_enc"] * n) + weights["b_enc"] * n).relu()
    b_dec = weights["b_dec"] / PUBLISHED[which].factor
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae.reconstruct(X), f @ (weights["W_dec"] / n[:, None]) + b_dec)
    # and so the norms move nothing but b_dec is another
    torch.testing.assert_close(
        sae.reconstruct(X) - b_dec, (X @ weights["W_enc"] + weights["b_enc"]).relu() @ weights["W_dec"]
    )
    assert (sae.layer, sae.source, sae.name) == (12, which.split("_")[1], which)


def test_a_checkpoint_that_is_mended_already_is_not_mended_twice(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    config = {"apply_b_dec_to_input": False, "normalize_activations": True, "hook_name": "blocks.13.hook_resid_pre"}
    mended = repaired(folder_of(config, drawn()), "chat_pile")
    mended.save(tmp_path / "mended")
    with pytest.raises(UserError, match="this checkpoint is mended already"):
        repaired(tmp_path / "mended", "chat_pile")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "expects normalised input"),
        ({"normalize_activations": True}, "expects normalised input"),
        ({"normalize_activations": "layer_norm"}, "expects normalised input"),
        ({"architecture": "gated"}, "SAEs of architecture 'gated' are not read here"),
        ({"reshape_activations": "hook_z"}, "SAEs of attention heads"),
        ({"hook_name": 3}, "it was trained at ''"),
        ({"architecture": "topk", "k": "many"}, "k is 'many'; expected a number"),
        ({"architecture": "topk", "k": 11}, "k is 11, but it has 10 latents"),
        ({"architecture": "jumprelu"}, "threshold is missing"),
    ],
)
def test_saes_that_are_not_read_here_are_refused(
    folder_of: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    config = {"hook_name": "blocks.3.hook_resid_post", "model_name": "m", **change}
    with pytest.raises(UserError, match=message):
        SAE.load(folder_of(config, drawn()))


def test_damaged_or_missing_parts_are_named(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cfg\.json not found; an SAE is a folder with"):
        SAE.load(tmp_path / "nothing")
    config = {"hook_name": "blocks.3.hook_resid_post"}
    weights = drawn()
    with pytest.raises(UserError, match=r"W_dec, b_dec is missing"):
        SAE.load(folder_of(config, {name: weights[name] for name in ("W_enc", "b_enc")}))
    with pytest.raises(UserError, match="do not fit together"):
        SAE.load(folder_of(config, {**weights, "b_dec": torch.zeros(D_SAE)}))
    with pytest.raises(UserError, match="W_enc has NaN or infinite values"):
        SAE.load(folder_of(config, {**weights, "W_enc": weights["W_enc"] / 0}))
    folder = folder_of(config, weights)
    whole = (folder / formats.WEIGHTS_NAME).read_bytes()
    (folder / formats.WEIGHTS_NAME).write_bytes(whole[:-9])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        SAE.load(folder)
    (folder / formats.WEIGHTS_NAME).unlink()
    with pytest.raises(UserError, match=r"sae_weights\.safetensors not found"):
        SAE.load(folder)
    (folder / formats.CONFIG_NAME).write_text("[1]")
    with pytest.raises(UserError, match="expected an object"):
        SAE.load(folder)


def test_weights_of_a_new_save_never_stand_beside_an_old_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_sae().save(tmp_path / "sae")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(formats, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        own_sae("standard").save(tmp_path / "sae")
    assert not formats.is_sae_folder(tmp_path / "sae")


# --- beside sae-lens, where it is installed (requirements-sae.txt) ---


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_sae_lens_reads_what_is_written_and_computes_the_same(tmp_path: Path, architecture: str) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed (requirements-sae.txt)")
    sae = own_sae(architecture)
    sae.save(tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    torch.testing.assert_close(theirs.encode(X), sae.encode(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(X), sae.reconstruct(X), atol=1e-5, rtol=1e-5)
    assert theirs.cfg.metadata.hook_name == sae.hook_name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_what_sae_lens_writes_is_read_here_and_computes_the_same(tmp_path: Path, architecture: str) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed (requirements-sae.txt)")
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="model.layers.3", model_name="tiny")
    config: dict[str, Any] = {"d_in": D_MODEL, "d_sae": D_SAE, "metadata": metadata}
    if architecture == "topk":
        theirs = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**config, k=3, rescale_acts_by_decoder_norm=True))
    else:
        theirs = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**config))
    theirs.load_state_dict(drawn(6))
    theirs.save_model(tmp_path / "theirs")
    sae = SAE.load(tmp_path / "theirs")
    torch.testing.assert_close(sae.reconstruct(X), theirs(X), atol=1e-5, rtol=1e-5)
    assert sae.layer == 3


@pytest.mark.slow
def test_the_repair_equals_what_sae_lens_folds(folder_of: Callable[..., Path]) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed (requirements-sae.txt)")
    config = {
        "architecture": "standard",
        "activation_fn_str": "relu",
        "hook_name": "blocks.13.hook_resid_pre",
        "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
        "model_name": "qwen1.5-0.5b-chat",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
    }
    folder = folder_of(config, drawn(7))
    theirs = sae_lens.SAE.load_from_disk(folder)
    theirs.b_dec.data /= PUBLISHED["base_pile"].factor
    theirs.fold_W_dec_norm()
    mine = repaired(folder, "base_pile")
    torch.testing.assert_close(mine.encode(X), theirs.encode(X))
    torch.testing.assert_close(mine.reconstruct(X), theirs(X))
