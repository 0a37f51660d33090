"""Weights that lie by columns: the same values, tied and saved as before."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.models import build_wrapper, random_vector
from utils.model.cpu_layout import FEWEST_ROWS, lie_by_columns
from utils.model.generation import GenerationRow
from utils.model.steering import Steering

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="for MKL")


def linear_weights(model: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


def test_several_rows_change_where_weights_lie_and_no_value() -> None:
    wrapper, untouched = build_wrapper(), build_wrapper()
    lie_by_columns(wrapper.model, FEWEST_ROWS - 1)
    assert all(weight.is_contiguous() for weight in linear_weights(wrapper.model))
    prompt = wrapper.chat_format.encode("What is the sea?")
    rows = [GenerationRow(prompt, Steering(1, m, random_vector(1))) for m in (-1.0, 0.0, 1.0, 2.0)]
    list(wrapper.generate(rows, 3))
    assert all(weight.stride(0) == 1 for weight in linear_weights(wrapper.model))
    for (name, found), expected in zip(wrapper.model.named_parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert wrapper.fingerprint == untouched.fingerprint
    torch.testing.assert_close(wrapper.capture(prompt), untouched.capture(prompt), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_tied_weights_stay_tied_and_a_checkpoint_holds_the_same(architecture: str, tmp_path: Path) -> None:
    model = build_wrapper(architecture).model
    lie_by_columns(model, 8)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied == (architecture == "gemma2")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, found), expected in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_model_that_mkl_does_not_multiply_stays_as_it_is() -> None:
    model = build_wrapper().model.to(torch.bfloat16)
    lie_by_columns(model, 8)
    assert all(weight.is_contiguous() for weight in linear_weights(model))
