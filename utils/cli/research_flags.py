"""Flags that the scripts in research/ share."""

import argparse
from pathlib import Path

from utils.errors import UserError
from utils.saes.formats import is_sae_folder


def add_optional_saes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--saes",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of SAEs of this model, this suite's (saes_trained/...) or sae-lens' (default: none)",
    )


def sae_folders(args: argparse.Namespace) -> tuple[Path, ...]:
    """
    Raises:
        UserError: If a folder holds no whole SAE.
    """
    if missing := [folder for folder in args.saes if not is_sae_folder(folder)]:
        raise UserError(f"--saes {missing[0]}: no SAE is there (cfg.json, sae_weights.safetensors); run: train_sae.py")
    return tuple(dict.fromkeys(args.saes))
