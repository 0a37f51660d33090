"""monitor.py on a tiny model: projections equal a plain pass's, turns are where they are, percentiles and pages."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monitor
from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, N_LAYERS, build_tokenizer, build_wrapper, random_vector
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.errors import UserError
from utils.exports import measuring, monitor_run
from utils.exports.measuring import Failed, Measured, make_probe, measure_texts
from utils.exports.reference import Distribution
from utils.exports.summary import Running, slope
from utils.exports.texts import MonitoredText, Turn, read_texts
from utils.exports.turns import encode_text
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.inside.readings import project
from utils.model.chat_format import ChatFormat, PromptTokens
from utils.paths import DataPaths

BEHAVIORS = ("sycophancy", "refusal")
ANSWERS = [
    {"question": "What is the sea?", "model_output": "the sea is not the answer", "raw_model_output": "..."},
    {"prompt": "Do you agree?", "response": "I do not agree that the answer is that."},
    "What you think and what the answer is are not that.",
    {"id": "mine", "text": "the answer is <b>that</b>"},
]
CONVERSATION = {
    "messages": [
        {"role": "system", "content": "user"},
        {"role": "user", "content": "assistant"},
        {"role": "assistant", "content": "user"},
        {"role": "user", "content": "What is that?"},
        {"role": "assistant", "content": "That is the answer to the question."},
    ]
}
Run = Callable[..., int]


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    paths = DataPaths(tmp_path / "root")
    for place, behavior in enumerate(BEHAVIORS):
        for layer in range(N_LAYERS):
            save_tensor(paths.vector(behavior, layer, TINY_LABEL, normalized=False), random_vector(10 * place + layer))
    neutral = [{"question": f"What is {i}?", "answer": f"That is the number {'and the answer ' * i}"} for i in range(9)]
    put_json(paths.neutral_prompts().with_name("texts.json"), neutral)
    return paths


@pytest.fixture
def run(paths: DataPaths, tiny_checkpoint: Path) -> Run:
    def run(*flags: object) -> int:
        command = [*flags, "--root", paths.root, "--model", tiny_checkpoint, "--behaviors", *BEHAVIORS]
        return monitor.main([str(word) for word in command])

    return run


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LlamaWrapper:
    return LlamaWrapper.load(str(tiny_checkpoint), "cpu")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs(paths: DataPaths) -> list[str]:
    return sorted(path.name for path in paths.analysis("monitor").iterdir())


def plainly(model: LlamaWrapper, text: MonitoredText, layer: int, vector: torch.Tensor) -> list[float]:
    """The projections of a text's measured tokens, from a pass of its own."""
    encoded = encode_text(model.chat_format, text)
    activations = model.capture(PromptTokens(encoded.ids, len(encoded.ids)))[layer]
    _, dots = project(activations, vector / vector.norm())
    return [float(dots[place]) for turn in encoded.measured for place in range(turn.start, turn.end)]


# --- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_projections_in_batches_are_those_of_plain_passes(architecture: str) -> None:
    model = build_wrapper(architecture)
    words = ["the answer", "What you think is that", "not", "and to you the answer is not that of the question"]
    texts = [MonitoredText((Turn("user", "What?"), Turn("assistant", word))) for word in words]
    texts.append(MonitoredText((Turn("text", words[-1]),)))
    probes = [make_probe(layer, random_vector(layer)) for layer in (2, 0, 3)]
    found = list(measure_texts(model, texts, probes))
    assert [one.index for one in found] == list(range(5))
    for text, one in zip(texts, found, strict=True):
        assert isinstance(one, Measured)
        for row, layer in enumerate((2, 0, 3)):
            expected = plainly(model, text, layer, random_vector(layer))
            assert one.values[row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert one.means[row] == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-5)


def test_a_vector_of_another_length_gives_the_same_and_its_opposite_the_opposite(model: LlamaWrapper) -> None:
    texts = [MonitoredText((Turn("text", "the answer is that"),))]
    vector = random_vector(1)
    [one] = measure_texts(model, texts, [make_probe(1, vector), make_probe(1, 7 * vector), make_probe(1, -vector)])
    assert isinstance(one, Measured)
    assert one.means[0] == pytest.approx(one.means[1], rel=1e-6) == -one.means[2]
    with pytest.raises(UserError, match="no direction"):
        make_probe(1, 0 * vector)


def test_a_percentile_is_the_share_below_and_half_of_the_equal() -> None:
    found = Distribution(np.array([0.0, 1.0, 1.0, 3.0]))
    assert found.percentiles(np.array([-1.0, 1.0, 2.0, 9.0])).tolist() == [0.0, 50.0, 75.0, 100.0]


def test_running_sums_are_mean_and_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=(7, 2))
    running = Running()
    for row in values:
        running.add(row)
    assert running.mean == pytest.approx(values.mean(axis=0))
    expected = 2.446912 * values.std(axis=0, ddof=1) / np.sqrt(7)  # Student's t, 6 degrees of freedom
    assert running.half_width() == pytest.approx(expected, rel=1e-6)
    assert slope(np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]])).tolist() == [2.0, 1.5]


# --- where turns stand -----------------------------------------------------------------------------


def conversation() -> MonitoredText:
    return MonitoredText(tuple(Turn(one["role"], one["content"]) for one in CONVERSATION["messages"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ["tiny-chat", "Llama-2-tiny"])
def test_a_turn_is_its_own_tokens_whatever_it_says(label: str) -> None:
    """Contents that are the names of roles would be found in the wrong place by a search."""
    tokenizer = build_tokenizer()
    encoded = encode_text(ChatFormat(tokenizer, label, False), conversation())
    said = [tokenizer.decode(encoded.ids[turn.start : turn.end]).strip() for turn in encoded.turns]
    assert said == [one["content"] for one in CONVERSATION["messages"] if one["role"] != "system"]
    assert [turn.role for turn in encoded.measured] == ["assistant", "assistant"]


def test_a_conversation_of_one_round_is_encoded_as_everywhere_in_the_suite(model: LlamaWrapper) -> None:
    text = MonitoredText((Turn("user", "What?"), Turn("assistant", "the answer")))
    assert encode_text(model.chat_format, text).ids == model.chat_format.encode("What?", "the answer").ids


def test_the_first_token_of_a_text_by_itself_is_left_out(model: LlamaWrapper) -> None:
    encoded = encode_text(model.chat_format, MonitoredText((Turn("text", "the answer"),)))
    assert [(turn.start, turn.end) for turn in encoded.turns] == [(1, len(encoded.ids))]


def test_a_base_model_refuses_conversations_but_not_answers() -> None:
    chat_format = ChatFormat(build_tokenizer(None), "tiny-base", True)
    assert encode_text(chat_format, MonitoredText((Turn("user", "What?"), Turn("assistant", "that")))).measured
    with pytest.raises(UserError, match="a base model knows no turns"):
        encode_text(chat_format, conversation())


# --- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 16])
def test_json_and_json_lines_give_the_same_records_in_blocks_of_any_size(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.exports.texts._BLOCK", block)
    records = [*ANSWERS, CONVERSATION, 'e\u0301 \U0001f30a " \\ ]', {"text": "x" * 50, "n": [1.5, -2e3, {"a": None}]}]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=2, ensure_ascii=False))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    one, other = list(read_texts(tmp_path / "a.json")), list(read_texts(tmp_path / "a.jsonl"))
    assert one == other and len(one) == len(records)
    assert not any(isinstance(text, UserError) for text in one)


BROKEN_FILES = {
    "torn list": b'["a", "b"',
    "torn text": b'["a", "b',
    "two lists": b'["a"] ["b"]',
    "no comma": b'["a" "b"]',
    "not a number": b'["a", NaN]',
    "no UTF-8": b'["\xff"]',
    "no JSON": b"hello",
}


@pytest.mark.parametrize("what", BROKEN_FILES)
def test_a_broken_file_is_one_line_and_leaves_no_output(
    what: str, run: Run, paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_bytes(BROKEN_FILES[what])
    assert run(tmp_path / "a.json", "--layers", 1) == 2
    assert len(error_lines(capsys.readouterr().err)) == 1
    assert [name for name in outputs(paths) if name != "provenance.json"] == []


# --- the script ------------------------------------------------------------------------------------


def test_every_text_has_a_line_with_its_projection_and_percentile_on_every_vector(
    run: Run, paths: DataPaths, tmp_path: Path, model: LlamaWrapper, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put_json(tmp_path / "answers.json", ANSWERS)
    assert run(file, "--layers", 1, 2, "--tokens") == 0
    lines = lines_of(paths.analysis("monitor") / f"answers_{TINY_LABEL}.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2, 3] and lines[3]["id"] == "mine"
    texts = list(read_texts(file))
    neutral = [
        MonitoredText((Turn("user", one["question"]), Turn("assistant", one["answer"])))
        for one in json.loads(paths.neutral_prompts().with_name("texts.json").read_text())
    ]
    for line, text in zip(lines, texts, strict=True):
        assert isinstance(text, MonitoredText)
        keys = [(reading["behavior"], reading["layer"]) for reading in line["readings"]]
        assert keys == [(behavior, layer) for behavior in BEHAVIORS for layer in (1, 2)]
        vector = random_vector(12)
        expected = plainly(model, text, 2, vector)
        reading = line["readings"][3]
        assert reading["token_projections"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert len(line["tokens"]) == line["n_tokens"] == len(expected)
        assert reading["projection"] == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-4)
        others = [one if not text.is_bare else MonitoredText((Turn("text", one.turns[1].text),)) for one in neutral]
        below = [np.mean(plainly(model, one, 2, vector)) < np.mean(expected) for one in others]
        assert reading["percentile"] == pytest.approx(100 * np.mean(below))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and out[0].startswith("answers.json: sycophancy, layer 1: mean projection ")


def test_drift_over_the_turns_is_in_the_lines_and_in_a_figure_beside_neutral_answers(
    run: Run, paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put_json(tmp_path / "talks.json", [CONVERSATION, CONVERSATION, ANSWERS[0]])
    assert run(file, "--layers", 2) == 0
    [first, second, third] = lines_of(paths.analysis("monitor") / f"talks_{TINY_LABEL}.jsonl")
    assert {**first, "index": 1} == second and "turns" not in third["readings"][0]
    reading = first["readings"][1]
    turns = [turn for turn in reading["turns"] if turn["role"] == "assistant"]
    assert [turn["role"] for turn in reading["turns"]] == ["user", "assistant", "user", "assistant"]
    assert reading["drift_per_turn"] == pytest.approx(turns[1]["projection"] - turns[0]["projection"], rel=1e-4)
    stem = paths.analysis("monitor") / f"talks_{TINY_LABEL}_drift"
    assert all(stem.with_name(stem.name + suffix).exists() for suffix in (".png", ".pdf", ".txt"))
    rows = [row for row in read_table(stem.with_name(stem.name + ".txt")) if row["behavior"] == "refusal"]
    assert [float(row["projection"]) for row in rows] == pytest.approx([t["projection"] for t in turns], rel=1e-4)
    assert all(float(row["neutral_5"]) < float(row["neutral_95"]) and row["n"] == "2" for row in rows)
    assert "a turn over 2 conversations" in capsys.readouterr().out


def test_the_page_shows_the_texts_escaped_with_switches_and_nothing_from_elsewhere(
    run: Run, paths: DataPaths, tmp_path: Path
) -> None:
    file = put_json(tmp_path / "answers.json", [*ANSWERS, CONVERSATION])
    assert run(file, "--layers", 1, 2, "--page") == 0
    page = (paths.analysis("monitor") / f"answers_{TINY_LABEL}.html").read_text()
    assert "<b>that</b>" not in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    n_tokens = page.count('<span class="above"') + page.count('<span class="below"')
    assert {len(row) for of in data["values"].values() for table in of.values() for row in table} == {n_tokens}
    assert data["layers"] == {behavior: [1, 2] for behavior in BEHAVIORS} and len(data["sinks"]) == 5
    lines = lines_of(paths.analysis("monitor") / f"answers_{TINY_LABEL}.jsonl")
    noted = f"mean projection {lines[3]['readings'][0]['projection']:+.3g}, percentile"
    assert f"mine: answer · {noted}" in page or f"mine: answer \u00b7 {noted}" in page


def test_lines_go_from_standard_input_to_standard_output(
    run: Run, paths: DataPaths, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = "".join(json.dumps(one) + "\n" for one in ANSWERS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert run("-", "--output", "-", "--layers", 1) == 0
    found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["index"] for line in found] == [0, 1, 2, 3]
    assert not paths.analysis_dir.exists()


def test_a_text_that_cannot_be_measured_has_a_line_that_says_so_and_the_others_have_theirs(
    run: Run, paths: DataPaths, tmp_path: Path
) -> None:
    records = [{"question": "alone"}, ANSWERS[0], "x " * 600, {"role": "user", "content": "x"}, 5]
    assert run(put_json(tmp_path / "a.json", records), "--layers", 1) == 1
    lines = lines_of(paths.analysis("monitor") / f"a_{TINY_LABEL}.jsonl")
    assert ["error" in line for line in lines] == [True, False, True, True, True]
    assert "takes at most 512" in lines[2]["error"] and "under 'messages'" in lines[3]["error"]


def test_measured_files_are_skipped_without_the_model_and_other_texts_are_said(
    run: Run, paths: DataPaths, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = put_json(tmp_path / "a.json", ANSWERS)
    assert run(file, "--layers", 1) == 0
    before = snapshot(paths.root)
    assert run(file, "--layers", 1) == 0
    assert snapshot(paths.root) == before and loads == [TINY_LABEL]
    put_json(file, ANSWERS[:2])
    assert run(file, "--layers", 1) == 2
    assert "was made otherwise (texts_sha256); --overwrite measures again" in capsys.readouterr().err
    assert run(file, "--layers", 1, "--overwrite") == 0
    assert len(lines_of(paths.analysis("monitor") / f"a_{TINY_LABEL}.jsonl")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no layer was chosen; name one with --layers, or run: ./choose_steering.py --behaviors sycophancy"),
        (("--layers", N_LAYERS), "has layers 0 to 3"),
        (
            ("--layers", 1, "--read", "last"),
            "no vector of layer 1 of tiny-chat (read=last); run: ./generate_vectors.py",
        ),
        (("--layers", 1, "--page", "--output", "-"), "--page needs files with names"),
    ],
)
def test_what_is_missing_is_said_in_one_line_before_the_model_is_loaded(
    flags: tuple[object, ...],
    message: str,
    run: Run,
    tmp_path: Path,
    loading_is_forbidden: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(put_json(tmp_path / "a.json", ANSWERS), *flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line


def test_the_bundled_neutral_texts_are_questions_with_answers_and_all_differ() -> None:
    from utils.paths import REPOSITORY

    texts = list(read_texts(DataPaths(REPOSITORY).neutral_prompts().with_name("texts.json")))
    assert len(texts) == 60 and len(set(texts)) == 60  # type: ignore[arg-type]
    assert all(isinstance(one, MonitoredText) and one.turns[-1].role == "assistant" for one in texts)


def test_failures_keep_their_place_among_the_texts(model: LlamaWrapper) -> None:
    good = MonitoredText((Turn("text", "the answer"),))
    found = list(measure_texts(model, [good, UserError("broken"), good], [make_probe(1, random_vector(1))]))
    assert [type(one) for one in found] == [Measured, Failed, Measured] and [one.index for one in found] == [0, 1, 2]


def test_no_more_than_a_window_of_texts_is_in_memory(model: LlamaWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.exports.measuring.WINDOW", 4)
    taken: list[int] = []

    def texts() -> Iterator[MonitoredText]:
        for place in range(20):
            taken.append(place)
            yield MonitoredText((Turn("text", "the answer"),))

    for place, _ in enumerate(measure_texts(model, texts(), [make_probe(1, random_vector(1))])):
        assert len(taken) <= 4 * (place // 4 + 1)
    assert len(taken) == 20


# --- interrupted runs ------------------------------------------------------------------------------


def interrupt_at(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Ctrl-C when the text at `index` is about to be written."""
    real = monitor_run.measured_line

    def measured_line(measured: Measured, *args: Any) -> bytes:
        if measured.index == index:
            raise KeyboardInterrupt
        return real(measured, *args)

    monkeypatch.setattr(monitor_run, "measured_line", measured_line)


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts of every kind, in windows of two."""
    monkeypatch.setattr(measuring, "WINDOW", 2)
    monkeypatch.setattr(monitor_run, "WINDOW", 2)
    return put_json(tmp_path / "talks.json", [*ANSWERS, CONVERSATION, {"question": "alone"}, *ANSWERS[::-1]])


def test_an_interrupted_run_goes_on_to_the_same_bytes_and_measures_nothing_twice(
    run: Run, paths: DataPaths, talks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (talks, "--layers", 1, 2, "--tokens", "--page")
    assert run(*flags) == 1  # one text is a question without an answer
    said, undisturbed = capsys.readouterr().out, snapshot(paths.analysis_dir)
    shutil.rmtree(paths.analysis_dir)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 7)
        assert run(*flags) == 130
    assert [name for name in outputs(paths) if not name.startswith(".")] == ["provenance.json"]
    seen: list[int] = []
    real = monitor_run.measured_line
    monkeypatch.setattr(monitor_run, "measured_line", lambda one, *args: [seen.append(one.index), real(one, *args)][1])
    capsys.readouterr()
    assert run(*flags) == 1
    captured = capsys.readouterr()
    assert "going on behind 6 texts that an interrupted run has measured" in captured.err and seen == [6, 7, 8, 9]
    assert captured.out == said
    assert snapshot(paths.analysis_dir) == undisturbed


def test_what_an_interrupted_run_left_of_other_texts_or_flags_is_not_gone_on_with(
    run: Run, paths: DataPaths, talks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(patched, 6)
        assert run(talks, "--layers", 1) == 130
    assert run(talks, "--layers", 2) == 1
    assert "going on" not in capsys.readouterr().err
    found = lines_of(paths.analysis("monitor") / f"talks_{TINY_LABEL}.jsonl")
    assert [line["index"] for line in found] == list(range(10))
    assert {reading["layer"] for line in found for reading in line.get("readings", [])} == {2}
    assert [name for name in outputs(paths) if name.startswith(".")] == []


def test_a_state_that_was_damaged_or_lost_its_lines_begins_anew(
    run: Run, paths: DataPaths, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = paths.analysis("monitor") / f"talks_{TINY_LABEL}.jsonl"
    assert run(talks, "--layers", 1) == 1
    whole = output.read_bytes()
    for damage in (".state", ".partial"):
        with monkeypatch.context() as patched:
            interrupt_at(patched, 6)
            assert run(talks, "--layers", 1, "--overwrite") == 130
        assert output.read_bytes() == whole
        output.with_name(f".{output.name}{damage}").write_bytes(b"{")
        assert run(talks, "--layers", 1, "--overwrite") == 1
        assert output.read_bytes() == whole
