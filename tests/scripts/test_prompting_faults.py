"""`prompting_with_steering.py`, killed, resumed, and given what it cannot use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prompting_with_steering
from tests.models import D_MODEL, random_vector
from tests.roots import TINY_LABEL, error_lines, result_bytes, results, snapshot, write_vector
from tests.scripts.test_prompting_with_steering import SETTINGS, probabilities_by_hand, result_of
from utils.files.journal import Journal
from utils.model import checkpoints as models
from utils.model.steering import Steering

# --- killed and resumed ---


def kill_at(monkeypatch: pytest.MonkeyPatch, n_lines: int, error: BaseException) -> None:
    """Stop the run when its journal has so many finished pieces."""
    real, written = Journal.append, []

    def append(self: Journal, key: str, value: Any) -> None:
        if len(written) == n_lines:
            raise error
        written.append(key)
        real(self, key, value)

    monkeypatch.setattr(Journal, "append", append)


def journaled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    real, keys = Journal.append, []

    def append(self: Journal, key: str, value: Any) -> None:
        keys.append(key)
        real(self, key, value)

    monkeypatch.setattr(Journal, "append", append)
    return keys


KINDS = {
    "packed": (["--batch_size", "1"], 3),
    "packed batches": ([], 3),
    "plain": (["--no_packing"], 3),
    "free answers": (["--type", "open_ended", "--max_new_tokens", "4", "--batch_size", "2"], 27),
    "free answers in one batch": (["--type", "open_ended", "--max_new_tokens", "4"], 27),
    "sampled answers": (
        ["--type", "open_ended", "--max_new_tokens", "4", "--temperature", "1", "--batch_size", "2"],
        27,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_and_resumed_gives_the_same_bytes_and_computes_only_the_rest(
    kind: str, evaluate: Callable[..., int], steered_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, n_pieces = KINDS[kind]
    command = ["--layers", 0, 1, 3, *flags]
    if "open_ended" in flags:
        command += ["--multipliers", -1, 1, 2]
    assert evaluate(*command) == 0
    undisturbed = result_bytes(steered_root)
    assert len(undisturbed) == 9
    for name in undisturbed:
        (steered_root / name).unlink()

    n_lines = n_pieces // 2
    with monkeypatch.context() as patch:
        kill_at(patch, n_lines, KeyboardInterrupt())
        assert evaluate(*command) == 130
    complete = result_bytes(steered_root)
    assert all(undisturbed[name] == content for name, content in complete.items())
    assert len(complete) < 9

    with monkeypatch.context() as patch:
        keys = journaled(patch)
        assert evaluate(*command) == 0
    assert len(keys) == len(set(keys)) == n_pieces - n_lines
    assert result_bytes(steered_root) == undisturbed
    assert not [name for name in snapshot(steered_root) if "sweep" in name or name.endswith(".tmp")]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_stops_while_it_writes_results_goes_on_with_them(
    error: BaseException, evaluate: Callable[..., int], steered_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate("--layers", 1) == 0
    undisturbed = result_bytes(steered_root)
    import utils.evaluation

    real, written = utils.evaluation.sweep.write_json, []

    def write(path: Path, value: Any) -> None:
        if len(written) == 2:
            raise error
        written.append(path)
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(utils.evaluation.sweep, "write_json", write)
        assert evaluate("--layers", 1, "--overwrite") == (130 if isinstance(error, KeyboardInterrupt) else 1)
    for name in undisturbed:
        (steered_root / name).unlink()
    with monkeypatch.context() as patch:
        keys = journaled(patch)
        assert evaluate("--layers", 1, "--overwrite") == 0
    assert keys == []  # all was computed before
    assert result_bytes(steered_root) == undisturbed


def test_a_killed_run_is_not_taken_up_with_other_vectors(
    evaluate: Callable[..., int], steered_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 2, KeyboardInterrupt())
        assert evaluate("--layers", 1, "--batch_size", 1) == 130
    write_vector(steered_root, "sycophancy", 1, random_vector(77))
    keys = journaled(monkeypatch)
    assert evaluate("--layers", 1, "--batch_size", 1) == 0
    assert sorted(keys) == ["0", "1", "2"]
    record = result_of(steered_root, SETTINGS.at(1, 1.0))[0]
    expected = probabilities_by_hand(record["question"], Steering(1, 1.0, random_vector(77)))
    assert record["a_prob"] == pytest.approx(expected[0], rel=1e-4)


# --- what is refused ---

TEST_SET = "datasets/test/sycophancy/test_dataset_ab.json"
GOOD = {"question": "x?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
Change = Callable[[Path], object]


def unchanged(root: Path) -> None:
    pass


def file_with(name: str, content: str) -> Change:
    return lambda root: (root / name).write_text(content)


def vector_with(value: Any) -> Change:
    return lambda root: write_vector(root, "sycophancy", 2, value)


def without(name: str) -> Change:
    return lambda root: (root / name).unlink()


class RunsCode:
    def __reduce__(self) -> tuple:
        return (Path("ran-by-a-pickle").touch, ())


VECTOR = f"normalized_vectors/sycophancy/vec_layer_2_{TINY_LABEL}.pt"
REFUSED: dict[str, tuple[Change, list[str], str]] = {
    "unknown behavior": (unchanged, ["--behaviors", "kindness"], "'kindness'"),
    "unknown type": (unchanged, ["--type", "essay"], "'essay'"),
    "layer out of range": (unchanged, ["--layers", "1", "9"], f"--layers 9: {TINY_LABEL} has layers 0 to 3"),
    "multiplier": (unchanged, ["--multipliers", "nan"], "nan is not a finite number"),
    "no vector": (
        without(VECTOR),
        [],
        f"vec_layer_2_{TINY_LABEL}.pt not found; run: ./generate_vectors.py --behaviors sycophancy --model ",
    ),
    "no vector of the other model": (
        unchanged,
        ["--override_vector_model", "third"],
        "vec_layer_0_third.pt not found; run: ./generate_vectors.py",
    ),
    "vector of another width": (
        vector_with(torch.zeros(D_MODEL + 1)),
        [],
        "vec_layer_2_tiny-chat.pt has width 33, but the model's residual stream has 32",
    ),
    "vector with NaN": (vector_with(torch.full((D_MODEL,), torch.nan)), [], "contains NaN or infinite values"),
    "no vector but a matrix": (vector_with(torch.zeros(2, D_MODEL)), [], "does not hold a steering vector"),
    "pickle": (vector_with(RunsCode()), [], "holds more than plain tensors and was not loaded"),
    "damaged vector": (file_with(VECTOR, "x"), [], "make it again"),
    "no dataset": (
        without(TEST_SET),
        [],
        "test_dataset_ab.json not found; run: ./process_raw_datasets.py --behaviors sycophancy",
    ),
    "missing key": (
        file_with(TEST_SET, json.dumps([GOOD, {"question": "x?"}])),
        [],
        "test_dataset_ab.json, item 1: key 'answer_matching_behavior' is missing",
    ),
    "bad answer": (
        file_with(TEST_SET, json.dumps([{**GOOD, "answer_not_matching_behavior": "No"}])),
        [],
        "item 0, key 'answer_not_matching_behavior': expected an answer such as '(A)', found 'No'",
    ),
    "invalid JSON": (file_with(TEST_SET, "[{]"), [], "test_dataset_ab.json is not valid JSON"),
    "no free questions": (
        without("datasets/test/sycophancy/test_dataset_open_ended.json"),
        ["--type", "open_ended"],
        "not found",
    ),
    "bad knowledge set": (
        file_with("datasets/test/mmlu/mmlu.json", json.dumps([{"prompt": "x"}])),
        ["--type", "mmlu"],
        "mmlu.json, item 0: key 'category' is missing",
    ),
    "model folder": (unchanged, ["--model", "/no/such/model"], "--model /no/such/model: there is no such folder"),
    "system prompt for a base model": (
        unchanged,
        ["--system_prompt", "pos", "--use_base_model"],
        "--system_prompt needs a chat model",
    ),
    "negative override": (unchanged, ["--override_vector", "-1"], "--override_vector -1 is negative"),
    "no weights": (
        unchanged,
        ["--override_model_weights_path", "/no/weights.pt"],
        "/no/weights.pt: there is no such file",
    ),
    "samples without temperature": (
        unchanged,
        ["--type", "open_ended", "--num_samples", "2"],
        "--num_samples needs --temperature",
    ),
    "temperature of letters": (unchanged, ["--temperature", "1"], "--type ab has none"),
    "no root": (unchanged, ["--root", "/no/root"], "--root /no/root is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_code_2_and_leaves_no_file(
    case: str,
    evaluate: Callable[..., int],
    steered_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loading_is_forbidden: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    change, flags, message = REFUSED[case]
    change(steered_root)
    before = snapshot(tmp_path)
    assert evaluate(*flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(tmp_path) == before


def test_a_model_that_cannot_be_fetched_is_one_line_that_says_why(
    steered_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(models.LLAMA_2_CHECKPOINTS, "13b", ("nobody/gated-chat-hf", "nobody/gated-hf"))
    before = snapshot(steered_root)
    assert prompting_with_steering.main(["--root", str(steered_root), "--model_size", "13b"]) == 2
    err = capsys.readouterr().err
    assert error_lines(err) == err.splitlines() and len(err.splitlines()) == 1
    assert "nobody/gated-chat-hf" in err and "HF_HUB_OFFLINE keeps it from being fetched" in err
    assert snapshot(steered_root) == before


@pytest.mark.parametrize("in_the_way", ["results", "results/sycophancy"])
def test_a_folder_that_cannot_be_written_is_one_line_and_code_1(
    in_the_way: str, evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (steered_root / in_the_way).parent.mkdir(exist_ok=True)
    (steered_root / in_the_way).write_text("a file where a folder should be")
    before = snapshot(steered_root)
    assert evaluate("--layers", 0) == 1
    [line] = error_lines(capsys.readouterr().err)
    assert in_the_way in line and "finished files are whole" in line
    assert snapshot(steered_root) == before


@pytest.mark.parametrize("flags", [[], ["--no_packing"], ["--type", "open_ended"]])
def test_steering_beyond_what_the_numbers_hold_is_an_error_and_no_result(
    flags: list[str], evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3e38 times a vector overflows float32: there are no probabilities to write down."""
    assert evaluate("--layers", 1, "--multipliers", 1, 3e38, *flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "layer 1, multiplier 3e+38: " in line
    assert line.endswith("beyond what float32 arithmetic can hold; use smaller --multipliers")
    assert results(steered_root) == {}


def test_weights_of_another_architecture_are_one_line_and_leave_no_file(
    evaluate: Callable[..., int], steered_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "tuned.pt")
    before = snapshot(steered_root)
    assert evaluate("--override_model_weights_path", tmp_path / "tuned.pt") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "tuned.pt is for another architecture" in line
    assert snapshot(steered_root) == before
