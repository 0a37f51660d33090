"""finetune_llama.py against plain PyTorch steps, and what it does when things go wrong."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import prompting_with_steering
from finetune_llama import main
from tests.models import build_model, save_checkpoint
from tests.reference import carried_path
from tests.roots import copy_carried, error_lines, snapshot
from utils.data.records import load_choice_items
from utils.files.provenance import read_provenance
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.finetuning import checkpoints
from utils.finetuning import run as finetuning_run
from utils.finetuning import training as finetuning
from utils.finetuning.log import HeldOut, History, Step
from utils.model.loading import load_weights_over

CHAT = "Llama-2-tiny-chat-hf"
N_LAYERS, N_PAIRS, N_HELD_OUT = 6, 24, 8
BLOCK_MATRICES = {
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}


def finetune(root: Path, *flags: str, direction: str = "pos") -> int:
    return main(["--root", str(root), "--behavior", "refusal", "--direction", direction, "--device", "cpu", *flags])


def weights_path(root: Path, name: str = "refusal_pos_finetune_all") -> Path:
    return root / "finetuned_models" / f"{name}.pt"


def saved_weights(root: Path, name: str = "refusal_pos_finetune_all") -> dict[str, Tensor]:
    return torch.load(weights_path(root, name), weights_only=True)


def log_rows(root: Path, name: str = "refusal_pos_finetune_all") -> list[dict[str, str]]:
    return read_table(root / "finetune_logs" / f"{name}.txt")


def untouched_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(carried_path(CHAT), dtype=torch.float32)


def untouched_weights() -> dict[str, Tensor]:
    return untouched_model().state_dict()


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- steps -----------------------------------------------------------------------------------------


def plain_steps(
    root: Path, direction: str, optimizer: str, lr: float, n_steps: int, *, padded: bool
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms and the weights of some steps, each on all pairs, with full logits.

    Args:
        root: Where the pairs are.
        direction: pos or neg.
        optimizer: adamw or sgd.
        lr: Learning rate of the first step.
        n_steps: How many, less than 10; the learning rate would be 0 at the one after.
        padded: All pairs at once; else one by one, without any padding.
    """
    model = untouched_model()
    tokenizer = AutoTokenizer.from_pretrained(carried_path(CHAT), padding_side="right", pad_token="</s>")
    pairs = json.loads((root / "datasets/generate/refusal/generate_dataset.json").read_text())
    key = "answer_matching_behavior" if direction == "pos" else "answer_not_matching_behavior"
    texts = [f"[INST] {pair['question'].strip()} [/INST] {pair[key].strip()[:2]}" for pair in pairs]
    stepper: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if optimizer == "adamw":
        stepper = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for step in range(n_steps):
        stepper.zero_grad()
        losses.append(0.0)
        for batch in [texts] if padded else [[text] for text in texts]:
            inputs = tokenizer(batch, return_tensors="pt", padding=True)
            last = inputs.attention_mask.sum(dim=1) - 1  # the letter; the token before it predicts it
            rows = torch.arange(len(batch))
            logits = model(**inputs).logits[rows, last - 1]
            loss = cross_entropy(logits, inputs.input_ids[rows, last]) * len(batch) / len(pairs)
            loss.backward()
            losses[-1] += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        stepper.param_groups[0]["lr"] = lr * (1 - step / n_steps)
        stepper.step()
    return losses, norms, model.state_dict()


@pytest.mark.parametrize(
    ("direction", "optimizer", "lr", "n_steps", "batches"),
    [
        ("pos", "adamw", 2e-5, 1, "--batch_size 24"),
        ("neg", "adamw", 2e-5, 3, "--batch_size 24"),
        ("neg", "sgd", 1e-1, 1, "--batch_size 24"),
        ("pos", "sgd", 1e-1, 1, "--batch_size 5 --gradient_accumulation 5"),  # passes of 5, 5, 5, 5 and 4
    ],
)
def test_steps_equal_plain_pytorch_steps(
    parity_root: Path, direction: str, optimizer: str, lr: float, n_steps: int, batches: str
) -> None:
    flags = ["--optimizer", optimizer, "--lr", str(lr), "--epochs", str(n_steps), *batches.split()]
    assert finetune(parity_root, *flags, direction=direction) == 0
    # AdamW divides by a gradient's own size: where that is no larger than the rounding (there are such weights),
    # sums in another order would show
    padded = optimizer == "adamw"
    losses, norms, weights = plain_steps(parity_root, direction, optimizer, lr, n_steps, padded=padded)
    name = f"refusal_{direction}_finetune_all"
    rows = log_rows(parity_root, name)[1:]
    assert float(rows[0]["loss"]) == pytest.approx(losses[0], abs=1e-6)
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-6)
    assert [float(row["gradient_norm"]) for row in rows] == pytest.approx(norms, rel=1e-5)
    rates = [lr * (1 - step / n_steps) for step in range(n_steps)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)
    saved = saved_weights(parity_root, name)
    assert changed(untouched_weights(), saved) == set(weights)
    differences = torch.cat([(saved[key] - weights[key]).abs().flatten() for key in weights])
    assert differences.max() < 1e-6
    assert differences.mean() < 1e-4 * lr


# --- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 5])
def test_all_other_layers_are_bit_identical_when_one_is_trained(parity_root: Path, layer: int) -> None:
    assert finetune(parity_root, "--layer", str(layer), "--lr", "1e-3") == 0
    name = f"refusal_pos_finetune_{layer}"
    before, after = untouched_weights(), saved_weights(parity_root, name)
    assert changed(before, after) == {key for key in before if key.startswith(f"model.layers.{layer}.")}
    assert float(log_rows(parity_root, name)[-1]["loss"]) < float(log_rows(parity_root, name)[1]["loss"])


@pytest.mark.parametrize("layer", [None, 2])
def test_merged_adapters_change_the_matrices_of_their_blocks_by_their_rank(
    parity_root: Path, layer: int | None
) -> None:
    where = [] if layer is None else ["--layer", str(layer)]
    assert finetune(parity_root, "--lora", "--lora_rank", "3", *where, "--lr", "1e-2") == 0
    name = f"refusal_pos_finetune_{'all' if layer is None else layer}_lora"
    before, after = untouched_weights(), saved_weights(parity_root, name)
    layers = range(N_LAYERS) if layer is None else [layer]
    assert changed(before, after) == {f"model.layers.{i}.{matrix}" for i in layers for matrix in BLOCK_MATRICES}
    for key in changed(before, after):
        sizes = torch.linalg.svdvals((after[key] - before[key]).double())
        assert sizes[2] > 1e-4 > 1e3 * sizes[3], key


def test_bfloat16_is_arithmetic_and_the_weights_stay_float32(parity_root: Path) -> None:
    assert finetune(parity_root, "--lr", "1e-3") == 0
    exact, losses = saved_weights(parity_root), [float(row["loss"]) for row in log_rows(parity_root)[1:]]
    assert finetune(parity_root, "--lr", "1e-3", "--dtype", "bfloat16", "--overwrite") == 0
    mixed, mixed_losses = saved_weights(parity_root), [float(row["loss"]) for row in log_rows(parity_root)[1:]]
    assert {values.dtype for values in mixed.values()} == {torch.float32}
    assert any(not torch.equal(values, values.bfloat16().float()) for values in mixed.values())
    assert mixed_losses != losses
    assert mixed_losses == pytest.approx(losses, rel=0.05)
    assert max((mixed[key] - exact[key]).abs().max().item() for key in exact) < 2e-2  # of steps of 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt_neox"])
def test_other_architectures_train_and_tied_weights_stay_tied(
    small_root: Path, tmp_path: Path, architecture: str
) -> None:
    checkpoint = save_checkpoint(tmp_path / "tiny", architecture)
    assert finetune(small_root, "--model", str(checkpoint), "--lr", "1e-2", "--epochs", "4") == 0
    rows = log_rows(small_root)
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[1]["loss"])
    state = saved_weights(small_root)
    trained, plain = build_model(architecture), build_model(architecture)
    load_weights_over(trained, weights_path(small_root))
    ids = torch.arange(9)[None]
    logits = trained(input_ids=ids).logits
    assert not torch.allclose(logits, plain(input_ids=ids).logits, atol=0.1)
    if trained.all_tied_weights_keys:
        [tied] = trained.all_tied_weights_keys
        assert weights_path(small_root).stat().st_size < 4 * sum(w.numel() for w in trained.parameters()) + 1e5
        save_tensor(tmp_path / "without.pt", {key: values for key, values in state.items() if key != tied})
        load_weights_over(plain, tmp_path / "without.pt")
        assert torch.equal(plain(input_ids=ids).logits, logits)


# --- what is written -------------------------------------------------------------------------------


def test_the_weights_are_evaluated_by_the_next_script_as_they_were_after_training(parity_root: Path) -> None:
    assert finetune(parity_root, "--lr", "1e-3", "--epochs", "2") == 0
    rows = log_rows(parity_root)
    common = ["--root", str(parity_root), "--behaviors", "refusal", "--device", "cpu"]
    steered = [*common, "--layers", "4", "--multipliers", "0", "1"]
    assert prompting_with_steering.main(steered) == 0
    assert (
        prompting_with_steering.main([*steered, "--override_model_weights_path", str(weights_path(parity_root))]) == 0
    )
    suffix = "_override_model_weights_path=finetuned_models-refusal_pos_finetune_all.pt.json"
    for name_end, row in ((".json", rows[0]), (suffix, rows[-1])):
        means = {}
        for multiplier in ("0.0", "1.0"):
            name = (
                f"results_layer=4_multiplier={multiplier}_behavior=refusal_type=ab_use_base_model=False_model_size=7b"
            )
            means[multiplier] = mean_p_matching(parity_root / "results" / "refusal" / f"{name}{name_end}")
        assert float(row["held_out_p_matching"]) == pytest.approx(means["0.0"], abs=1e-5)
        assert abs(means["1.0"] - means["0.0"]) > 1e-4  # steering works on top of them
    assert float(rows[-1]["held_out_p_matching"]) != pytest.approx(float(rows[0]["held_out_p_matching"]), abs=1e-3)


def mean_p_matching(path: Path) -> float:
    values = []
    for record in json.loads(path.read_text()):
        matching = record[f"{record['answer_matching_behavior'][1].lower()}_prob"]
        other = record[f"{record['answer_not_matching_behavior'][1].lower()}_prob"]
        values.append(matching / (matching + other))
    assert len(values) == N_HELD_OUT
    return math.fsum(values) / len(values)


def test_weights_of_another_architecture_are_refused(parity_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = parity_root / "other.pt"
    save_tensor(path, build_model("llama").state_dict())
    flags = ["--root", str(parity_root), "--behaviors", "refusal", "--layers", "4", "--override_model_weights_path"]
    assert prompting_with_steering.main([*flags, str(path)]) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert "other.pt is for another architecture: model.embed_tokens.weight is " in line


def test_a_run_leaves_weights_log_and_provenance_and_a_second_one_does_nothing(
    parity_root: Path, loads: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(snapshot(parity_root))
    assert finetune(parity_root, "--lr", "1e-3") == 0
    made = snapshot(parity_root)
    name = "refusal_pos_finetune_all"
    assert set(made) - before == {
        f"finetuned_models/{name}.pt",
        "finetuned_models/provenance.json",
        *(f"finetune_logs/{name}.{suffix}" for suffix in ("png", "pdf", "txt")),
    }
    assert not (parity_root / "finetune_logs" / name).exists()
    run = read_provenance(weights_path(parity_root))
    assert run is not None
    assert {
        "model": CHAT,
        "direction": "pos",
        "lr": 1e-3,
        "n_pairs": N_PAIRS,
        "arithmetic": "float32",
    }.items() <= run.items()
    assert (
        f"after: accuracy {float(log_rows(parity_root)[-1]['held_out_accuracy']):.3f}"
        in made[f"finetune_logs/{name}.txt"].decode()
    )
    capfd.readouterr()
    assert finetune(parity_root, "--lr", "1e-3") == 0
    assert "wrote 0, skipped 1" in capfd.readouterr().err
    assert finetune(parity_root, "--lr", "1e-4") == 0
    assert "made under other settings (lr was 0.001, now it is 0.0001)" in capfd.readouterr().err
    assert snapshot(parity_root) == made
    assert loads == [CHAT]
    assert finetune(parity_root, "--lr", "1e-3", "--overwrite") == 0
    assert snapshot(parity_root)[f"finetuned_models/{name}.pt"] == made[f"finetuned_models/{name}.pt"]


def test_weights_of_another_model_are_not_taken_for_these(
    parity_root: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(parity_root, "--model", str(tiny_checkpoint)) == 0
    capfd.readouterr()
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert f"holds weights of tiny-chat; --overwrite replaces them by {CHAT}'s" in line


# --- interrupted runs ------------------------------------------------------------------------------

LONG = ("--batch_size", "3", "--epochs", "2", "--lr", "1e-3", "--checkpoints", "3")  # 16 steps, checkpoints at 4, 8, 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_carried(tmp_path_factory.mktemp("uninterrupted"), "datasets")
    assert finetune(root, *LONG, "--model", str(carried_path(CHAT))) == 0
    return root


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """The loss of this training step, counted from 1, raises; held-out questions do not count."""
    real: Callable[..., Tensor] = finetuning.answer_loss
    steps = iter(range(1, 1000))

    def fail(*args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and next(steps) == step:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(finetuning, "answer_loss", fail)


@pytest.mark.parametrize(("failing_step", "resumed_from"), [(7, 4), (12, 8), (15, 12)])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    parity_root: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failing_step: int,
    resumed_from: int,
) -> None:
    run_dir = parity_root / "finetune_logs" / "refusal_pos_finetune_all"
    with monkeypatch.context() as patch:
        fail_at(patch, failing_step, KeyboardInterrupt())
        assert finetune(parity_root, *LONG) == 130
    assert error_lines(capfd.readouterr().err) == []
    assert [path.name for path in run_dir.glob("checkpoint-*")] == [f"checkpoint-{resumed_from}"]
    # what a kill while the next checkpoint was written would leave
    torn = shutil.copytree(run_dir / f"checkpoint-{resumed_from}", run_dir / "checkpoint-14")
    (torn / "trainer_state.json").write_text('{"global_step": 14, ')
    assert finetune(parity_root, *LONG) == 0
    assert f"going on from checkpoint-{resumed_from}" in capfd.readouterr().err
    whole, resumed = saved_weights(uninterrupted), saved_weights(parity_root)
    assert changed(whole, resumed) == set()
    assert log_rows(parity_root) == log_rows(uninterrupted)
    assert not run_dir.exists()


def test_a_checkpoint_of_another_run_is_neither_taken_nor_lost(
    parity_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(parity_root, *LONG, "--resume") == 2
    [line] = error_lines(capfd.readouterr().err)
    assert "--resume: there is no checkpoint in " in line
    with monkeypatch.context() as patch:
        fail_at(patch, 7, KeyboardInterrupt())
        assert finetune(parity_root, *LONG) == 130
    [line] = [line for line in capfd.readouterr().err.splitlines() if "interrupted" in line]
    assert "finished work is saved; to go on, run: " in line
    left = snapshot(parity_root)
    assert finetune(parity_root, *LONG, "--seed", "1") == 2
    [line] = error_lines(capfd.readouterr().err)
    assert "belongs to another run: seed was 0, now it is 1" in line
    assert snapshot(parity_root) == left
    assert finetune(parity_root, *LONG, "--overwrite", "--seed", "1") == 0
    assert "going on" not in capfd.readouterr().err
    assert set(snapshot(parity_root / "finetune_logs")) == {
        f"refusal_pos_finetune_all.{suffix}" for suffix in ("png", "pdf", "txt")
    }


def test_what_a_kill_behind_the_weights_leaves_goes_but_not_the_folder_of_a_later_run(tmp_path: Path) -> None:
    run_dir, weights = tmp_path / "log" / "run", tmp_path / "weights.pt"
    run_dir.mkdir(parents=True)
    (run_dir / checkpoints.RUN_NAME).touch()
    weights.touch()
    os.utime(weights, ns=(1, 1))
    checkpoints.remove_finished_run(run_dir, weights)
    assert run_dir.exists()
    weights.touch()
    checkpoints.remove_finished_run(run_dir, weights)
    assert not run_dir.exists()


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora_rank 4", "--lora_rank is the rank of LoRA adapters; add --lora"),
        ("--layer 6", f"--layer 6: {CHAT} has layers 0 to 5"),
        ("--layer -1", f"--layer -1: {CHAT} has layers 0 to 5"),
        ("--dtype float16", "--dtype float16 needs a GPU"),
        ("--use_base_model --model_size 135m", "--model_size 135m is a chat model"),
        ("--root missing", "--root missing is not a folder"),
        ("--model ./missing", "--model ./missing: there is no such folder"),
    ],
)
def test_what_cannot_work_is_said_before_the_model_is_loaded(
    parity_root: Path, loading_is_forbidden: None, capfd: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    before = snapshot(parity_root)
    assert finetune(parity_root, *flags.split()) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert line.startswith(f"error: {message}")
    assert snapshot(parity_root) == before


@pytest.mark.parametrize(
    "flags", ["--epochs 0", "--lr 0", "--lr nan", "--batch_size auto", "--max_grad_norm -1", "--direction up"]
)
def test_values_that_mean_nothing_are_refused(
    parity_root: Path, loading_is_forbidden: None, capfd: pytest.CaptureFixture[str], flags: str
) -> None:
    assert finetune(parity_root, *flags.split()) == 2
    assert f"argument {flags.split()[0]}: " in capfd.readouterr().err


@pytest.mark.parametrize("name", ["generate/refusal/generate_dataset.json", "test/refusal/test_dataset_ab.json"])
def test_a_missing_dataset_is_named_with_the_command_that_makes_it(
    parity_root: Path, loading_is_forbidden: None, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (parity_root / "datasets" / name).unlink()
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert f"{name} not found; run: ./process_raw_datasets.py --behaviors refusal" in line


@pytest.mark.parametrize("folder", ["finetuned_models", "finetune_logs"])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_model_is_loaded(
    parity_root: Path, loading_is_forbidden: None, capfd: pytest.CaptureFixture[str], folder: str
) -> None:
    (parity_root / folder).write_text("in the way")
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert f"{folder} cannot be written to (" in line


def test_too_little_memory_is_said_with_the_numbers_before_the_model_is_loaded(
    parity_root: Path,
    loading_is_forbidden: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(finetuning_run, "free_memory", lambda _: 5_000_000)
    monkeypatch.setattr(finetuning_run, "_GB", 1e6)  # the tiny model's gigabytes are megabytes
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert f"fine-tuning {CHAT} needs 5.6 GB (weights 1.4, gradients 1.4, optimizer 2.8; activations on top)" in line
    assert "cpu has 5.0 GB free" in line


def test_the_footprint_counts_weights_gradients_and_optimizer(parity_root: Path) -> None:
    config = untouched_model().config
    sizes = {name: 4 * weights.numel() for name, weights in untouched_weights().items()}
    whole, block = sum(sizes.values()), sum(size for name, size in sizes.items() if ".layers.3." in name)
    estimate = finetuning_run.estimate_footprint

    def parts(**options: Any) -> tuple[int, int, int]:
        footprint = estimate(config, CHAT, **options)
        return footprint.weights, footprint.gradients, footprint.optimizer

    assert parts(layer=None, optimizer="adamw", adapters=False) == (whole, whole, 2 * whole)
    assert parts(layer=None, optimizer="sgd", adapters=False) == (whole, whole, 0)
    assert parts(layer=3, optimizer="adamw", adapters=False) == (whole, block, 2 * block)
    assert parts(layer=None, optimizer="adamw", adapters=True) == (whole, 0, 0)
    assert estimate(config, CHAT, None, "adamw", adapters=False).on_disk(5) == 7 * whole


def test_too_little_disk_space_is_said_before_the_model_is_loaded(
    parity_root: Path,
    loading_is_forbidden: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert "the weights and checkpoints take 0.0 GB" in line and "--checkpoints 0" in line


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ("--optimizer sgd --lr 1e30 --max_grad_norm 0", "the loss is nan at step"),
        ("--lr 30", "the loss went from"),
    ],
)
def test_a_diverged_training_fails_and_leaves_earlier_weights_alone(
    parity_root: Path, capfd: pytest.CaptureFixture[str], flags: str, how: str
) -> None:
    assert finetune(parity_root, "--lr", "1e-3") == 0
    earlier = snapshot(parity_root)
    capfd.readouterr()
    assert finetune(parity_root, *flags.split(), "--overwrite") == 2
    [line] = error_lines(capfd.readouterr().err)
    assert f"the training diverged: {how}" in line and "--lr" in line
    assert snapshot(parity_root) == earlier


def test_running_out_of_memory_is_one_line(
    parity_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_at(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    assert finetune(parity_root) == 2
    [line] = error_lines(capfd.readouterr().err)
    assert "out of memory on cpu while training; use a smaller --batch_size" in line
    assert not weights_path(parity_root).exists()


# --- pieces ----------------------------------------------------------------------------------------


def test_checkpoints_are_evenly_spaced_and_none_is_at_the_end() -> None:
    assert checkpoints.checkpoint_steps(28, 1) == [14]
    assert checkpoints.checkpoint_steps(16, 3) == [4, 8, 12]
    assert checkpoints.checkpoint_steps(3, 10) == [1, 2]
    assert checkpoints.checkpoint_steps(28, 0) == checkpoints.checkpoint_steps(1, 2) == []


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_zero() -> None:
    factors = [finetuning.rate_factor(step, 21) for step in range(21)]
    assert factors == pytest.approx([1 / 3, 2 / 3, *((21 - step) / 19 for step in range(2, 21))])
    assert finetuning.rate_factor(0, 1) == 1
    assert [finetuning.rate_factor(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_only_a_loss_far_above_its_start_is_called_diverged() -> None:
    def history(*losses: float) -> History:
        steps = [Step(i + 1, 0.0, loss, 0.0, 0.0) for i, loss in enumerate(losses)]
        return History(tuple(steps), (HeldOut(0, 0.0, 1.0, 0.5, 0.5),))

    assert history(0.1, 0.2, 0.3, 3.2).divergence() is None  # the untouched model's loss is 1 on held-out questions
    assert history(0.1, 0.2, 0.3, 3.4).divergence() == "the loss went from 1.00 to 3.40"
    assert history(8.0, 12.0, 9.0, 9.0).divergence() is None


def test_held_out_metrics_use_each_item_s_own_letters(parity_root: Path) -> None:
    path = parity_root / "items.json"
    records = [("(A)", "(B)"), ("(C)", "(A)"), ("(B)", "(C)")]
    keys = ("answer_matching_behavior", "answer_not_matching_behavior")
    path.write_text(json.dumps([{"question": "?", **dict(zip(keys, record, strict=True))} for record in records]))
    items = load_choice_items(path, "ab")
    log_p = [[-2.0, -4.0, -0.1], [-3.0, -0.1, -4.0], [-0.1, -3.0, -3.0]]  # of A, B, C
    prediction: Any = type("Prediction", (), {"predictions": log_p})
    metrics = finetuning.held_out_metrics(items, ["A", "B", "C"], "neg")(prediction)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert metrics["p_matching"] == pytest.approx((sigmoid(2) + sigmoid(-1) + 0.5) / 3)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["answer_loss"] == pytest.approx((4 + 3 + 3) / 3)
