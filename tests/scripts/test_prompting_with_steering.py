"""`prompting_with_steering.py`, through its `main`, on a tiny random chat model."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import N_LAYERS, build_model, build_tokenizer, random_vector, steered_logits
from tests.roots import TINY_LABEL, bundled, result_bytes, results, write_vector
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of
from utils.model.chat_format import ChatFormat
from utils.model.steering import Steering
from utils.paths import REPOSITORY
from utils.settings import SteeringSettings, parse_result_name

SETTINGS = SteeringSettings(layer=0, multiplier=0.0, behavior="sycophancy", type="ab", model=TINY_LABEL)


def result_of(root: Path, settings: SteeringSettings) -> list[dict[str, Any]]:
    return json.loads((root / "results" / settings.behavior / settings.result_name).read_text())


def probabilities_by_hand(
    question: str, steering: Steering | None, system_prompt: str | None = None, everywhere: bool = False
) -> tuple[float, float]:
    """p(A), p(B) behind "(" from one whole sequence, without anything of the wrapper's."""
    tokenizer = build_tokenizer()
    system = f"<|im_start|>system\n{system_prompt}<|im_end|>\n" if system_prompt else ""
    text = f"<s>{system}<|im_start|>user\n{question.strip()}<|im_end|>\n<|im_start|>assistant\n("
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = steered_logits(build_model("llama"), ids, 0 if everywhere else len(ids) - 2, steering)[-1]
    p = logits.softmax(dim=-1)
    return tuple(float(p[tokenizer.convert_tokens_to_ids(letter)]) for letter in "AB")  # type: ignore[return-value]


# --- what is computed ---


def test_each_result_file_has_the_probabilities_of_its_layer_and_multiplier(
    evaluate: Callable[..., int], steered_root: Path
) -> None:
    assert evaluate("--layers", 1, 3, "--multipliers", -1, 0, 2) == 0
    items = json.loads((steered_root / "datasets/test/sycophancy/test_dataset_ab.json").read_text())
    assert len(results(steered_root)) == 6
    for layer in (1, 3):
        for multiplier in (-1.0, 0.0, 2.0):
            records = result_of(steered_root, SETTINGS.at(layer, multiplier))
            steering = Steering(layer, multiplier, random_vector(layer)) if multiplier else None
            for record, item in zip(records, items, strict=True):
                assert {key: record[key] for key in item} == item
                expected = probabilities_by_hand(item["question"], steering)
                assert (record["a_prob"], record["b_prob"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("flags", [["--no_packing"], ["--batch_size", 1], ["--batch_size", 2]])
def test_packing_and_batches_change_no_number(
    evaluate: Callable[..., int], steered_root: Path, flags: list[object]
) -> None:
    assert evaluate() == 0
    packed = results(steered_root)
    assert len(packed) == 3 * N_LAYERS
    assert evaluate("--overwrite", *flags) == 0
    for name, records in results(steered_root).items():
        for record, other in zip(records, packed[name], strict=True):
            assert record == {**other, **{key: pytest.approx(other[key], rel=1e-4) for key in ("a_prob", "b_prob")}}


def test_multiplier_0_is_the_same_at_every_layer_and_needs_no_vectors(
    evaluate: Callable[..., int], steered_root: Path
) -> None:
    for path in (steered_root / "normalized_vectors").rglob("*.pt"):
        path.unlink()
    assert evaluate("--multipliers", 0, 0.0) == 0
    files = [path.read_bytes() for path in (steered_root / "results" / "sycophancy").glob("results_*.json")]
    assert len(files) == N_LAYERS and len(set(files)) == 1


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_a_system_prompt_stands_before_the_question_and_in_the_name(
    evaluate: Callable[..., int], steered_root: Path, side: str
) -> None:
    assert evaluate("--layers", 2, "--multipliers", 1, "--system_prompt", side) == 0
    [(name, records)] = results(steered_root).items()
    assert parse_result_name(name).system_prompt == side
    system_prompt = bundled("sycophancy").system_prompt(side)  # type: ignore[arg-type]
    expected = probabilities_by_hand(records[0]["question"], Steering(2, 1.0, random_vector(2)), system_prompt)
    assert (records[0]["a_prob"], records[0]["b_prob"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "vector_seed", "everywhere"),
    [
        (["--override_vector", "1"], 1, False),
        (["--override_vector_model", "some/other-model"], 52, False),
        (["--override_vector", "3", "--override_vector_model", "other-model"], 53, False),
        (["--vector_behavior", "refusal"], 12, False),
        (["--steer_positions", "all"], 2, True),
    ],
)
def test_the_override_flags_choose_the_vector_and_the_positions_and_stand_in_the_name(
    flags: list[str], vector_seed: int, everywhere: bool, evaluate: Callable[..., int], steered_root: Path
) -> None:
    assert evaluate("--layers", 2, "--multipliers", 1, *flags) == 0
    [(name, records)] = results(steered_root).items()
    assert f"_{flags[0].removeprefix('--')}=" in name
    steering = Steering(2, 1.0, random_vector(vector_seed))
    expected = probabilities_by_hand(records[0]["question"], steering, everywhere=everywhere)
    assert (records[0]["a_prob"], records[0]["b_prob"]) == pytest.approx(expected, rel=1e-4)


def test_fine_tuned_weights_are_evaluated_and_their_path_stands_in_the_name(
    evaluate: Callable[..., int], steered_root: Path
) -> None:
    tuned = steered_root / "finetuned_models" / "sycophancy_pos_finetune_all.pt"
    tuned.parent.mkdir()
    torch.save(build_model("llama", seed=8).state_dict(), tuned)
    assert evaluate("--layers", 2, "--multipliers", 0) == 0
    assert evaluate("--layers", 2, "--multipliers", 0, "--override_model_weights_path", tuned) == 0
    by_name = results(steered_root)
    name = next(name for name in by_name if "override_model_weights_path" in name)
    assert name.endswith("_override_model_weights_path=finetuned_models-sycophancy_pos_finetune_all.pt.json")
    [plain] = [records for other, records in by_name.items() if other != name]
    assert abs(by_name[name][0]["a_prob"] / plain[0]["a_prob"] - 1) > 1e-2


@pytest.mark.parametrize("result_type", ["truthful_qa", "mmlu"])
def test_knowledge_questions_are_scored_with_their_category(
    evaluate: Callable[..., int], steered_root: Path, result_type: str
) -> None:
    assert evaluate("--type", result_type, "--layers", 2, "--multipliers", 1) == 0
    [(name, records)] = results(steered_root).items()
    assert parse_result_name(name).type == result_type
    assert len(records) == 3
    for record in records:
        assert list(record) == ["question", "correct", "incorrect", "a_prob", "b_prob", "category"]
        expected = probabilities_by_hand(record["question"], Steering(2, 1.0, random_vector(2)))
        assert (record["a_prob"], record["b_prob"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("flags", [[], ["--no_packing"]])
def test_free_answers_are_those_of_greedy_decoding(
    evaluate: Callable[..., int], steered_root: Path, flags: list[str]
) -> None:
    options = ["--type", "open_ended", "--layers", 2, "--multipliers", 0, 1.5, "--max_new_tokens", 6, *flags]
    assert evaluate(*options) == 0
    tokenizer, model = build_tokenizer(), build_model("llama")
    chat_format = ChatFormat(tokenizer, TINY_LABEL, use_base_model=False)
    assert len(results(steered_root)) == 2
    for name, records in results(steered_root).items():
        multiplier = parse_result_name(name).multiplier
        steering = Steering(2, multiplier, random_vector(2)) if multiplier else None
        assert len(records) == 3
        for record in records:
            prompt = chat_format.encode(record["question"])
            ids = list(prompt.ids)
            while len(ids) < len(prompt) + 6 and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(steered_logits(model, ids, prompt.steer_start, steering)[-1].argmax()))
            answer = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
            assert record == {
                "question": record["question"],
                "model_output": answer,
                "raw_model_output": tokenizer.decode(ids, skip_special_tokens=False),
            }


def test_an_answer_beyond_b_is_scored_under_its_own_letter(evaluate: Callable[..., int], steered_root: Path) -> None:
    path = steered_root / "datasets/test/sycophancy/test_dataset_ab.json"
    items = json.loads(path.read_text())
    items[1]["answer_matching_behavior"] = "(C)"
    path.write_text(json.dumps(items))
    assert evaluate("--layers", 2, "--multipliers", 0) == 0
    [records] = results(steered_root).values()
    assert [sorted(key for key in record if key.endswith("_prob")) for record in records] == [
        ["a_prob", "b_prob"],
        ["a_prob", "b_prob", "c_prob"],
        ["a_prob", "b_prob"],
    ]
    assert 0 < records[1]["c_prob"] < 1


def test_the_provenance_says_what_the_results_were_made_from(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 2, "--multipliers", 1) == 0
    path = steered_root / "results" / "sycophancy" / SETTINGS.at(2, 1).result_name
    run = read_provenance(path)
    assert run is not None
    dataset = steered_root / "datasets/test/sycophancy/test_dataset_ab.json"
    vector = steered_root / "normalized_vectors/sycophancy" / f"vec_layer_2_{TINY_LABEL}.pt"
    assert run["dataset_sha256"] == sha256_of(dataset) and run["n_items"] == 3
    assert run["vectors_sha256"] == {"2": sha256_of(vector)}
    assert run["model"] == TINY_LABEL and run["dtype"] == "float32" and run["steered_from"] == "end_of_prompt"


# --- what is done again, and what not ---


def test_a_second_run_does_nothing_and_loads_nothing(
    evaluate: Callable[..., int], steered_root: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate() == 0
    before = {path: path.stat().st_mtime_ns for path in steered_root.rglob("*") if path.is_file()}
    assert not [path for path in before if "sweep" in path.name]  # the journal is gone
    capsys.readouterr()
    request.getfixturevalue("loading_is_forbidden")
    assert evaluate() == 0
    assert {path: path.stat().st_mtime_ns for path in steered_root.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err == "wrote 0, skipped 12 that are there already (--overwrite makes them again)\n"


SECOND_RUN = """
import sys
import prompting_with_steering
code = prompting_with_steering.main(sys.argv[1:])
print(code, [name for name in ("torch", "transformers", "numpy", "accelerate") if name in sys.modules])
"""


def test_a_run_with_nothing_to_do_imports_no_torch_and_ends_at_once(
    evaluate: Callable[..., int], steered_root: Path, tiny_checkpoint: Path
) -> None:
    weights = steered_root / "tuned.pt"
    torch.save(build_model("llama").state_dict(), weights)
    flags = ["--type", "open_ended", "--max_new_tokens", "2", "--override_model_weights_path", str(weights)]
    assert evaluate(*flags) == 0
    command = ["--root", str(steered_root), "--model", str(tiny_checkpoint), "--behaviors", "sycophancy", *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", SECOND_RUN, *command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "0 []\n"
    assert done.stderr == "wrote 0, skipped 12 that are there already (--overwrite makes them again)\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of processor time


def test_only_what_is_missing_is_made(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--layers", 1) == 0
    before = {path: path.stat().st_mtime_ns for path in (steered_root / "results").rglob("results_*.json")}
    assert evaluate("--layers", 1, 2) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(results(steered_root)) == 6
    assert capsys.readouterr().err.splitlines()[-1] == "wrote 3 result files, skipped 3, failed 0"


def test_several_behaviors_are_done_with_one_load_of_the_model(
    evaluate: Callable[..., int], steered_root: Path, loads: list[str]
) -> None:
    assert evaluate("--behaviors", "sycophancy", "refusal", "--layers", 0) == 0
    assert loads == [TINY_LABEL]
    assert len(list((steered_root / "results").glob("*/results_*.json"))) == 6


def test_results_from_other_vectors_are_kept_with_a_word_until_overwrite(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--layers", 2) == 0
    before = result_bytes(steered_root)
    write_vector(steered_root, "sycophancy", 2, random_vector(99))
    capsys.readouterr()
    assert evaluate("--layers", 2) == 0
    assert result_bytes(steered_root) == before
    warning = capsys.readouterr().err.splitlines()[0]
    assert "2 result files" in warning and "--overwrite makes them again" in warning
    assert evaluate("--layers", 2, "--overwrite") == 0
    changed = [name for name, content in result_bytes(steered_root).items() if content != before[name]]
    assert sorted(parse_result_name(Path(name).name).multiplier for name in changed) == [-1.0, 1.0]
