"""Check datasets: faults (an item is wrong or leaks into another split) and notes (worth knowing).

Faults: a missing or damaged file, an item that is no contrast pair, an answer that is not among the
choices, an empty text, a generate or test item that is not cleaned, a question that stands in both
splits. Notes: answers beyond (B), letters out of balance, long items, repeated and alike items,
first lines that both splits share, items that are not in the raw set.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.data.duplicates import count_by_split, find_duplicates, fold
from utils.data.records import ContrastPair, knowledge_item, load_records, record_text
from utils.data.splitting import check_choices, clean_pair, first_line, pair_record, split_choices
from utils.errors import UserError
from utils.paths import DataPaths
from utils.settings import ResultType

MAX_CHARACTERS = 2000
BALANCE_LIMIT = 0.6
"""Largest share of matching answers at one letter that is not noted."""
HAND_WRITTEN_OPEN_ENDED = frozenset({"sycophancy"})

_HEADINGS = ("set", "raw", "generate", "test A/B", "open-ended", "(A) generate", "(A) test", "alike", "faults", "notes")


@dataclass
class Report:
    """What a check found in one behavior's sets, or in one knowledge set."""

    name: str
    counts: dict[str, str] = field(default_factory=dict)
    """Cells of the table, by heading."""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_behavior(paths: DataPaths, behavior: str) -> Report:
    """Check the raw, generate, A/B and open-ended set of a behavior."""
    report = Report(behavior)
    raw_path = paths.raw_dataset(behavior)
    raw = _load_items(raw_path, report, "raw", clean_pair) if raw_path.exists() else None
    generate_path, test_path = paths.generate_dataset(behavior), paths.test_dataset(behavior, "ab")
    open_path = paths.test_dataset(behavior, "open_ended")
    generate = _load_items(generate_path, report, "generate", _load_clean_item)
    test = _load_items(test_path, report, "test A/B", _load_clean_item)
    questions = _load_items(open_path, report, "open-ended", _load_open_ended)
    for heading, path, pairs in (("(A) generate", generate_path, generate), ("(A) test", test_path, test)):
        letters = [pair.matching_letter for pair in pairs.values()]
        report.counts[heading] = _percent(letters.count("A"), len(letters))
        _note_letters(path, pairs, report)
        _note_long(path, {index: pair.question for index, pair in pairs.items()}, report)
    _note_long(open_path, questions, report)
    _compare_splits(generate_path, generate, test_path, test, report)
    _compare_open_ended(open_path, questions, generate, test, report)
    if raw is not None:
        known = set(raw.values())
        if strangers := sum(pair not in known for pair in (*generate.values(), *test.values())):
            report.notes.append(f"{raw_path}: generate and test items that are not in this raw set: {strangers}")
    return report


def check_knowledge(paths: DataPaths, name: str, result_type: ResultType) -> Report:
    """Check the TruthfulQA or MMLU set."""
    report = Report(name)
    path = paths.test_dataset("", result_type)
    items = _load_items(path, report, "test A/B", _load_knowledge)
    letters = [record["correct"].strip()[1] for record in items.values()]
    report.counts["(A) test"] = _percent(letters.count("A"), len(letters))
    prompts = {index: record["prompt"] for index, record in items.items()}
    _note_long(path, prompts, report)
    _note_balance(path, letters, "correct", report)
    duplicates = find_duplicates(list(prompts.values()))
    report.counts["alike"] = str(len(duplicates.pairs))
    if duplicates.pairs:
        report.notes.append(
            f"{path}: {len(duplicates.exact)} exact and {len(duplicates.near)} near duplicate pairs"
            f"{_examples(duplicates.pairs, list(prompts))}"
        )
    return report


def format_table(reports: Sequence[Report]) -> str:
    rows = [_HEADINGS] + [
        (
            report.name,
            *(report.counts.get(heading, "-") for heading in _HEADINGS[1:-2]),
            str(len(report.faults)),
            str(len(report.notes)),
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _load_items(
    path: Path, report: Report, heading: str, load: Callable[[dict[str, Any], Path, int], Any]
) -> dict[int, Any]:
    """The sound items by their index in the file; the others become faults."""
    try:
        records = load_records(path, "make or fetch it with ./process_raw_datasets.py")
    except UserError as err:
        report.faults.append(str(err))
        return {}
    report.counts[heading] = str(len(records))
    items = {}
    for index, record in enumerate(records):
        try:
            items[index] = load(record, path, index)
        except UserError as err:
            report.faults.append(str(err))
    return items


def _load_clean_item(record: dict[str, Any], path: Path, index: int) -> ContrastPair:
    pair = clean_pair(record, path, index)
    for key, expected in pair_record(pair).items():
        if record[key] != expected:
            raise UserError(
                f"{path}, item {index}, key {key!r}: not cleaned (outer blanks, list or Question:/Answer: markers)"
            )
    return pair


def _load_open_ended(record: dict[str, Any], path: Path, index: int) -> str:
    question = record_text(record, "question", path, index)
    if split_choices(question)[1]:
        raise UserError(f"{path}, item {index}: an open-ended question still has choices")
    return question


def _load_knowledge(record: dict[str, Any], path: Path, index: int) -> dict[str, Any]:
    item = knowledge_item(record, path, index)
    check_choices(item.question, (item.target_letter, item.other_letter), f"{path}, item {index}")
    choices = split_choices(item.question)[1]
    for key, letter in (("correct_full_text", item.target_letter), ("incorrect_full_text", item.other_letter)):
        if record_text(record, key, path, index).strip() != choices[letter]:
            raise UserError(f"{path}, item {index}, key {key!r}: not the text of choice ({letter})")
    return record


def _note_letters(path: Path, pairs: dict[int, ContrastPair], report: Report) -> None:
    beyond = [i for i, pair in pairs.items() if not {pair.matching_letter, pair.other_letter} <= {"A", "B"}]
    if beyond:
        report.notes.append(f"{path}: items with an answer beyond (B): {_listed(beyond)}")
    _note_balance(path, [pair.matching_letter for pair in pairs.values()], "matching", report)


def _note_balance(path: Path, letters: Sequence[str], kind: str, report: Report) -> None:
    if letters:
        letter, n = Counter(letters).most_common(1)[0]
        if n > BALANCE_LIMIT * len(letters):
            share = _percent(n, len(letters))
            report.notes.append(f"{path}: {n} of {len(letters)} {kind} answers ({share}) are at ({letter})")


def _note_long(path: Path, texts: dict[int, str], report: Report) -> None:
    if long := [index for index, text in texts.items() if len(text) > MAX_CHARACTERS]:
        report.notes.append(f"{path}: items longer than {MAX_CHARACTERS} characters: {_listed(long)}")


def _compare_splits(
    generate_path: Path,
    generate: dict[int, ContrastPair],
    test_path: Path,
    test: dict[int, ContrastPair],
    report: Report,
) -> None:
    labels = [f"generate {index}" for index in generate] + [f"test {index}" for index in test]
    pairs = [*generate.values(), *test.values()]
    duplicates = find_duplicates([pair.question for pair in pairs])
    report.counts["alike"] = str(len(duplicates.pairs))
    test_indices = list(test)
    for i, j in duplicates.exact:
        if i < len(generate) <= j:
            report.faults.append(
                f"{test_path}, item {test_indices[j - len(generate)]}: the same question is item "
                f"{list(generate)[i]} of {generate_path}"
            )
    for kind, found in (("exact", duplicates.exact), ("near", duplicates.near)):
        if found:
            in_generate, in_test, across = count_by_split(found, len(generate))
            n_test = len({j for i, j in found if i < len(generate) <= j})
            report.notes.append(
                f"{report.name}: {len(found)} {kind} duplicate pairs: {in_generate} within generate, {in_test} within "
                f"test, {across} across the splits ({n_test} test items){_examples(found, labels)}"
            )
    lines = {fold(first_line(pair.question)) for pair in generate.values()}
    if shared := [index for index, pair in test.items() if fold(first_line(pair.question)) in lines]:
        report.notes.append(
            f"{test_path}: test questions that share their first line with the generate set: {_listed(shared)}"
        )


def _compare_open_ended(
    path: Path,
    questions: dict[int, str],
    generate: dict[int, ContrastPair],
    test: dict[int, ContrastPair],
    report: Report,
) -> None:
    n_repeated = len(questions) - len({fold(question) for question in questions.values()})
    if n_repeated:
        report.notes.append(f"{path}: open-ended questions that repeat an earlier one: {n_repeated}")
    if report.name not in HAND_WRITTEN_OPEN_ENDED:
        own = {fold(first_line(pair.question)) for pair in test.values()}
        if strangers := [index for index, question in questions.items() if fold(question) not in own]:
            report.notes.append(
                f"{path}: questions that are not the first line of an A/B test question: {_listed(strangers)}"
            )
    else:
        lines = {fold(first_line(pair.question)) for pair in generate.values()}
        if shared := [index for index, question in questions.items() if fold(question) in lines]:
            report.notes.append(f"{path}: questions that stand in the generate set: {_listed(shared)}")


def _percent(n: int, total: int) -> str:
    return f"{100 * n / total:.1f}%" if total else "-"


def _listed(indices: Sequence[int]) -> str:
    """How many, and which."""
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)} (item {shown}{', ...' if len(indices) > 5 else ''})"


def _examples(pairs: Sequence[tuple[int, int]], labels: Sequence[object]) -> str:
    shown = "; ".join(f"{labels[i]} and {labels[j]}" for i, j in pairs[:3])
    return f", e.g. {shown}"
