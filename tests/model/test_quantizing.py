"""Quantised models: what is refused, what is measured and recorded; and, where the libraries are, that all holds.

Needs torchao and bitsandbytes (requirements-quantize.txt), which are not installed by default, for the second half.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import llama_wrapper
import prompting_with_steering
from llama_wrapper import LlamaWrapper
from tests.models import build_model, build_tokenizer, build_wrapper, random_steerings, random_vector
from tests.roots import TINY_LABEL
from utils.errors import UserError
from utils.model import quantizing
from utils.model.checkpoints import choose_model
from utils.model.generation import GenerationRow
from utils.model.quantizing import Quantized, check_quantizer, compare_next_tokens, next_token_logs, quantize_model
from utils.model.steering import Steering
from utils.paths import REPOSITORY, DataPaths
from utils.vectors.files import generate_command, normalize_command

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# --- what is refused, before anything is loaded ---


def test_four_bits_on_a_cpu_are_refused_in_a_line_that_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"^--quantize nf4 is for NVIDIA GPUs, and this is cpu; use --quantize int8"):
        check_quantizer("nf4", CPU, over_all_devices=False)
    with pytest.raises(UserError, match=r"for NVIDIA GPUs, and this is mps; use --device cpu"):
        check_quantizer("int8", torch.device("mps"), over_all_devices=False)


def test_a_quantised_model_is_not_split_over_devices() -> None:
    with pytest.raises(UserError, match="keeps the model on one device; leave --device_map out"):
        check_quantizer("int8", CPU, over_all_devices=True)


@pytest.mark.parametrize(("device", "library"), [(CPU, "torchao"), (CUDA, "bitsandbytes")])
def test_a_library_that_is_not_there_is_named_with_the_command_that_brings_it(
    device: torch.device, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "find_spec", {}.get)
    with pytest.raises(UserError) as caught:
        check_quantizer("int8", device, over_all_devices=False)
    message = str(caught.value)
    assert f"needs {library}, which is not installed" in message and "\n" not in message
    requirements = REPOSITORY / message.rpartition(" ")[2]
    assert f"{library}==" in requirements.read_text()


def test_a_script_says_it_in_one_line_before_it_loads_the_model(
    evaluate: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantizing, "find_spec", {}.get)
    monkeypatch.setattr(llama_wrapper, "load_checkpoint", None)  # would fail, were it called
    assert evaluate("--layers", 1, "--quantize", "int8") == 2
    assert capsys.readouterr().err.count("pip install -r requirements-quantize.txt") == 1


# --- what is measured and recorded ---


def test_the_difference_is_the_largest_change_of_a_probability_and_the_mean_divergence() -> None:
    before, after = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.5, 0.5], [0.6, 0.4]])
    largest, kl = compare_next_tokens([before.log()], [after.log()])
    assert largest == pytest.approx(0.3, abs=1e-7)
    assert kl == pytest.approx((0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)) / 2, abs=1e-6)
    with pytest.raises(UserError, match="are not finite"):
        compare_next_tokens([before.log()], [torch.full((2, 2), math.nan)])


def test_provenance_says_how_the_weights_are_kept_and_their_fingerprint_is_another() -> None:
    model, plain = build_model("llama"), build_wrapper()
    fingerprint = quantizing.fingerprint_of(model, "int8", "pytest")
    quantized = Quantized("int8", "pytest", fingerprint, 0.9, 0.012345678, 1e-4)
    wrapper = LlamaWrapper(model, build_tokenizer(), TINY_LABEL, quantized=quantized)
    made = wrapper.provenance()
    assert (made["quantize"], made["quantize_difference"]) == ("int8", 0.012346)
    assert plain.provenance()["quantize"] == "none"
    assert wrapper.fingerprint == fingerprint != plain.fingerprint


def test_the_choice_of_a_model_says_it_in_commands_of_scripts_that_load_it(tmp_path: Path) -> None:
    choice, paths = choose_model("135m", None, False, "int8"), DataPaths(tmp_path)
    assert choice.command_words == ["--model_size", "135m", "--quantize", "int8"]
    assert "--quantize int8" in generate_command(paths, ["refusal"], [3], choice)
    assert "--quantize" not in normalize_command(paths, ["refusal"], choice)


def test_every_script_that_loads_a_model_can_quantise_it_or_says_that_it_does_not() -> None:
    """scoring.py takes the model that gave the answers, as it was then."""
    scripts = [path for folder in (".", "saes", "research") for path in (REPOSITORY / folder).glob("*.py")]
    texts = {path: path.read_text() for path in scripts if path.stem not in ("scoring", "llama_wrapper")}
    loading = [path for path, text in texts.items() if "LlamaWrapper.load(" in text and "quantize=False" not in text]
    assert len(loading) > 10
    for path in loading:
        folder = "" if path.parent == REPOSITORY else f"{path.parent.name}."
        parser = importlib.import_module(f"{folder}{path.stem}").build_parser()
        assert "--quantize" in parser._option_string_actions, path.name


# --- where the libraries are ---


@pytest.fixture(scope="module")
def int8() -> Iterator[LlamaWrapper]:
    pytest.importorskip("torchao", reason="torchao is not installed")
    model, tokenizer = build_model("llama"), build_tokenizer()
    quantized = quantize_model(model, tokenizer, TINY_LABEL, "int8", CPU)
    yield LlamaWrapper(model, tokenizer, TINY_LABEL, quantized=quantized)


def test_int8_weights_are_near_the_weights_and_the_difference_is_what_it_says(int8: LlamaWrapper) -> None:
    before = next_token_logs(build_model("llama"), build_tokenizer())
    largest, kl = compare_next_tokens(before, next_token_logs(int8.model, int8.tokenizer))
    assert int8.quantized is not None
    assert (int8.quantized.difference, int8.quantized.kl) == (pytest.approx(largest), pytest.approx(kl))
    assert 1e-5 < largest < 0.05
    linear = int8.layers[0].mlp.down_proj.weight
    assert "Int8" in type(linear).__name__ and type(int8.model.lm_head.weight) is nn.Parameter


def test_steering_a_quantised_model_adds_in_floating_point(int8: LlamaWrapper) -> None:
    prompt, vector = int8.chat_format.encode_choice("What?"), random_vector(3)
    plain, steered = int8.capture(prompt), int8.capture(prompt, Steering(1, 1.5, vector))
    assert steered.dtype == torch.float32
    assert torch.equal(steered[1, prompt.steer_start :], plain[1, prompt.steer_start :] + 1.5 * vector)
    assert torch.equal(steered[:2, : prompt.steer_start], plain[:2, : prompt.steer_start])


def test_fast_paths_equal_plain_ones_on_a_quantised_model(int8: LlamaWrapper) -> None:
    prompts = [int8.chat_format.encode_choice(question) for question in ("What?", "Do you agree that it is not?")]
    steerings = [None, *random_steerings([0, 2], [1.0])]
    fast, plain = (dict(way(prompts, steerings, [[40, 41]] * 2)) for way in (int8.score, int8.score_plainly))
    assert all(torch.allclose(fast[i], plain[i], rtol=1e-4) for i in plain)
    rows = [GenerationRow(prompt, steering) for prompt in prompts for steering in steerings]
    together, alone = (dict(int8.generate(rows, 8, batch_size=size)) for size in (None, 1))
    assert together == alone


def test_results_of_a_quantised_model_stand_beside_those_of_the_model(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    assert evaluate("--layers", 1, "--multipliers", 1) == 0
    assert evaluate("--layers", 1, "--multipliers", 1, "--quantize", "int8") == 0
    said = capsys.readouterr().err
    assert "probabilities change by at most" in said and "other settings" not in said
    folder = steered_root / "results" / "sycophancy"
    plain, quantized = sorted(folder.glob("results_*.json"), key=lambda path: "quantize" in path.name)
    assert quantized.name.endswith(f"_model={TINY_LABEL}_quantize=int8.json")
    runs = json.loads((folder / "provenance.json").read_text())
    made = {name: runs["runs"][run]["quantize"] for name, run in runs["artifacts"].items()}
    assert made == {plain.name: "none", quantized.name: "int8"}
    assert json.loads(plain.read_text()) != json.loads(quantized.read_text())
    assert prompting_with_steering.build_parser().get_default("quantize") is None


@pytest.mark.parametrize(("name", "most"), [("int8", 0.05), ("nf4", 0.5)])
def test_the_layers_of_bitsandbytes_are_near_those_that_they_replace(
    name: quantizing.Quantization, most: float
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    linear = nn.Linear(64, 96).requires_grad_(False)
    replaced = quantizing._bitsandbytes_linear(linear, name).to(CPU)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected, found = linear(inputs), replaced(inputs)
    assert not replaced.weight.is_floating_point() and found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < most


def test_the_blocks_linear_layers_and_no_others_are_replaced() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = build_model("gpt_neox")
    blocks = quantizing.find_decoder_layers(model, "x")
    n_linears = sum(type(module) is nn.Linear for block in blocks for module in block.modules())
    for block in blocks:
        quantizing._by_bitsandbytes(block, "nf4")
    replaced = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(replaced) == n_linears == 16
    assert type(model.get_output_embeddings()) is nn.Linear


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"its decoder blocks have no linear layers that torchao takes"):
        quantize_model(build_model("gpt2"), build_tokenizer(), "gpt2", "int8", CPU)
