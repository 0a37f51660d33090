"""Files are whole or not there, and nothing that is read from one is trusted."""

import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from tests.roots import put_json, snapshot
from utils.errors import UserError
from utils.files.provenance import PROVENANCE_NAME, read_folder_provenance, read_provenance, record_provenance
from utils.files.reading import load_activations, load_tensor_file, load_vector, read_json, sha256_of
from utils.files.writing import atomic_file, locked_folder, save_tensor, write_json, write_text

# --- writing ---


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("killed")
    assert snapshot(tmp_path) == {"numbers.json": b"old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "numbers.json", "old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "numbers.json", [1])
    with pytest.raises(OSError, match="No space left"):
        save_tensor(tmp_path / "new.pt", torch.zeros(2))
    assert snapshot(tmp_path) == {"numbers.json": b"old"}


def test_while_a_file_is_written_its_final_name_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a.txt"
    with atomic_file(path) as file:
        file.write(b"text")
        assert not path.exists()
        [temporary] = path.parent.iterdir()
        assert temporary.name.startswith(".") and temporary.suffix == ".tmp"
    assert path.read_bytes() == b"text"
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_written_as_the_published_files_are(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [{"question": "Ä?", "a_prob": 0.1}])
    text = (tmp_path / "a.json").read_text(encoding="ascii")
    assert text == '[\n    {\n        "question": "\\u00c4?",\n        "a_prob": 0.1\n    }\n]'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "b.json", {"a_prob": value})
    assert sorted(snapshot(tmp_path)) == ["a.json"]


def test_the_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- reading JSON ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"question": "x"', r"not valid JSON \(.* at line 1, column 18\)"),
        (b"[\n1,\n]", r"not valid JSON \(.* at line \d, column \d\)"),
        (b'{"a": 1, "a": 2}', r"not valid JSON \(key 'a' occurs twice in one object\)"),
        (b'{"a": NaN}', r"not valid JSON \(NaN is not a JSON number\)"),
        (b"[-Infinity]", r"not valid JSON \(-Infinity is not a JSON number\)"),
        (b'["\xff"]', r"not UTF-8 text \(byte 2\)"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_file_and_place(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_json_file_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json not found; run: \./make$"):
        read_json(tmp_path / "gone.json", "run: ./make")
    with pytest.raises(UserError, match=r"gone\.json not found$"):
        read_json(tmp_path / "gone.json")


# --- reading tensors ---


class _RunsCode:
    """A pickle of it writes a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("as_torch_file", [True, False])
@pytest.mark.parametrize("load", [load_tensor_file, load_vector, load_activations])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, as_torch_file: bool, load: object
) -> None:
    path, target = tmp_path / "vec_layer_0_x.pt", tmp_path / "ran"
    if as_torch_file:
        torch.save({"vector": _RunsCode(target)}, path)
    else:
        path.write_bytes(pickle.dumps(_RunsCode(target)))
    with pytest.raises(UserError, match=rf"{path.name} is damaged or holds more than plain tensors and was not loaded"):
        load(path)  # type: ignore[operator]
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"PK\x03\x04 a broken archive", b"\x80\x02}q\x00."])
def test_what_is_no_tensor_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vec.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"vec\.pt .*; make it again") as caught:
        load_vector(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_file_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    save_tensor(tmp_path / "whole.pt", torch.arange(64.0))
    content = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.pt"):
            load_vector(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, 3),
        torch.zeros(()),
        torch.zeros(4, dtype=torch.int64),
        {"vector": torch.zeros(4)},
        [torch.zeros(4)],
        None,
    ],
)
def test_what_is_no_vector_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "vec.pt")
    with pytest.raises(UserError, match=r"vec\.pt does not hold a steering vector \(one float tensor \[d_model\]\)"):
        load_vector(tmp_path / "vec.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_vectors_and_activations_with_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    torch.save(torch.tensor([1.0, value]), tmp_path / "vec.pt")
    torch.save(torch.tensor([[1.0, value]]), tmp_path / "activations.pt")
    with pytest.raises(UserError, match=r"vec\.pt contains NaN or infinite values"):
        load_vector(tmp_path / "vec.pt")
    with pytest.raises(UserError, match=r"activations\.pt contains NaN or infinite values"):
        load_activations(tmp_path / "activations.pt")


def test_a_vector_of_another_width_is_refused_and_both_widths_named(tmp_path: Path) -> None:
    save_tensor(tmp_path / "vec.pt", torch.zeros(4))
    with pytest.raises(UserError, match=r"vec\.pt has width 4, but the model's residual stream has 5"):
        load_vector(tmp_path / "vec.pt", 5)
    assert load_vector(tmp_path / "vec.pt", 4).shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_of_any_float_type_load_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    save_tensor(tmp_path / "vec.pt", torch.tensor([0.5, -2.0], dtype=dtype))
    loaded = load_vector(tmp_path / "vec.pt")
    assert loaded.dtype == torch.float32 and loaded.tolist() == [0.5, -2.0]


def test_a_missing_tensor_file_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt not found; run: \./generate_vectors\.py"):
        load_vector(tmp_path / "gone.pt", None, "run: ./generate_vectors.py")


# --- provenance ---


def test_every_artifact_is_mapped_to_the_last_run_that_made_it(tmp_path: Path) -> None:
    first, second = {"command": "./a"}, {"command": "./b", "n_pairs": 3}
    record_provenance(tmp_path, ["x.pt", "y.pt"], first)
    record_provenance(tmp_path, ["y.pt", "z.pt"], second)
    assert read_provenance(tmp_path / "x.pt") == first
    assert read_provenance(tmp_path / "y.pt") == read_provenance(tmp_path / "z.pt") == second
    assert read_provenance(tmp_path / "other.pt") is None
    assert read_folder_provenance(tmp_path) == {"x.pt": first, "y.pt": second, "z.pt": second}
    assert read_folder_provenance(tmp_path / "empty") == {}
    record_provenance(tmp_path, ["x.pt"], second)  # nothing is left of the first run
    assert list(json.loads((tmp_path / PROVENANCE_NAME).read_text())["runs"].values()) == [second]


def test_two_processes_that_note_their_runs_lose_neither(tmp_path: Path) -> None:
    def note(worker: int) -> None:
        for index in range(5):
            record_provenance(tmp_path, [f"{worker}_{index}"], {"worker": worker})

    threads = [threading.Thread(target=note, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_folder_provenance(tmp_path)) == 20


@pytest.mark.parametrize("content", [[], {"artifacts": {}}, {"artifacts": {"x.pt": "no such run"}}, {}])
def test_a_provenance_file_of_another_shape_is_written_anew(tmp_path: Path, content: object) -> None:
    put_json(tmp_path / PROVENANCE_NAME, content)
    assert read_provenance(tmp_path / "x.pt") is None
    record_provenance(tmp_path, ["x.pt"], {"command": "./a"})
    assert read_provenance(tmp_path / "x.pt") == {"command": "./a"}


def test_a_folder_s_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_folder(tmp_path / "new"):
        raise RuntimeError
    with locked_folder(tmp_path / "new"):
        pass
