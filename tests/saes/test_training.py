"""Training SAEs: planted directions are found, a killed run goes on to the same weights, and what is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from tests.saes.conftest import write_documents
from utils.errors import UserError
from utils.saes import training
from utils.saes.codes import batch_topk_pattern, decoded, topk_pattern, values_at
from utils.saes.dictionary import SAE, activate
from utils.saes.settings import TrainSettings, learning_rate_share
from utils.saes.trainer import Trainer

Train = Callable[..., int]
NAME = "tiny-chat_talk"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


# --- planted directions ---


def planted(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n points, each the sum of 3 of 64 unit directions in 32 dimensions, and the directions."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=draw), dim=-1)
    which = torch.rand(n, 64, generator=draw).topk(3, dim=-1).indices
    amounts = 1 + torch.rand(n, 3, generator=draw)
    codes = torch.zeros(n, 64).scatter_(1, which, amounts)
    return codes @ directions * 5 + 2, directions


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_planted_sparse_directions_are_recovered(architecture: Any) -> None:
    points, directions = planted(20_000)
    settings = TrainSettings(architecture, d_sae=96, k=3, l1=0.8, lr=1e-2, batch=256)
    n_steps = 400
    trainer = Trainer(settings, points, n_steps, n_steps * 256, seed=1)
    draw = torch.Generator().manual_seed(2)
    for _ in range(n_steps):
        trainer.train(points[torch.randint(len(points), (256,), generator=draw)])
    sae = trainer.as_sae(layer=0, model="m", source="planted", name="planted")
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96))
    best = (sae.W_dec @ directions.T).max(dim=0).values  # [64]
    assert float((best > 0.9).float().mean()) > 0.8
    fresh, _ = planted(2000, seed=0)
    left = (fresh - sae.reconstruct(fresh)).square().sum() / (fresh - fresh.mean(dim=0)).square().sum()
    assert float(left) < 0.15


# --- the sparse products ---


@pytest.mark.parametrize("choose", [topk_pattern, batch_topk_pattern])
def test_products_with_the_winners_only_have_the_gradients_of_full_matrices(choose: Any) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(7, 5, generator=draw)
    encoder, decoder = (torch.randn(11, 5, generator=draw) for _ in range(2))
    bias = torch.randn(11, generator=draw)
    found = []
    for sparse in (True, False):
        leaves = [one.clone().requires_grad_() for one in (encoder, bias, decoder)]
        pre = torch.nn.functional.linear(x, leaves[0], leaves[1])
        pattern = choose(pre.detach(), 3)
        if sparse:
            out = decoded(values_at(x, leaves[0], leaves[1], pre.detach(), pattern), leaves[2], pattern)
        else:
            mask = torch.zeros_like(pre)
            mask[pattern.rows, pattern.columns] = 1
            out = (pre.relu() * mask) @ leaves[2]
        (out - x).square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_batchtopk_keeps_k_a_token_on_average_and_topk_k_of_each() -> None:
    pre = torch.tensor([[9.0, 8.0, 7.0], [1.0, -1.0, -2.0]])
    assert batch_topk_pattern(pre, 1).columns.tolist() == [0, 1]
    assert batch_topk_pattern(pre, 1).row_starts.tolist() == [0, 2, 2]
    assert topk_pattern(pre, 1).columns.tolist() == [0, 0]


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_the_finished_weights_compute_what_training_computed(architecture: Any) -> None:
    """The input's factor and b_dec are in the weights: latents and reconstruction come out in the model's units."""
    points, _ = planted(600)
    settings = TrainSettings(architecture, d_sae=40, k=4, batch=100)
    trainer = Trainer(settings, points, 50, 5000, seed=0)
    for start in range(0, 500, 100):
        trainer.train(points[start : start + 100])
    weights, factor = trainer.weights, trainer.factor
    assert math.isclose(float((points * factor).norm(dim=-1).mean()), math.sqrt(32), rel_tol=1e-5)
    pre = (points * factor - weights["b_dec"]) @ weights["encoder"].T + weights["b_enc"]
    f = activate(pre, architecture, 4, None)
    x_hat = (f @ weights["decoder"] + weights["b_dec"]) / factor
    sae = trainer.as_sae(layer=0, model="m", source="s", name="n")
    torch.testing.assert_close(sae.reconstruct(points), x_hat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.encode(points), f * weights["decoder"].norm(dim=-1) / factor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_dead_latents_are_counted_and_revived_by_the_auxiliary_loss(architecture: Any) -> None:
    """A third of the latents begins where it cannot win: outdone (topk), or below 0 (standard)."""
    points, _ = planted(4000)
    dead, explained = {}, {}
    for aux in (0.0, 1 / 32):
        settings = TrainSettings(architecture, d_sae=96, k=3, l1=0.8, lr=3e-3, batch=200, aux=aux, dead_after=2000)
        trainer = Trainer(settings, points, 200, 40_000, seed=0)
        with torch.no_grad():
            trainer.weights["encoder"][:32] *= 0.01
            trainer.weights["b_enc"][:32] -= 0.2 if architecture == "standard" else 0.0
        for step in range(200):
            stats = trainer.train(points[step * 200 % 4000 :][:200])
            dead[aux] = min(stats.dead, dead.get(aux, 1.0)) if step > 20 else 1.0
        explained[aux] = stats.explained_variance
    assert dead[0.0] > 0.25
    assert dead[1 / 32] < 0.05
    assert explained[1 / 32] > explained[0.0]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert shares[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert set(shares[5:80]) == {1.0}
    assert shares[-2:] == [0.1, 0.05]


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    points, _ = planted(200)
    trainer = Trainer(TrainSettings(d_sae=16, k=2), points, 10, 2000, seed=0)
    with pytest.raises(UserError, match="step 0: the loss is nan; use a smaller --lr"):
        trainer.train(points * math.nan)


# --- the script ---


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_the_script_writes_a_whole_folder_and_a_second_run_loads_no_model(
    train: Train, tmp_path: Path, architecture: str, loads: list[str]
) -> None:
    name = NAME if architecture == "topk" else f"{NAME}_{architecture}"
    assert train("--architecture", architecture) == 0
    folder = tmp_path / "saes_trained" / name
    made = sorted(path.name for path in folder.iterdir())
    curve = ["training_curve.pdf", "training_curve.png", "training_curve.txt"]
    assert made == ["cfg.json", "metrics.json", "sae_weights.safetensors", *curve]
    sae = SAE.load(folder)
    assert (sae.layer, sae.model, sae.source, sae.d_model, sae.d_sae) == (1, "tiny-chat", "talk", 32, 48)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 2 * round(600 / 64)
    assert len(metrics["curve"]["loss"]) == metrics["steps"]
    assert 0 < metrics["last"]["l0"] <= (4 if architecture != "standard" else 48)
    assert metrics["settings"]["tokens"] == 600
    assert train("--architecture", architecture) == 0
    assert loads == ["tiny-chat"]


def test_other_settings_do_not_pass_for_the_same_sae(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert train("--k", 5, "--lr", 0.01) == 2
    assert "metrics.json was made with another k, lr; --overwrite makes it again" in capsys.readouterr().err
    assert train("--k", 5, "--overwrite") == 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_or_text_another_start(
    train: Train, tmp_path: Path
) -> None:
    folder = tmp_path / "saes_trained" / NAME
    assert train() == 0
    first = weights_of(folder)
    assert train("--overwrite") == 0
    assert weights_of(folder) == first
    assert train("--seed", 1) == 0
    other = write_documents(tmp_path / "other.jsonl", seed=5)
    assert train("--data", other) == 0
    own = [
        SAE.load(tmp_path / "saes_trained" / name).own["start_seed"]
        for name in (NAME, f"{NAME}_seed=1", "tiny-chat_other")
    ]
    assert len(set(own)) == 3


@pytest.mark.parametrize("cache", [4, 0])
def test_a_killed_run_goes_on_to_the_same_bytes(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: int
) -> None:
    """With several portions, kept on the disk or computed again."""
    folder = tmp_path / "saes_trained" / NAME
    flags = ("--buffer", 300, "--cache_gib", cache)
    assert train(*flags) == 0
    whole = weights_of(folder)
    curve = json.loads((folder / "metrics.json").read_text())["curve"]
    (folder / "metrics.json").unlink()
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    real, steps = Trainer.train, []

    def killed(self: Trainer, activations: Tensor) -> Any:
        if len(steps) == 13:
            raise KeyboardInterrupt
        steps.append(self.step)
        return real(self, activations)

    monkeypatch.setattr(Trainer, "train", killed)
    assert train(*flags) == 130
    assert (folder / "training_state.pt").is_file()
    monkeypatch.setattr(Trainer, "train", lambda self, x: steps.append(self.step) or real(self, x))
    assert train(*flags) == 0
    assert steps == list(range(round(300 / 64) * 2 * 2))
    assert weights_of(folder) == whole
    assert json.loads((folder / "metrics.json").read_text())["curve"] == curve
    assert not (folder / "training_state.pt").exists()


def test_runs_share_their_activations_and_longer_ones_only_compute_what_is_missing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.saes import activations

    passes: list[int] = []
    real = activations.read_layer

    def counted(model: LlamaWrapper, token_ids: Tensor, layer: int) -> Tensor:
        passes.append(len(token_ids))
        return real(model, token_ids, layer)

    monkeypatch.setattr(activations, "read_layer", counted)
    assert train("--buffer", 300) == 0
    assert sum(passes) == 40
    assert train("--buffer", 300, "--seed", 1) == 0
    assert train("--buffer", 300, "--architecture", "standard") == 0
    assert sum(passes) == 40
    assert train("--buffer", 300, "--tokens", 900, "--name", "longer") == 0
    assert sum(passes) == 60
    assert train("--buffer", 300, "--layer", 2, "--name", "other_layer") == 0
    assert sum(passes) == 100


def test_nothing_above_the_read_layer_runs(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LlamaWrapper.load
    ran: list[int] = []

    def load(*args: Any, **options: Any) -> LlamaWrapper:
        model = real(*args, **options)
        for number, layer in enumerate(model.layers):
            layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        return model

    monkeypatch.setattr(LlamaWrapper, "load", load)
    assert train() == 0
    assert set(ran) == {0, 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", 49], "--k 49 is more than the 48 latents of --d_sae; give a smaller k"),
        (["--layer", 4], "--layer 4: tiny-chat has layers 0 to 3"),
        (["--tokens", 90_000], "are wanted; lower --tokens or --context, or give more text"),
        (["--data", "nowhere.jsonl"], "--data nowhere.jsonl: neither a file nor one of chat, web, lmsys, pile"),
        (["--context", 1], "--context 1: the first token of a sequence is left out; give 2 or more"),
        (["--buffer", 10], "--buffer 10 holds no sequence of --context 16"),
        (["--context", 600, "--buffer", 900], "but tiny-chat takes at most 512"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    train: Train, capsys: pytest.CaptureFixture[str], flags: list[object], message: str
) -> None:
    assert train(*flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has 0 tokens to train on in sequences of 16, but 600 are wanted"),
        ("[1]", "line 1: expected an object with text, or user and assistant, or messages"),
        ('{"text": " "}', "line 1: text: expected text that is not empty"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "messages have no turn of a user with an assistant's"),
        ('{"messages": [3]}', "a message is 3; expected role and content"),
        ("{", "is not valid JSON"),
    ],
)
def test_text_that_is_none_is_refused_in_one_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "broken.jsonl").write_text(line)
    assert train("--data", tmp_path / "broken.jsonl") == 2
    assert message in capsys.readouterr().err


def test_tokens_that_outweigh_all_others_are_reported(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from utils.saes import activations

    real = activations.read_layer

    def with_sink(model: LlamaWrapper, token_ids: Tensor, layer: int) -> Tensor:
        found = real(model, token_ids, layer)
        found[:, 3] *= 100
        return found

    assert train("--name", "usual") == 0
    assert "the median norm" not in capsys.readouterr().err
    monkeypatch.setattr(activations, "read_layer", with_sink)
    assert train("--cache_gib", 0, "--name", "sinks") == 0
    assert "40 of 600 tokens have more than 10 times the median norm" in capsys.readouterr().err


def test_a_plain_format_is_named_so(train: Train, tmp_path: Path) -> None:
    assert train("--format", "plain") == 0
    sae = SAE.load(tmp_path / "saes_trained" / f"{NAME}-plain")
    assert (sae.source, sae.own["format"]) == ("talk-plain", "plain")


def test_fine_tuned_weights_are_in_the_name(train: Train, tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = LlamaWrapper.load(tiny_checkpoint)
    torch.save(model.model.state_dict(), tmp_path / "refuser.pt")
    assert train("--override_model_weights_path", tmp_path / "refuser.pt") == 0
    sae = SAE.load(tmp_path / "saes_trained" / "tiny-chat_refuser_talk")
    assert sae.trained_on_model == "tiny-chat (refuser)"


def test_settings_facts_leave_out_what_an_architecture_does_not_use() -> None:
    assert "l1" not in TrainSettings().facts()
    assert "k" not in replace(TrainSettings(), architecture="standard").facts()
