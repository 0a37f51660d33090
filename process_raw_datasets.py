#!/usr/bin/env python3
"""Make the generate and test sets from raw datasets, fetch the published ones, check what is there, or begin
a behavior of your own.

Reads:   datasets/raw/<behavior>/dataset.json                   contrast pairs of A/B form, or
         datasets/raw/<behavior>/dataset_text.json              of text form, or both
Writes:  datasets/generate/<behavior>/generate_dataset.json     at most 1000 contrast pairs
         datasets/test/<behavior>/test_dataset_ab.json          50 contrast pairs (--n_test)
         datasets/generate/<behavior>/generate_dataset_text.json, datasets/test/<behavior>/test_dataset_text.json
                                                                the same of text form
         datasets/test/<behavior>/test_dataset_open_ended.json  their first lines (not where the behavior's file
                                                                says that these questions are written separately)
Example: ./process_raw_datasets.py --behaviors sycophancy
         ./process_raw_datasets.py --source published
         ./process_raw_datasets.py --check
         ./process_raw_datasets.py --new pirate

Exact duplicates are questions that are the same but for letter case and blanks; they never get into
both splits. Near duplicates share at least 80 % of their distinct words: words of both questions,
choices included, over words of either (Jaccard similarity). Of text pairs the answers count too.
A question that both forms have is on the same side in both.

--source published fetches the data of the CAA paper (28 files, 4.9 MB, TruthfulQA and MMLU included),
each pinned by its sha256. The raw files of hallucination and sycophancy are not published in this
format; a raw file that is there stays.

--new ID writes datasets/behaviors/ID.json, four example pairs of each form and open-ended questions under
--root, to be edited. A set needs at least 8 pairs; a small one is split with --n_test.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.behaviors import find_behavior, load_behavior
from utils.cli import values as flag_values
from utils.cli.flags import add_behaviors, data_paths, make_parser, root_paths
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, exit_with, run_main
from utils.data.processing import Processing, process_behavior, write_together
from utils.errors import UserError
from utils.paths import REPOSITORY, DataPaths

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    add_behaviors(parser)
    parser.add_argument(
        "--source",
        choices=["raw", "published"],
        default="raw",
        help="raw: split datasets/raw; published: fetch the sets of the CAA paper (default: raw)",
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="with --source published: another address of the folder that holds raw/, generate/ and test/",
    )
    parser.add_argument(
        "--n_test",
        type=flag_values.positive_int,
        metavar="N",
        help=f"contrast pairs in the test set of each form (default: {Processing.n_test})",
    )
    parser.add_argument(
        "--dedup",
        action="store_true",
        help="drop exact and near duplicates before splitting, the first of those alike stays (default: keep all)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the behaviors' files and the datasets that are there, TruthfulQA and MMLU included; "
        "exit code 1 on faults",
    )
    parser.add_argument(
        "--new",
        metavar="ID",
        help="only write the files of a new behavior, with examples to edit; nothing is written over",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    if args.new is not None:
        return begin_behavior(args)
    if args.check:
        return check_datasets(args)
    paths = data_paths(args)
    if args.source == "published":
        return fetch_published(paths, args)
    return process_raw(paths, args)


def check_arguments(args: argparse.Namespace) -> None:
    if args.new is not None and (args.check or args.source == "published" or args.overwrite):
        raise UserError("--new only writes the files of a new behavior: leave the other flags but --root out")
    if args.mirror is not None and args.source != "published":
        raise UserError("--mirror goes with --source published")
    only_raw = args.new is not None or args.check or args.source == "published"
    for flag in ("dedup", "n_test"):
        if getattr(args, flag) and only_raw:
            raise UserError(f"--{flag} works on raw sets: leave out --check, --new and --source published")
    if args.check and args.source == "published":
        raise UserError("--check looks at what is there: fetch with --source published first, then run --check alone")


def process_raw(paths: DataPaths, args: argparse.Namespace) -> int:
    """Process each behavior; one that fails does not keep the others from being made."""
    how = Processing(args.command, args.seed, args.n_test or Processing.n_test, args.dedup, args.overwrite)
    counts = {"written": 0, "skipped": 0, "failed": 0}
    for behavior in args.behaviors:
        try:
            lines = process_behavior(paths, load_behavior(paths, behavior), how)
        except UserError as err:
            log.error("%s: not processed: %s", behavior, err)
            counts["failed"] += 1
            continue
        counts["written" if lines else "skipped"] += 1
        for line in lines:
            _print(line)
    log.info("behaviors: wrote %(written)d, skipped %(skipped)d, failed %(failed)d", counts)
    if counts["failed"] == len(args.behaviors):
        return EXIT_USAGE
    return EXIT_FAILED if counts["failed"] else EXIT_DONE


def begin_behavior(args: argparse.Namespace) -> int:
    """Write the files of a new behavior, and say what comes next."""
    from utils.data.skeleton import skeleton

    paths = DataPaths(args.root)
    write_together(skeleton(paths, args.new))
    root = [] if paths.root == REPOSITORY else ["--root", str(paths.root)]
    flags = shlex.join([*root, "--behaviors", args.new])
    _print(
        "Edit these files: the examples are of an assistant that talks like a pirate. Write at least 8 contrast pairs "
        "in a file\n(100 are better; in A/B pairs let the matching answer be (A) half of the time), and delete "
        "dataset.json or dataset_text.json\nif you want pairs of one form only. Then run:\n"
        f"  ./process_raw_datasets.py {flags} --n_test 4\n"
        f"  ./generate_vectors.py {flags} --model_size 135m\n"
        f"  ./normalize_vectors.py {flags}\n"
        f"  ./prompting_with_steering.py {flags} --multipliers -1 0 1 --model_size 135m\n"
        f"  ./plot_results.py {flags} --model_size 135m"
    )
    return EXIT_DONE


def fetch_published(paths: DataPaths, args: argparse.Namespace) -> int:
    """Download the published sets that are not there yet; ask before anything is replaced."""
    from utils.data.published import KNOWLEDGE_SETS, PUBLISHED_URL, check_base_url, fetch_sets, published_files
    from utils.files.writing import locked_folder

    base_url = check_base_url(args.mirror or PUBLISHED_URL)
    with locked_folder(paths.datasets_dir):
        files = {name: published_files(paths, name) for name in (*args.behaviors, *KNOWLEDGE_SETS)}
        lacking = {name: [file for file in of_set if not file.is_installed()] for name, of_set in files.items()}
        lacking = {name: of_set for name, of_set in lacking.items() if of_set}
        replaced = [file.target for of_set in lacking.values() for file in of_set if file.target.exists()]
        if replaced and not args.overwrite and not _may_replace(replaced):
            log.error("nothing fetched, nothing changed")
            return EXIT_FAILED
        n_bytes = sum(file.n_bytes for of_set in lacking.values() for file in of_set)
        if lacking:
            log.info("fetching %.1f MB from %s", n_bytes / 1e6, base_url)
        with progress(total=n_bytes, desc="published datasets", unit="B", unit_scale=True) as bar:
            failed = fetch_sets(lacking, base_url, args.command, bar.update)
    n_there = len(files) - len(lacking)
    log.info("sets: installed %d, already there %d, failed %d", len(lacking) - len(failed), n_there, len(failed))
    if replaced:
        log.info("vectors and results of the earlier sets stay; --overwrite of their scripts makes them again")
    return EXIT_FAILED if failed else EXIT_DONE


def _may_replace(targets: Sequence[Path]) -> bool:
    """Ask on the terminal.

    Raises:
        UserError: If there is no terminal to ask on.
    """
    what = f"{len(targets)} files are there that are not the published ones, e.g. {targets[0]}"
    if not sys.stdin.isatty():
        raise UserError(f"{what}; --overwrite replaces them")
    try:
        return input(f"{what}. Replace them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def check_datasets(args: argparse.Namespace) -> int:
    """Print a table, the faults and the notes."""
    from utils.data.checks import check_behavior, check_knowledge
    from utils.data.findings import format_table

    paths = root_paths(args)
    for behavior in args.behaviors:
        find_behavior(paths, behavior)
    found = [one for behavior in progress(args.behaviors, desc="check") for one in check_behavior(paths, behavior)]
    found += [check_knowledge(paths, "truthfulqa", "truthful_qa"), check_knowledge(paths, "mmlu", "mmlu")]
    _print(format_table(found))
    for one in found:
        for kind, findings in (("fault", one.faults), ("note", one.notes)):
            for finding in findings:
                _print(f"{kind}: {finding}")
    n_faults = sum(len(one.faults) for one in found)
    log.info("checked %d sets: %d faults, %d notes", len(found), n_faults, sum(len(one.notes) for one in found))
    return EXIT_FAILED if n_faults else EXIT_DONE


def _print(text: str) -> None:
    print(text)  # noqa: T201  the counts and the table are what a pipe wants


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
