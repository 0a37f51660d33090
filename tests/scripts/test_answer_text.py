"""Answers in words, from contrast pairs to result files: vectors read from answers, preferences under steering."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import generate_vectors
import normalize_vectors
import plot_results
import prompting_with_steering
from tests.model.test_answer_scoring import by_hand
from tests.models import N_LAYERS, build_wrapper
from tests.roots import TINY_LABEL, error_lines, put_json, results
from utils.files.reading import load_vector
from utils.files.tables import read_table
from utils.model.pairs import encode_answer
from utils.model.steering import Steering
from utils.paths import DataPaths
from utils.settings import VectorKind

PAIRS = [
    {
        "question": f"What do you think of {thing}?",
        "answer_matching_behavior": f"I agree that {thing} and the sea are of the same kind.",
        "answer_not_matching_behavior": f"Not of {thing}, that is what I think.",
    }
    for thing in ("the system", "the assistant", "owls")
]
ANSWER = VectorKind("answer")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    behavior = {"id": "sea", "label": "Sea", "matching": "speaks of the sea"}
    paths = DataPaths(tmp_path)
    put_json(paths.behavior_file("sea"), behavior)
    put_json(paths.generate_text_dataset("sea"), PAIRS)
    put_json(paths.test_text_dataset("sea"), PAIRS[::-1])
    return tmp_path


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    def run(script: object, *flags: object) -> int:
        command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, *flags]
        return script.main([str(word) for word in command])  # type: ignore[attr-defined]

    return run


def test_vectors_read_from_answers_steer_the_preference_for_answers(root: Path, run: Callable[..., int]) -> None:
    assert run(generate_vectors, "--read", "answer") == 0
    paths = DataPaths(root)
    assert not paths.vector("sea", 1, TINY_LABEL, normalized=False).exists()
    vector = load_vector(paths.vector("sea", 1, TINY_LABEL, normalized=False, kind=ANSWER))
    assert run(normalize_vectors, "--read", "answer") == 0
    torch.testing.assert_close(
        load_vector(paths.vector("sea", 1, TINY_LABEL, normalized=True, kind=ANSWER)), vector
    )  # of one behavior, the mean norm is its own
    flags = ["--read", "answer", "--type", "answer_text", "--layers", 1, "--multipliers", -1, 0, 2]
    assert run(prompting_with_steering, *flags) == 0
    names = sorted(results(root))
    assert names == [
        f"results_layer=1_multiplier={multiplier}_behavior=sea_type=answer_text_use_base_model=False_model=tiny-chat"
        f"_read=answer.json"
        for multiplier in ("-1.0", "0.0", "2.0")
    ]
    wrapper = build_wrapper()
    for name, multiplier in zip(names, (-1.0, 0.0, 2.0), strict=True):
        records = results(root)[name]
        for record, pair in zip(records, PAIRS[::-1], strict=True):
            assert {key: record[key] for key in pair} == pair
            answers = [encode_answer(wrapper.chat_format, pair["question"], text) for text in list(pair.values())[1:]]
            expected = [by_hand(wrapper, answer, Steering(1, multiplier, vector)) for answer in answers]
            measured = [record["matching_logprob_per_token"], record["other_logprob_per_token"]]
            assert measured == pytest.approx(expected, rel=1e-4)


def test_packed_and_plain_runs_write_the_same_numbers(root: Path, run: Callable[..., int]) -> None:
    assert run(generate_vectors, "--read", "last", "--method", "pca_pairs") == 0
    assert run(normalize_vectors, "--read", "last", "--method", "pca_pairs") == 0
    flags = ["--read", "last", "--method", "pca_pairs", "--type", "answer_text", "--multipliers", -1, 0, 1]
    assert run(prompting_with_steering, *flags) == 0
    packed = results(root)
    assert len(packed) == 3 * N_LAYERS
    assert run(prompting_with_steering, *flags, "--no_packing", "--overwrite") == 0
    for name, records in results(root).items():
        for record, other in zip(records, packed[name], strict=True):
            for key in ("matching_logprob_per_token", "other_logprob_per_token"):
                assert record[key] == pytest.approx(other[key], rel=1e-4)


def test_letters_are_not_read_from_answers_in_words(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate_vectors) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "--read answer reads such pairs" in line


def test_an_answer_longer_than_the_context_is_named(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    long = {**PAIRS[0], "answer_matching_behavior": "x y " * 400}
    put_json(DataPaths(root).generate_text_dataset("sea"), [*PAIRS, long])
    assert run(generate_vectors, "--read", "answer") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "item 3 has" in line and "at most 512" in line


def test_vectors_of_prompts_are_read_at_their_last_token(root: Path, run: Callable[..., int]) -> None:
    keys = ("prompt_matching_behavior", "prompt_not_matching_behavior")
    prompts = [dict(zip(keys, texts, strict=True)) for texts in (("Tell of the sea", "Tell of owls"), ("Sea?", "Owl?"))]
    path = put_json(DataPaths(root).generate_prompts("sea"), prompts)
    assert run(generate_vectors, "--read", "prompt", "--layers", 2) == 0
    made = DataPaths(root).vector("sea", 2, TINY_LABEL, normalized=False, kind=VectorKind("prompt"))
    wrapper = build_wrapper()
    ends = [
        [wrapper.capture(wrapper.chat_format.encode(record[key]))[2, -1] for key in keys]
        for record in json.loads(path.read_text())
    ]
    expected = torch.stack([matching - other for matching, other in ends]).mean(0)
    torch.testing.assert_close(load_vector(made), expected, rtol=0, atol=1e-5)


def test_the_preference_is_plotted_by_layer_with_its_numbers(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate_vectors, "--read", "answer") == run(normalize_vectors, "--read", "answer") == 0
    flags = ["--read", "answer", "--type", "answer_text", "--multipliers", -1, 0, 1]
    assert run(prompting_with_steering, *flags) == 0
    capsys.readouterr()
    assert run(plot_results, *flags, "--report") == 0
    assert "Sea, layer" in capsys.readouterr().out
    stem = "behavior=sea_type=answer_text_use_base_model=False_model=tiny-chat_read=answer"
    rows = read_table(DataPaths(root).analysis("sea", f"{stem}.txt"))
    for row in rows:
        [name] = [n for n in results(root) if f"layer={row['layer']}_multiplier={row['multiplier']}_" in n]
        values = [r["matching_logprob_per_token"] - r["other_logprob_per_token"] for r in results(root)[name]]
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values))
    assert DataPaths(root).analysis("sea", f"{stem}.png").exists()
    [page] = DataPaths(root).analysis_dir.glob("report_*.html")
    assert "preference for matching answer" in page.read_text()
