"""Check datasets: faults (an item is wrong or leaks into another split) and notes (worth knowing).

Faults: a missing or damaged file, an item that is not a contrast pair, an answer that is not among the
choices, an empty text, a generate or test item that is not cleaned, a question that stands in both
splits, of one form or of both. Notes: answers beyond (B), letters out of balance, long items, repeated
and alike items, first lines that both splits share, items that are not in the raw set, and what a
behavior's file leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.behaviors import Behavior, load_behavior
from utils.data.choices import check_choices, split_choices
from utils.data.duplicates import count_by_split, find_duplicates, fold
from utils.data.findings import Findings, examples, listed, percent
from utils.data.records import (
    ContrastPair,
    Pair,
    TextPair,
    contrast_pair,
    knowledge_item,
    load_records,
    record_text,
    text_pairs_path,
)
from utils.data.splitting import (
    MIN_PAIRS,
    clean_pair,
    clean_text_pair,
    first_line,
    pair_record,
    prompts_of,
    whole_text,
)
from utils.errors import UserError
from utils.paths import DataPaths
from utils.settings import ResultType


@dataclass(frozen=True)
class _Form:
    """The sets of one form of a behavior's contrast pairs: where they are and what they hold, by index."""

    findings: Findings
    generate_path: Path
    test_path: Path
    generate: dict[int, Pair]
    test: dict[int, Pair]


def check_behavior(paths: DataPaths, behavior: str) -> list[Findings]:
    """Check a behavior's file, its sets of each form that there is, and its open-ended questions."""
    forms = [_check_form(paths, behavior, text=text) for text in _forms(paths, behavior)]
    findings = forms[0].findings
    about = _check_file(paths, behavior, findings)
    open_path = paths.test_dataset(behavior, "open_ended")
    questions = _load_items(open_path, findings, "open-ended", _load_open_ended)
    findings.note_long(open_path, questions)
    if about is not None:
        _compare_open_ended(open_path, questions, forms, findings, separately=about.open_ended_written_separately)
    if len(forms) > 1:
        _compare_forms(forms[0], forms[1])
        _compare_forms(forms[1], forms[0])
    return [form.findings for form in forms]


def check_knowledge(paths: DataPaths, name: str, result_type: ResultType) -> Findings:
    """Check the TruthfulQA or MMLU set."""
    findings = Findings(name)
    path = paths.test_dataset("", result_type)
    if not path.exists():
        findings.notes.append(f"{path} not found; only --type {result_type} needs it (the repository has one)")
        return findings
    items = _load_items(path, findings, "test", _load_knowledge)
    letters = [record["correct"].strip()[1] for record in items.values()]
    findings.counts["(A) test"] = percent(letters.count("A"), len(letters))
    prompts = {index: record["prompt"] for index, record in items.items()}
    findings.note_long(path, prompts)
    findings.note_balance(path, letters, "correct")
    duplicates = find_duplicates(list(prompts.values()))
    findings.counts["alike"] = str(len(duplicates.pairs))
    if duplicates.pairs:
        findings.notes.append(
            f"{path}: {len(duplicates.exact)} exact and {len(duplicates.near)} near duplicate pairs"
            f"{examples(duplicates.pairs, list(prompts))}"
        )
    return findings


# --- one behavior ----------------------------------------------------------------------------------


def _check_file(paths: DataPaths, behavior: str, findings: Findings) -> Behavior | None:
    try:
        about = load_behavior(paths, behavior)
    except UserError as err:
        findings.faults.append(str(err))
        return None
    for key, value, use in (
        ("system_prompts", about.system_prompts, "--system_prompt cannot be used"),
        ("rubric", about.rubric, "a judge cannot score its answers"),
    ):
        if value is None:
            findings.notes.append(f'{about.path}: no "{key}", so {use}')
    return about


def _forms(paths: DataPaths, behavior: str) -> list[bool]:
    """Which forms there are, False for A/B and True for text; A/B where there is nothing, which is then a fault."""
    generate_path = paths.generate_dataset(behavior)
    holds_text = _begins_with_text(generate_path)
    of_text = (
        paths.raw_text_dataset(behavior),
        paths.generate_text_dataset(behavior),
        paths.test_text_dataset(behavior),
    )
    of_ab = [paths.raw_dataset(behavior), paths.test_dataset(behavior, "ab")]
    has_text = holds_text or any(path.exists() for path in of_text)
    has_ab = any(path.exists() for path in of_ab) or (generate_path.exists() and not holds_text)
    return [text for text, there in ((False, has_ab or not has_text), (True, has_text)) if there]


def _begins_with_text(path: Path) -> bool:
    """Whether the first item of a set is a text pair."""
    try:
        return isinstance(contrast_pair(load_records(path, "")[0], path, 0), TextPair)
    except UserError:
        return False


def _check_form(paths: DataPaths, behavior: str, *, text: bool) -> _Form:
    """Check the raw, generate and test set of one form."""
    clean: Callable[[Mapping[str, Any], Path, int], Pair]
    if text:
        findings, clean = Findings(f"{behavior}, text pairs"), clean_text_pair
        raw_path, test_path = paths.raw_text_dataset(behavior), paths.test_text_dataset(behavior)
        generate_path = text_pairs_path(paths, behavior)
        if not _begins_with_text(generate_path):
            generate_path = paths.generate_text_dataset(behavior)
    else:
        findings, clean = Findings(behavior), clean_pair
        raw_path, generate_path = paths.raw_dataset(behavior), paths.generate_dataset(behavior)
        test_path = paths.test_dataset(behavior, "ab")

    def load_clean(record: dict[str, Any], path: Path, index: int) -> Pair:
        return _cleaned(clean(record, path, index), record, path, index)

    raw = _load_items(raw_path, findings, "raw", clean) if raw_path.exists() else None
    generate = _load_items(generate_path, findings, "generate", load_clean)
    test = _load_items(test_path, findings, "test", load_clean)
    for heading, path, pairs in (("(A) generate", generate_path, generate), ("(A) test", test_path, test)):
        if not text:
            letters = [pair.matching_letter for pair in pairs.values()]
            findings.counts[heading] = percent(letters.count("A"), len(letters))
            _note_letters(path, pairs, findings)
        findings.note_long(path, {index: whole_text(pair) for index, pair in pairs.items()})
    form = _Form(findings, generate_path, test_path, generate, test)
    _compare_splits(form)
    if raw is not None:
        if len(raw) < MIN_PAIRS:
            findings.notes.append(f"{raw_path}: {len(raw)} sound items; at least {MIN_PAIRS} are needed to split it")
        known = set(raw.values())
        if strangers := sum(pair not in known for pair in (*generate.values(), *test.values())):
            findings.notes.append(f"{raw_path}: generate and test items that are not in this raw set: {strangers}")
    return form


def _load_items(
    path: Path, findings: Findings, heading: str, load: Callable[[dict[str, Any], Path, int], Any]
) -> dict[int, Any]:
    """The sound items by their index in the file; the others become faults."""
    try:
        records = load_records(path, "make or fetch it with ./process_raw_datasets.py")
    except UserError as err:
        findings.faults.append(str(err))
        return {}
    findings.counts[heading] = str(len(records))
    items = {}
    for index, record in enumerate(records):
        try:
            items[index] = load(record, path, index)
        except UserError as err:
            findings.faults.append(str(err))
    return items


def _cleaned(pair: Pair, record: dict[str, Any], path: Path, index: int) -> Pair:
    """The pair, which the record holds as it is."""
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


# --- what is noted ---------------------------------------------------------------------------------


def _note_letters(path: Path, pairs: dict[int, ContrastPair], findings: Findings) -> None:
    beyond = [i for i, pair in pairs.items() if not {pair.matching_letter, pair.other_letter} <= {"A", "B"}]
    if beyond:
        findings.notes.append(f"{path}: items with an answer beyond (B): {listed(beyond)}")
    findings.note_balance(path, [pair.matching_letter for pair in pairs.values()], "matching")


def _compare_splits(form: _Form) -> None:
    findings, generate, test = form.findings, form.generate, form.test
    labels = [f"generate {index}" for index in generate] + [f"test {index}" for index in test]
    duplicates = find_duplicates([whole_text(pair) for pair in (*generate.values(), *test.values())])
    findings.counts["alike"] = str(len(duplicates.pairs))
    test_indices = list(test)
    for i, j in duplicates.exact:
        if i < len(generate) <= j:
            findings.faults.append(
                f"{form.test_path}, item {test_indices[j - len(generate)]}: the same question is item "
                f"{list(generate)[i]} of {form.generate_path}"
            )
    for kind, found in (("exact", duplicates.exact), ("near", duplicates.near)):
        if found:
            in_generate, in_test, across = count_by_split(found, len(generate))
            n_test = len({j for i, j in found if i < len(generate) <= j})
            findings.notes.append(
                f"{findings.name}: {len(found)} {kind} duplicate pairs: {in_generate} within generate, "
                f"{in_test} within test, {across} across the splits ({n_test} test items){examples(found, labels)}"
            )
    lines = {fold(first_line(pair.question)) for pair in generate.values()}
    if shared := [index for index, pair in test.items() if fold(first_line(pair.question)) in lines]:
        findings.notes.append(
            f"{form.test_path}: test questions that share their first line with the generate set: {listed(shared)}"
        )


def _compare_forms(form: _Form, other: _Form) -> None:
    """A question must not be tested in one form and generated from in the other."""
    prompts = prompts_of(list(other.generate.values()))
    if shared := [index for index, pair in form.test.items() if prompts_of([pair]) & prompts]:
        form.findings.faults.append(
            f"{form.test_path}: questions that stand in {other.generate_path} too: {listed(shared)}"
        )


def _compare_open_ended(
    path: Path, questions: dict[int, str], forms: Sequence[_Form], findings: Findings, *, separately: bool
) -> None:
    n_repeated = len(questions) - len({fold(question) for question in questions.values()})
    if n_repeated:
        findings.notes.append(f"{path}: open-ended questions that repeat an earlier one: {n_repeated}")
    if not separately:
        own = {fold(line) for form in forms for pair in form.test.values() for line in _open_forms(pair)}
        if strangers := [index for index, question in questions.items() if fold(question) not in own]:
            findings.notes.append(
                f"{path}: questions that are not the first line of a test question: {listed(strangers)}"
            )
    else:
        lines = {fold(line) for form in forms for pair in form.generate.values() for line in _open_forms(pair)}
        if shared := [index for index, question in questions.items() if fold(question) in lines]:
            findings.notes.append(f"{path}: questions that stand in the generate set: {listed(shared)}")


def _open_forms(pair: Pair) -> tuple[str, ...]:
    """What an open-ended question made of the pair may say."""
    line = first_line(pair.question)
    return (pair.question, line) if isinstance(pair, TextPair) else (line,)
