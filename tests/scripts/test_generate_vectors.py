"""`generate_vectors.py`, through its `main`, on a tiny random chat model."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import generate_vectors
from tests.models import D_MODEL, N_LAYERS, build_model, decoder_blocks
from tests.roots import error_lines, put_json, snapshot
from utils.data.records import load_contrast_pairs
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of
from utils.model import checkpoints as models
from utils.model.chat_format import ChatFormat

LABEL = "tiny-chat"


@pytest.fixture
def generate(small_root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    """Run the script for sycophancy on the tiny checkpoint; further arguments come behind."""

    def run(*argv: object) -> int:
        command = ["--root", small_root, "--model", tiny_checkpoint, "--behaviors", "sycophancy", *argv]
        return generate_vectors.main([str(word) for word in command])

    return run


def vector_path(root: Path, layer: int, behavior: str = "sycophancy") -> Path:
    return root / "vectors" / behavior / f"vec_layer_{layer}_{LABEL}.pt"


def load(path: Path) -> Tensor:
    return torch.load(path, weights_only=True)


def mtimes(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@torch.no_grad()
def answer_activations_by_hand(root: Path) -> tuple[Tensor, Tensor]:
    """Block outputs at the answer letter, [n_layers, n_pairs, d_model] for the positive and negative halves."""
    from tests.models import build_tokenizer

    model = build_model("llama")
    chat_format = ChatFormat(build_tokenizer(), LABEL, use_base_model=False)
    seen: list[Tensor] = []
    for block in decoder_blocks(model):
        block.register_forward_hook(lambda _, __, output: seen.append(output[0, -1].clone()))
    halves: list[list[Tensor]] = [[], []]
    for pair in load_contrast_pairs(root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"):
        for half, letter in zip(halves, (pair.matching_letter, pair.other_letter), strict=True):
            prompt = chat_format.encode_choice(pair.question)
            model(input_ids=torch.tensor([[*prompt.ids, chat_format.letter_id(letter)]]), use_cache=False)
            half.append(torch.stack(seen))
            seen.clear()
    return torch.stack(halves[0], dim=1), torch.stack(halves[1], dim=1)


# --- what is made ---


@pytest.mark.parametrize("flags", [[], ["--no_packing"], ["--batch_size", "1"]])
def test_vectors_are_mean_activation_differences_at_the_answer_letter(
    generate: Callable[..., int], small_root: Path, flags: list[str]
) -> None:
    assert generate("--save_activations", *flags) == 0
    positive, negative = answer_activations_by_hand(small_root)
    assert float((positive - negative).abs().max()) > 0.1
    for layer in range(N_LAYERS):
        vector = load(vector_path(small_root, layer))
        assert vector.shape == (D_MODEL,) and vector.dtype == torch.float32
        torch.testing.assert_close(vector, (positive - negative)[layer].mean(dim=0), rtol=0, atol=1e-5)
        for side, wanted in (("pos", positive), ("neg", negative)):
            saved = load(small_root / "activations" / "sycophancy" / f"activations_{side}_{layer}_{LABEL}.pt")
            torch.testing.assert_close(saved, wanted[layer], rtol=0, atol=1e-5)


def test_only_the_requested_layers_are_made_and_no_activations_unless_asked_for(
    generate: Callable[..., int], small_root: Path
) -> None:
    before = set(snapshot(small_root))
    assert generate("--layers", 3, 1, 3) == 0
    made = set(snapshot(small_root)) - before
    vectors = {f"vectors/sycophancy/vec_layer_{layer}_{LABEL}.pt" for layer in (1, 3)}
    assert made == {*vectors, "vectors/sycophancy/provenance.json"}


def test_a_layer_s_vector_is_the_same_whichever_other_layers_are_made(
    generate: Callable[..., int], small_root: Path
) -> None:
    assert generate("--layers", 1) == 0
    alone = load(vector_path(small_root, 1))
    assert generate("--overwrite") == 0
    assert torch.equal(load(vector_path(small_root, 1)), alone)


def test_the_provenance_says_what_the_vectors_were_made_from(generate: Callable[..., int], small_root: Path) -> None:
    assert generate("--layers", 2) == 0
    run = read_provenance(vector_path(small_root, 2))
    assert run is not None
    dataset = small_root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"
    assert run["model"] == LABEL and run["dtype"] == "float32" and run["prompt_format"] == "template"
    assert run["dataset_sha256"] == sha256_of(dataset)
    assert (run["n_pairs"], run["read"], run["method"]) == (3, "letter", "mean")
    assert run["command"].startswith("./generate_vectors.py --root ") and run["torch"] == torch.__version__


def test_the_base_model_is_prompted_in_its_own_format(generate: Callable[..., int], small_root: Path) -> None:
    assert generate("--layers", 2) == 0
    chat = load(vector_path(small_root, 2))
    assert generate("--layers", 2, "--use_base_model", "--overwrite") == 0
    run = read_provenance(vector_path(small_root, 2))
    assert run is not None and run["prompt_format"] == "base"
    assert not torch.allclose(load(vector_path(small_root, 2)), chat, atol=1e-3)


# --- what is done again, and what not ---


def test_a_second_run_does_nothing_and_loads_nothing(
    generate: Callable[..., int], small_root: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate() == 0
    before = mtimes(small_root)
    capsys.readouterr()
    request.getfixturevalue("loading_is_forbidden")
    assert generate() == 0
    assert mtimes(small_root) == before
    assert capsys.readouterr().err == "wrote 0, skipped 4 that are there already (--overwrite makes them again)\n"


def test_only_what_is_missing_is_made(generate: Callable[..., int], small_root: Path) -> None:
    assert generate() == 0
    before, whole = mtimes(small_root), load(vector_path(small_root, 2))
    vector_path(small_root, 2).unlink()
    assert generate() == 0
    assert torch.equal(load(vector_path(small_root, 2)), whole)
    changed = {path for path, time in mtimes(small_root).items() if before.get(path) != time}
    assert changed == {vector_path(small_root, 2), small_root / "vectors" / "sycophancy" / "provenance.json"}


def test_overwrite_makes_all_of_them_again(generate: Callable[..., int], small_root: Path) -> None:
    assert generate() == 0
    torch.save(torch.ones(D_MODEL), vector_path(small_root, 0))
    before = mtimes(small_root)
    assert generate("--overwrite") == 0
    assert not torch.equal(load(vector_path(small_root, 0)), torch.ones(D_MODEL))
    after = mtimes(small_root)
    assert all(after[path] != before[path] for path in before if path.suffix == ".pt")


def test_several_behaviors_are_done_with_one_load_of_the_model(
    generate: Callable[..., int], small_root: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--behaviors", "sycophancy", "refusal", "--layers", 0, 1) == 0
    assert loads == [LABEL]
    assert vector_path(small_root, 1, "sycophancy").exists() and vector_path(small_root, 1, "refusal").exists()
    assert capsys.readouterr().err.splitlines()[-1] == "wrote 4 vectors, skipped 0, failed 0"


def test_vectors_of_another_dataset_are_kept_with_a_word(
    generate: Callable[..., int], small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--layers", 0) == 0
    before = mtimes(small_root / "vectors")
    dataset = small_root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"
    put_json(dataset, json.loads(dataset.read_text())[:2])
    capsys.readouterr()
    assert generate("--layers", 0) == 0
    assert mtimes(small_root / "vectors") == before
    assert "--overwrite" in capsys.readouterr().err.splitlines()[0]


# --- what is refused ---


def break_dataset(content: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json"
        path.write_text(content)

    return change


def remove_dataset(root: Path) -> None:
    (root / "datasets" / "generate" / "sycophancy" / "generate_dataset.json").unlink()


def leave_alone(root: Path) -> None:
    pass


GOOD = {"question": "x?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
DATASET = "generate_dataset.json"
REFUSED = {
    "unknown behavior": (leave_alone, ["--behaviors", "kindness"], "'kindness'"),
    "layer out of range": (leave_alone, ["--layers", "2", "4"], f"--layers 4: {LABEL} has layers 0 to 3"),
    "layer below 0": (leave_alone, ["--layers", "-1"], "-1 is negative; layers are counted from 0"),
    "no dataset": (
        remove_dataset,
        [],
        f"{DATASET} not found; run: ./process_raw_datasets.py --behaviors sycophancy",
    ),
    "missing key": (
        break_dataset(json.dumps([GOOD, {"question": "x?", "answer_matching_behavior": "(A)"}])),
        [],
        f"{DATASET}, item 1: key 'answer_not_matching_behavior' is missing",
    ),
    "bad answer": (
        break_dataset(json.dumps([{**GOOD, "answer_matching_behavior": "A"}])),
        [],
        f"{DATASET}, item 0, key 'answer_matching_behavior': expected an answer such as '(A)', found 'A'",
    ),
    "invalid JSON": (break_dataset('[{"question": "x?",}]'), [], f"{DATASET} is not valid JSON ("),
    "empty dataset": (break_dataset("[]"), [], f"{DATASET}: the list is empty"),
    "model folder": (leave_alone, ["--model", "/no/such/model"], "--model /no/such/model: there is no such folder"),
    "two models": (leave_alone, ["--model_size", "13b"], "not allowed with argument --model"),
    "device": (leave_alone, ["--device", "abacus"], "--device abacus is not available here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_code_2_and_leaves_no_file(
    case: str, generate: Callable[..., int], small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, flags, message = REFUSED[case]
    change(small_root)
    before = snapshot(small_root)
    assert generate(*flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(small_root) == before


def test_a_broken_dataset_of_one_behavior_is_found_before_anything_is_computed(
    generate: Callable[..., int],
    small_root: Path,
    loading_is_forbidden: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (small_root / "datasets" / "generate" / "refusal" / "generate_dataset.json").write_text("[")
    before = snapshot(small_root)
    assert generate("--behaviors", "sycophancy", "refusal") == 2
    assert "refusal/generate_dataset.json is not valid JSON" in capsys.readouterr().err
    assert snapshot(small_root) == before


def test_a_model_that_cannot_be_fetched_is_one_line_that_says_why(
    small_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(models.LLAMA_2_CHECKPOINTS, "7b", ("nobody/gated-chat-hf", "nobody/gated-hf"))
    before = snapshot(small_root)
    assert generate_vectors.main(["--root", str(small_root), "--behaviors", "sycophancy"]) == 2
    err = capsys.readouterr().err
    [line] = error_lines(err)
    assert "nobody/gated-chat-hf could not be loaded" in line
    assert "it is not on this machine, and HF_HUB_OFFLINE keeps it from being fetched" in line
    assert len(err.splitlines()) == 1
    assert snapshot(small_root) == before


@pytest.mark.parametrize("in_the_way", ["vectors", "vectors/sycophancy"])
def test_a_folder_that_cannot_be_written_is_one_line_and_code_1(
    in_the_way: str, generate: Callable[..., int], small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_root / in_the_way).parent.mkdir(exist_ok=True)
    (small_root / in_the_way).write_text("a file where a folder should be")
    before = snapshot(small_root)
    assert generate("--layers", 0) == 1
    [line] = error_lines(capsys.readouterr().err)
    assert in_the_way in line and "finished files are whole" in line
    assert snapshot(small_root) == before


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_what_stops_the_writing_leaves_whole_files_and_the_next_run_makes_the_rest(
    error: BaseException,
    code: int,
    generate: Callable[..., int],
    small_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert generate() == 0
    undisturbed = {layer: load(vector_path(small_root, layer)) for layer in range(N_LAYERS)}
    for layer in range(N_LAYERS):
        vector_path(small_root, layer).unlink()
    real, calls = os.replace, []

    def stop_at_the_third(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise error
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_the_third)
        assert generate() == code
    assert not [path for path in small_root.rglob("*") if path.suffix == ".tmp"]
    left = [layer for layer in range(N_LAYERS) if vector_path(small_root, layer).exists()]
    assert 0 < len(left) < N_LAYERS
    assert all(torch.equal(load(vector_path(small_root, layer)), undisturbed[layer]) for layer in left)
    assert generate() == 0
    for layer in range(N_LAYERS):
        assert torch.equal(load(vector_path(small_root, layer)), undisturbed[layer])


def test_activations_that_come_later_leave_vectors_that_are_equal_up_to_rounding_as_they_are(
    generate: Callable[..., int], small_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate() == 0
    path = vector_path(small_root, 1)
    torch.save(load(path) * (1 + 1e-5), path)  # as another batch size may have given it
    before = {file: content for file, content in snapshot(small_root).items() if file.startswith("vectors/")}
    assert generate("--save_activations") == 0
    after = {file: content for file, content in snapshot(small_root).items() if file.startswith("vectors/")}
    assert after == before
    assert len(list((small_root / "activations" / "sycophancy").iterdir())) == 2 * N_LAYERS
    other = vector_path(small_root, 2)
    torch.save(load(other) + 1, other)
    for file in (small_root / "activations" / "sycophancy").iterdir():
        file.unlink()
    assert generate("--save_activations") == 0
    assert snapshot(small_root)[str(other.relative_to(small_root))] == before[str(other.relative_to(small_root))]
