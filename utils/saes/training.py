"""Training an SAE: portions of activations in random order, the state saved now and then, the folder at the end."""

import json
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.cli.progress import progress
from utils.files.reading import load_tensor_file
from utils.files.writing import save_tensor
from utils.model import processes
from utils.saes.activations import ActivationStore
from utils.saes.dictionary import SAE
from utils.saes.plan import ActivationPlan
from utils.saes.requests import write_result
from utils.saes.text import check_length
from utils.saes.trainer import StepStats, Trainer
from utils.saes.training_curve import History, plot_training
from utils.saes.training_request import TrainRequest

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 60.0
SINK_NORMS = 10
SAMPLE_ROWS = 65_536
"""Tokens from which the input's factor and mean are taken, at most."""


def train_sae(request: TrainRequest, model: "LlamaWrapper") -> SAE | None:
    """Train it, or go on where a killed run stopped, and write its folder; None in all processes but the main one.

    Raises:
        UserError: If the text is too short, or the loss is not finite.
    """
    plan = request.plan
    check_length(plan.source, request.paths, model.chat_format, plan.context, plan.split, plan.n_sequences)
    store = ActivationStore(
        model, plan, request.paths, keep=request.keep_activations, batch_size=request.batch_size
    )  # fmt: skip
    started = time.monotonic()
    identity = json.dumps([request.describe(), store.identity()], sort_keys=True)
    trainer, history = _prepare(request, store, model, identity)
    _run_steps(request, store, trainer, history, identity)
    if trainer is None:
        return None
    sae = trainer.as_sae(
        layer=plan.layer,
        model=model.label,
        source=plan.source.label,
        name=request.name,
        own=_own_facts(request, model),
    )
    request.metrics_path.unlink(missing_ok=True)  # of a run before; written last
    sae.save(request.folder)
    plot_training(history, request)
    last = history.last()
    log.info(
        "%s: explained variance %.3f, L0 %.1f, dead latents %.1f%% on the last training tokens",
        *(request.name, last.explained_variance, last.l0, 100 * last.dead),
    )
    made = {**model.provenance(), "command": request.command, "seconds": round(time.monotonic() - started, 1)}
    write_result(request.metrics_path, request.describe(), made, {"steps": trainer.step, **history.as_json()})
    request.state_path.unlink(missing_ok=True)
    return sae


def _own_facts(request: TrainRequest, model: "LlamaWrapper") -> dict[str, Any]:
    """What stands in the SAE's folder about where it comes from."""
    weights = request.model.weights
    named = {} if weights is None else {"weights": weights.stem}
    source = {key: getattr(request.plan.source, key) for key in ("data", "format", "system_prompt")}
    return {
        **named,
        "weights_fingerprint": model.fingerprint,
        **source,
        "context": request.plan.context,
        "tokens": request.plan.total_rows,
        "epochs": request.settings.epochs,
        "seed": request.settings.seed,
        "start_seed": request.start_seed,
    }


# --- the steps ------------------------------------------------------------------------------------


def steps_of_portion(plan: ActivationPlan, portion: int, batch: int) -> int:
    """Steps that a portion is cut into, of nearly `batch` tokens each, so that none is left over."""
    return max(1, round(plan.n_rows(portion) / batch))


def count_steps(request: TrainRequest) -> int:
    plan, settings = request.plan, request.settings
    of_epoch = sum(steps_of_portion(plan, portion, settings.batch) for portion in range(plan.n_portions))
    return settings.epochs * of_epoch


def _prepare(
    request: TrainRequest, store: ActivationStore, model: "LlamaWrapper", identity: str
) -> tuple[Trainer | None, History]:
    """The trainer, at its beginning or where a killed run left it; only the main process has one."""
    sample = store.portion(0)[:SAMPLE_ROWS].to(model.device)
    history = History()
    if not processes.is_main():
        return None, history
    _warn_of_sinks(sample, request)
    settings = request.settings
    n_tokens = request.plan.total_rows * settings.epochs
    trainer = Trainer(settings, sample, count_steps(request), n_tokens, request.start_seed)
    if request.state_path.exists():
        saved = load_tensor_file(request.state_path)
        if saved.get("request") == identity:
            trainer.restore(saved["state"])
            history = History([StepStats(*row) for row in saved["history"]])
            log.info("%s: going on at step %d of %d", request.name, trainer.step, trainer.n_steps)
        else:
            log.warning("%s is of another run; beginning anew", request.state_path)
    return trainer, history


def _warn_of_sinks(sample: Tensor, request: TrainRequest) -> None:
    """Say where a few tokens outweigh all others: attention sinks that are not a sequence's first token."""
    norms = sample.float().norm(dim=-1)
    n_beyond = int((norms > SINK_NORMS * norms.median()).sum())
    if n_beyond:
        log.warning(
            "%s: %d of %d tokens have more than %d times the median norm and outweigh the others in the squared error",
            *(request.plan.source.label, n_beyond, len(norms), SINK_NORMS),
        )


def _run_steps(
    request: TrainRequest, store: ActivationStore, trainer: Trainer | None, history: History, identity: str
) -> None:
    """Every step that is still to be done, saving the state now and then."""
    done = processes.from_main(trainer.step if trainer else 0)
    n_steps = count_steps(request)
    saved_at = time.monotonic()
    bar = progress(desc=f"training {request.name}", total=n_steps, initial=done, unit="step")
    for step, batch in _batches(request, store, done):
        if trainer is None:
            continue
        stats = trainer.train(batch)
        history.add(stats)
        bar.set_postfix_str(
            f"loss {stats.loss:.1f}, L0 {stats.l0:.1f}, explained variance {stats.explained_variance:.3f}, "
            f"dead {100 * stats.dead:.1f}%",
            refresh=False,
        )
        bar.update()
        if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES and step + 1 < n_steps:
            save_state(request, trainer, history, identity)
            saved_at = time.monotonic()
    bar.close()


def save_state(request: TrainRequest, trainer: Trainer, history: History, identity: str) -> None:
    """Write down all that the next step depends on."""
    rows = [list(vars(stats).values()) for stats in history.steps]
    state: dict[str, Any] = {"request": identity, "state": trainer.state(), "history": rows}
    save_tensor(request.state_path, state)


def _batches(request: TrainRequest, store: ActivationStore, done: int) -> Iterator[tuple[int, Tensor]]:
    """Number and activations of every step from `done` on; portions that are used up already are not made again."""
    plan, settings = request.plan, request.settings
    step = 0
    for epoch in range(settings.epochs):
        for portion in range(plan.n_portions):
            n_batches = steps_of_portion(plan, portion, settings.batch)
            if step + n_batches <= done:
                step += n_batches
                continue
            rows = store.portion(portion)
            order = _order(plan.n_rows(portion), request.start_seed, epoch, portion)
            for places in order.tensor_split(n_batches):
                if step >= done:
                    yield step, rows[places] if len(rows) else rows
                step += 1


def _order(n_rows: int, seed: int, epoch: int, portion: int) -> Tensor:
    """A random order of a portion's tokens, the same whenever it is asked for."""
    [mixed] = np.random.SeedSequence([seed, epoch, portion]).generate_state(1, np.uint64)
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(int(mixed >> 1)))
