"""Vectors in other tools' files: bit-equal there and back, at the right layer, refused where a tool would go wrong."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from torch import Tensor

import export_vectors
from tests.models import D_MODEL, N_LAYERS, build_model, decoder_blocks, random_vector, steered_logits
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.errors import UserError
from utils.exports.formats import read_bundle
from utils.exports.gguf_files import llama_cpp_vectors
from utils.exports.numbering import NUMBERINGS, layer_of_number, number_of_layer
from utils.exports.requests import FORMATS, ONE_LAYER_A_FILE
from utils.files.provenance import record_provenance
from utils.files.reading import load_vector
from utils.files.writing import save_tensor
from utils.model.steering import Steering
from utils.paths import DataPaths

IDS = [1, 40, 41, 42, 43]
Export = Callable[..., int]


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    """Raw and normalised vectors of one behavior at all layers, with their provenance."""
    paths = DataPaths(tmp_path / "root")
    for layer in range(N_LAYERS):
        for normalized in (False, True):
            path = paths.vector("refusal", layer, TINY_LABEL, normalized=normalized)
            save_tensor(path, random_vector(layer) * (3 if normalized else 1))
        record = {"model": TINY_LABEL, "weights_fingerprint": "aa11", "n_pairs": 7, "dataset_sha256": "ff"}
        raw = paths.vector("refusal", layer, TINY_LABEL, normalized=False)
        record_provenance(raw.parent, [raw.name], record)
    return paths


@pytest.fixture
def export(paths: DataPaths, tiny_checkpoint: Path) -> Export:
    def run(*flags: object) -> int:
        command = ["--root", paths.root, "--model", tiny_checkpoint, *flags]
        return export_vectors.main([str(word) for word in command])

    return run


def exporting(format_name: str, *flags: object) -> list[object]:
    return ["--behaviors", "refusal", "--format", format_name, *flags]


def written(paths: DataPaths, format_name: str) -> list[Path]:
    """The vectors' files, without what lies beside them."""
    files = sorted((paths.root / "exports" / format_name / "refusal").glob("vec_layer_*"))
    return [path for path in files if format_name == "neuronpedia" or path.suffix != ".json"]


def normalized(layer: int) -> Tensor:
    return random_vector(layer) * 3


# --- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", FORMATS)
def test_vectors_come_back_bit_by_bit_and_the_files_too(
    format_name: str, paths: DataPaths, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    layers = [1, 2]
    assert export(*exporting(format_name, "--layers", *layers)) == 0
    files = written(paths, format_name)
    assert len(files) == (2 if format_name in ONE_LAYER_A_FILE else 1)
    other = DataPaths(tmp_path / "other")
    other.root.mkdir()
    model = ["--root", str(other.root), "--model", str(tiny_checkpoint)]
    for file in files:
        assert export_vectors.main([*model, "--import", str(file)]) == 0
    for layer in layers:
        found = load_vector(other.vector("refusal", layer, TINY_LABEL, normalized=True))
        assert torch.equal(found, normalized(layer))
    assert not (other.root / "vectors").exists()
    again = [*model, *map(str, exporting(format_name, "--layers", *layers))]
    assert export_vectors.main(again) == 0
    assert [read_bundle(path).vectors.keys() for path in written(other, format_name)] == [
        read_bundle(path).vectors.keys() for path in files
    ]
    for one, two in zip(files, written(other, format_name), strict=True):
        first, second = read_bundle(one).vectors, read_bundle(two).vectors
        assert all(torch.equal(first[layer], second[layer]) for layer in first)


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_a_file_adds_is_multiplier_times_vector(format_name: str, paths: DataPaths, export: Export) -> None:
    assert export(*exporting(format_name, "--layers", 2, "--multiplier", -1.7)) == 0
    [file] = written(paths, format_name)
    bundle = read_bundle(file)
    if format_name == "easysteer":
        spec = json.loads(file.with_suffix(".json").read_text())["vectors"][0]
        assert spec["layers"] == [2] and spec["algorithm"] == "direct" and spec["normalize"] is False
        assert spec["apply"] == {"prompt_positions": [-1], "generation": "all"}
        coefficient = spec["scale"]
    else:
        coefficient = bundle.coefficient
    torch.testing.assert_close(coefficient * bundle.vectors[2], -1.7 * normalized(2), rtol=1e-6, atol=0)
    inside = {"easysteer", "lm_eval", "neuronpedia"}
    assert coefficient == (-1.7 if format_name in inside else 1.0)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_says_what_its_vectors_are(format_name: str, paths: DataPaths, export: Export) -> None:
    assert export(*exporting(format_name, "--layers", 2, "--licence", "CC0")) == 0
    [file] = written(paths, format_name)
    facts = read_bundle(file).facts
    expected = {
        "model": TINY_LABEL,
        "weights_fingerprint": "aa11",
        "n_pairs": "7",
        "dataset_sha256": "ff",
        "behavior": "refusal",
        "read": "letter",
        "method": "mean",
        "from": "pairs",
        "normalized": "yes",
        "licence": "CC0",
        "d_model": str(D_MODEL),
        "layer_convention": "decoder block output, counted from 0",
        "multiplier": "1.0",
    }
    assert expected.items() <= facts.items()
    assert json.loads(facts["norms"])["2"] == pytest.approx(float(normalized(2).norm()), rel=1e-6)


def test_the_licence_of_vectors_of_unknown_pairs_is_not_made_up(paths: DataPaths, export: Export) -> None:
    assert export(*exporting("safetensors", "--layers", 2)) == 0
    assert "licence" not in read_bundle(written(paths, "safetensors")[0]).facts


# --- layer numbers ---------------------------------------------------------------------------------


def test_every_format_has_a_numbering_that_goes_both_ways() -> None:
    assert set(FORMATS) == set(NUMBERINGS)
    for name in FORMATS:
        for layer in range(1, 5):
            assert layer_of_number(name, number_of_layer(name, layer)) == layer
    assert [number_of_layer(name, 3) for name in ("gguf", "persona", "neuronpedia")] == [3, 4, 4]
    assert layer_of_number("persona", 0) is None


def test_a_row_of_persona_vectors_is_that_of_hidden_states(paths: DataPaths, export: Export) -> None:
    """Row r belongs to hidden_states[r]; the last of these is behind the final norm, the others are block outputs."""
    model = build_model("llama")
    outputs: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda *args, i=i: outputs.update({i: args[2]}))  # type: ignore[misc]
        for i, block in enumerate(decoder_blocks(model))
    ]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([IDS]), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert export(*exporting("persona", "--layers", 0, 2)) == 0
    rows = torch.load(written(paths, "persona")[0], weights_only=True)
    assert rows.shape == (N_LAYERS + 1, D_MODEL)
    for layer in (0, 2):
        torch.testing.assert_close(states[layer + 1], outputs[layer])
        assert torch.equal(rows[layer + 1], normalized(layer))
    assert bool(rows[[0, 2, 4]].isnan().all())


def test_neuronpedia_adds_at_the_input_of_the_next_block(paths: DataPaths, export: Export) -> None:
    assert export(*exporting("neuronpedia", "--layers", 1, "--multiplier", 2)) == 0
    content = json.loads(written(paths, "neuronpedia")[0].read_text())
    arguments = content["arguments"]
    assert set(arguments) == {"label", "model_id", "layer_num", "hook_type", "vector", "default_steer_strength"}
    assert arguments["hook_type"] == "hook_resid_pre" and arguments["layer_num"] == 2
    model = build_model("llama")
    added = arguments["default_steer_strength"] * torch.tensor(arguments["vector"])

    def enter(module: Any, args: Any) -> Any:
        return (args[0] + added, *args[1:])

    handle = decoder_blocks(model)[arguments["layer_num"]].register_forward_pre_hook(enter)
    with torch.no_grad():
        there = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    handle.remove()
    here = steered_logits(model, IDS, 0, Steering(1, 2.0, normalized(1)))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


def test_lm_eval_adds_at_the_output_of_the_block(paths: DataPaths, export: Export) -> None:
    """By its own rule: every module of the base model that a hookpoint names gets coefficient x vector."""
    assert export(*exporting("lm_eval", "--layers", 1, "--multiplier", 2)) == 0
    content = torch.load(written(paths, "lm_eval")[0], weights_only=True)
    model = build_model("llama")

    @contextmanager
    def steered() -> Iterator[None]:
        [(hookpoint, info)] = content.items()
        assert info["action"] == "add" and info["bias"] is None
        [module] = [module for name, module in model.base_model.named_modules() if name == hookpoint]
        added = info["steering_coefficient"] * info["steering_vector"]
        handle = module.register_forward_hook(lambda *args: args[2] + added)
        yield
        handle.remove()

    with steered(), torch.no_grad():
        there = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    here = steered_logits(model, IDS, 0, Steering(1, 2.0, normalized(1)))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (exporting("gguf", "--layers", 0), "layer 0 has no number in the format gguf"),
        (exporting("neuronpedia", "--layers", N_LAYERS - 1), "layer 3 is the model's last"),
        (exporting("lm_eval", "--layers", 1, 2, "--one_file"), "this format holds one layer a file"),
        (exporting("gguf", "--layers", N_LAYERS), "has layers 0 to 3"),
        (exporting("gguf"), "name the layer with --layers N"),
        (exporting("gguf", "--chosen"), "nothing was chosen; run: ./choose_steering.py --behaviors refusal"),
        (
            exporting("gguf", "--layers", 1, "--read", "last"),
            "run: ./generate_vectors.py --behaviors refusal --layers 1",
        ),
        (exporting("gguf", "--layers", 1, "--multiplier", 0), "leaves nothing to export"),
    ],
)
def test_what_a_tool_would_get_wrong_is_refused_in_one_line_and_nothing_is_written(
    flags: list[object], message: str, paths: DataPaths, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(paths.root)
    assert export(*flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(paths.root) == before


# --- llama.cpp's rules -----------------------------------------------------------------------------


def control_vector(path: Path, tensors: dict[str, Any]) -> Path:
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"direction.0": torch.ones(4)}, "it has `direction.0`"),
        ({"direction.1": torch.ones(4), "direction.0": torch.ones(4)}, "it has `direction.0`"),
        ({"direction.-1": torch.ones(4)}, "is not named `direction.N`"),
        ({"direction": torch.ones(4)}, "is not named `direction.N`"),
        ({"direction.x": torch.ones(4)}, "is not named `direction.N`"),
        ({"vector.1": torch.ones(4)}, "is not named `direction.N`"),
        ({"direction.99999999999": torch.ones(4)}, "is not named `direction.N`"),
        ({"direction.1": torch.ones(4).half()}, "is not F32"),
        ({"direction.1": torch.ones(4).double()}, "is not F32"),
        ({"direction.1": torch.ones(2, 4)}, "not one dimension"),
        ({"direction.1": torch.ones(4), "direction.2": torch.ones(5)}, "is 5 wide, the tensors before it 4"),
    ],
)
def test_what_llama_cpp_refuses_is_refused(
    tensors: dict[str, Tensor], rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = control_vector(tmp_path / "v.gguf", tensors)
    with pytest.raises(UserError, match=r"llama\.cpp refuses this file") as err:
        llama_cpp_vectors(path)
    assert rule in str(err.value)
    assert export_vectors.main(["--check", str(path)]) == 1


def test_what_llama_cpp_takes_is_taken_as_it_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors of one block are added up; a number may have more behind it; a second dimension of 1 is none."""
    tensors = {"direction.3": torch.ones(4), "direction.03": torch.ones(4), "direction.5b": torch.full((1, 4), 3.0)}
    path = control_vector(tmp_path / "v.gguf", tensors)
    found = llama_cpp_vectors(path, strength=0.5)
    assert {block: vector.tolist() for block, vector in found.items()} == {3: [1.0] * 4, 5: [1.5] * 4}
    assert export_vectors.main(["--check", str(path)]) == 0
    assert "added to the output of block 3: 4 values, norm 4" in capsys.readouterr().out


def test_several_layers_go_into_one_gguf_only_when_that_is_asked_for(
    paths: DataPaths, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*exporting("gguf", "--layers", "1-3", "--one_file")) == 0
    [file] = written(paths, "gguf")
    found = llama_cpp_vectors(file)
    assert sorted(found) == [1, 2, 3] and torch.equal(torch.from_numpy(found[2]), normalized(2))
    said = capsys.readouterr().err
    assert "3 layers are all added" in said and "at all positions" in said


# --- bringing in -----------------------------------------------------------------------------------


def test_a_file_from_elsewhere_comes_in_under_a_name_and_model_that_are_given(
    paths: DataPaths, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = control_vector(tmp_path / "happy.gguf", {f"direction.{i}": random_vector(i) for i in range(1, N_LAYERS)})
    assert export("--import", path, "--behavior", "happy") == 0
    for layer in range(1, N_LAYERS):
        assert torch.equal(
            load_vector(paths.vector("happy", layer, TINY_LABEL, normalized=False)), random_vector(layer)
        )
    said = capsys.readouterr().err
    assert "its weights could not be compared" in said and "./prompting_with_steering.py --vector" in said
    before = snapshot(paths.root)
    assert export("--import", path, "--behavior", "happy") == 0
    assert snapshot(paths.root) == before


def test_persona_vectors_from_elsewhere_lose_their_row_of_embeddings_and_say_so(
    paths: DataPaths, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.randn(N_LAYERS + 1, D_MODEL), tmp_path / "evil_response_avg_diff.pt")
    assert export("--import", tmp_path / "evil_response_avg_diff.pt", "--behavior", "evil") == 0
    assert len(list(paths.vectors_dir("evil", normalized=False).glob("*.pt"))) == N_LAYERS
    assert "left out row 0" in capsys.readouterr().err


FOREIGN = {
    "of another width": ({"direction.1": torch.ones(D_MODEL + 1)}, "width 33, but the residual stream"),
    "of a layer that is not there": ({f"direction.{N_LAYERS}": torch.ones(D_MODEL)}, "has layers 0 to 3"),
    "not finite": ({"direction.1": torch.full((D_MODEL,), float("nan"))}, "NaN, infinite values"),
    "empty": ({"direction.1": torch.zeros(D_MODEL)}, "nothing but zeros"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_vectors_that_do_not_fit_are_refused(
    what: str, paths: DataPaths, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, message = FOREIGN[what]
    before = snapshot(paths.root)
    path = control_vector(tmp_path / "v.gguf", tensors)
    assert export("--import", path, "--behavior", "happy") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(paths.root) == before


def test_another_model_other_weights_and_another_vector_in_the_way_are_refused(
    paths: DataPaths, export: Export, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*exporting("safetensors", "--layers", 1)) == 0
    [file] = written(paths, "safetensors")
    capsys.readouterr()
    other_name = tmp_path / "another-model"
    other_name.symlink_to(tiny_checkpoint)
    flags = ["--root", str(paths.root), "--import", str(file)]
    assert export_vectors.main([*flags, "--model", str(other_name)]) == 2
    assert f"holds vectors of {TINY_LABEL}, not of another-model" in capsys.readouterr().err
    put_json(paths.residual_norms(TINY_LABEL), {"weights_fingerprint": "bb22"})
    for layer in range(N_LAYERS):  # nothing here is of the file's weights any more
        raw = paths.vector("refusal", layer, TINY_LABEL, normalized=False)
        record_provenance(raw.parent, [raw.name], {"model": TINY_LABEL, "weights_fingerprint": "bb22"})
    assert export("--import", file) == 2
    assert "was made with other weights" in capsys.readouterr().err
    paths.residual_norms(TINY_LABEL).unlink()
    (paths.vectors_dir("refusal", normalized=False) / "provenance.json").unlink()
    save_tensor(paths.vector("refusal", 1, TINY_LABEL, normalized=True), random_vector(9))
    assert export("--import", file) == 2
    assert "is there and holds another vector" in capsys.readouterr().err
    assert export("--import", file, "--overwrite") == 0
    assert torch.equal(load_vector(paths.vector("refusal", 1, TINY_LABEL, normalized=True)), normalized(1))


HOSTILE: dict[str, tuple[str, bytes]] = {
    "no gguf": ("v.gguf", b"GGUF" + b"\xff" * 60),
    "empty gguf": ("v.gguf", b""),
    "no safetensors": ("v.safetensors", b"\xff" * 60),
    "no svec": ("v.svec", b"[]"),
    "svec of words": ("v.svec", b'{"directions": {"1": [["a"]]}}'),
    "svec of two": ("v.svec", b'{"directions": {"1": [[1.0], [2.0]]}}'),
    "svec at no layer": ("v.svec", b'{"directions": {"-1": [[1.0]]}}'),
    "no vector": ("v.json", b'{"layer_num": 2}'),
    "another hook": ("v.json", b'{"vector": [1.0], "layer_num": 2, "hook_type": "hook_mlp_out"}'),
    "embeddings": ("v.json", b'{"vector": [1.0], "layer_num": 0, "hook_type": "hook_resid_pre"}'),
    "a pickle": ("v.pt", b"cposix\nsystem\n(S'false'\ntR."),
    "another ending": ("v.csv", b"1,2"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_broken_or_foreign_file_is_one_line(
    what: str, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content = HOSTILE[what]
    (tmp_path / name).write_bytes(content)
    assert export("--import", tmp_path / name, "--behavior", "happy") == 2
    assert len(error_lines(capsys.readouterr().err)) == 1


def test_every_cut_of_a_gguf_is_refused_or_read_in_one_line(paths: DataPaths, export: Export, tmp_path: Path) -> None:
    assert export(*exporting("gguf", "--layers", 1)) == 0
    whole = written(paths, "gguf")[0].read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, len(whole) - 1, 37):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_bundle(cut)


# --- again -----------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_changed_vectors_are_said(
    paths: DataPaths, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FORMATS:
        assert export(*exporting(name, "--layers", 1)) == 0
    before = snapshot(paths.root)
    for name in FORMATS:
        assert export(*exporting(name, "--layers", 1)) == 0
    assert snapshot(paths.root) == before and capsys.readouterr().err.count("wrote 0 files, skipped 1") == len(FORMATS)
    save_tensor(paths.vector("refusal", 1, TINY_LABEL, normalized=True), random_vector(9))
    capsys.readouterr()
    assert export(*exporting("gguf", "--layers", 1)) == 0
    assert "was made from other vectors or changed since" in capsys.readouterr().err
    assert export(*exporting("gguf", "--layers", 1, "--overwrite")) == 0
    assert torch.equal(read_bundle(written(paths, "gguf")[0]).vectors[1], random_vector(9))


def test_what_was_chosen_is_exported_at_its_strength(paths: DataPaths, export: Export) -> None:
    choice = {"layer": 2, "strength": 0.2, "multiplier": 2.5}
    from utils.settings import VectorKind

    put_json(paths.chosen_steering("refusal", TINY_LABEL, VectorKind()), choice)
    assert export(*exporting("gguf", "--chosen")) == 0
    [file] = written(paths, "gguf")
    assert "layer_2_" in file.name and torch.equal(read_bundle(file).vectors[2], (normalized(2).double() * 2.5).float())
