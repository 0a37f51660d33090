"""Standard evaluations against what must come out: identity, zero and mean predictors, and hand-made sums."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from llama_wrapper import LlamaWrapper
from saes import standard_evals as script
from tests.models import D_MODEL, build_wrapper, decoder_blocks
from utils.saes.dictionary import SAE
from utils.saes.standard_evals import (
    StandardEvals,
    TextActivations,
    cross_entropy_with,
    density_counts,
    evaluate,
    random_control,
    read_text,
)

LAYER = 1


@pytest.fixture(scope="module")
def model() -> LlamaWrapper:
    return build_wrapper()


@pytest.fixture(scope="module")
def text(model: LlamaWrapper) -> TextActivations:
    ids = torch.randint(5, 200, (6, 12), generator=torch.Generator().manual_seed(0))
    return read_text(model, ids, LAYER, batch_size=4)


def sae_of(W_enc: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor) -> SAE:  # noqa: N803
    b_enc = torch.zeros(W_enc.shape[1])
    about = {"architecture": "standard", "k": None, "layer": LAYER, "model": "tiny-chat", "source": "s", "name": "n"}
    return SAE(W_enc, b_enc, W_dec, b_dec, **about)


def identity() -> SAE:
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    return sae_of(both.T.contiguous(), both, torch.zeros(D_MODEL))


def constant(value: torch.Tensor) -> SAE:
    return sae_of(torch.zeros(D_MODEL, 4), torch.zeros(4, D_MODEL), value)


def measured(model: LlamaWrapper, text: TextActivations, sae: SAE) -> StandardEvals:
    return evaluate(sae, text, cross_entropy_with(model, text.token_ids, LAYER, sae.reconstruct, 4, "test"))


def test_the_layer_and_the_cross_entropy_are_those_of_plain_passes(model: LlamaWrapper, text: TextActivations) -> None:
    with torch.no_grad():
        out = model.model(input_ids=text.token_ids, output_hidden_states=True)
    torch.testing.assert_close(text.x, out.hidden_states[LAYER + 1][:, 1:], atol=1e-5, rtol=1e-5)
    log_p = out.logits[:, 1:-1].double().log_softmax(-1)
    by_hand = -log_p.gather(2, text.token_ids[:, 2:, None])[..., 0].mean(dim=1)
    torch.testing.assert_close(torch.tensor(text.ce_clean), by_hand, atol=1e-5, rtol=1e-5)


def test_zero_is_put_in_at_all_tokens_but_the_first(model: LlamaWrapper, text: TextActivations) -> None:
    def zero(module: object, args: object, output: object) -> object:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()  # type: ignore[union-attr, index]
        hidden[:, 1:] = 0
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_blocks(model.model)[LAYER].register_forward_hook(zero)
    try:
        with torch.no_grad():
            logits = model.model(input_ids=text.token_ids).logits[:, 1:-1]
    finally:
        handle.remove()
    by_hand = -logits.double().log_softmax(-1).gather(2, text.token_ids[:, 2:, None])[..., 0].mean(dim=1)
    torch.testing.assert_close(torch.tensor(text.ce_zero), by_hand, atol=1e-5, rtol=1e-5)


def test_the_identity_loses_nothing_and_zero_everything(model: LlamaWrapper, text: TextActivations) -> None:
    same, none = measured(model, text, identity()), measured(model, text, constant(torch.zeros(D_MODEL)))
    assert same.ce_loss_score.value == pytest.approx(1, abs=1e-4)
    assert same.explained_variance.value == pytest.approx(1, abs=1e-6)
    assert same.l0.value == pytest.approx(D_MODEL, abs=0.1)
    assert none.ce_loss_score.value == pytest.approx(0, abs=1e-6)
    assert (none.l0.value, none.dead) == (0, 1)


def test_predicting_the_mean_explains_no_variance(model: LlamaWrapper, text: TextActivations) -> None:
    mean = text.x.flatten(0, 1).mean(dim=0)
    found = measured(model, text, constant(mean))
    assert found.explained_variance.value == pytest.approx(0, abs=1e-5)
    by_hand = (text.x - mean).square().sum(-1).mean()
    assert found.mse.value == pytest.approx(float(by_hand), rel=1e-5)


def test_numbers_of_latents_are_those_of_arrays_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 0.0]]])  # two sequences of two kept tokens
    plain = torch.ones(2).numpy()
    text = TextActivations(torch.zeros(2, 3, dtype=torch.long), x, 1 * plain, 5 * plain)
    eye = torch.eye(2, 3)
    found = evaluate(sae_of(eye, 0.5 * eye.T, torch.zeros(2)), text, 2 * plain)
    assert found.l0.value == pytest.approx(3 / 4)
    assert found.l1.value == pytest.approx(6 / 4)
    assert found.mse.value == pytest.approx((0.25 + 1 + 2.25) / 4)
    # squares 14, mean (1, 0.5): spread 14 - 4 x 1.25
    assert found.explained_variance.value == pytest.approx(1 - 3.5 / 9)
    assert found.ce_loss_score.value == pytest.approx(0.75)
    assert found.density.tolist() == [0.5, 0.25, 0.0]
    assert found.dead == pytest.approx(1 / 3)
    assert dict(density_counts(found.density)) == {
        "never": 1, "0 to 1e-05": 0, "1e-05 to 0.0001": 0, "0.0001 to 0.001": 0, "0.001 to 0.01": 0,
        "0.01 to 0.1": 0, "0.1 to 1": 2,
    }  # fmt: skip


def test_intervals_are_jackknives_over_sequences(text: TextActivations) -> None:
    control = random_control(text, d_sae=64, k=4, seed=0, layer=LAYER)
    found = evaluate(control, text, text.ce_zero)
    n = len(text.x)

    def explained(places: list[int]) -> float:
        x = text.x[places].flatten(0, 1).double()
        spread = (x - x.mean(dim=0)).square().sum()
        return 1 - float((x - control.reconstruct(x.float()).double()).square().sum() / spread)

    left = np.array([explained([i for i in range(n) if i != out]) for out in range(n)])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * left.var())
    one = found.explained_variance
    assert one.value == pytest.approx(explained(list(range(n))), rel=1e-5)
    assert (one.low, one.high) == pytest.approx((one.value - half, one.value + half), rel=1e-4)
    t_interval = stats.t.interval(0.95, n - 1, text.ce_clean.mean(), stats.sem(text.ce_clean))
    assert (found.ce_clean.low, found.ce_clean.high) == pytest.approx(t_interval)  # of a mean: Student's


def test_a_single_sequence_has_no_interval(text: TextActivations) -> None:
    one = TextActivations(text.token_ids[:1], text.x[:1], text.ce_clean[:1], text.ce_zero[:1])
    found = evaluate(identity(), one, one.ce_clean)
    assert found.l0.value > 0 and np.isnan(found.l0.low) and np.isnan(found.explained_variance.high)


def test_the_random_control_has_the_same_sparsity_and_its_best_scale(text: TextActivations) -> None:
    control = random_control(text, d_sae=64, k=4, seed=0, layer=LAYER)
    x = text.x.flatten(0, 1)
    assert float((control.encode(x) > 0).sum(-1).float().mean()) == pytest.approx(4, abs=0.01)

    def left(scale: float) -> float:
        mean = x.mean(dim=0)
        return float((x - mean - scale * (control.reconstruct(x) - mean)).square().sum())

    assert left(1.0) < min(left(0.95), left(1.05))


# --- the script ---


@pytest.fixture
def two_saes(train: Callable[..., int], tmp_path: Path) -> list[Path]:
    from tests.saes.conftest import write_documents

    other = write_documents(tmp_path / "other.jsonl", seed=3)
    assert train() == 0
    assert train("--data", other) == 0
    return [tmp_path / "saes_trained" / name for name in ("tiny-chat_talk", "tiny-chat_other")]


def test_the_script_measures_crosswise_and_the_diagonal_is_the_run_on_own_data(
    two_saes: list[Path], tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--root", str(tmp_path), "--model", str(tiny_checkpoint), "--tokens", "60", "--context", "16"]
    result = tmp_path / "analysis" / "sae" / "standard_evals_tiny-chat.json"
    assert script.main([*shared, "--saes", *map(str, two_saes)]) == 0
    crosswise = json.loads(result.read_text())["results"]
    control = "random dictionary, layer 1"
    assert [(row["measured_on"], row["sae"], row["own"]) for row in crosswise] == [
        *(("talk", "tiny-chat_talk", True), ("talk", "tiny-chat_other", False), ("talk", control, False)),
        *(("other", "tiny-chat_talk", False), ("other", "tiny-chat_other", True), ("other", control, False)),
    ]
    for name in (".png", ".pdf", ".txt"):
        assert result.with_suffix(name).is_file()
    assert "tiny-chat_talk" in capsys.readouterr().out
    assert script.main([*shared, "--saes", str(two_saes[0]), "--overwrite"]) == 0
    [alone, _] = json.loads(result.read_text())["results"]
    assert alone == crosswise[0]


def test_a_second_run_loads_no_model(
    two_saes: list[Path], tmp_path: Path, tiny_checkpoint: Path, loads: list[str]
) -> None:
    command = ["--root", str(tmp_path), "--model", str(tiny_checkpoint), "--tokens", "60", "--context", "16", "--saes"]
    for _ in range(2):
        assert script.main([*command, *map(str, two_saes)]) == 0
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "9000"], "held out from training (a twentieth of its documents) in sequences of 16"),
        (["--saes", "nowhere"], "--saes nowhere: no SAE is there"),
        (["--context", "2"], "the first token is left out, and the last predicts nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    train: Callable[..., int],
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert train() == 0
    command = ["--root", str(tmp_path), "--model", str(tiny_checkpoint), "--context", "16"]
    command += ["--saes", str(tmp_path / "saes_trained" / "tiny-chat_talk")]
    assert script.main([*command, *flags]) == 2
    assert message in capsys.readouterr().err
