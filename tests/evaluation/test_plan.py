"""What a sweep is to make, planned from a request in Python: no command line, no model."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models import N_LAYERS
from utils.errors import UserError
from utils.evaluation.kinds import KINDS
from utils.evaluation.plan import SweepRequest, check_request, plan_sweeps
from utils.evaluation.sweep_vectors import load_vectors
from utils.files.writing import write_json
from utils.model.checkpoints import choose_model
from utils.paths import DataPaths
from utils.settings import RESULT_TYPES


@pytest.fixture
def request_of(steered_root: Path, tiny_checkpoint: Path) -> SweepRequest:
    choice = choose_model("7b", str(tiny_checkpoint), False)
    return SweepRequest(DataPaths(steered_root), choice, ("sycophancy",), (1, 3), (-1.0, 0.0, 1.0))


def test_every_type_of_result_has_its_kind_of_questions() -> None:
    assert tuple(KINDS) == RESULT_TYPES


def test_a_plan_names_every_combination_its_vector_and_what_is_missing(request_of: SweepRequest) -> None:
    plan = plan_sweeps(replace(request_of, behaviors=("sycophancy", "refusal"), multipliers=(1.0, 0.0, -1.0, 1.0)))
    assert [sweep.settings.behavior for sweep in plan.sweeps] == ["sycophancy", "refusal"]
    one = plan.sweeps[0]
    assert one.combinations == ((1, -1.0), (1, 0.0), (1, 1.0), (3, -1.0), (3, 0.0), (3, 1.0))
    assert sorted(one.vectors) == [1, 3] and [path.name for path in one.vectors[3]] == ["vec_layer_3_tiny-chat.pt"]
    assert (plan.n_missing, plan.n_skipped, plan.waiting) == ((6, 6), 0, list(plan.sweeps))
    assert plan.shape.n_layers == N_LAYERS

    write_json(request_of.paths.result(one.settings.at(3, 0.0)), [])
    again = plan_sweeps(request_of)
    assert (again.n_missing, again.n_skipped) == ((5,), 1)
    assert plan_sweeps(replace(request_of, overwrite=True)).n_missing == (6,)


def test_layers_that_are_not_named_are_all_of_the_model(request_of: SweepRequest) -> None:
    [sweep] = plan_sweeps(replace(request_of, layers=None, multipliers=(2.0,))).sweeps
    assert [layer for layer, _ in sweep.combinations] == list(range(N_LAYERS))


def test_the_facts_of_free_answers_hold_their_longest_length_and_those_of_letters_do_not(
    request_of: SweepRequest,
) -> None:
    [letters] = plan_sweeps(replace(request_of, max_new_tokens=7)).sweeps
    [answers] = plan_sweeps(replace(request_of, type="open_ended", max_new_tokens=7)).sweeps
    assert "max_new_tokens" not in letters.facts and answers.facts["max_new_tokens"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "mmlu", "temperature": 0.5}, "--type mmlu has none"),
        ({"type": "open_ended", "num_samples": 2}, "--num_samples needs --temperature"),
        ({"override_vector": -1}, "--override_vector -1 is negative"),
        ({"weights_path": Path("/no/file.pt")}, "/no/file.pt: there is no such file"),
        ({"system_prompt": "pos", "choice": choose_model("7b", None, True)}, "--system_prompt needs a chat model"),
    ],
)
def test_requests_that_make_no_sense_are_refused(change: dict, message: str, request_of: SweepRequest) -> None:
    check_request(request_of)
    with pytest.raises(UserError, match=message):
        check_request(replace(request_of, **change))


# --- hints that can be pasted ---


def commands(request: SweepRequest) -> list[list[str]]:
    """The commands that the error over a missing vector names, as words."""
    with pytest.raises(UserError) as refused:
        load_vectors(plan_sweeps(request))
    _, _, hint = str(refused.value).partition("; run: ")
    return [shlex.split(command) for command in hint.split(", then: ")]


def test_a_missing_vector_is_named_with_commands_that_work_when_pasted(request_of: SweepRequest) -> None:
    for (path,) in plan_sweeps(request_of).sweeps[0].vectors.values():
        path.unlink()
    root, model = str(request_of.paths.root), request_of.choice.source
    generate, normalize = commands(request_of)
    where = ["--model", model, "--root", root]
    assert generate == ["./generate_vectors.py", "--behaviors", "sycophancy", "--layers", "1", "3", *where]
    assert normalize == ["./normalize_vectors.py", "--behaviors", "sycophancy", *where]
    assert commands(replace(request_of, layers=None))[0] == [*generate[:3], *where]

    of_another = commands(replace(request_of, override_vector=2, override_vector_model="org/Other-Model"))
    assert of_another[0][3:] == ["--layers", "2", "--model", "org/Other-Model", "--root", root]
    known = commands(replace(request_of, vector_behavior="refusal", override_vector_model="Llama-2-7b-hf"))
    assert known[0][2] == known[1][2] == "refusal"
    assert known[0][-5:] == ["--model_size", "7b", "--use_base_model", "--root", root]


def test_a_missing_test_set_is_named_with_the_root(request_of: SweepRequest) -> None:
    request_of.paths.test_dataset("sycophancy", "ab").unlink()
    command = rf"run: \./process_raw_datasets\.py --behaviors sycophancy --root {request_of.paths.root}$"
    with pytest.raises(UserError, match=command):
        plan_sweeps(request_of)
