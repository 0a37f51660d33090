"""The scripts on the refusal direction, from the command line on a tiny model with made-up SAEs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_wrapper import LlamaWrapper
from saes import (
    dataset_vs_model_transfer,
    make_refuser,
    refusal_dir_recons_fidelity_evals,
    refusal_dir_sparsity_evals,
    refusal_direction,
    refusal_latent_steering_evals,
)
from tests.models import D_MODEL, N_LAYERS
from utils.paths import REPOSITORY, DataPaths
from utils.saes.dictionary import SAE
from utils.saes.directions import encode_all, prompt_activations
from utils.saes.prompts import PromptSource
from utils.saes.selection import Evaluator

D_SAE = 3 * D_MODEL
EVALS = {
    "refusal_dir_recons_fidelity_evals": (refusal_dir_recons_fidelity_evals, ["--n_random", "3"]),
    "refusal_dir_sparsity_evals": (refusal_dir_sparsity_evals, ["--n_random", "2", "--n_resamples", "10"]),
    "refusal_latent_steering_evals": (
        refusal_latent_steering_evals,
        ["--n_random", "3", "--n_test", "4", "--max_new_tokens", "3"],
    ),
    "dataset_vs_model_transfer": (dataset_vs_model_transfer, ["--n_random", "3"]),
}


def write_sae(root: Path, name: str, seed: int = 0, model: str = "tiny-chat", layer: int = 1, **changed: Any) -> Path:
    draw = torch.Generator().manual_seed(seed)
    width = changed.pop("width", D_MODEL)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, width, generator=draw), dim=1)
    encoder = rows.T.contiguous()
    zeros = (torch.zeros(D_SAE), torch.zeros(width))
    source = changed.pop("source", name.rsplit("_", 1)[-1])
    SAE(encoder, zeros[0], rows, zeros[1], "topk", 8, layer, model, source, name).save(root / "saes_trained" / name)
    return root / "saes_trained" / name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    def run_script(script: Any, *argv: object) -> int:
        return script.main([str(word) for word in ("--root", root, "--model", tiny_checkpoint, *argv)])

    return run_script


def bundled(split: Any, n: int) -> Any:
    return PromptSource(DataPaths(REPOSITORY)).load(split, n)


# --- directions --------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_direction_is_the_mean_over_plain_passes_and_says_where_it_is(
    root: Path, tiny_checkpoint: Path, run: Callable[..., int], loading_is_forbidden_later: Callable[[], None]
) -> None:
    argv = ("--layer", 1, "--position", -2, "--n_prompts", 5, "--n_test", 3, "--max_new_tokens", 2)
    assert run(refusal_direction, *argv) == 0
    model, prompts = LlamaWrapper.load(str(tiny_checkpoint)), bundled("train", 5)

    def mean(texts: tuple[str, ...]) -> torch.Tensor:
        rows = []
        for text in texts:
            ids = model.tokenizer(
                f"<s><|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
            )["input_ids"]
            hidden = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append(hidden[2][0, -2].double())  # hidden_states[layer + 1] is the output of block `layer`
        return torch.stack(rows).mean(dim=0)

    expected = mean(prompts.harmful) - mean(prompts.harmless)
    folder = root / "refusal" / "tiny-chat"
    found = torch.load(folder / "direction.pt", weights_only=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["pos"], metadata["layer"], metadata["suite_layer"]) == (-2, 2, 1)
    assert metadata["hook"] == "blocks.2.hook_resid_pre" and metadata["n_prompts"] == 5
    result = json.loads((root / "analysis/sae/refusal_direction_tiny-chat.json").read_text())
    assert [one["edit"] for one in result["conditions"]] == ["none", "none", "ablated", "ablated", "added", "added"]
    assert all(one["n"] == 3 for one in result["conditions"])
    assert all(len(one["answer_begins"]) <= 60 for one in result["completions"])
    loading_is_forbidden_later()
    assert run(refusal_direction, *argv) == 0


@pytest.fixture
def loading_is_forbidden_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        monkeypatch.setattr(LlamaWrapper, "load", lambda *_, **__: pytest.fail("the model was loaded"))

    return forbid


def test_neither_batches_nor_padding_move_an_activation(tiny_checkpoint: Path) -> None:
    model = LlamaWrapper.load(str(tiny_checkpoint))
    prompts = encode_all(model, [*bundled("val", 6).harmful, "Hi"])
    together = prompt_activations(model, prompts, [0, 2], (-1, -3))
    alone = prompt_activations(model, prompts, [0, 2], (-1, -3), batch_size=1)
    assert together.shape == (7, 2, 2, D_MODEL)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_selection_scores_every_candidate_and_draws_them_though_none_is_kept(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = (
        "--select",
        "--no_filter",
        "--ablation",
        "affine",
        "--layers",
        "0-2",
        "--positions",
        -1,
        -2,
        "--n_prompts",
        4,
        "--n_val",
        3,
    )
    assert run(refusal_direction, *argv) == 2
    assert "none of 6 candidates" in capsys.readouterr().err
    folder = root / "refusal" / "tiny-chat"
    scores = json.loads((folder / "direction_evaluations.json").read_text())
    assert [(one["position"], one["layer"]) for one in scores] == [(p, layer) for p in (-1, -2) for layer in (1, 2, 3)]
    assert set(scores[0]) == {"position", "layer", "refusal_score", "steering_score", "kl_div_score"}
    lines = (folder / "direction_evaluations.txt").read_text().splitlines()
    assert sum(line.startswith("random\t") for line in lines) == 3
    assert (folder / "direction_evaluations.png").exists() and not (folder / "direction.pt").exists()


def test_a_selection_that_was_interrupted_goes_on_where_it_was(
    root: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--select", "--no_filter", "--layers", "0-1", "--positions", -1, "--n_prompts", 4, "--n_val", 3)
    measured: list[int] = []
    plain = Evaluator.measure

    def measure(self: Evaluator, direction: torch.Tensor, layer: int, references: Any) -> Any:
        measured.append(layer)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return plain(self, direction, layer, references)

    monkeypatch.setattr(Evaluator, "measure", measure)
    assert run(refusal_direction, *argv) == 130
    assert measured == [0, 1, 0]  # the third is the first layer's random direction
    assert run(refusal_direction, *argv) == 2  # none is kept
    assert measured == [0, 1, 0, 0, 1]
    scores = (root / "refusal/tiny-chat/direction_evaluations.json").read_bytes()
    assert run(refusal_direction, *argv, "--max_kl", 0.5) == 2  # with the scores that are there
    assert (root / "refusal/tiny-chat/direction_evaluations.json").read_bytes() == scores
    assert measured == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layer", "9"], "--layer 9: tiny-chat has layers 0 to 3"),
        (["--layer", "1", "--position", "0"], "count from the prompt's end"),
        (["--layer", "1", "--position", "-900"], "the shortest prompt has"),
        (["--layer", "1", "--harmful", "x.json"], "--harmless FILE is missing"),
        (["--layer", "1", "--harmful", "x.json", "--harmless", "y.json"], "x.json not found"),
        (["--layer", "1", "--refusal_tokens", "Do you"], "is 2 tokens of tiny-chat"),
        (["--layer", "1", "--override_model_weights_path", "no.pt"], "no.pt: there is no such file"),
        (["--select", "--layer", "1"], "not allowed with argument"),
        (["--select"], "refuses 0 of 3 harmful prompts"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run(refusal_direction, *argv, "--n_prompts", 3, "--n_test", 2, "--max_new_tokens", 1) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_result_made_with_other_settings_is_neither_taken_nor_replaced(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--layer", 1, "--n_prompts", 3, "--n_test", 2, "--max_new_tokens", 1)
    assert run(refusal_direction, *argv) == 0
    before = (root / "analysis/sae/refusal_direction_tiny-chat.json").read_bytes()
    assert run(refusal_direction, *argv, "--ablation", "affine") == 2
    assert "was made with another ablation; --overwrite" in capsys.readouterr().err
    assert (root / "analysis/sae/refusal_direction_tiny-chat.json").read_bytes() == before
    assert run(refusal_direction, *argv, "--ablation", "affine", "--overwrite") == 0


# --- the stand-in -------------------------------------------------------------------------------------


def test_the_stand_in_learns_and_is_loaded_over_its_checkpoint(
    root: Path, tiny_checkpoint: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--steps", 12, "--lr", "3e-3", "--layers", "1-3", "--max_new_tokens", 3)
    assert run(make_refuser, *argv) == 0
    assert "a made-up stand-in: blocks 1-3" in capsys.readouterr().out
    report = json.loads((root / "analysis/sae/refuser_tiny-chat.json").read_text())
    assert sum(report["losses"][-3:]) < 0.9 * sum(report["losses"][:3])
    assert report["after"]["harmful"]["refused_starts"]["n"] == 32
    weights = root / "finetuned_models" / "refuser.pt"
    plain = LlamaWrapper.load(str(tiny_checkpoint)).model.state_dict()
    changed = torch.load(weights, weights_only=True)
    moved = {name.split(".")[2] for name in plain if not torch.equal(plain[name], changed[name])}
    assert moved == {"1", "2", "3"}  # blocks
    assert run(make_refuser, *argv) == 0
    assert "skipped 1" in capsys.readouterr().err
    argv = ("--layer", 1, "--n_prompts", 3, "--n_test", 2, "--max_new_tokens", 1)
    assert run(refusal_direction, *argv, "--override_model_weights_path", weights) == 0
    assert (root / "refusal" / "tiny-chat_refuser" / "direction.pt").exists()


# --- SAEs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVALS)
def test_an_evaluation_writes_its_result_figure_and_table_once(
    name: str, root: Path, run: Callable[..., int], loading_is_forbidden_later: Callable[[], None]
) -> None:
    script, options = EVALS[name]
    saes = [write_sae(root, "a_chat", 1), write_sae(root, "b_web", 2)]
    argv = ("--saes", *saes, "--n_prompts", 8, *options)
    assert run(script, *argv) == 0
    stem = root / "analysis" / "sae" / f"{name}_tiny-chat"
    result = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert set(result["settings"]["saes"]) == {"a_chat", "b_web"}
    assert result["made"]["command"].startswith(f"./saes/{name}.py --root")
    for suffix in (".png", ".pdf", ".txt"):
        assert stem.with_name(stem.name + suffix).stat().st_size > 100
    assert "random" in stem.with_name(stem.name + ".txt").read_text()
    loading_is_forbidden_later()
    assert run(script, *argv) == 0


def test_fidelity_on_the_command_line_is_that_of_the_formulas(
    root: Path, tiny_checkpoint: Path, run: Callable[..., int]
) -> None:
    folder = write_sae(root, "a_chat", 1)
    assert run(refusal_dir_recons_fidelity_evals, "--saes", folder, "--n_prompts", 8, "--n_random", 2) == 0
    result = json.loads((root / "analysis/sae/refusal_dir_recons_fidelity_evals_tiny-chat.json").read_text())
    model, prompts, sae = LlamaWrapper.load(str(tiny_checkpoint)), bundled("train", 8), SAE.load(folder)
    read = [prompt_activations(model, encode_all(model, t), [1])[:, 0, 0] for t in (prompts.harmful, prompts.harmless)]
    r = (read[0].mean(dim=0) - read[1].mean(dim=0)).double()
    r_hat = (sae.reconstruct(read[0]).mean(dim=0) - sae.reconstruct(read[1]).mean(dim=0)).double()
    [found] = result["results"]["saes"]
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(r, r_hat, dim=0)), abs=1e-4)
    assert found["relative_mse"] == pytest.approx(float((r_hat - r).square().sum() / r.square().sum()), rel=1e-3)
    assert found["hook"] == "blocks.2.hook_resid_pre" and found["layer"] == 1


def test_the_steered_latent_is_the_one_nearest_to_the_direction(
    root: Path, tiny_checkpoint: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    script, options = EVALS["refusal_latent_steering_evals"]
    folder = write_sae(root, "a_chat", 1)
    assert run(script, "--saes", folder, "--n_prompts", 8, "--ablation", "affine", "--top", 2, *options) == 0
    result = json.loads((root / "analysis/sae/refusal_latent_steering_evals_tiny-chat.json").read_text())["results"]
    model, prompts = LlamaWrapper.load(str(tiny_checkpoint)), bundled("train", 8)
    read = [prompt_activations(model, encode_all(model, t), [1])[:, 0, 0] for t in (prompts.harmful, prompts.harmless)]
    r = read[0].mean(dim=0) - read[1].mean(dim=0)
    cosines = torch.cosine_similarity(SAE.load(folder).W_dec, r[None], dim=1)
    assert result["saes"][0]["top_latents"][0] == [int(cosines.argmax()), pytest.approx(float(cosines.max()), abs=1e-4)]
    tried = [one["what"] for one in result["conditions"] if one["edit"] == "ablated"]
    assert tried[:3] == ["direction r", "random direction", "random dictionary's top row"]
    assert tried[3:] == [f"a_chat latent {latent}" for latent, _ in result["saes"][0]["top_latents"][:2]]
    assert "harmless, direction r added: refused" in capsys.readouterr().out


def test_transfer_takes_saes_of_other_models_and_averages_seeds(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write_sae(root, f"{model}_{seed}_{source}", seed + 10 * place, model)
        for place, source in enumerate(("chat", "web"))
        for model in ("tiny-chat", "tiny-base")
        for seed in (1, 2, 3)
    ]
    assert run(dataset_vs_model_transfer, "--saes", *folders, "--n_prompts", 8, "--n_random", 2) == 0
    content = json.loads((root / "analysis/sae/dataset_vs_model_transfer_tiny-chat.json").read_text())["results"]
    assert [(cell["trained_on_model"], cell["trained_on_data"]) for cell in content["cells"]] == [
        ("tiny-base", "chat"),
        ("tiny-base", "web"),
        ("tiny-chat", "chat"),
        ("tiny-chat", "web"),
    ]
    first = content["cells"][0]
    assert first["cosine"] == pytest.approx(sum(one["cosine"] for one in first["saes"]) / 3)
    difference = content["differences"][0]["cosine_over_saes"]
    pairs = [a["cosine"] - b["cosine"] for a, b in zip(first["saes"], content["cells"][1]["saes"], strict=True)]
    assert difference["value"] == pytest.approx(sum(pairs) / 3) and difference["low"] < difference["value"]
    assert "chat minus web" in capsys.readouterr().out


@pytest.mark.parametrize("name", EVALS)
@pytest.mark.parametrize(
    ("changed", "argv", "message"),
    [
        ({"width": D_MODEL + 2}, [], f"has width {D_MODEL + 2}, but the residual stream of tiny-chat has {D_MODEL}"),
        ({"layer": N_LAYERS}, [], f"reads layer {N_LAYERS}, but tiny-chat has layers 0 to {N_LAYERS - 1}"),
        ({}, ["--layer", "2"], "reads layer 1, not --layer 2"),
        ({"model": "gpt2"}, [], "was trained on gpt2, not on tiny-chat"),
    ],
    ids=["width", "layer", "other layer asked", "other model"],
)
def test_an_sae_that_does_not_fit_is_refused_in_one_line(
    name: str, changed: dict[str, Any], argv: list[str], message: str, root: Path, run: Callable[..., int], capsys: Any
) -> None:
    if name == "dataset_vs_model_transfer" and "model" in changed:
        pytest.skip("it compares models")
    script, options = EVALS[name]
    assert run(script, "--saes", write_sae(root, "a_chat", **changed), "--n_prompts", 4, *options, *argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize("script", [make_refuser, refusal_direction, refusal_dir_sparsity_evals])
def test_several_processes_are_refused(
    script: Any, root: Path, run: Callable[..., int], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    argv = {refusal_direction: ["--layer", "1"], make_refuser: []}.get(script, ["--saes", str(root)])
    assert run(script, *argv) == 2
    assert "runs in one process" in capsys.readouterr().err


def test_folders_that_hold_no_sae_are_named(root: Path, run: Callable[..., int], capsys: Any) -> None:
    assert run(refusal_dir_sparsity_evals, "--saes", root / "nothing") == 2
    assert "there is no such folder; train one with ./saes/train_sae.py" in capsys.readouterr().err
    assert run(refusal_dir_sparsity_evals, "--saes", root) == 2
    assert "no weights (*.safetensors) in it" in capsys.readouterr().err
    folder = write_sae(root, "a_chat")
    assert run(refusal_dir_sparsity_evals, "--saes", folder, folder) == 2
    assert "a_chat is named twice" in capsys.readouterr().err
    layers = [write_sae(root, f"l{layer}_chat", layer=layer) for layer in (1, 2)]
    assert run(dataset_vs_model_transfer, "--saes", *layers, "--n_prompts", 4, "--n_random", 2) == 2
    assert "read layers 1, 2; compare SAEs of one layer" in capsys.readouterr().err
