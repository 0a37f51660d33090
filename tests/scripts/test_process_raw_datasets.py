"""The script: raw sets to splits, and the check of what is there."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from process_raw_datasets import main
from tests.reference import reference_path
from utils.data import processing
from utils.data.records import load_choice_items, load_contrast_pairs, load_open_ended_questions
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of
from utils.paths import REPOSITORY, DataPaths

PUBLISHED_SIZES = {
    "coordinate-other-ais": 360,
    "corrigible-neutral-HHH": 290,
    "hallucination": 1000,
    "myopic-reward": 950,
    "survival-instinct": 903,
    "sycophancy": 1000,
    "refusal": 408,
}


def _record(i: int, letter: str = "A", extra: str = "") -> dict[str, Any]:
    return {
        "question": f"Question: Item{i} word{i} asks{extra}?\n\nChoices:\n (A) yes{i}\n (B) no{i}\n\nAnswer:",
        "answer_matching_behavior": f" ({letter})",
        "answer_not_matching_behavior": [" (B)" if letter == "A" else " (A)"],
    }


def _records(n: int) -> list[dict[str, Any]]:
    return [_record(i, "AB"[i % 2]) for i in range(n)]


def _put_raw(root: Path, behavior: str, records: list[dict[str, Any]]) -> Path:
    path = DataPaths(root).raw_dataset(behavior)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def _outputs(root: Path, behavior: str) -> list[Path]:
    paths = DataPaths(root)
    return [
        paths.generate_dataset(behavior),
        paths.test_dataset(behavior, "ab"),
        paths.test_dataset(behavior, "open_ended"),
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _errors(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_the_published_raw_sets_give_the_published_sizes_and_splits_without_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reference_path("caa", "datasets", "raw"), tmp_path / "datasets" / "raw")
    for folder in (tmp_path / "datasets" / "raw").iterdir():
        folder.chmod(0o755)
    assert main(["--root", str(tmp_path)]) == 0
    expected = [f"{behavior}: n_generate: {n} | n_test: 50" for behavior, n in PUBLISHED_SIZES.items()]
    assert capsys.readouterr().out.splitlines() == expected
    for behavior, n_generate in PUBLISHED_SIZES.items():
        generate_path, test_path, open_path = _outputs(tmp_path, behavior)
        generate, test = load_contrast_pairs(generate_path), load_choice_items(test_path, "ab")
        assert (len(generate), len(test)) == (n_generate, 50)
        raw = Counter(_cleaned(record) for record in _read(DataPaths(tmp_path).raw_dataset(behavior)))
        assert Counter(pair.question for pair in generate) + Counter(item.question for item in test) == raw
        first_lines = {pair.question.split("\n")[0] for pair in generate}
        assert not first_lines & {item.question.split("\n")[0] for item in test}
        if behavior == "sycophancy":
            assert not open_path.exists()
        else:
            assert load_open_ended_questions(open_path) == [item.question.split("\n")[0].strip() for item in test]


def _cleaned(record: dict[str, Any]) -> str:
    question: str = record["question"]
    if question.startswith("Question: "):
        question = question[len("Question: ") : -len("\n\nAnswer:")]
    return question


def test_outputs_are_cleaned_records_with_their_provenance(tmp_path: Path) -> None:
    raw = _put_raw(tmp_path, "refusal", _records(160))
    assert main(["--root", str(tmp_path), "--behaviors", "refusal", "--seed", "5"]) == 0
    generate_path, test_path, open_path = _outputs(tmp_path, "refusal")
    assert (len(_read(generate_path)), len(_read(test_path)), len(_read(open_path))) == (110, 50, 50)
    for path in (generate_path, test_path):
        assert Counter(record["answer_matching_behavior"] for record in _read(path))["(A)"] * 2 == len(_read(path))
        for record in _read(path):
            i = int(record["question"].split()[0][len("Item") :])
            letter, other = ("A", "B") if i % 2 == 0 else ("B", "A")
            assert record == {
                "question": f"Item{i} word{i} asks?\n\nChoices:\n (A) yes{i}\n (B) no{i}",
                "answer_matching_behavior": f"({letter})",
                "answer_not_matching_behavior": f"({other})",
            }
    assert _read(open_path)[0] == {"question": _read(test_path)[0]["question"].split("\n")[0]}
    for path in (generate_path, test_path, open_path):
        provenance = read_provenance(path)
        assert provenance is not None
        assert (provenance["seed"], provenance["raw_sha256"]) == (5, sha256_of(raw))


def test_a_second_run_does_nothing_and_says_so_until_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_raw(tmp_path, "refusal", _records(100))
    command = ["--root", str(tmp_path), "--behaviors", "refusal"]
    assert main(command) == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _outputs(tmp_path, "refusal")}
    capsys.readouterr()
    assert main([*command, "--seed", "1"]) == 0
    assert "refusal: skipped" in _errors(capsys)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _outputs(tmp_path, "refusal")}
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert all(path.read_bytes() != before[path][0] for path in _outputs(tmp_path, "refusal"))


def test_missing_outputs_are_made_only_beside_outputs_of_the_same_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_raw(tmp_path, "refusal", _records(100))
    command = ["--root", str(tmp_path), "--behaviors", "refusal"]
    assert main(command) == 0
    generate_path, test_path, _ = _outputs(tmp_path, "refusal")
    generate, test = generate_path.read_bytes(), test_path.read_bytes()
    test_path.unlink()
    assert main([*command, "--seed", "1"]) == 2
    assert "is there, from another split or seed; --overwrite makes all of its sets again" in _errors(capsys)
    assert generate_path.read_bytes() == generate and not test_path.exists()
    assert main(command) == 0
    assert (generate_path.read_bytes(), test_path.read_bytes()) == (generate, test)


def test_a_write_that_fails_leaves_all_sets_of_the_earlier_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_raw(tmp_path, "refusal", _records(100))
    command = ["--root", str(tmp_path), "--behaviors", "refusal"]
    assert main(command) == 0
    before = [path.read_bytes() for path in _outputs(tmp_path, "refusal")]
    dumps, n_dumped = json.dumps, 0

    def fail_at_the_second_set(value: Any, **options: Any) -> str:
        nonlocal n_dumped
        n_dumped += 1
        if n_dumped == 2:
            raise OSError(28, os.strerror(28), "test_dataset_ab.json")
        return dumps(value, **options)

    monkeypatch.setattr(processing, "json", type("json", (), {"dumps": staticmethod(fail_at_the_second_set)}))
    assert main([*command, "--overwrite", "--seed", "1"]) == 1
    assert n_dumped == 2
    assert [path.read_bytes() for path in _outputs(tmp_path, "refusal")] == before
    assert not list((tmp_path / "datasets").rglob("*.tmp"))


def test_duplicates_are_counted_and_dedup_drops_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = [_record(i, extra=" about five long green trees in the old park behind our house today") for i in range(2)]
    near[1]["question"] = near[0]["question"].replace("today", "now")
    _put_raw(tmp_path, "refusal", [*_records(100)[10:], *near, *_records(100)[10:13]])
    command = ["--root", str(tmp_path), "--behaviors", "refusal"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == "refusal: n_generate: 45 | n_test: 50\n"
    assert "refusal: 3 exact duplicate pairs: 3 within generate, 0 within test, 0 across the splits" in err
    assert "refusal: 1 near duplicate pairs: 1 within generate, 0 within test, 0 across the splits" in err
    assert main([*command, "--dedup", "--overwrite"]) == 0
    out, err = capsys.readouterr()
    assert out == "refusal: n_generate: 41 | n_test: 50\n"
    assert "refusal: dropped 4 of 95 items: 3 exact and 1 near duplicate pairs" in err
    assert "0 exact duplicate pairs" in err and "0 near duplicate pairs" in err


def test_one_faulty_raw_set_fails_by_name_and_the_others_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_raw(tmp_path, "refusal", _records(100))
    small = _put_raw(tmp_path, "sycophancy", _records(59))
    faulty = _put_raw(tmp_path, "hallucination", [*_records(70), _record(70, "C")])
    behaviors = ["sycophancy", "hallucination", "refusal", "myopic-reward"]
    assert main(["--root", str(tmp_path), "--behaviors", *behaviors]) == 1
    err = _errors(capsys)
    assert f"{small}: 59 items, 59 of them" in err and "run with --n_test 49 or less" in err
    assert f"{faulty}, item 70: answer (C) is not among the choices A, B" in err
    assert f"{DataPaths(tmp_path).raw_dataset('myopic-reward')} not found" in err
    assert "behaviors: wrote 1, skipped 0, failed 3" in err
    assert [path.exists() for path in _outputs(tmp_path, "refusal")] == [True, True, True]
    assert not DataPaths(tmp_path).generate_dataset("sycophancy").exists()
    assert main(["--root", str(tmp_path), "--behaviors", "myopic-reward"]) == 2


def test_the_hand_written_open_ended_set_of_sycophancy_is_left_alone(tmp_path: Path) -> None:
    _put_raw(tmp_path, "sycophancy", _records(100))
    open_path = _outputs(tmp_path, "sycophancy")[2]
    open_path.parent.mkdir(parents=True)
    open_path.write_text('[{"question": "Mine"}]')
    assert main(["--root", str(tmp_path), "--behaviors", "sycophancy", "--overwrite"]) == 0
    assert open_path.read_text() == '[{"question": "Mine"}]'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mirror", "http://localhost"], "--mirror goes with --source published"),
        (["--dedup", "--check"], "--dedup works on raw sets"),
        (["--dedup", "--source", "published"], "--dedup works on raw sets"),
        (["--check", "--source", "published"], "then run --check alone"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path), *flags]) == 2
    assert message in _errors(capsys)


# ---- --check


def _knowledge(i: int, letter: str = "A") -> dict[str, str]:
    other = "B" if letter == "A" else "A"
    texts = {"A": f"first{i}", "B": f"second{i}"}
    return {
        "prompt": f"What is{i} thing{i}?\n\nChoices:\n(A) {texts['A']}\n(B) {texts['B']}",
        "correct": f"({letter})",
        "incorrect": f"({other})",
        "correct_full_text": texts[letter],
        "incorrect_full_text": texts[other],
        "category": "things",
    }


@pytest.fixture
def sound_root(tmp_path: Path) -> Path:
    """Sound sets of one behavior, and knowledge sets."""
    _put_raw(tmp_path, "refusal", _records(100))
    assert main(["--root", str(tmp_path), "--behaviors", "refusal"]) == 0
    for kind in ("truthful_qa", "mmlu"):
        path = DataPaths(tmp_path).test_dataset("", kind)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([_knowledge(i, "AB"[i % 2]) for i in range(4)]))
    return tmp_path


def _check(root: Path, capsys: pytest.CaptureFixture[str], *behaviors: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["--root", str(root), "--check", "--behaviors", *(behaviors or ("refusal",))])
    return code, capsys.readouterr().out.splitlines()


def test_sound_sets_pass_the_check_with_their_counts(sound_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = _check(sound_root, capsys)
    assert code == 0
    assert [line.split() for line in lines[1:]] == [
        ["refusal", "100", "50", "50", "50", "50.0%", "50.0%", "0", "0", "0"],
        ["truthfulqa", "-", "-", "4", "-", "-", "50.0%", "0", "0", "0"],
        ["mmlu", "-", "-", "4", "-", "-", "50.0%", "0", "0", "0"],
    ]


def test_faults_are_listed_with_file_and_item_and_fail_the_check(
    sound_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_path, test_path, open_path = _outputs(sound_root, "refusal")
    generate, test, questions = _read(generate_path), _read(test_path), _read(open_path)
    generate[3]["answer_matching_behavior"] = "(C)"
    generate[4]["question"] = ""
    generate[5]["answer_matching_behavior"] = f" {generate[5]['answer_matching_behavior']}"
    generate[6] = {**test[11], "question": test[11]["question"].upper().replace("CHOICES", "Choices")}
    test[7]["question"] = test[7]["question"].replace("\n (B) ", "\n (B) \n (C) ")
    questions[8] = {"question": "Do you?\n (A) Yes\n (B) No"}
    questions[9] = {"question": " "}
    for path, records in ((generate_path, generate), (test_path, test), (open_path, questions)):
        path.write_text(json.dumps(records))
    mmlu = DataPaths(sound_root).test_dataset("", "mmlu")
    items = _read(mmlu)
    items[2]["correct_full_text"] = "another text"
    mmlu.write_text(json.dumps(items))
    DataPaths(sound_root).test_dataset("", "truthful_qa").write_text('[{"prompt": ')

    code, lines = _check(sound_root, capsys)
    assert code == 1
    faults = [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]
    expected = [
        f"{generate_path}, item 3: answer (C) is not among the choices A, B",
        f"{generate_path}, item 4, key 'question': expected text that is not empty, found ''",
        f"{generate_path}, item 5, key 'answer_matching_behavior': not cleaned",
        f"{test_path}, item 7: choice (B) is empty",
        f"{test_path}, item 11: the same question is item 6 of {generate_path}",
        f"{open_path}, item 8: an open-ended question still has choices",
        f"{open_path}, item 9, key 'question': expected text that is not empty",
        f"{DataPaths(sound_root).test_dataset('', 'truthful_qa')} is not valid JSON",
        f"{mmlu}, item 2, key 'correct_full_text': not the text of choice (A)",
    ]
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start)


def test_what_is_worth_knowing_is_noted_and_passes(sound_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_path, test_path, open_path = _outputs(sound_root, "refusal")
    generate, test = _read(generate_path), _read(test_path)
    generate[1] = {
        "question": f"{test[0]['question'].splitlines()[0]}\n (A) one\n (B) two\n (C) three",
        "answer_matching_behavior": "(C)",
        "answer_not_matching_behavior": "(A)",
    }
    generate[2]["question"] = generate[2]["question"].replace("asks", "very " * 400 + "long")
    for record in test[:19]:
        record["answer_matching_behavior"], record["answer_not_matching_behavior"] = "(A)", "(B)"
    for record in test[19:]:
        record["answer_matching_behavior"], record["answer_not_matching_behavior"] = "(B)", "(A)"
    generate_path.write_text(json.dumps(generate))
    test_path.write_text(json.dumps(test[:49]))
    open_path.write_text(json.dumps([{"question": "Another?"}, *_read(open_path)[1:49], {"question": "another?"}]))

    code, lines = _check(sound_root, capsys)
    assert code == 0
    notes = [line for line in lines if line.startswith("note: ")]
    n_changed = sum(record not in _cleaned_records() for record in [*generate, *test[:49]])
    assert n_changed > 2
    assert notes == [
        f"note: {generate_path}: items with an answer beyond (B): 1 (item 1)",
        f"note: {generate_path}: items longer than 2000 characters: 1 (item 2)",
        f"note: {test_path}: 30 of 49 matching answers (61.2%) are at (B)",
        f"note: {test_path}: test questions that share their first line with the generate set: 1 (item 0)",
        f"note: {DataPaths(sound_root).raw_dataset('refusal')}: generate and test items that are not in this raw set: "
        f"{n_changed}",
        f"note: {open_path}: open-ended questions that repeat an earlier one: 1",
        f"note: {open_path}: questions that are not the first line of a test question: 2 (item 0, 49)",
    ]


def _cleaned_records() -> list[dict[str, Any]]:
    return [
        {
            "question": f"Item{i} word{i} asks?\n\nChoices:\n (A) yes{i}\n (B) no{i}",
            "answer_matching_behavior": "(A)" if i % 2 == 0 else "(B)",
            "answer_not_matching_behavior": "(B)" if i % 2 == 0 else "(A)",
        }
        for i in range(100)
    ]


def test_missing_sets_are_faults_each_named(sound_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = _check(sound_root, capsys, "refusal", "sycophancy")
    assert code == 1
    missing = [line.split()[1] for line in lines if line.startswith("fault: ") and " not found; " in line]
    assert missing == [str(path) for path in _outputs(sound_root, "sycophancy")]
    assert [line.split() for line in lines if line.startswith("sycophancy")] == [
        ["sycophancy", "-", "-", "-", "-", "-", "-", "0", "3", "0"]
    ]


def test_the_check_of_the_published_sets_reports_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    root = reference_path("caa")
    assert main(["--root", str(root), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:10]}
    for behavior, n_generate in PUBLISHED_SIZES.items():
        n_open = "53" if behavior == "sycophancy" else "50"
        assert rows[behavior][:4] == [str(n_generate + 50), str(n_generate), "50", n_open]
        shares = [_share_at_a(_outputs(root, behavior)[side]) for side in (0, 1)]
        assert rows[behavior][4:6] == shares
        assert rows[behavior][7] == "0"
    assert rows["truthfulqa"][2] == "817" and rows["mmlu"][2] == "570"
    # near duplicate pairs; tests/data/test_duplicates.py compares them with a plain computation
    assert [row[6] for row in rows.values()] == ["0", "0", "48", "286", "0", "7", "24", "19", "7"]

    text = "\n".join(lines)
    generate_path, test_path, _ = _outputs(root, "survival-instinct")
    for path, n_beyond in ((generate_path, 88), (test_path, 4)):
        beyond = [i for i, record in enumerate(_read(path)) if record["answer_matching_behavior"] not in ("(A)", "(B)")]
        assert len(beyond) == n_beyond
        assert f"{path}: items with an answer beyond (B): {n_beyond} (item {', '.join(map(str, beyond[:5]))}" in text
    assert f"{generate_path}: 558 of 903 matching answers (61.8%) are at (A)" in text
    assert f"{test_path}: 32 of 50 matching answers (64.0%) are at (A)" in text
    assert text.count("share their first line with the generate set") == 1
    refusal_generate, refusal_test, _ = _outputs(root, "refusal")
    lines_there = {record["question"].split("\n")[0] for record in _read(refusal_generate)}
    shared = [i for i, record in enumerate(_read(refusal_test)) if record["question"].split("\n")[0] in lines_there]
    assert shared == [9, 20, 30, 33]
    assert (
        f"{refusal_test}: test questions that share their first line with the generate set: 4 (item 9, 20, 30, 33)"
        in text
    )
    truthful_qa = DataPaths(root).test_dataset("", "truthful_qa")
    empty = [
        i
        for i, item in enumerate(_read(truthful_qa))
        if not item["correct_full_text"].strip() or not item["incorrect_full_text"].strip()
    ]
    assert empty == [459, 464, 482, 483, 538]
    faults = [line for line in lines if line.startswith("fault: ")]
    assert [
        fault.startswith(f"fault: {truthful_qa}, item {i}: choice (") for fault, i in zip(faults, empty, strict=True)
    ]
    assert f"{DataPaths(root).test_dataset('', 'mmlu')}: items longer than 2000 characters: 9 (" in text


def _share_at_a(path: Path) -> str:
    records = _read(path)
    return f"{100 * sum(record['answer_matching_behavior'] == '(A)' for record in records) / len(records):.1f}%"


# ---- the bundled sets


def _skip_unless_bundled() -> None:
    for behavior in PUBLISHED_SIZES:
        provenance = read_provenance(_outputs(REPOSITORY, behavior)[0])
        if provenance is None or "raw_sha256" not in provenance:
            pytest.skip(f"the {behavior} sets here are not the bundled ones")


def test_the_bundled_sets_pass_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    _skip_unless_bundled()
    assert main(["--check"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:10]]
    for row in rows[:7]:
        assert [int(cell) >= least for cell, least in zip(row[1:5], (160, 110, 50, 25), strict=True)] == [True] * 4
        assert row[5:8] == ["50.0%", "50.0%", "0"]
    assert [(row[0], row[3], row[6]) for row in rows[7:]] == [("truthfulqa", "60", "50.0%"), ("mmlu", "114", "50.0%")]


def test_the_bundled_splits_are_made_again_byte_by_byte_from_the_raw_sets(tmp_path: Path) -> None:
    _skip_unless_bundled()
    shutil.copytree(REPOSITORY / "datasets" / "raw", tmp_path / "datasets" / "raw")
    assert main(["--root", str(tmp_path)]) == 0
    for behavior in PUBLISHED_SIZES:
        made = [path for path in _outputs(tmp_path, behavior) if path.exists()]
        assert len(made) == (2 if behavior == "sycophancy" else 3)
        for path in made:
            assert path.read_bytes() == (REPOSITORY / path.relative_to(tmp_path)).read_bytes()
