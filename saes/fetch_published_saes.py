#!/usr/bin/env python3
"""Fetch the four published SAEs of "SAEs are highly dataset dependent" and mend them.

They lie on wandb.ai as they were trained: b_dec is in units of normalised input, decoder rows have any norm. What
is written is mended as the published scripts do it: b_dec divided by the factor of the training, then rows of norm 1.
The client (pip install wandb) may ask for an API key; or fetch cfg.json and sae_weights.safetensors of each by hand and
name the folder that holds a folder of each name with --from_dir.

Reads:   wandb artifacts of ckkissane, or DIR/<name>/
Writes:  saes_trained/published_<name>/, for chat_lmsys, chat_pile, base_lmsys, base_pile (sae-lens 6)
Example: ./saes/fetch_published_saes.py --from_dir ~/downloads/artifacts
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli.flags import make_parser, root_paths
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.saes.formats import is_sae_folder
from utils.saes.published_sources import PUBLISHED, fetch_artifact, find_download

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True)
    parser.add_argument(
        "--names", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), help="which ones (default: all four)"
    )
    parser.add_argument("--from_dir", type=Path, metavar="DIR", help="take them from here instead of wandb.ai")
    return parser


def run(args: argparse.Namespace) -> int:
    paths = root_paths(args)
    folders = {name: paths.sae(f"published_{name}") for name in args.names}
    waiting = {name: to for name, to in folders.items() if args.overwrite or not is_sae_folder(to)}
    failed = 0
    for name, folder in waiting.items():
        from utils.errors import UserError
        from utils.saes.published import repaired

        with tempfile.TemporaryDirectory() as scratch:
            try:
                came = find_download(args.from_dir, name) if args.from_dir else fetch_artifact(name, Path(scratch))
                repaired(came, name).save(folder)
            except UserError as err:
                log.error("%s: %s", name, err)
                failed += 1
                continue
        log.info("wrote %s", folder)
    log.info(
        "wrote %d, skipped %d that are there already (--overwrite fetches them again), failed %d",
        *(len(waiting) - failed, len(folders) - len(waiting), failed),
    )
    return EXIT_FAILED if failed else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
