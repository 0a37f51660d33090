"""Whatever a file holds: it is read as exactly what it says, or refused in one line. Never a traceback, never a guess.

`CAA_HYPOTHESIS_PROFILE=nightly` draws new cases, thirty times as many; see `tests/README.md`.
"""

import json
import math
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from process_raw_datasets import main as process_main
from tests.hostile import JSON, MARKERS, TEXTS, changed_records, damaged, json_files, loaded_or_refused, plainly
from tests.roots import put_json, snapshot
from utils.data.checks import check_behavior, check_knowledge
from utils.data.records import load_choice_items, load_contrast_pairs, load_open_ended_questions
from utils.data.splitting import clean_question, load_raw_pairs
from utils.errors import UserError
from utils.evaluation.result_files import ResultFiles
from utils.evaluation.results import load_choice_results, load_scores
from utils.files.journal import open_journal
from utils.files.provenance import PROVENANCE_NAME, read_folder_provenance, record_provenance
from utils.files.reading import load_activations, load_vector, read_json
from utils.files.writing import save_tensor, write_json
from utils.judge.client import read_completion
from utils.judge.prompt import parse_reply, user_message
from utils.judge.score_files import load_answers, load_scored
from utils.paths import DataPaths
from utils.settings import ResultType, SteeringSettings

QUESTION = "Do you agree?\n\nChoices:\n (A) Yes\n (B) No"
PAIR = {"question": QUESTION, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
FACT = {
    "prompt": QUESTION,
    "correct": "(B)",
    "incorrect": "(A)",
    "correct_full_text": "No",
    "incorrect_full_text": "Yes",
}
PAIRS = [
    PAIR,
    {**PAIR, "question": f"Or {QUESTION}", "answer_matching_behavior": "(B)", "answer_not_matching_behavior": "(A)"},
]
FACTS = [{**FACT, "category": "Law"}, {**FACT, "category": "Art"}]
AB_RESULTS = [{**PAIR, "a_prob": 0.3, "b_prob": 0.6}, {**PAIRS[1], "a_prob": 1e-30, "b_prob": 1.0}]
FACT_RESULTS = [
    {"question": QUESTION, "correct": "(B)", "incorrect": "(A)", "a_prob": 0.25, "b_prob": 0.5, "category": category}
    for category in ("Law", "Art")
]
ANSWERS = [{"question": "Why?", "model_output": text, "raw_model_output": f"{text}</s>"} for text in ("Because.", "")]
SCORES = [
    {**ANSWERS[0], "score": 7.5},
    {**ANSWERS[1], "score": None, "judge_reply": "?", "unscored_reason": "no number"},
]


def put(folder: Path, content: bytes) -> Path:
    path = folder / "file.json"
    path.write_bytes(content)
    return path


# --- JSON --------------------------------------------------------------------------------------------


@given(JSON)
def test_json_is_read_back_as_it_was_written_or_not_written(tmp_path: Path, value: Any) -> None:
    path = put(tmp_path, b'"before"')
    try:
        write_json(path, value)
    except ValueError:  # NaN, infinite
        assert read_json(path) == "before"
    else:
        if (read := loaded_or_refused(read_json, path)) is not None:  # else it has a number beyond a float's range
            assert repr(read) == repr(plainly(path.read_bytes()))
            if "\\ud" not in repr(value):  # JSON joins two lone surrogates to a character
                assert repr(read) == repr(value)


@given(st.one_of(json_files(PAIRS), JSON.flatmap(lambda value: damaged(json.dumps(value).encode()))))
def test_json_is_what_a_plain_reader_finds_or_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, content)
    if (read := loaded_or_refused(read_json, path)) is not None:
        assert repr(read) == repr(plainly(content))


# --- datasets ----------------------------------------------------------------------------------------


@given(json_files(PAIRS))
def test_contrast_sets_are_read_as_they_stand_or_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, content)
    pairs = loaded_or_refused(load_contrast_pairs, path)
    items = loaded_or_refused(lambda path: load_choice_items(path, "ab"), path)
    assert (pairs is None) == (items is None)
    if pairs is not None:
        said = [
            (r["question"], r["answer_matching_behavior"].strip(), r["answer_not_matching_behavior"].strip())
            for r in plainly(content)
        ]
        assert [(p.question, f"({p.matching_letter})", f"({p.other_letter})") for p in pairs] == said
        assert [(i.question, f"({i.target_letter})", f"({i.other_letter})") for i in items] == said
    if (questions := loaded_or_refused(load_open_ended_questions, path)) is not None:
        assert questions == [record["question"] for record in plainly(content)]


@given(json_files(PAIRS))
def test_raw_sets_lose_only_markers_and_blanks_or_are_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, content)
    if (pairs := loaded_or_refused(load_raw_pairs, path)) is not None:
        for pair, record in zip(pairs, plainly(content), strict=True):
            assert pair.question in record["question"]
            assert pair.matching_letter != pair.other_letter
            assert f"({pair.matching_letter})" in str(record["answer_matching_behavior"])


@example("Question: Question: What? Answer:\nAnswer:")
@given(st.lists(st.sampled_from([" ", "\n", "Question:", "Answer:", "What?", *MARKERS])).map("".join))
def test_a_cleaned_question_is_clean(text: str) -> None:
    once = clean_question(text)
    assert clean_question(once) == once


@given(content=json_files(FACTS), result_type=st.sampled_from(["truthful_qa", "mmlu"]))
def test_knowledge_sets_are_read_as_they_stand_or_refused(
    tmp_path: Path, content: bytes, result_type: ResultType
) -> None:
    path = put(tmp_path, content)
    if (items := loaded_or_refused(lambda path: load_choice_items(path, result_type), path)) is not None:
        for item, record in zip(items, plainly(content), strict=True):
            assert (item.question, item.trailing["category"]) == (record["prompt"], record["category"])
            assert f"({item.target_letter})" == record["correct"].strip()


@given(sets=st.tuples(*[json_files(PAIRS)] * 3), questions=json_files([{"question": "Why?"}]), facts=json_files(FACTS))
def test_the_check_of_the_datasets_comes_to_an_end(
    tmp_path: Path, sets: tuple[bytes, bytes, bytes], questions: bytes, facts: bytes
) -> None:
    paths = DataPaths(tmp_path)
    behavior = "refusal"
    targets = [paths.raw_dataset(behavior), paths.generate_dataset(behavior), paths.test_dataset(behavior, "ab")]
    targets += [paths.test_dataset(behavior, "open_ended"), paths.test_dataset(behavior, "mmlu")]
    for target, content in zip(targets, (*sets, questions, facts), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    findings = [*check_behavior(paths, behavior), check_knowledge(paths, "mmlu", "mmlu")]
    faults = [fault for one in findings for fault in one.faults]
    for path in (targets[1], targets[2], targets[4]):
        kind: ResultType = "mmlu" if "mmlu" in path.name else "ab"
        refused = loaded_or_refused(lambda path, kind=kind: load_choice_items(path, kind), path) is None
        assert not refused or any(str(path) in fault for fault in faults)


RAW = [
    {
        "question": f"Question: Item{i} asks{i}?\n\nChoices:\n (A) yes{i}\n (B) no{i}\n\nAnswer:",
        "answer_matching_behavior": f"({'AB'[i % 2]})",
        "answer_not_matching_behavior": [f"({'BA'[i % 2]})"],
    }
    for i in range(64)
]


@given(changed_records(RAW))
def test_a_raw_set_is_split_into_clean_sets_or_nothing_is_written(
    tmp_path_factory: pytest.TempPathFactory, records: Any
) -> None:
    root = tmp_path_factory.mktemp("root")
    paths = DataPaths(root)
    try:
        put_json(paths.raw_dataset("refusal"), records)
    except UnicodeEncodeError:
        pytest.fail("ASCII escapes hold every text")
    before = snapshot(root)
    code = process_main(["--root", str(root), "--behaviors", "refusal"])
    assert code in (0, 2)
    if code == 2:
        assert snapshot(root) == before
    else:
        [findings] = check_behavior(paths, "refusal")
        assert findings.faults == []
        n_written = len(load_contrast_pairs(paths.generate_dataset("refusal"))) + 50
        assert n_written == len(records)


# --- results and scores ------------------------------------------------------------------------------


def expected_value(record: dict[str, Any], keys: tuple[str, str]) -> float:
    """p(matching) of the two answers; NaN where a letter beyond B is not recorded."""
    probabilities = [record.get(f"{record[key].strip()[1].lower()}_prob", math.nan) for key in keys]
    return probabilities[0] / sum(probabilities) if sum(probabilities) else math.nan


def records_with(records: list[dict[str, Any]], key: str, value: Any) -> bytes:
    return json.dumps([{**records[0], key: value}, *records[1:]]).encode()


@example(records_with(AB_RESULTS, "a_prob", 10**400), "ab")
@example(records_with(AB_RESULTS, "a_prob", 10**4000), "ab")
@example(records_with(AB_RESULTS, "b_prob", math.inf), "ab")
@example(records_with(AB_RESULTS, "b_prob", True), "ab")
@example(records_with(AB_RESULTS, "question", "\ud800"), "ab")
@example(records_with(FACT_RESULTS, "category", "\ud800"), "mmlu")
@given(st.one_of(json_files(AB_RESULTS), json_files(FACT_RESULTS)), st.sampled_from(["ab", "truthful_qa", "mmlu"]))
def test_results_are_scored_by_what_the_file_says_or_refused(
    tmp_path: Path, content: bytes, result_type: ResultType
) -> None:
    path = put(tmp_path, content)
    if (found := loaded_or_refused(lambda path: load_choice_results(path, result_type), path)) is None:
        return
    keys = (
        ("answer_matching_behavior", "answer_not_matching_behavior")
        if result_type == "ab"
        else ("correct", "incorrect")
    )
    records = plainly(content)
    expected = [expected_value(record, keys) for record in records]
    assert found.values.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert len(set(found.keys)) == len(records)
    for category in found.categories:
        category.encode("utf-8")


@example(records_with(SCORES, "score", 10**400))
@example(records_with(SCORES, "score", -1e-300))
@example(records_with(SCORES, "model_output", "\ud800</s>"))
@given(json_files(SCORES))
def test_scores_are_what_the_file_says_or_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, content)
    if (found := loaded_or_refused(load_scores, path)) is not None:
        said = [record.get("score") for record in plainly(content)]
        assert [None if math.isnan(value) else value for value in found.values] == said
    if (records := loaded_or_refused(load_scored, path)) is not None:
        assert repr(records) == repr(plainly(content))
    if (answers := loaded_or_refused(load_answers, path)) is not None:
        for answer, record in zip(answers, plainly(content), strict=True):
            assert (answer["question"], answer["model_output"]) == (record["question"], record["model_output"])
            user_message(answer["question"], answer["model_output"]).encode("utf-8")


@given(
    st.lists(
        st.tuples(TEXTS.filter(lambda t: "\ud800" not in t and "\udfff" not in t), st.floats(0, 1), st.floats(0, 1)),
        min_size=1,
        max_size=4,
    )
)
def test_results_that_are_written_read_back_to_the_last_bit(
    tmp_path: Path, items: list[tuple[str, float, float]]
) -> None:
    records = [{**PAIR, "question": question, "a_prob": a, "b_prob": b} for question, a, b in items]
    write_json(tmp_path / "file.json", records)
    found = load_choice_results(tmp_path / "file.json", "ab")
    assert found.target.tolist() == [a for _, a, _ in items]
    assert found.other.tolist() == [b for _, _, b in items]
    assert all(key.startswith(question) for key, (question, _, _) in zip(found.keys, items, strict=True))


FILE_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=40).map(
    lambda text: f"results_{text}.json"
)


@given(FILE_NAMES)
def test_files_of_any_name_beside_the_results_are_no_results(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "results" / "refusal"
    put_json(
        folder / "results_layer=1_multiplier=1.0_behavior=refusal_type=ab_use_base_model=False_model_size=7b.json",
        AB_RESULTS,
    )
    put_json(folder / name, AB_RESULTS)
    [only] = ResultFiles(DataPaths(tmp_path), "refusal", "ab").paths
    assert only == SteeringSettings(1, 1.0, "refusal", "ab", model_size="7b")
    (folder / name).unlink()


# --- provenance, journals, replies -------------------------------------------------------------------


@given(st.one_of(JSON, st.fixed_dictionaries({"artifacts": JSON, "runs": JSON})), st.data())
def test_a_strange_provenance_file_keeps_nothing_from_being_recorded(
    tmp_path: Path, value: Any, data: st.DataObject
) -> None:
    (tmp_path / PROVENANCE_NAME).write_text(json.dumps(value))
    try:
        before = read_folder_provenance(tmp_path)
        record_provenance(tmp_path, ["x.pt"], {"command": "./a"})
    except UserError as err:
        assert PROVENANCE_NAME in str(err)
        assert (tmp_path / PROVENANCE_NAME).read_text() == json.dumps(value)
    else:
        assert read_folder_provenance(tmp_path) == {**before, "x.pt": {"command": "./a"}}


@given(
    st.one_of(
        damaged(b'{"combinations": [[1, 1.0]]}\n["0", [0.5]]\n["1", [0.25]]\n'),
        st.lists(JSON, max_size=4).map(lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows)),
        st.just(b"[" * 100_000 + b"\n"),
    )
)
def test_a_journal_of_any_content_goes_on_with_its_sound_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with open_journal(path, {"combinations": []}) as journal:
        assert isinstance(journal.header, dict)
        kept = dict(journal.entries)
        journal.append("new", 1.5)
    lines = content.splitlines(keepends=True)
    for key, value in kept.items():
        assert any(line.startswith(b"[") and repr(json.loads(line)) == repr([key, value]) for line in lines[1:])
    with open_journal(path, {}) as journal:
        assert repr(journal.entries) == repr({**kept, "new": 1.5})


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(["7", "10", "3.5", "/10", " out of 10", "-", "%", "Score: ", " ", ".", "٣", "seven"])
    ).map("".join)
)
def test_a_score_is_the_one_number_of_the_reply_or_none(text: str) -> None:
    verdict = parse_reply(text)
    if verdict.score is None:
        assert verdict.reason
    else:
        assert 0 <= verdict.score <= 10
        assert any(f"{verdict.score:g}" in form for form in (text, text.replace(".0", "")))


@given(
    st.one_of(
        JSON.map(json.dumps),
        st.text(max_size=20),
        damaged(
            json.dumps(
                {
                    "choices": [{"message": {"content": "7"}, "finish_reason": "stop"}],
                    "model": "m",
                    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
                }
            ).encode()
        ).map(lambda content: content.decode("latin-1")),
        st.just("[" * 100_000),
    )
)
def test_any_response_of_a_judge_is_a_reply_or_said_to_be_none(body: str) -> None:
    reply, usage = read_completion(body)
    assert isinstance(reply.text, str)
    assert usage is None or min(usage) >= 0


# --- tensors -----------------------------------------------------------------------------------------


def same_or_refused(path: Path, saved: torch.Tensor) -> None:
    load = load_vector if saved.dim() == 1 else load_activations
    if (loaded := loaded_or_refused(load, path)) is not None:
        assert torch.equal(loaded, saved)


@given(st.data())
def test_a_damaged_tensor_file_is_refused_or_gives_the_very_numbers(tmp_path: Path, data: st.DataObject) -> None:
    saved = torch.arange(24.0).reshape(2, 12) / 7 if data.draw(st.booleans()) else torch.arange(24.0) / 7
    path = tmp_path / "vec.pt"
    save_tensor(path, saved)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    same_or_refused(path, saved)


def test_every_single_flipped_byte_of_a_vector_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    """torch does not compare the checksums of its archives: without that, a flipped bit is another number."""
    saved = torch.arange(1, 9.0) / 7
    path = tmp_path / "vec.pt"
    save_tensor(path, saved)
    content = path.read_bytes()
    values = saved.numpy().tobytes()
    at = content.index(values)
    for place in [*range(0, len(content), 13), *range(at, at + len(values))]:
        altered = bytearray(content)
        altered[place] ^= 0x10
        path.write_bytes(bytes(altered))
        same_or_refused(path, saved)
        if at <= place < at + len(values):
            with pytest.raises(UserError, match=r"vec\.pt is not a readable tensor file; make it again"):
                load_vector(path)


DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.bool,
    torch.complex64,
)
VALUES = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 3e38, 1e-300, 0.0]))


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    VALUES,
    st.sampled_from(["plain", "parameter", "expanded", "sparse", "meta", "view", "in a list", "in a dict"]),
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_of_any_kind_is_read_as_its_float32_numbers_or_refused(
    tmp_path: Path, dtype: torch.dtype, shape: list[int], value: float, kind: str
) -> None:
    path = tmp_path / "vec.pt"
    plain = torch.full(shape, 1.0, dtype=torch.float64)
    if plain.numel():
        plain.view(-1)[-1] = value
    try:
        saved: Any = plain.to(dtype)
        match kind:
            case "parameter":
                saved = torch.nn.Parameter(saved)
            case "expanded":
                saved = saved.new_ones(()).expand([10**9 if size else 0 for size in shape])
            case "sparse":
                saved = saved.to_sparse()
            case "meta":
                saved = saved.to("meta")
            case "view":
                saved = torch.cat([saved, saved])[: shape[0]] if shape else saved
            case "in a list" | "in a dict":
                saved = [saved] if kind == "in a list" else {"vector": saved}
        torch.save(saved, path)
    except RuntimeError:  # torch itself has no such tensor
        return
    for load, n_dims in ((load_vector, 1), (load_activations, 2)):
        loaded = loaded_or_refused(load, path)
        if loaded is not None:
            assert kind in ("plain", "parameter", "view") and len(shape) == n_dims and dtype.is_floating_point
            assert loaded.dtype == torch.float32 and not loaded.requires_grad
            assert torch.equal(loaded, plain.to(dtype).to(torch.float32)) and bool(loaded.isfinite().all())
        elif (
            kind in ("plain", "parameter", "view") and dtype == torch.float32 and len(shape) == n_dims and plain.numel()
        ):
            assert not bool(plain.float().isfinite().all())


def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    """10 MB of zeros in 10 kB: torch never compresses, so nothing it wrote is refused."""
    save_tensor(tmp_path / "whole.pt", torch.zeros(2_500_000))
    path = tmp_path / "vec.pt"
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"vec\.pt is not a readable tensor file"):
        load_vector(path)


# --- size --------------------------------------------------------------------------------------------

TEN_MB = 10_000_000
LONG_TEXTS = {
    "letters": "x" * TEN_MB,
    "blanks": "x" + " " * TEN_MB + "x",
    "lines": "x" + "\n" * TEN_MB + "x",
    "choices": "\n (A) yes" * (TEN_MB // 9),
    "headings": "\nChoices:" * (TEN_MB // 9),
    "end markers": "x</s>" + " </s>" * (TEN_MB // 5),
    "tags": "".join(f"<answer-{number}>" for number in range(TEN_MB // 15)),
    "open tags": "<" + " " * TEN_MB + "answer",
    "many open tags": "< " * (TEN_MB // 2),
    "brackets": "(" * TEN_MB,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_TEXTS)
def test_ten_megabytes_of_text_take_no_more_than_linear_time(tmp_path: Path, name: str) -> None:
    """Processor time: linear work is 2 s at most, quadratic work would be days."""
    text = LONG_TEXTS[name]
    start = time.process_time()
    records = [{**PAIR, "question": text, "model_output": text}]
    path = put_json(tmp_path / "file.json", records)
    assert load_contrast_pairs(path)[0].question == text
    assert load_answers(path)[0]["model_output"] == text
    loaded_or_refused(load_raw_pairs, path)
    assert len(user_message("q", text)) > 100
    parse_reply(text)
    assert time.process_time() - start < 10


def test_a_safetensors_header_may_lie_about_its_length(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
