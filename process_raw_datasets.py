#!/usr/bin/env python3
"""Make the generate and test sets from raw datasets, fetch the published ones, or check what is there.

Reads:   datasets/raw/<behavior>/dataset.json
Writes:  datasets/generate/<behavior>/generate_dataset.json     at most 1000 contrast pairs
         datasets/test/<behavior>/test_dataset_ab.json          50 contrast pairs
         datasets/test/<behavior>/test_dataset_open_ended.json  their first lines (not for sycophancy, whose
                                                                open-ended questions are written by hand)
Example: ./process_raw_datasets.py --behaviors sycophancy
         ./process_raw_datasets.py --source published
         ./process_raw_datasets.py --check

Exact duplicates are questions that are the same but for letter case and blanks; they never get into
both splits. Near duplicates share at least 80 % of their distinct words: words of both questions,
choices included, over words of either (Jaccard similarity).

--source published fetches the data of the CAA paper (28 files, 4.9 MB, TruthfulQA and MMLU included),
each pinned by its sha256. The raw files of hallucination and sycophancy are not published in this
format; a raw file that is there stays.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli.flags import add_behaviors, data_paths, make_parser
from utils.cli.progress import progress
from utils.cli.run import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, exit_with, run_main
from utils.errors import UserError
from utils.paths import DataPaths

if TYPE_CHECKING:
    from utils.data.splitting import Splits

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
        "--dedup",
        action="store_true",
        help="drop exact and near duplicates before splitting, the first of those alike stays (default: keep all)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the datasets that are there, TruthfulQA and MMLU included; exit code 1 on faults",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    paths = data_paths(args)
    if args.mirror is not None and args.source != "published":
        raise UserError("--mirror goes with --source published")
    if args.dedup and (args.check or args.source == "published"):
        raise UserError("--dedup works on raw sets: leave out --check and --source published")
    if args.check and args.source == "published":
        raise UserError("--check looks at what is there: fetch with --source published first, then run --check alone")
    if args.check:
        return check_datasets(paths, args)
    if args.source == "published":
        return fetch_published(paths, args)
    return process_raw(paths, args)


def process_raw(paths: DataPaths, args: argparse.Namespace) -> int:
    """Process each behavior; one that fails does not keep the others from being made."""
    counts = {"written": 0, "skipped": 0, "failed": 0}
    for behavior in args.behaviors:
        try:
            counts[process_behavior(paths, behavior, args)] += 1
        except UserError as err:
            log.error("%s: not processed: %s", behavior, err)
            counts["failed"] += 1
    log.info("behaviors: wrote %(written)d, skipped %(skipped)d, failed %(failed)d", counts)
    if counts["failed"] == len(args.behaviors):
        return EXIT_USAGE
    return EXIT_FAILED if counts["failed"] else EXIT_DONE


def process_behavior(paths: DataPaths, behavior: str, args: argparse.Namespace) -> str:
    """Make one behavior's sets; returns "written" or "skipped".

    Raises:
        UserError: If the raw set is missing, has faults, is too small, or sets of another split are there.
    """
    from utils.data.checks import HAND_WRITTEN_OPEN_ENDED
    from utils.data.splitting import first_line, pair_record
    from utils.files.reading import read_json

    outputs = [paths.generate_dataset(behavior), paths.test_dataset(behavior, "ab")]
    if behavior not in HAND_WRITTEN_OPEN_ENDED:
        outputs.append(paths.test_dataset(behavior, "open_ended"))
    existing = [] if args.overwrite else [path for path in outputs if path.exists()]
    if len(existing) == len(outputs):
        log.info("%s: skipped, its sets are there already (--overwrite makes them again)", behavior)
        return "skipped"

    source = paths.raw_dataset(behavior)
    splits = _split_raw(source, behavior, args)
    sets: list[list[dict[str, str]]] = [
        [pair_record(pair) for pair in splits.generate],
        [pair_record(pair) for pair in splits.test],
        [{"question": first_line(pair.question)} for pair in splits.test],
    ]
    contents = dict(zip(outputs, sets, strict=False))
    for path in existing:
        if read_json(path) != contents[path]:
            raise UserError(f"{path} is there, from another split or seed; --overwrite makes all of its sets again")
    _record_provenance(contents, source, args)
    _write_together({path: records for path, records in contents.items() if path not in existing})
    _print(f"{behavior}: n_generate: {len(splits.generate)} | n_test: {len(splits.test)}")
    _report_splits(behavior, splits)
    return "written"


def _split_raw(source: Path, behavior: str, args: argparse.Namespace) -> "Splits":
    from utils.data.duplicates import find_duplicates, without_repeats
    from utils.data.splitting import load_raw_pairs, split_pairs

    pairs = load_raw_pairs(source, "put a raw set there, or fetch the published sets with --source published")
    duplicates = find_duplicates([pair.question for pair in pairs])
    if args.dedup:
        kept = without_repeats(len(pairs), duplicates)
        log.info(
            "%s: dropped %d of %d items: %d exact and %d near duplicate pairs",
            behavior,
            len(pairs) - len(kept),
            len(pairs),
            len(duplicates.exact),
            len(duplicates.near),
        )
        pairs = [pairs[position] for position in kept]
        duplicates = find_duplicates([pair.question for pair in pairs])
    return split_pairs(pairs, duplicates, args.seed, source)


def _write_together(contents: Mapping[Path, object]) -> None:
    """Write all files before any is moved into place, so that sets of two splits never stand side by side."""
    from utils.files.writing import atomic_file

    with ExitStack() as stack:
        for path, records in contents.items():
            stack.enter_context(atomic_file(path)).write(json.dumps(records, indent=4).encode())
    for path in contents:
        log.info("wrote %s", path)


def _report_splits(behavior: str, splits: "Splits") -> None:
    from utils.data.checks import HAND_WRITTEN_OPEN_ENDED
    from utils.data.duplicates import count_by_split, find_duplicates
    from utils.data.splitting import split_choices

    if splits.n_left_out:
        log.info("%s: %d items beyond the first %d are left out", behavior, splits.n_left_out, len(splits.generate))
    cut = sum("\n" in split_choices(pair.question)[0] for pair in splits.test)
    if cut and behavior not in HAND_WRITTEN_OPEN_ENDED:
        log.info("%s: %d test questions have several lines; open-ended they keep only the first", behavior, cut)
    duplicates = find_duplicates([pair.question for pair in (*splits.generate, *splits.test)])
    for kind, pairs in (("exact", duplicates.exact), ("near", duplicates.near)):
        counts = count_by_split(pairs, len(splits.generate))
        log.info(
            "%s: %d %s duplicate pairs: %d within generate, %d within test, %d across the splits",
            behavior,
            len(pairs),
            kind,
            *counts,
        )


def _record_provenance(contents: Mapping[Path, object], source: Path, args: argparse.Namespace) -> None:
    from utils.files.provenance import record_provenance
    from utils.files.reading import sha256_of

    run_record: dict[str, Any] = {
        "command": args.command,
        "raw_sha256": sha256_of(source),
        "seed": args.seed,
        "dedup": args.dedup,
    }
    for path in contents:
        record_provenance(path.parent, [path.name], run_record)


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


def check_datasets(paths: DataPaths, args: argparse.Namespace) -> int:
    """Print a table, the faults and the notes."""
    from utils.data.checks import check_behavior, check_knowledge, format_table

    reports = [check_behavior(paths, behavior) for behavior in progress(args.behaviors, desc="check")]
    reports += [check_knowledge(paths, "truthfulqa", "truthful_qa"), check_knowledge(paths, "mmlu", "mmlu")]
    _print(format_table(reports))
    for report in reports:
        for kind, findings in (("fault", report.faults), ("note", report.notes)):
            for finding in findings:
                _print(f"{kind}: {finding}")
    n_faults = sum(len(report.faults) for report in reports)
    log.info("checked %d sets: %d faults, %d notes", len(reports), n_faults, sum(len(r.notes) for r in reports))
    return EXIT_FAILED if n_faults else EXIT_DONE


def _print(text: str) -> None:
    print(text)  # noqa: T201  the counts and the table are what a pipe wants


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
