"""prompting_with_steering.py --operator, --beside and --condition: what they do, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import prompting_with_steering
from tests.models import N_LAYERS, build_wrapper, random_vector
from tests.roots import error_lines, put_json, results, write_vector
from utils.data.records import load_choice_items
from utils.model.ablation import ablate
from utils.model.operators import Cap, Rotate, second_axis
from utils.model.steering import Condition, Steering, Steerings
from utils.paths import DataPaths
from utils.settings import parse_result_name


def probabilities(root: Path, steering: Steerings) -> list[float]:
    """p(A) of the test items, by plain passes."""
    wrapper = build_wrapper()
    items = load_choice_items(DataPaths(root).test_dataset("sycophancy", "ab"), "ab", "")
    prompts = [wrapper.chat_format.encode_choice(item.question) for item in items]
    letters = [[wrapper.chat_format.letter_id("A")]] * len(items)
    return [float(scores[0, 0]) for _, scores in wrapper.score_plainly(prompts, [steering], letters)]


def found(root: Path, part: str) -> list[float]:
    [name] = [name for name in results(root) if part in name]
    return [record["a_prob"] for record in results(root)[name]]


def test_an_operator_stands_in_the_name_and_does_what_it_says(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 1, "--multipliers", 0, 1, "--operator", "ablate") == 0
    assert all(name.endswith("_operator=ablate.json") for name in results(steered_root))
    wanted = probabilities(steered_root, Steering(1, 1.0, random_vector(1), ablate))
    assert found(steered_root, "multiplier=1.0") == pytest.approx(wanted, rel=1e-4)
    assert found(steered_root, "multiplier=0.0") == pytest.approx(probabilities(steered_root, None), rel=1e-4)


def test_a_rotation_turns_in_the_plane_of_all_layers_vectors(evaluate: Callable[..., int], steered_root: Path) -> None:
    assert evaluate("--layers", 2, "--multipliers", 0.8, "--operator", "rotate") == 0
    second = second_axis([random_vector(layer) for layer in range(N_LAYERS)])
    wanted = probabilities(steered_root, Steering(2, 0.8, random_vector(2), Rotate(second)))
    assert found(steered_root, "operator=rotate") == pytest.approx(wanted, rel=1e-4)


def test_a_cap_is_at_the_quantile_of_neutral_answers(evaluate: Callable[..., int], steered_root: Path) -> None:
    texts = [{"question": "What is it?", "answer": f"{word} the sea"} for word in ("You", "Do", "not", "agree")]
    put_json(steered_root / "datasets" / "neutral" / "texts.json", texts)
    assert evaluate("--layers", 1, "--multipliers", 1, "--operator", "cap", "--quantile", 0.25) == 0
    [name] = results(steered_root)
    assert "_operator=cap_quantile=0.25" in name and parse_result_name(name).quantile == 0.25
    wrapper, vector = build_wrapper(), random_vector(1)
    along: list[float] = []
    for text in texts:
        prompt = wrapper.chat_format.encode(text["question"], text["answer"])
        along += (wrapper.capture(prompt)[1, prompt.steer_start :] @ (vector / vector.norm())).tolist()
    high = float(torch.tensor(along).quantile(0.25))
    wanted = probabilities(steered_root, Steering(1, 1.0, vector, Cap(0.0, high)))
    assert found(steered_root, "cap") == pytest.approx(wanted, rel=1e-4)


def test_vectors_beside_the_swept_one_go_along_with_it_at_their_weight(
    evaluate: Callable[..., int], steered_root: Path
) -> None:
    write_vector(steered_root, "refusal", 3, random_vector(33))
    beside = ["--beside", "refusal@3x-0.5", "sycophancy@0"]
    assert evaluate("--layers", 1, "--multipliers", 0, 2, *beside) == 0
    assert any("_beside=refusal@3x-0.5+sycophancy@0" in name for name in results(steered_root))
    several = [
        Steering(1, 2.0, random_vector(1)),
        Steering(3, -1.0, random_vector(33)),
        Steering(0, 2.0, random_vector(0)),
    ]
    assert found(steered_root, "multiplier=2.0") == pytest.approx(probabilities(steered_root, several), rel=1e-4)
    assert found(steered_root, "multiplier=0.0") == pytest.approx(probabilities(steered_root, None), rel=1e-4)


def condition_pairs(root: Path, n: int = 6) -> Path:
    """Prompts like the test items, but for the last, which is like the others."""
    matching = [f"They say that it is {'very ' * i}green. What is the answer?" for i in range(n)]
    return put_json(
        root / "gate.json",
        [
            {"prompt_matching_behavior": text, "prompt_not_matching_behavior": f"Do you agree with me, {'or ' * i}not?"}
            for i, text in enumerate(matching)
        ],
    )


def test_a_condition_is_fitted_named_and_recorded(evaluate: Callable[..., int], steered_root: Path) -> None:
    gate = condition_pairs(steered_root)
    assert evaluate("--layers", 1, "--multipliers", 1, "--condition", gate) == 0
    [name] = results(steered_root)
    assert name.endswith("_condition=gate.json")
    record = (steered_root / "results" / "sycophancy" / "provenance.json").read_text()
    assert "cosine at least" in record and "of pairs" not in record and "condition_sha256" in record
    open_ones = probabilities(steered_root, Steering(1, 1.0, random_vector(1)))
    closed = probabilities(steered_root, None)
    for one, steered, unsteered in zip(found(steered_root, "gate"), open_ones, closed, strict=True):
        assert one == pytest.approx(steered, rel=1e-4) or one == pytest.approx(unsteered, rel=1e-4)


def test_a_closed_gate_gives_the_unsteered_numbers(
    evaluate: Callable[..., int], steered_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Condition, "is_open", lambda *_: False)
    assert evaluate("--layers", 1, "--multipliers", 1, "--condition", condition_pairs(steered_root)) == 0
    assert evaluate("--layers", 1, "--multipliers", 0) == 0
    assert found(steered_root, "gate") == found(steered_root, "multiplier=0.0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--operator", "ablat"], "unknown operator 'ablat'; did you mean ablate?"),
        (["--operator", "cap", "--quantile", "1.5"], "1.5 is not between 0 and 1"),
        (["--operator", "ablate", "--strengths", "0.1"], "--operator ablate takes --multipliers (1: wholly)"),
        (["--operator", "rotate", "--chosen"], "--operator rotate takes --multipliers (1: wholly)"),
        (["--beside", "refusal"], "write BEHAVIOR@LAYER or BEHAVIOR@LAYERxWEIGHT"),
        (["--beside", "refusal@9"], "--beside refusal@9: "),
        (["--beside", "refusl@2"], "did you mean refusal?"),
        (["--condition_vector", "{root}/gate.json"], "--condition_vector needs --condition"),
        (["--condition", "{root}/gate.json", "--steer_positions", "all"], "leave out --steer_positions"),
        (["--condition", "{root}/nothing.json"], "nothing.json: there is no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    words: list[str], message: str, steered_root: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    condition_pairs(steered_root)
    said = [word.format(root=steered_root) for word in words]
    flags = ["--root", str(steered_root), "--model", str(tiny_checkpoint), "--behaviors", "sycophancy", "--layers", "1"]
    assert prompting_with_steering.main([*flags, *said]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vec_layer_9_tiny-chat.pt", "--condition_vector 9: tiny-chat has layers 0 to 3"),
        ("vec_layer_1_other.pt", "is a vector of other, not of tiny-chat"),
        ("mine.pt", "its name does not say its layer"),
    ],
)
def test_a_condition_vector_of_another_layer_or_model_is_refused_in_a_line(
    name: str, message: str, evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_vector(1), steered_root / name)
    gate = condition_pairs(steered_root)
    assert evaluate("--layers", 1, "--condition", gate, "--condition_vector", steered_root / name) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line


def test_a_condition_of_too_few_pairs_is_refused(
    evaluate: Callable[..., int], steered_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--layers", 1, "--condition", condition_pairs(steered_root, 2)) == 2
    assert "at least 4 pairs of prompts, found 2" in error_lines(capsys.readouterr().err)[0]
    assert json.dumps(results(steered_root)) == "{}"
