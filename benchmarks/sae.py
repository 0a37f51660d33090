"""Training an SAE: tokens a second of activations and of training, beside sae-lens' own runner on the same settings.

Both train a TopK SAE on the same token sequences with the same batch, in the same number of steps; sae-lens stops the
model behind the read layer too. Over several passes activations are read once here; sae-lens' runner computes them for
every pass again, so that its rate over all passes is that of one. Nothing else is timed: no loading, no tokenising, no
evaluation. Both are timed in turn, --repeats times, and the best counts. sae-lens is optional (requirements-sae.txt);
without it only the suite is timed.

Example: python -m benchmarks.sae --tokens 8160 --epochs 8
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import load_model, make_parser, matrix_rate, report, seconds, skip_without_gpu
from llama_wrapper import LlamaWrapper
from utils.model.embedded import ensure_embedded_model
from utils.paths import DataPaths
from utils.saes.activations import ActivationStore
from utils.saes.plan import ActivationPlan
from utils.saes.settings import TrainSettings
from utils.saes.text import TextSource, token_sequences
from utils.saes.trainer import Trainer

CONTEXT = 256


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--text", default="chat", metavar="NAME_OR_FILE", help="as --data of train_sae.py")
    parser.add_argument("--tokens", type=int, default=8160, metavar="N", help="tokens of text (default: 8160)")
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="passes over it (default: 8)")
    parser.add_argument("--layer", type=int, default=16, metavar="N", help="block that is read (default: 16)")
    parser.add_argument("--d_sae", type=int, default=2304, metavar="N", help="latents (default: 2304)")
    parser.add_argument("--k", type=int, default=32, metavar="N", help="latents a token (default: 32)")
    parser.add_argument("--batch", type=int, default=1024, metavar="N", help="tokens a step (default: 1024)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="times each is timed (default: 2)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if skip_without_gpu(args):
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        return compare(args, Path(scratch))


def compare(args: argparse.Namespace, scratch: Path) -> int:
    model = load_model(args)
    plan = ActivationPlan(TextSource(args.text), args.layer, args.tokens, CONTEXT, dtype="float32")
    store = ActivationStore(model, plan, DataPaths(scratch), keep=False)
    rows = store.portion(0)  # fetches the text, and warms up
    n, n_steps = len(rows), args.epochs * max(1, round(len(rows) / args.batch))
    best: dict[str, float] = {}
    for _ in range(args.repeats):
        found = {"activations": seconds(lambda: store.portion(0), model.device)}
        found["training"] = train(rows, args, n_steps, model.device)
        found |= sae_lens_seconds(args, model, plan, rows, n_steps, scratch)
        best = {name: min(value, best.get(name, value)) for name, value in found.items()}
    figures: dict[str, Any] = {
        "matrix_gflops": matrix_rate(model.device, model.dtype) / 1e9,
        "activations_tokens_per_s": n / best["activations"],
        "training_tokens_per_s": n * args.epochs / best["training"],
        "one_pass_tokens_per_s": n / (best["activations"] + best["training"] / args.epochs),
        "run_tokens_per_s": n * args.epochs / (best["activations"] + best["training"]),
    }
    if "sae_lens_runner" in best:
        of_runner = n / best["sae_lens_runner"]
        figures |= {"sae_lens_one_pass_tokens_per_s": of_runner, "sae_lens_run_tokens_per_s": of_runner}
        figures["sae_lens_training_tokens_per_s"] = n * args.epochs / best["sae_lens_training"]
    threads = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else str(model.device)
    title = f"SAE of {model.label}, layer {args.layer}, {n} tokens x {args.epochs}, {threads}"
    report(title, list(table(figures)), figures, args)
    return 0


def train(activations: Tensor, args: argparse.Namespace, n_steps: int, device: torch.device) -> float:
    """Seconds of all steps."""
    settings = TrainSettings(d_sae=args.d_sae, k=args.k, batch=args.batch, epochs=args.epochs)
    trainer = Trainer(settings, activations.to(device), n_steps, len(activations) * args.epochs, args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    def run() -> None:
        for _ in range(args.epochs):
            order = torch.randperm(len(activations), generator=generator)
            for places in order.tensor_split(n_steps // args.epochs):
                trainer.train(activations[places].to(device))

    return seconds(run, device)


def sae_lens_seconds(
    args: argparse.Namespace, model: LlamaWrapper, plan: ActivationPlan, rows: Tensor, n_steps: int, scratch: Path
) -> dict[str, float]:
    """The same by sae-lens: its runner over one pass of the text, and its training steps alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import sae_lens
        from sae_lens.load_model import HookedProxyLM
    except ImportError:
        print("sae-lens is not installed (requirements-sae.txt): the suite alone is timed")
        return {}
    data_set = import_module("datasets").Dataset  # the suite's own folder of that name is no package
    sequences = token_sequences(plan.source, DataPaths(scratch), model.chat_format, CONTEXT, plan.split)
    ids = [next(sequences) for _ in range(plan.n_sequences)]
    folder = str(ensure_embedded_model() if args.model is None else args.model)
    proxied = HookedProxyLM(model.model, model.tokenizer, hook_names=[f"model.layers.{args.layer}"])
    runner = sae_lens.SAETrainingRunner(
        runner_config(sae_lens, args, model, folder, len(rows)),
        override_dataset=data_set.from_dict({"input_ids": ids * 3}),
        override_model=proxied,
    )
    return {
        "sae_lens_runner": seconds(runner.run, model.device),
        "sae_lens_training": seconds_of_its_steps(sae_lens, args, rows, n_steps, model.device),
    }


def sae_config(sae_lens: Any, args: argparse.Namespace, d_model: int) -> Any:
    """As the suite's: unit rows by rescaling, the auxiliary loss, the input as it is (so that no norm is estimated)."""
    return sae_lens.TopKTrainingSAEConfig(
        d_in=d_model, d_sae=args.d_sae, k=args.k, aux_loss_coefficient=1 / 32, normalize_activations="none"
    )


def runner_config(sae_lens: Any, args: argparse.Namespace, model: LlamaWrapper, folder: str, n_tokens: int) -> Any:
    return sae_lens.LanguageModelSAERunnerConfig(
        sae=sae_config(sae_lens, args, model.d_model),
        model_name=folder,
        model_class_name="AutoModelForCausalLM",
        hook_name=f"model.layers.{args.layer}",
        is_dataset_tokenized=True,
        streaming=False,
        context_size=CONTEXT,
        training_tokens=n_tokens,
        train_batch_size_tokens=args.batch,
        store_batch_size_prompts=4,
        n_batches_in_buffer=8,  # of 256 tokens; it keeps half, which is read and never trained on
        prepend_bos=False,
        lr=2e-3,
        device=str(model.device),
        dtype="float32",
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
        verbose=False,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )


def seconds_of_its_steps(
    sae_lens: Any, args: argparse.Namespace, rows: Tensor, n_steps: int, device: torch.device
) -> float:
    """sae-lens' training steps alone, its input normalised beforehand."""
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(args.seed)
    sae = sae_lens.TopKTrainingSAE(sae_config(sae_lens, args, rows.shape[1])).to(device)
    optimiser = torch.optim.Adam(sae.parameters(), lr=2e-3)
    rows = (rows * rows.shape[1] ** 0.5 / rows.norm(dim=-1).mean()).to(device)
    places = torch.arange(len(rows)).tensor_split(n_steps // args.epochs)

    def run() -> None:
        for step in range(n_steps):
            batch = rows[places[step % len(places)]]
            seen = TrainStepInput(batch, {}, None, step, is_logging_step=False)
            loss = sae.training_forward_pass(seen).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return seconds(run, device)


def table(figures: dict[str, Any]) -> Sequence[tuple[str, str]]:
    rows = [("a large matrix product", f"{figures['matrix_gflops']:.0f} GFLOP/s")]
    rows.append(("activations", f"{figures['activations_tokens_per_s']:.0f} tokens/s"))
    for name, label in (
        ("training", "training steps"),
        ("one_pass", "activations and training, one pass"),
        ("run", "activations and training, all passes"),
    ):
        own, other = figures[f"{name}_tokens_per_s"], figures.get(f"sae_lens_{name}_tokens_per_s")
        beside = "" if other is None else f", sae-lens {other:.0f} ({own / other:.2f} times)"
        rows.append((label, f"{own:.0f} tokens/s{beside}"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
