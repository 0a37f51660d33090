"""The commands that make missing results, as hints name them."""

import shlex
from dataclasses import replace
from pathlib import Path

import prompting_with_steering
import scoring
from utils.evaluation.effects import Missing, evaluation_command
from utils.evaluation.plan import sweep_settings
from utils.evaluation.result_files import settings_of
from utils.model.checkpoints import ModelChoice, choose_model
from utils.paths import REPOSITORY, DataPaths
from utils.settings import SteeringSettings

CHOICE = choose_model("135m", None, False)
PLAIN = settings_of(CHOICE, "refusal", "ab")


def command(
    like: SteeringSettings, root: Path = REPOSITORY, choice: ModelChoice = CHOICE, multipliers: tuple = ()
) -> str:
    return evaluation_command(["refusal"], [3], multipliers, like, choice, DataPaths(root))


def test_a_command_of_the_repository_needs_no_root() -> None:
    assert command(PLAIN, multipliers=(-1.0, 0.5)) == (
        "./prompting_with_steering.py --behaviors refusal --layers 3 --multipliers -1 0.5 --type ab --model_size 135m"
    )


def test_free_answers_are_scored_behind_with_the_same_root_and_model(tmp_path: Path) -> None:
    choice = choose_model("7b", "my models/tiny", False)
    both = command(settings_of(choice, "refusal", "open_ended"), tmp_path / "a b", choice, (1.0,)).split(" && ")
    answer, score = map(shlex.split, both)
    where = ["--model", "my models/tiny", "--root", str(tmp_path / "a b")]
    asked = ["--behaviors", "refusal", "--layers", "3", "--multipliers", "1"]
    assert answer == ["./prompting_with_steering.py", *asked, "--type", "open_ended", *where]
    assert score == ["./scoring.py", *asked, *where]
    prompting_with_steering.build_parser().parse_args(answer[1:])
    scoring.build_parser().parse_args(score[1:])


def test_a_command_asks_for_everything_that_the_settings_say(tmp_path: Path) -> None:
    """Pasted, it makes results under the very same names."""
    weights = tmp_path / "finetuned_models" / "refusal-pos.pt"
    weights.parent.mkdir()
    weights.touch()
    like = replace(
        settings_of(CHOICE, "refusal", "open_ended"),
        override_vector=4,
        override_vector_model="Llama-2-7b-hf",
        override_model_weights_path="finetuned_models-refusal-pos.pt",
        steer_positions="all",
        vector_behavior="sycophancy",
        temperature=0.7,
        num_samples=3,
        seed=5,
    )
    words = shlex.split(command(like, tmp_path).split(" && ")[0])
    args = prompting_with_steering.build_parser().parse_args(words[1:])
    args.command = ""
    request = prompting_with_steering.build_request(args)
    assert request.weights_path == weights
    assert sweep_settings(request, "refusal") == like


def test_strengths_are_asked_for_as_strengths() -> None:
    words = shlex.split(command(replace(PLAIN, knob="strength"), multipliers=(-0.5, 0.5)))
    assert words[5:8] == ["--strengths", "-0.5", "0.5"] and "--multipliers" not in words
    args = prompting_with_steering.build_parser().parse_args(words[1:])
    args.command = ""
    request = prompting_with_steering.build_request(args)
    assert (request.knob, request.multipliers) == ("strength", (-0.5, 0.5))


def test_numbers_are_exact_and_without_an_exponent() -> None:
    words = shlex.split(command(PLAIN, multipliers=(-1e-05, 1 / 3, 3e7, -0.1)))
    start = words.index("--multipliers") + 1
    assert words[start : start + 4] == ["-0.00001", "0.3333333333333333", "30000000.0", "-0.1"]
    args = prompting_with_steering.build_parser().parse_args(words[1:])
    assert args.multipliers == [-1e-05, 1 / 3, 3e7, -0.1]


def test_missing_results_are_one_line_for_each_command_with_root_and_model(tmp_path: Path) -> None:
    missing = Missing(CHOICE, DataPaths(tmp_path))
    for layer, multiplier in ((2, 1.0), (3, 1.0), (2, -1.0), (3, -1.0)):
        missing.add(PLAIN.at(layer, multiplier))
    missing.add(replace(PLAIN, system_prompt="pos").at(2, 1.0))
    where = f"--model_size 135m --root {tmp_path}"
    script = "./prompting_with_steering.py --behaviors refusal"
    assert missing.lines() == [
        "missing: refusal, layer 2, multiplier 1 (system_prompt=pos); run: "
        f"{script} --layers 2 --multipliers 1 --type ab --system_prompt pos {where}",
        "missing: refusal, layer 2 3, multiplier -1 1; run: "
        f"{script} --layers 2 3 --multipliers -1 1 --type ab {where}",
    ]
