"""What `analyze_vectors.py --decode` and `--prompt` make: reports for which the model itself is needed."""

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior, published_behaviors
from utils.cli import values as flag_values
from utils.cli.flags import add_device, check_layers, data_paths, model_filter
from utils.errors import UserError
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.vectors.files import choice_of_label, find_vectors, generate_command, layer_ranges, normalize_command

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

DECODED_TOKENS = 10
DRAWN_TOKENS = 6
DEFAULT_NEW_TOKENS = 100
_OF_THE_PROMPT = ("layer", "behavior", "multiplier", "max_new_tokens")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inside = parser.add_argument_group(
        "looking inside the model", "These load one model (--model_size or --model) and make only what they name."
    )
    inside.add_argument(
        "--decode", action="store_true", help="the tokens that each vector promotes most and least, layer by layer"
    )
    inside.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a page with this prompt and the model's answer, each token coloured by its cosine with a vector",
    )
    inside.add_argument(
        "--layer", type=flag_values.layer, metavar="N", help="with --prompt: the layer that is shown first"
    )
    inside.add_argument("--behavior", metavar="ID", help="with --prompt: the behavior that is shown first")
    inside.add_argument(
        "--multiplier",
        type=flag_values.finite_float,
        metavar="X",
        help="with --prompt: steer the answer with that layer's and behavior's vector (default: 0, no steering)",
    )
    inside.add_argument(
        "--max_new_tokens",
        type=flag_values.positive_int,
        metavar="N",
        help=f"with --prompt: longest answer, in tokens (default: {DEFAULT_NEW_TOKENS})",
    )
    add_device(inside)


def asked_for(args: argparse.Namespace) -> bool:
    """Whether the flags name a report of this module.

    Raises:
        UserError: If they do not belong together.
    """
    if args.prompt is None:
        stray = [flag for flag in _OF_THE_PROMPT if getattr(args, flag) is not None]
        if stray:
            named = ", ".join(f"--{flag}" for flag in stray)
            raise UserError(f"{named}: only with --prompt (figures are narrowed down with --layers, --behaviors)")
        return bool(args.decode)
    if args.layer is None or args.behavior is None:
        raise UserError("--prompt needs --layer and --behavior: what the page shows first")
    if not args.prompt.strip():
        raise UserError("--prompt is empty; give the text of a question")
    return True


def plan(args: argparse.Namespace) -> "tuple[ModelChoice, list[Report]]":
    """The model and the reports that the flags ask for, whether they are there already or not.

    Raises:
        UserError: If the model cannot be told, or vectors are missing.
    """
    paths = data_paths(args)
    reports: list[Report] = []
    if args.decode:
        choice, layers_of = _vectors_asked_for(args, paths, normalized=False)
        for behavior, layers in layers_of.items():
            reports.append(_Decoding(args, paths, choice, behavior, layers))
    if args.prompt is not None:
        choice, layers_of = _vectors_asked_for(args, paths, normalized=True)
        reports.append(_TokenPage(args, paths, choice, layers_of))
    return choice, reports


# --- which vectors ---------------------------------------------------------------------------------


def _vectors_asked_for(
    args: argparse.Namespace, paths: DataPaths, *, normalized: bool
) -> tuple[ModelChoice, dict[str, list[int]]]:
    """The model, and the layers by behavior of which there are vectors.

    Raises:
        UserError: If the model cannot be told, or vectors that were named are not there.
    """
    shown_first = [args.behavior] if normalized else []
    behaviors = list(dict.fromkeys([*args.behaviors, *shown_first]))
    found = {behavior: find_vectors(paths, behavior, normalized=normalized) for behavior in behaviors}
    choice = model_filter(args) or _only_model(set().union(*found.values()))
    layers_of = {behavior: sorted(layers.get(choice.label, ())) for behavior, layers in found.items()}
    if args.layers:
        wanted = sorted({*args.layers, args.layer} if shown_first else set(args.layers))
        if lacking := [behavior for behavior, layers in layers_of.items() if not set(wanted) <= set(layers)]:
            raise _missing(paths, choice, lacking, wanted, normalized)
        layers_of = dict.fromkeys(layers_of, wanted)
    if any(args.layer not in layers_of[behavior] for behavior in shown_first):
        raise _missing(paths, choice, shown_first, [args.layer], normalized)
    if not any(layers_of.values()):
        raise _missing(paths, choice, behaviors, [], normalized)
    if absent := [behavior for behavior, layers in layers_of.items() if not layers]:
        log.warning("%s: left out, no vectors: %s", choice.label, ", ".join(absent))
    return choice, {behavior: layers for behavior, layers in layers_of.items() if layers}


def _only_model(labels: set[str]) -> ModelChoice:
    if len(labels) == 1:
        choice = choice_of_label(next(iter(labels)))
        if choice.size is not None:
            return choice
    there = ", ".join(sorted(labels)) or "none yet"
    raise UserError(f"name the model to look into, with --model_size or --model (models with vectors: {there})")


def _missing(
    paths: DataPaths, choice: ModelChoice, behaviors: Sequence[str], layers: Sequence[int], normalized: bool
) -> UserError:
    from utils.model.loading import load_config

    if layers:  # a layer that the model does not have is no matter of missing vectors
        check_layers(layers, load_config(choice).num_hidden_layers, choice.label, "layers")
    folder = paths.root / ("normalized_vectors" if normalized else "vectors")
    where = f" at layers {layer_ranges(layers)}" if layers else ""
    named = [] if set(behaviors) == set(published_behaviors()) else behaviors
    command = generate_command(paths, named, layers, choice)
    then = f", then: {normalize_command(paths, named, choice)}" if normalized else ""
    return UserError(
        f"{folder}: not all vectors of {choice.label}{where} for {', '.join(behaviors)}; run: {command}{then}"
    )


def _load(paths: DataPaths, label: str, behavior: str, layers: Iterable[int], normalized: bool) -> "dict[int, Tensor]":
    from utils.files.reading import load_vector

    return {layer: load_vector(paths.vector(behavior, layer, label, normalized=normalized)) for layer in layers}


def _fingerprint(vectors: "Iterable[Mapping[int, Tensor]]") -> str:
    digest = hashlib.sha256()
    for of_behavior in vectors:
        for layer, vector in sorted(of_behavior.items()):
            digest.update(f"{layer}:".encode() + vector.numpy().tobytes())
    return digest.hexdigest()[:16]


# --- the reports -----------------------------------------------------------------------------------


class Report:
    """Files whose text says what they were made from; they are there when it says the same again."""

    stem: Path
    suffixes: tuple[str, ...]
    notes: tuple[str, ...]
    """What a report depends on, in one line each: the head of its text file."""

    def make(self, model: "LlamaWrapper") -> None:
        """Write the files, the text last."""
        raise NotImplementedError

    def is_there(self) -> bool:
        from utils.figures.style import Table, with_suffix

        files = [with_suffix(self.stem, suffix) for suffix in (*self.suffixes, ".txt")]
        if not all(path.exists() for path in files):
            return False
        head = Table((), (), self.notes).to_text().rstrip("\n") + "\n"
        return files[-1].read_bytes().startswith(head.encode())


class _Decoding(Report):
    """What one behavior's vectors decode to, at each layer."""

    suffixes = (".png", ".pdf")

    def __init__(
        self, args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, behavior: str, layers: Sequence[int]
    ) -> None:
        scope = f"layers={layer_ranges(layers)}_" if args.layers else ""
        self.stem = paths.analysis(behavior, f"decoded_tokens_{scope}{choice.label}")
        self.vectors = _load(paths, choice.label, behavior, layers, normalized=False)
        label = load_behavior(paths, behavior).label
        self.title = f"{label}, {choice.label}: tokens that the steering vector promotes most and least"
        self.notes = (
            self.title,
            "logits above the mean of the vocabulary, of the vector scaled to root mean square 1 and sent through "
            "the final norm's weights and the output embeddings",
            f"vectors: {_fingerprint([self.vectors])}",
        )

    def make(self, model: "LlamaWrapper") -> None:
        from utils.figures.style import figure_style, save_figure
        from utils.inside.figures import draw_vector_decoding, vector_decoding_table
        from utils.inside.readings import decode_vectors

        decoding = decode_vectors(model, self.vectors, DECODED_TOKENS)
        with figure_style():
            figure = draw_vector_decoding(decoding, self.title, DRAWN_TOKENS)
            save_figure(figure, self.stem, vector_decoding_table(decoding, self.notes))


class _TokenPage(Report):
    """A prompt and its answer, coloured by any of the behaviors' vectors at any layer."""

    suffixes = (".html",)

    def __init__(
        self, args: argparse.Namespace, paths: DataPaths, choice: ModelChoice, layers_of: Mapping[str, Sequence[int]]
    ) -> None:
        self.prompt, self.start = args.prompt, (args.behavior, args.layer)
        self.multiplier = args.multiplier or 0.0
        self.max_new_tokens = args.max_new_tokens or DEFAULT_NEW_TOKENS
        self.vectors = {
            behavior: _load(paths, choice.label, behavior, layers, normalized=True)
            for behavior, layers in layers_of.items()
        }
        steered = f"multiplier={self.multiplier}_" if self.multiplier else ""
        name = f"tokens_layer={args.layer}_{steered}{choice.label}_{_prompt_name(args.prompt)}"
        self.stem = paths.analysis(args.behavior, name)
        self.behaviors = {behavior: load_behavior(paths, behavior) for behavior in self.vectors}
        behavior = load_behavior(paths, args.behavior).label
        how = "without steering"
        if self.multiplier:
            how = f"steered with {self.multiplier:g} x the vector of {behavior} at layer {args.layer}"
        self.subtitle = (
            f"{choice.label}; the answer is its most likely one, {how}, at most {self.max_new_tokens} tokens. "
            "Values are of each token's residual stream behind a layer and that layer's normalised vector."
        )
        self.notes = (
            f"{choice.label}, {behavior}, layer {args.layer}: residual stream of each token and the normalised vector",
            f"prompt: {json.dumps(args.prompt)}",
            f"answer: {how}, at most {self.max_new_tokens} tokens",
            f"vectors: {_fingerprint(self.vectors.values())} ({', '.join(self.vectors)})",
        )

    def make(self, model: "LlamaWrapper") -> None:
        from utils.figures.style import save_table, with_suffix
        from utils.files.writing import write_text
        from utils.inside.figures import projections_table
        from utils.inside.readings import generate_transcripts, project_tokens_on_all
        from utils.inside.token_pages import token_page
        from utils.model.steering import Steering

        behavior, layer = self.start
        steering = None
        if self.multiplier:
            steering = Steering(layer, self.multiplier, self.vectors[behavior][layer])
        [transcript] = generate_transcripts(model, [self.prompt], self.max_new_tokens, steering)
        vectors = {
            (behavior, layer): (layer, vector) for behavior, of in self.vectors.items() for layer, vector in of.items()
        }
        projections = project_tokens_on_all(model, transcript, vectors, steering)
        page = token_page(projections, self.start, "Tokens along a steering vector", self.subtitle, self.behaviors)
        write_text(with_suffix(self.stem, ".html"), page)
        save_table(self.stem, projections_table(projections[self.start], self.notes))


def _prompt_name(prompt: str) -> str:
    """A prompt as part of a file name: its first words, and a checksum that tells it from others."""
    words = _NOT_IN_A_NAME.sub("-", prompt.lower())[:40].strip("-")
    return "-".join(part for part in (words, hashlib.sha256(prompt.encode()).hexdigest()[:8]) if part)
