"""A behavior's raw sets made into its generate and test sets, both forms of contrast pairs at once."""

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.behaviors import Behavior
from utils.data.choices import split_choices
from utils.data.duplicates import count_by_split, find_duplicates, without_repeats
from utils.data.records import ContrastPair, TextPair
from utils.data.splitting import (
    N_TEST,
    P,
    Splits,
    first_line,
    load_raw_pairs,
    load_raw_text_pairs,
    pair_record,
    split_pairs,
    whole_text,
)
from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.reading import read_json, sha256_of
from utils.files.writing import atomic_file
from utils.paths import DataPaths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processing:
    """How raw sets are split."""

    command: str
    """The command line, for the provenance record."""
    seed: int = 0
    n_test: int = N_TEST
    dedup: bool = False
    """Drop duplicates before splitting."""
    overwrite: bool = False


@dataclass(frozen=True)
class _Made:
    """One form's sets."""

    name: str
    """For messages."""
    source: Path
    """The raw set."""
    splits: Splits[ContrastPair] | Splits[TextPair]
    generate_path: Path
    test_path: Path

    @property
    def contents(self) -> dict[Path, list[dict[str, str]]]:
        return {
            self.generate_path: [pair_record(pair) for pair in self.splits.generate],
            self.test_path: [pair_record(pair) for pair in self.splits.test],
        }

    def open_ended(self) -> list[dict[str, str]]:
        """Open questions: first lines of the questions with choices, or the text pairs' own, each once."""
        if any(isinstance(pair, TextPair) for pair in self.splits.test):
            return [{"question": question} for question in dict.fromkeys(pair.question for pair in self.splits.test)]
        return [{"question": first_line(pair.question)} for pair in self.splits.test]


def process_behavior(paths: DataPaths, behavior: Behavior, how: Processing) -> list[str]:
    """Make one behavior's sets; returns a line of counts for each form, none where all sets are there already.

    Raises:
        UserError: If the raw sets are missing, have faults, are too small, or sets of another split are there.
    """
    outputs = _outputs(paths, behavior)
    existing = [] if how.overwrite else [path for path in outputs if path.exists()]
    if len(existing) == len(outputs):
        log.info("%s: skipped, its sets are there already (--overwrite makes them again)", behavior.id)
        return []
    forms = _split_forms(paths, behavior, how)
    contents = {path: records for form in forms for path, records in form.contents.items()}
    sources = {path: form.source for form in forms for path in form.contents}
    if not behavior.open_ended_written_separately:
        open_ended = paths.test_dataset(behavior.id, "open_ended")
        contents[open_ended], sources[open_ended] = forms[0].open_ended(), forms[0].source
    for path in existing:
        if read_json(path) != contents[path]:
            raise UserError(f"{path} is there, from another split or seed; --overwrite makes all of its sets again")
    _record(sources, how)
    write_together({path: records for path, records in contents.items() if path not in existing})
    for form in forms:
        _report(form, opens=not behavior.open_ended_written_separately and form is forms[0])
    return [f"{form.name}: n_generate: {len(form.splits.generate)} | n_test: {len(form.splits.test)}" for form in forms]


def _has_forms(paths: DataPaths, behavior: str) -> tuple[bool, bool]:
    """Whether there is a raw set of A/B form, and of text form; A/B where there is none, which is then missed."""
    has_text = paths.raw_text_dataset(behavior).exists()
    return paths.raw_dataset(behavior).exists() or not has_text, has_text


def _outputs(paths: DataPaths, behavior: Behavior) -> list[Path]:
    has_ab, has_text = _has_forms(paths, behavior.id)
    outputs = []
    if has_ab:
        outputs += [paths.generate_dataset(behavior.id), paths.test_dataset(behavior.id, "ab")]
    if has_text:
        outputs += [paths.generate_text_dataset(behavior.id), paths.test_text_dataset(behavior.id)]
    if not behavior.open_ended_written_separately:
        outputs.append(paths.test_dataset(behavior.id, "open_ended"))
    return outputs


def _split_forms(paths: DataPaths, behavior: Behavior, how: Processing) -> list[_Made]:
    """The raw sets that there are, split so that no question is on both sides."""
    made: list[_Made] = []
    (has_ab, has_text), ab_splits, name = _has_forms(paths, behavior.id), None, behavior.id
    if has_ab:
        source = paths.raw_dataset(name)
        hint = "put contrast pairs there; --new ID begins a behavior, --source published fetches the paper's sets"
        ab_splits = _split(load_raw_pairs(source, hint), name, source, how, None)
        made.append(_Made(name, source, ab_splits, paths.generate_dataset(name), paths.test_dataset(name, "ab")))
    if has_text:
        source = paths.raw_text_dataset(name)
        splits = _split(load_raw_text_pairs(source), f"{name}, text pairs", source, how, ab_splits)
        text_paths = (paths.generate_text_dataset(name), paths.test_text_dataset(name))
        made.append(_Made(f"{name}, text pairs", source, splits, *text_paths))
    return made


def _split(
    pairs: list[P], name: str, source: Path, how: Processing, other_form: Splits[ContrastPair] | None
) -> Splits[P]:
    duplicates = find_duplicates([whole_text(pair) for pair in pairs])
    if how.dedup:
        kept = without_repeats(len(pairs), duplicates)
        log.info(
            "%s: dropped %d of %d items: %d exact and %d near duplicate pairs",
            name,
            len(pairs) - len(kept),
            len(pairs),
            len(duplicates.exact),
            len(duplicates.near),
        )
        pairs = [pairs[position] for position in kept]
        duplicates = find_duplicates([whole_text(pair) for pair in pairs])
    return split_pairs(pairs, duplicates, how.seed, source, how.n_test, other_form)


def write_together(contents: Mapping[Path, object]) -> None:
    """Write all files before any is moved into place, so that sets of two splits never stand side by side."""
    with ExitStack() as stack:
        for path, records in contents.items():
            stack.enter_context(atomic_file(path)).write(json.dumps(records, indent=4).encode())
    for path in contents:
        log.info("wrote %s", path)


def _report(form: _Made, *, opens: bool) -> None:
    """Say what was left out, cut, or is alike; `opens`: the open-ended questions are made of this form's."""
    splits, pairs = form.splits, (*form.splits.generate, *form.splits.test)
    if splits.n_left_out:
        log.info(
            "%s: %d items are left out (beyond the first %d, or their question is tested in the other form)",
            form.name,
            splits.n_left_out,
            len(splits.generate),
        )
    cut = sum("\n" in split_choices(pair.question)[0] for pair in splits.test if isinstance(pair, ContrastPair))
    if cut and opens:
        log.info("%s: %d test questions have several lines; open-ended they keep only the first", form.name, cut)
    duplicates = find_duplicates([whole_text(pair) for pair in pairs])
    for kind, found in (("exact", duplicates.exact), ("near", duplicates.near)):
        counts = count_by_split(found, len(splits.generate))
        log.info(
            "%s: %d %s duplicate pairs: %d within generate, %d within test, %d across the splits",
            form.name,
            len(found),
            kind,
            *counts,
        )


def _record(sources: Mapping[Path, Path], how: Processing) -> None:
    for path, source in sources.items():
        run: dict[str, Any] = {
            "command": how.command,
            "raw_sha256": sha256_of(source),
            "seed": how.seed,
            "n_test": how.n_test,
            "dedup": how.dedup,
        }
        record_provenance(path.parent, [path.name], run)
