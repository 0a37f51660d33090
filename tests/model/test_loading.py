"""From a name or a folder to a model: what loads, and how each failure is said."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from llama_wrapper import LlamaWrapper
from tests.models import (
    ARCHITECTURES,
    N_LAYERS,
    WINDOWED,
    build_model,
    build_tokenizer,
    decoder_blocks,
    random_vector,
    save_checkpoint,
)
from utils.errors import UserError
from utils.model.architectures import find_decoder_layers
from utils.model.checkpoints import ModelChoice, choose_model
from utils.model.loading import load_config, pick_device, pick_dtype
from utils.model.steering import Steering


def choice_of(folder: Path, use_base_model: bool = False) -> ModelChoice:
    return choose_model("7b", str(folder), use_base_model)


# --- what loads ---


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, WINDOWED])
def test_the_decoder_blocks_are_found_in_order(architecture: str) -> None:
    model = build_model(architecture)
    assert find_decoder_layers(model, "x") == decoder_blocks(model)
    assert len(decoder_blocks(model)) == N_LAYERS


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_checkpoint_folder_loads_with_its_own_weights(tmp_path: Path, architecture: str) -> None:
    folder = save_checkpoint(tmp_path / "tiny-chat", architecture, seed=3)
    wrapper = LlamaWrapper.load(choice_of(folder), device="cpu")
    assert wrapper.label == "tiny-chat" and wrapper.dtype == torch.float32 and not wrapper.model.training
    expected = build_model(architecture, seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in wrapper.model.state_dict().items())
    config = load_config(choice_of(folder))
    assert (config.num_hidden_layers, config.hidden_size) == (wrapper.n_layers, wrapper.d_model)


def test_the_dtype_that_is_asked_for_is_used_and_steering_works_in_it(tiny_checkpoint: Path) -> None:
    wrapper = LlamaWrapper.load(choice_of(tiny_checkpoint), dtype="bfloat16", device="cpu")
    assert wrapper.dtype == torch.bfloat16
    prompt = wrapper.chat_format.encode_choice("What?")
    plain, steered = wrapper.capture(prompt), wrapper.capture(prompt, Steering(1, 1.0, random_vector(0)))
    added = (plain[1, prompt.steer_start :] + random_vector(0).bfloat16()).to(torch.bfloat16)
    assert steered.dtype == torch.bfloat16
    assert torch.equal(steered[1, prompt.steer_start :], added)


def test_float32_is_the_default_but_float16_for_13b_and_70b_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for size, on_gpu in (
        ("7b", torch.float32),
        ("13b", torch.float16),
        ("70b", torch.float16),
        ("135m", torch.float32),
    ):
        choice = choose_model(size, None, False)
        assert pick_dtype(choice, "auto", cpu) == torch.float32
        assert pick_dtype(choice, "auto", gpu) == on_gpu
        assert pick_dtype(choice, "bfloat16", gpu) == torch.bfloat16


# --- fine-tuned weights ---


def test_other_weights_replace_the_checkpoint_s(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tuned = build_model("llama", seed=9).state_dict()
    torch.save(tuned, tmp_path / "tuned.pt")
    wrapper = LlamaWrapper.load(choice_of(tiny_checkpoint), weights_path=tmp_path / "tuned.pt")
    assert all(torch.equal(value, tuned[name]) for name, value in wrapper.model.state_dict().items())


def test_weights_of_another_architecture_are_refused_and_the_first_difference_named(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.pt"
    right = build_model("llama").state_dict()
    key = "model.layers.0.mlp.up_proj.weight"
    for state, message in (
        ({**right, key: torch.zeros(3, 3)}, rf"{key} is \[3, 3\], the model has \[48, 32\]"),
        ({name: value for name, value in right.items() if name != key}, rf"{key} is nothing, the model has"),
        ({**right, "extra": torch.zeros(2)}, r"extra is \[2\], the model has nothing"),
        ([torch.zeros(2)], "is not a state dict"),
        ({"steps": 3}, "is not a state dict"),
    ):
        torch.save(state, path)
        with pytest.raises(UserError, match=message):
            LlamaWrapper.load(choice_of(tiny_checkpoint), weights_path=path)


# --- what is refused ---

SMALL = {"vocab_size": len(build_tokenizer()), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(**{**SMALL, "state_size": 4}))


def jamba() -> PreTrainedModel:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 2, "use_mamba_kernels": False}
    return JambaForCausalLM(JambaConfig(**SMALL, **sizes, mamba_d_state=4))


@pytest.mark.parametrize("build", [mamba, jamba])
def test_recurrent_models_are_refused_at_load(tmp_path: Path, build: type) -> None:
    folder = tmp_path / "state-space"
    build().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    with pytest.raises(
        UserError, match=rf"state-space \({build.__name__}\) carries a recurrent state .* it is refused"
    ):
        LlamaWrapper.load(choice_of(folder))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=SMALL["vocab_size"], d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )


def bart() -> PreTrainedModel:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 48))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return BartForConditionalGeneration(BartConfig(vocab_size=SMALL["vocab_size"], d_model=32, **sizes, **heads))


@pytest.mark.parametrize("build", [t5, bart])
def test_encoder_decoder_models_are_refused_at_load(tmp_path: Path, build: type) -> None:
    folder = tmp_path / "translator"
    build().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    message = rf"translator \({build.__name__}\) is not a decoder-only language model; it cannot be steered"
    with pytest.raises(UserError, match=message):
        LlamaWrapper.load(choice_of(folder))


def test_models_that_are_not_causal_are_refused_at_load(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    BertLMHeadModel(BertConfig(**SMALL, num_attention_heads=4)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"encoder \(bert\).* it cannot be steered"):
        LlamaWrapper.load(choice_of(folder))


def test_a_folder_that_is_not_there_or_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--model {tmp_path}/gone: there is no such folder"):
        load_config(choice_of(tmp_path / "gone"))
    with pytest.raises(UserError, match=rf"--model {tmp_path} could not be loaded: "):
        load_config(choice_of(tmp_path))


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny-chat")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"tiny-chat could not be loaded: ") as caught:
        LlamaWrapper.load(choice_of(folder))
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny-chat")
    ran = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    (folder / "config.json").write_text(
        '{"model_type": "own-kind", "auto_map": {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}}'
    )
    with pytest.raises(UserError, match="could not be loaded"):
        LlamaWrapper.load(choice_of(folder))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta device"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"--device {name} is not available here .* leave it out or use cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")
