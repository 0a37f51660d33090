"""Finding vectors and activations by their names, naming commands, and loading a model's vectors."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference import carried_path
from utils.cli.flags import add_model, make_parser, model_choice
from utils.errors import UserError
from utils.files.writing import save_tensor
from utils.model.checkpoints import MODEL_SIZES, choose_model
from utils.paths import REPOSITORY, DataPaths
from utils.vectors.files import (
    choice_of_label,
    find_activations,
    find_vectors,
    generate_command,
    layer_ranges,
    load_vector_table,
    normalize_command,
)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_vectors_are_found_by_model_and_layer_and_other_files_are_not(tmp_path: Path) -> None:
    for name in (
        "vec_layer_3_a_b.pt",
        "vec_layer_12_a_b.pt",
        "vec_layer_0_c.pt",
        "vec_layer_x_c.pt",
        "vec_layer_1_c.pt.tmp",
        "old_vec_layer_1_c.pt",
        "provenance.json",
    ):
        touch(tmp_path / "vectors" / "refusal" / name)
    touch(tmp_path / "normalized_vectors" / "refusal" / "vec_layer_7_c.pt")
    paths = DataPaths(tmp_path)
    assert find_vectors(paths, "refusal") == {"a_b": {3, 12}, "c": {0}}
    assert find_vectors(paths, "refusal", normalized=True) == {"c": {7}}
    assert find_vectors(paths, "sycophancy") == {}


def test_activations_count_only_where_both_halves_are_there_for_this_very_model(tmp_path: Path) -> None:
    folder = tmp_path / "activations" / "refusal"
    for name in ("pos_1_m", "neg_1_m", "pos_2_m", "neg_3_m", "pos_4_m-chat", "neg_4_m-chat", "pos_5_1_m", "neg_5_1_m"):
        touch(folder / f"activations_{name}.pt")
    assert find_activations(DataPaths(tmp_path), "refusal", "m") == {1}
    assert find_activations(DataPaths(tmp_path), "refusal", "1_m") == {5}
    assert find_activations(DataPaths(tmp_path), "sycophancy", "m") == set()


@pytest.mark.parametrize(
    ("layers", "words"), [([], ""), ([4], "4"), ([3, 2], "2-3"), ([0, 1, 2, 7, 9, 10], "0-2,7,9-10"), ([5, 5], "5")]
)
def test_layers_are_written_as_ranges(layers: list[int], words: str) -> None:
    assert layer_ranges(layers) == words


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_a_label_leads_back_to_the_flags_of_its_checkpoint(size: str) -> None:
    parser = make_parser("")
    add_model(parser)
    for extra in ([],) if size == "135m" else ([], ["--use_base_model"]):
        choice = model_choice(parser.parse_args(["--model_size", size, *extra]))
        assert choice_of_label(choice.label) == choice
        assert choice_of_label(choice.label).command_words == ["--model_size", size, *extra]


def test_commands_name_what_is_missing_and_leave_out_what_is_not_known() -> None:
    choice = choice_of_label("my-model")
    assert (
        generate_command(DataPaths(REPOSITORY), ["refusal"], [2, 3], choice, activations=True)
        == "./generate_vectors.py --save_activations --behaviors refusal --layers 2 3 --model my-model"
    )
    assert generate_command(DataPaths(REPOSITORY), [], [], None) == "./generate_vectors.py"
    assert normalize_command(DataPaths(REPOSITORY), ["refusal"], choice) == (
        "./normalize_vectors.py --behaviors refusal --model my-model"
    )


def test_commands_name_another_root_and_are_quoted_for_the_shell() -> None:
    elsewhere, choice = DataPaths(Path("my data")), choose_model("7b", "models of mine/tiny", True)
    words = shlex.split(generate_command(elsewhere, ["refusal"], [], choice))
    assert words[:3] == ["./generate_vectors.py", "--behaviors", "refusal"]
    assert words[3:] == ["--model", "models of mine/tiny", "--use_base_model", "--root", "my data"]
    assert shlex.split(normalize_command(elsewhere, [], None)) == ["./normalize_vectors.py", "--root", "my data"]


def test_published_vectors_load_into_their_places() -> None:
    paths = DataPaths(carried_path())
    label = "Llama-2-tiny-chat-hf"
    table = load_vector_table(paths, label, {"refusal": [3], "sycophancy": [4, 2, 3]}, normalized=False)
    assert (table.behaviors, table.layers, table.d_model) == (("refusal", "sycophancy"), (2, 3, 4), 64)
    one = torch.load(carried_path("vectors", "sycophancy", f"vec_layer_4_{label}.pt"), weights_only=True)
    assert np.array_equal(table.values[1, 2], one.double().numpy())
    assert np.isnan(table.values[0, 0]).all() and np.isfinite(table.values[0, 1]).all()
    assert np.isnan(table.values[0, 2]).all() and np.isfinite(table.values[1]).all()


def test_vectors_of_different_widths_and_no_vectors_at_all_are_refused(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    save_tensor(paths.vector("refusal", 0, "m", normalized=False), torch.ones(4))
    save_tensor(paths.vector("refusal", 1, "m", normalized=False), torch.ones(5))
    with pytest.raises(UserError, match=r"vec_layer_1_m\.pt has width 5, but other vectors of m have 4"):
        load_vector_table(paths, "m", {"refusal": {0, 1}}, normalized=False)
    with pytest.raises(UserError, match="no vectors"):
        load_vector_table(paths, "m", {"refusal": set()}, normalized=False)
