#!/usr/bin/env python3
"""Generate one steering vector per layer from contrast pairs.

Reads:   datasets/generate/<behavior>/generate_dataset.json
Writes:  vectors/<behavior>/vec_layer_<layer>_<model>.pt
         activations/<behavior>/activations_{pos,neg}_<layer>_<model>.pt with --save_activations
Example: ./generate_vectors.py --behaviors sycophancy --layers 13 --model_size 135m
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    check_layers,
    data_paths,
    make_parser,
    model_choice,
)
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.data.records import ContrastPair, load_contrast_pairs
from utils.errors import UserError
from utils.model import processes
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths, vector_name

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.vectors.sums import PairSums

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser)
    add_model(parser)
    add_compute(parser)
    parser.add_argument(
        "--save_activations", action="store_true", help="also keep every pair's activations (for plot_activations.py)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from utils.model.loading import load_config

    paths, choice = data_paths(args), model_choice(args)
    pairs = {
        behavior: load_contrast_pairs(
            paths.generate_dataset(behavior), f"run: {paths.command('process_raw_datasets', '--behaviors', behavior)}"
        )
        for behavior in args.behaviors
    }
    layers = check_layers(args.layers, load_config(choice).num_hidden_layers, choice.label)
    wanted = {
        behavior: layers if args.overwrite else _missing_layers(paths, behavior, layers, choice, args.save_activations)
        for behavior in args.behaviors
    }
    for behavior, missing in wanted.items():
        if not args.overwrite:
            _forget_finished(paths, behavior, choice, args.save_activations)
        _warn_of_other_dataset(paths, behavior, [layer for layer in layers if layer not in missing], choice)
    n_skipped = sum(len(layers) - len(missing) for missing in wanted.values())
    if not any(wanted.values()):
        log.info("wrote 0, skipped %d that are there already (--overwrite makes them again)", n_skipped)
        return EXIT_DONE

    from llama_wrapper import LlamaWrapper

    model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
    n_written = 0
    for behavior, missing in wanted.items():
        if missing:
            n_written += generate_behavior(model, pairs[behavior], behavior, missing, paths, args)
    log.info("wrote %d vectors, skipped %d, failed 0", n_written, n_skipped)
    return EXIT_DONE


def generate_behavior(
    model: "LlamaWrapper",
    pairs: Sequence[ContrastPair],
    behavior: str,
    layers: Sequence[int],
    paths: DataPaths,
    args: argparse.Namespace,
) -> int:
    """Write one behavior's vectors (and activations); returns how many vectors."""
    from utils.files.provenance import record_provenance
    from utils.vectors.sums import PairSums, sums_path

    batch_size = None if args.batch_size == "auto" else args.batch_size
    run_record = _provenance(model, paths.generate_dataset(behavior), len(pairs), args)
    depends_on = {**run_record, "command": None, "packed": not args.no_packing, "batch_size": batch_size}
    vectors_dir = paths.vectors_dir(behavior, normalized=False)
    kept_at = sums_path(vectors_dir, model.label, depends_on)
    sums = PairSums(kept_at, layers, len(pairs), model.d_model, keep_all=args.save_activations)
    sums.restore()
    read = model.answer_activations_plainly if args.no_packing else model.answer_activations
    options = {} if args.no_packing else {"batch_size": batch_size}
    done = frozenset(sums.done)
    with progress(total=len(pairs), initial=len(done), desc=f"{behavior}: contrast pairs", unit="pair") as bar:
        for indices, positive, negative in read(pairs, layers, skip=done, **options):
            sums.add(indices, positive, negative)
            sums.save_if_due()
            bar.update(len(indices))
    sums.gather()
    if broken := [layer for layer, row in zip(layers, sums.total.isfinite().all(dim=1), strict=True) if not row]:
        sums.forget()
        raise UserError(
            f"{behavior}: the activations of {model.label} are not finite in {model.dtype} at layers "
            f"{', '.join(map(str, broken))}; use --dtype float32 or bfloat16"
        )
    if processes.is_main():
        record_provenance(vectors_dir, [vector_name(layer, model.label) for layer in layers], run_record)
        write_vectors(sums, len(pairs), behavior, model.label, paths)
        log.info("wrote %s: %d vectors from %d pairs", vectors_dir, len(layers), len(pairs))
    processes.gather(None)  # nobody forgets before all is written
    sums.forget()
    return len(layers)


def write_vectors(sums: "PairSums", n_pairs: int, behavior: str, label: str, paths: DataPaths) -> None:
    """Write activations, where they were kept, and vectors: a layer's vector says that all of its files are there."""
    from utils.files.writing import save_tensor

    for row, layer in enumerate(sums.layers):
        for side, values in (sums.sides or {}).items():
            save_tensor(paths.activations(behavior, side, layer, label), values[row].clone())
        save_tensor(paths.vector(behavior, layer, label, normalized=False), (sums.total[row] / n_pairs).float())


def _missing_layers(
    paths: DataPaths, behavior: str, layers: Sequence[int], choice: ModelChoice, with_activations: bool
) -> list[int]:
    def outputs(layer: int) -> list[Path]:
        vector = paths.vector(behavior, layer, choice.label, normalized=False)
        if not with_activations:
            return [vector]
        return [vector, *(paths.activations(behavior, side, layer, choice.label) for side in ("pos", "neg"))]

    return [layer for layer in layers if not all(path.exists() for path in outputs(layer))]


def _forget_finished(paths: DataPaths, behavior: str, choice: ModelChoice, with_activations: bool) -> None:
    folder = paths.vectors_dir(behavior, normalized=False)
    if not any(folder.glob(".sums_*")):
        return
    from utils.vectors.sums import forget_finished

    forget_finished(
        folder, choice.label, lambda layers: not _missing_layers(paths, behavior, layers, choice, with_activations)
    )


def _warn_of_other_dataset(paths: DataPaths, behavior: str, layers: Sequence[int], choice: ModelChoice) -> None:
    from utils.files.provenance import read_folder_provenance
    from utils.files.reading import sha256_of

    runs = read_folder_provenance(paths.vectors_dir(behavior, normalized=False))
    dataset = paths.generate_dataset(behavior)
    current = sha256_of(dataset)
    made_from = [runs.get(vector_name(layer, choice.label), {}).get("dataset_sha256", current) for layer in layers]
    if n_other := sum(sha256 != current for sha256 in made_from):
        log.warning(
            "%s: %d vectors were made from another %s; --overwrite makes them again", behavior, n_other, dataset
        )


def _provenance(model: "LlamaWrapper", dataset: Path, n_pairs: int, args: argparse.Namespace) -> dict:
    from utils.files.reading import sha256_of

    return {
        **model.provenance(),
        "command": args.command,
        "dataset_sha256": sha256_of(dataset),
        "n_pairs": n_pairs,
        "token_position": "answer letter",
    }


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
