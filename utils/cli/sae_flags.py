"""Flags that the scripts in saes/ share, and what is made of their values."""

import argparse
from pathlib import Path
from typing import Any

from utils.cli import values
from utils.cli.flags import add_device, add_model, model_choice, root_paths
from utils.errors import UserError
from utils.model import processes
from utils.saes.direction_evals import EvalRequest
from utils.saes.prompts import PromptSource
from utils.saes.requests import ModelRequest
from utils.saes.text import TextSource, check_source


def add_weighted_model(parser: argparse.ArgumentParser) -> None:
    """Flags that name a model, fine-tuned weights over it, and where it runs."""
    add_model(parser)
    parser.add_argument(
        "--override_model_weights_path",
        type=Path,
        metavar="FILE",
        help="fine-tuned weights over the checkpoint's, such as finetuned_models/refuser.pt (default: none)",
    )
    add_device(parser)


def add_prompts(parser: argparse.ArgumentParser, n_prompts: int = 64) -> None:
    """Flags that name harmful and harmless instructions, and how the model is asked them."""
    parser.add_argument(
        "--source",
        choices=["bundled", "published"],
        default="bundled",
        help="the bundled instructions, or those of Arditi et al. 2024, which are fetched once (default: bundled)",
    )
    parser.add_argument(
        "--harmful",
        type=Path,
        metavar="FILE",
        help="instructions of your own, a JSON list, split by --seed: half to make directions, a quarter to choose, a "
        "quarter to test (default: --source)",
    )
    parser.add_argument("--harmless", type=Path, metavar="FILE", help="the same for harmless ones")
    parser.add_argument(
        "--n_prompts",
        type=values.positive_int,
        default=n_prompts,
        metavar="N",
        help=f"instructions of each side that directions are made of (default: {n_prompts})",
    )
    add_system_prompt(parser)


def add_system_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system_prompt",
        choices=["none", "default"],
        default="none",
        help="none: without one, as published; default: with the one that the chat template adds (default: none)",
    )


def add_text(parser: argparse.ArgumentParser, *, required: bool = False, several: bool = False) -> None:
    """Flags that name the text that SAEs are trained or measured on."""
    parser.add_argument(
        "--data",
        required=required,
        nargs="+" if several else None,
        metavar="NAME_OR_FILE",
        help="chat, web, lmsys, pile, or a file of JSON Lines" + (" (default: each SAE's own)" if several else ""),
    )
    parser.add_argument(
        "--format",
        choices=["chat", "plain"],
        default="chat",
        help="chat: text in the model's chat format, as published; plain: as it is, and the SAE is named so "
        "(default: chat)",
    )


def text_source(args: argparse.Namespace, data: str | None = None) -> TextSource:
    """The text that the flags name.

    Raises:
        UserError: If it is neither a known name nor a file.
    """
    source = TextSource(data or args.data, args.format, args.system_prompt)
    check_source(source)
    return source


def add_position(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--position",
        type=int,
        default=-1,
        metavar="N",
        help="token at which prompts are read, from the prompt's end (default: -1, the last)",
    )


def add_saes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--saes",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR",
        help="folders of SAEs: this suite's (saes_trained/...) or sae-lens'",
    )


def add_refusal_tests(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a direction is ablated, and how the model is tried on test prompts."""
    parser.add_argument(
        "--ablation",
        choices=["zero", "affine"],
        default="zero",
        help="zero: take the component out (Arditi et al.); affine: set it to the mean of harmless prompts, the first "
        "token left (Marshall et al.), which a small model survives (default: zero)",
    )
    parser.add_argument(
        "--refusal_tokens", nargs="+", metavar="WORD", help='first tokens of refusals (default: "I"; for Qwen "As" too)'
    )
    parser.add_argument(
        "--n_test", type=values.positive_int, default=100, metavar="N", help="test prompts a side (default: up to 100)"
    )
    parser.add_argument(
        "--max_new_tokens", type=values.positive_int, default=64, metavar="N", help="of test answers (default: 64)"
    )
    parser.add_argument("--save_completions", action="store_true", help="store whole answers, not their beginnings")


def prompt_source(args: argparse.Namespace) -> PromptSource:
    """
    Raises:
        UserError: If one of --harmful and --harmless stands alone, or beside --source published.
    """
    paths = root_paths(args)
    if args.harmful is None and args.harmless is None:
        return PromptSource(paths, args.source, seed=args.seed)
    if args.harmful is None or args.harmless is None:
        missing = "--harmful" if args.harmful is None else "--harmless"
        raise UserError(f"{missing} FILE is missing: name a file of each side, or neither")
    if args.source != "bundled":
        raise UserError("--source published and --harmful FILE are two sources; name one")
    return PromptSource(paths, "files", args.harmful, args.harmless, args.seed)


def model_request(args: argparse.Namespace) -> ModelRequest:
    """The model that the flags name.

    Raises:
        UserError: If its weights file is missing.
    """
    weights: Path | None = args.override_model_weights_path
    if weights is not None and not weights.is_file():
        raise UserError(f"--override_model_weights_path {weights}: there is no such file; run: ./saes/make_refuser.py")
    return ModelRequest(model_choice(args), weights)


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """What `LlamaWrapper.load` is given."""
    request = model_request(args)
    return {
        "choice": request.choice,
        "device": args.device,
        "dtype": args.dtype,
        "weights_path": request.weights,
        "over_all_devices": args.device_map == "auto",
    }


def add_evaluation(parser: argparse.ArgumentParser, n_random: int) -> None:
    """Flags of every script that evaluates SAEs on a model's refusal direction."""
    add_saes(parser)
    parser.add_argument(
        "--layer", type=values.layer, metavar="N", help="the layer that all SAEs must read (default: each its own)"
    )
    add_position(parser)
    parser.add_argument(
        "--n_random",
        type=values.positive_int,
        default=n_random,
        metavar="N",
        help=f"draws of each control: random directions, random dictionaries (default: {n_random})",
    )
    add_prompts(parser)
    add_weighted_model(parser)


def check_one_process() -> None:
    """
    Raises:
        UserError: If several were launched: the work on some hundred prompts is not shared.
    """
    if processes.count() > 1:
        raise UserError("this script runs in one process; start it without accelerate launch or torchrun")


def eval_request(args: argparse.Namespace, script: str, **own: Any) -> EvalRequest:
    """
    Args:
        args: With the flags of `add_evaluation`.
        script: Names the results.
        own: Further settings that the numbers depend on.

    Raises:
        UserError: If flags do not go together.
    """
    check_one_process()
    if args.position >= 0:
        raise UserError(f"--position {args.position}: count from the prompt's end, -1 for its last token")
    return EvalRequest(
        script=script,
        source=prompt_source(args),
        model=model_request(args),
        folders=tuple(args.saes),
        layer=args.layer,
        position=args.position,
        n_prompts=args.n_prompts,
        system_prompt=args.system_prompt,
        n_random=args.n_random,
        seed=args.seed,
        command=args.command,
        own=tuple(own.items()),
    )
