"""Flags that scripts share, and what is made of their values."""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from utils.behaviors import bundled_behaviors, load_behavior, published_behaviors
from utils.cli import values
from utils.errors import UserError
from utils.model.checkpoints import MODEL_SIZES, ModelChoice, choose_model
from utils.model.checkpoints import check_layers as check_layers  # scripts take it from here
from utils.paths import REPOSITORY, DataPaths
from utils.settings import METHODS, OPERATORS, Origin, Quantization, Reading, VectorKind


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag where one is unknown."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            meant = [
                f"{word} (did you mean {near[0]}?)"
                if (near := get_close_matches(word.partition("=")[0], flags, 1))
                else word
                for word in unknown
            ]
            self.error(f"unrecognized arguments: {' '.join(meant)}")
        return parsed


def make_parser(docstring: str | None, *, overwrite: bool = False, seed: bool = False) -> argparse.ArgumentParser:
    """A parser whose help shows the script's own docstring, with the flags every script has.

    Args:
        docstring: The script's.
        overwrite: Whether there is something to overwrite: gives it --overwrite.
        seed: Whether something is random: gives it --seed.
    """
    parser = _Parser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--root",
        type=Path,
        default=REPOSITORY,
        metavar="DIR",
        help="folder that holds datasets/, vectors/, results/ and the like (default: the repository)",
    )
    if overwrite:
        parser.add_argument("--overwrite", action="store_true", help="make outputs again that are already there")
    if seed:
        parser.add_argument("--seed", type=values.seed, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="log more, with a traceback for every error")
    return parser


def add_behaviors(parser: argparse.ArgumentParser) -> None:
    """--behaviors; which ids there are depends on --root, so that `data_paths` checks them."""
    published, bundled = published_behaviors(), bundled_behaviors()
    default = "all of these" if published == bundled else f"the paper's: {', '.join(published)}"
    parser.add_argument(
        "--behaviors",
        nargs="+",
        default=published,
        metavar="ID",
        help=f"behaviors to work on: any that has a file datasets/behaviors/ID.json under --root, or of those that "
        f"are bundled: {', '.join(bundled)} (default: {default})",
    )


def add_layers(parser: argparse.ArgumentParser, default: str = "all of the model") -> None:
    parser.add_argument(
        "--layers",
        nargs="+",
        type=values.layers,
        action=values.Flattened,
        metavar="N",
        help=f"decoder layers, counted from 0; ranges such as 10-20 too (default: {default})",
    )


def add_multipliers(parser: argparse.ArgumentParser, default: Sequence[float] | None, help_default: str) -> None:
    """--multipliers and, instead of it, --strengths."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--multipliers",
        nargs="+",
        type=values.finite_float,
        default=default,
        metavar="X",
        help=f"multiples of the steering vector that are added; 0 means no steering (default: {help_default})",
    )
    amount.add_argument(
        "--strengths",
        nargs="+",
        type=values.finite_float,
        metavar="S",
        help="instead of multipliers: the added norm as a share of the layer's median residual norm, e.g. -0.1 0 0.1",
    )


def add_operator(parser: argparse.ArgumentParser) -> None:
    """--operator, and --quantile for the one that needs it."""
    parser.add_argument(
        "--operator",
        type=values.operator,
        default="add",
        metavar="NAME",
        help=f"what is done with the vector: {', '.join(OPERATORS)} (docs/steering.md; default: add)",
    )
    parser.add_argument(
        "--quantile",
        type=values.share,
        default=0.75,
        metavar="Q",
        help="--operator cap: keep the component at or below this quantile of neutral answers (default: 0.75)",
    )


def add_model(parser: argparse.ArgumentParser, default_size: str = "7b", *, quantize: bool = True) -> None:
    """Flags that name a model, and with `quantize` how its weights are kept."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--model_size",
        choices=MODEL_SIZES,
        default=default_size,
        help=f"7b, 13b, 70b: Llama 2 (gated: needs HF_TOKEN); 135m: the embedded SmolLM2 (default: {default_size})",
    )
    chosen.add_argument("--model", metavar="NAME_OR_PATH", help="any decoder checkpoint: a hub name or a local folder")
    parser.add_argument("--use_base_model", action="store_true", help="the base model, prompted with plain text")
    if quantize:
        add_quantize(parser)


def add_quantize(parser: argparse._ActionsContainer) -> None:
    """--quantize; `model_choice` makes it part of the choice."""
    parser.add_argument(
        "--quantize",
        choices=get_args(Quantization),
        help="keep the blocks' weights in 8 or 4 bits: int8 on a CPU or an NVIDIA GPU, nf4 on a GPU "
        "(default: as --dtype says)",
    )


def add_model_filter(parser: argparse.ArgumentParser) -> None:
    """Flags that narrow a script which works on every model's files down to one model's."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--model_size", choices=MODEL_SIZES, help="only this model's vectors (default: every model)")
    chosen.add_argument("--model", metavar="NAME_OR_PATH", help="only this model's vectors (default: every model)")
    parser.add_argument("--use_base_model", action="store_true", help="with --model_size: the base model's vectors")


def add_device(parser: argparse._ActionsContainer) -> None:
    """Flags that say where a model is run."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: the best available)")
    parser.add_argument(
        "--device_map", choices=["auto"], help="auto: split one model over all GPUs (default: one device)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        default="auto",
        help="weights and arithmetic (default: float32, but float16 for 13b and 70b on a GPU)",
    )


def add_vector_kind(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--read and --method: which vectors are meant. With `default`, in words, they narrow down what there is."""
    parser.add_argument(
        "--read",
        choices=get_args(Reading),
        default=None if default else VectorKind.reading,
        help="where vectors are read: at the answer's letter, over all tokens of its text, at its last token, at the "
        "last token of the prompt, or over the prompt from where both prompts of a pair part (default: "
        f"{default or 'letter, as published'})",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=None if default else VectorKind.method,
        help="how activations become a vector: the mean difference, principal components of the differences or of "
        f"pair-centred activations, a logistic probe, or a linear discriminant (default: {default or 'mean'})",
    )

    parser.add_argument(
        "--from",
        dest="origin",
        choices=get_args(Origin),
        default=None if default else VectorKind.origin,
        help="whose answers vectors are made from: those of the contrast pairs, or those that the model itself gives "
        f"under the behavior's two system prompts (default: {default or 'pairs'})",
    )


def add_part(parser: argparse.ArgumentParser) -> None:
    """--part: beside `add_vector_kind`, for scripts that use vectors."""
    parser.add_argument(
        "--part",
        type=values.part,
        metavar="NAME",
        help="a part of the vectors, such as rank2, that ./research/decompose_vectors.py wrote (default: the whole)",
    )


def vector_kind(args: argparse.Namespace) -> VectorKind:
    return VectorKind(args.read, args.method, args.origin, getattr(args, "part", None))


def kind_filter(args: argparse.Namespace) -> Callable[[VectorKind], bool]:
    """Which kinds of vectors the flags leave, where `add_vector_kind` had a default in words."""

    def fits(kind: VectorKind) -> bool:
        given = ((args.read, kind.reading), (args.method, kind.method), (args.origin, kind.origin))
        return all(asked in (None, value) for asked, value in given)

    return fits


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a model is run."""
    add_device(parser)
    parser.add_argument(
        "--batch_size",
        type=values.batch_size,
        default="auto",
        metavar="N",
        help="questions or pairs in one forward pass (default: auto, from the free memory)",
    )
    parser.add_argument(
        "--no_packing",
        action="store_true",
        help="run one full pass per combination: slow, the reference for the packed passes",
    )


def model_choice(args: argparse.Namespace) -> ModelChoice:
    return choose_model(args.model_size, args.model, args.use_base_model, getattr(args, "quantize", None))


def model_filter(args: argparse.Namespace) -> ModelChoice | None:
    """The one model that `add_model_filter`'s flags name; None for every model there is.

    Raises:
        UserError: If --use_base_model stands alone.
    """
    if args.model is not None or args.model_size is not None:
        return choose_model(args.model_size, args.model, args.use_base_model)
    if args.use_base_model:
        raise UserError("--use_base_model needs --model_size (without either, every model is worked on)")
    return None


def data_paths(args: argparse.Namespace) -> DataPaths:
    """The paths under --root, where the behaviors that the flags name are known.

    Raises:
        UserError: If that folder does not exist, or a behavior has no file or a broken one.
    """
    paths = root_paths(args)
    for flag in ("behaviors", "behavior", "vector_behavior"):
        named = getattr(args, flag, None) or []
        for behavior in [named] if isinstance(named, str) else named:
            load_behavior(paths, behavior)
    return paths


def root_paths(args: argparse.Namespace) -> DataPaths:
    """The paths under --root.

    Raises:
        UserError: If that folder does not exist.
    """
    if not args.root.is_dir():
        raise UserError(f"--root {args.root} is not a folder; create it or name another one")
    return DataPaths(args.root)
