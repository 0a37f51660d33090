#!/usr/bin/env python3
"""Compare steering vectors: between layers, between behaviors, between chat and base model; and their norms.

Without flags: every model that has vectors. A chat and a base model are compared where the vectors
of both are there (names that differ by -chat, -Instruct or -it).

Reads:   vectors/<behavior>/vec_layer_<layer>_<model>.pt, and the same in normalized_vectors/
Writes:  analysis/<behavior>/cosine_between_layers_<model>
         analysis/cosine_between_layers_<model>              the same, all behaviors on one sheet
         analysis/cosine_between_behaviors_<model>           a panel for each layer
         analysis/cosine_between_behaviors_by_layer_<model>  every two behaviors, over the layers
         analysis/cosine_chat_and_base_<model>_<base model>
         analysis/vector_norms_<model>                       before and after normalisation
         each as .png, .pdf, and its numbers as .txt; with --layers or --behaviors these are in the name
         analysis/<behavior>/decoded_tokens_<model>          with --decode: .png, .pdf, .txt
         analysis/<behavior>/tokens_layer=<layer>_<model>_<prompt>  with --prompt: .html, .txt
Example: ./analyze_vectors.py
         ./analyze_vectors.py --model_size 135m --layers 10 15 20
         ./analyze_vectors.py --model_size 135m --decode
         ./analyze_vectors.py --model_size 135m --prompt "Is the earth flat?" --layer 13 --behavior sycophancy

A figure is made again when its numbers are no longer those of the text beside it.
"""

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.behaviors import published_behaviors
from utils.cli.flags import add_behaviors, add_layers, add_model_filter, data_paths, make_parser, model_filter
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.errors import UserError
from utils.inside import reports as inside_reports
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.vectors.files import (
    VectorTable,
    choice_of_label,
    find_vectors,
    generate_command,
    layer_ranges,
    load_vector_table,
    normalize_command,
)

if TYPE_CHECKING:
    from utils.figures.vector_sets import PlannedFigure

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    add_behaviors(parser)
    add_layers(parser, default="those that are there")
    add_model_filter(parser)
    inside_reports.add_arguments(parser)
    return parser


@dataclass(frozen=True, eq=False)
class ModelVectors:
    """One model's vectors, before and after normalisation."""

    before: VectorTable
    after: VectorTable | None
    """None where there are none."""


def run(args: argparse.Namespace) -> int:
    if inside_reports.asked_for(args):
        return look_inside(args)
    paths = data_paths(args)
    models = load_models(args, paths)
    for vectors in models.values():
        check_normalisation(paths, vectors)
    planned = [figure for vectors in models.values() for figure in plan_model(args, paths, vectors)]
    planned += plan_model_pairs(args, paths, models)
    n_written = sum(make_figure(figure, args.overwrite) for figure in planned)
    log.info(
        "models: %d; wrote %d figures, skipped %d that show these numbers already (--overwrite makes them again)",
        len(models),
        n_written,
        len(planned) - n_written,
    )
    return EXIT_DONE


def look_inside(args: argparse.Namespace) -> int:
    """Make the reports for which the model itself is needed."""
    choice, reports = inside_reports.plan(args)
    waiting = [report for report in reports if args.overwrite or not report.is_there()]
    if waiting:
        from llama_wrapper import LlamaWrapper

        model = LlamaWrapper.load(choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")
        for report in waiting:
            report.make(model)
            log.info("wrote %s (%s)", report.stem, ", ".join(suffix[1:] for suffix in (*report.suffixes, ".txt")))
    log.info(
        "wrote %d reports, skipped %d that show these vectors already (--overwrite makes them again)",
        len(waiting),
        len(reports) - len(waiting),
    )
    return EXIT_DONE


# --- what there is ---------------------------------------------------------------------------------


def load_models(args: argparse.Namespace, paths: DataPaths) -> dict[str, ModelVectors]:
    """The vectors of each model, by label. What is missing is named.

    Raises:
        UserError: If there are no such vectors at all.
    """
    before, after = (
        {behavior: find_vectors(paths, behavior, normalized=normalized) for behavior in args.behaviors}
        for normalized in (False, True)
    )
    only = model_filter(args)
    models = {}
    for label in [only.label] if only else sorted(set().union(*before.values())):
        layers_of = layers_asked_for(args, before, label)
        if not any(layers_of.values()):
            continue
        name_missing(args, paths, label, layers_of)
        normalized_of = layers_asked_for(args, after, label)
        name_not_normalized(paths, label, layers_of, normalized_of)
        models[label] = ModelVectors(
            load_vector_table(paths, label, layers_of, normalized=False),
            load_vector_table(paths, label, normalized_of, normalized=True) if any(normalized_of.values()) else None,
        )
    if not models:
        raise UserError(no_vectors_message(args, paths, only))
    return models


def no_vectors_message(args: argparse.Namespace, paths: DataPaths, only: ModelChoice | None) -> str:
    layers = sorted(set(args.layers or ()))
    of_model = f" of {only.label}" if only else ""
    at_layers = f" at layers {layer_ranges(layers)}" if layers else ""
    every = set(args.behaviors) == set(published_behaviors())
    command = generate_command(paths, [] if every else args.behaviors, layers, only)
    return (
        f"no vectors{of_model}{at_layers} for {', '.join(args.behaviors)} in {paths.root / 'vectors'}; run: {command}"
    )


def layers_asked_for(
    args: argparse.Namespace, found: dict[str, dict[str, set[int]]], label: str
) -> dict[str, set[int]]:
    return {
        behavior: layers.get(label, set()) & (set(args.layers) if args.layers else layers.get(label, set()))
        for behavior, layers in found.items()
    }


def name_missing(args: argparse.Namespace, paths: DataPaths, label: str, layers_of: dict[str, set[int]]) -> None:
    """Warn of behaviors and layers without vectors, with the commands that make them."""
    everywhere = set(args.layers) if args.layers else set().union(*layers_of.values())
    lacking: dict[tuple[int, ...], list[str]] = {}
    for behavior, layers in layers_of.items():
        if absent := sorted(everywhere - layers):
            lacking.setdefault(tuple(absent), []).append(behavior)
    for gap, behaviors in lacking.items():
        command = generate_command(paths, behaviors, gap, choice_of_label(label))
        log.warning(
            "%s: no vectors at layers %s for %s; run: %s", label, layer_ranges(gap), ", ".join(behaviors), command
        )


def name_not_normalized(
    paths: DataPaths, label: str, layers_of: dict[str, set[int]], normalized_of: dict[str, set[int]]
) -> None:
    absent = {behavior: layers - normalized_of[behavior] for behavior, layers in layers_of.items()}
    if lacking := {behavior: layers for behavior, layers in absent.items() if layers}:
        described = ", ".join(f"{behavior} (layers {layer_ranges(layers)})" for behavior, layers in lacking.items())
        command = normalize_command(paths, list(lacking), choice_of_label(label))
        log.warning("%s: not normalised: %s; run: %s", label, described, command)


def check_normalisation(paths: DataPaths, vectors: ModelVectors) -> None:
    """Warn where the normalised vectors are not what today's vectors would give."""
    from utils.figures.vector_sets import aligned
    from utils.vectors.analysis import normalisation_faults

    before, after = vectors.before, vectors.after
    if after is None:
        return
    command = f"{normalize_command(paths, [], choice_of_label(before.label))} --overwrite"
    if after.d_model != before.d_model:
        raise UserError(
            f"{before.label}: width {before.d_model} in vectors/, but {after.d_model} in normalized_vectors/; "
            f"run: {command}"
        )
    faults = normalisation_faults(before.values, aligned(after, before.behaviors, before.layers))
    if faults.other_direction:
        where = [f"{before.behaviors[row]} layer {before.layers[column]}" for row, column in faults.other_direction]
        log.warning(
            "%s: normalised vectors were made from other vectors than today's: %s; run: %s",
            before.label,
            ", ".join(where),
            command,
        )
    if faults.unequal_norms:
        log.warning(
            "%s: behaviors differ in norm after normalisation at layers %s (normalised apart from each other); run: %s",
            before.label,
            layer_ranges(before.layers[index] for index in faults.unequal_norms),
            command,
        )


# --- figures ---------------------------------------------------------------------------------------


def scope(args: argparse.Namespace, *, with_behaviors: bool) -> str:
    """What a file name says about the flags that narrow the figure down; empty without such flags."""
    parts = [f"layers={layer_ranges(args.layers)}_"] if args.layers else []
    if with_behaviors and set(args.behaviors) != set(published_behaviors()):
        parts.insert(0, f"behaviors={','.join(sorted(set(args.behaviors)))}_")
    return "".join(parts)


def plan_model(args: argparse.Namespace, paths: DataPaths, vectors: ModelVectors) -> "Iterator[PlannedFigure]":
    """All figures of one model."""
    from utils.figures import vector_sets as vector_plots

    before = vectors.before
    wide, narrow = scope(args, with_behaviors=True), scope(args, with_behaviors=False)
    if len(before.layers) == 1:
        log.info("%s: only layer %d, so nothing to compare between layers", before.label, before.layers[0])
    if len(before.behaviors) == 1:
        log.info("%s: only %s, so nothing to compare between behaviors", before.label, before.behaviors[0])
    yield from vector_plots.plan_layer_similarities(paths, narrow, wide, before)
    yield from vector_plots.plan_behavior_similarities(paths, wide, before)
    yield vector_plots.plan_norms(paths, wide, before, vectors.after)


def plan_model_pairs(
    args: argparse.Namespace, paths: DataPaths, models: dict[str, ModelVectors]
) -> "Iterator[PlannedFigure]":
    """The comparisons of chat and base models."""
    from utils.figures import vector_sets as vector_plots

    for chat, base in vector_plots.chat_and_base(list(models)):
        tables = models[chat].before, models[base].before
        if tables[0].d_model != tables[1].d_model:
            log.warning("%s and %s differ in width (%d, %d): not compared", chat, base, *(t.d_model for t in tables))
        elif figure := vector_plots.plan_model_similarity(paths, scope(args, with_behaviors=True), *tables):
            yield figure
        else:
            log.warning("%s and %s share no layer of any behavior: not compared", chat, base)


def make_figure(figure: "PlannedFigure", overwrite: bool) -> bool:
    """Draw and save a figure unless it is there with the same numbers; returns whether it was made."""
    from utils.figures.style import figure_style, save_figure

    if not overwrite and shows_these_numbers(figure):
        return False
    with figure_style():
        save_figure(figure.draw(), figure.stem, figure.table)
    log.info("wrote %s (png, pdf, txt)", figure.stem)
    return True


def shows_these_numbers(figure: "PlannedFigure") -> bool:
    """Whether all files are there and the text beside the figure says the same, up to rounding."""
    from utils.figures.style import with_suffix

    files = [with_suffix(figure.stem, suffix) for suffix in (".png", ".pdf", ".txt")]
    if not all(path.exists() for path in files):
        return False
    there, wanted = files[-1].read_text(encoding="utf-8").split(), figure.table.to_text().split()
    return len(there) == len(wanted) and all(map(_same_word, there, wanted))


def _same_word(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return math.isclose(float(first), float(second), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
