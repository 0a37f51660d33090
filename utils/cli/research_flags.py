"""Flags that the scripts in research/ share."""

import argparse
from pathlib import Path

from utils.saes.formats import check_sae_folders


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
    check_sae_folders(args.saes)
    return tuple(dict.fromkeys(args.saes))
