"""create_behavior.py: from a sentence to a page, each step skipped where it is done, and nothing written elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import create_behavior
import monitor
import process_raw_datasets
from tests.authoring.making import ID, OTHERS, SENTENCE, THINGS, put_written, read, runner
from tests.models import D_MODEL, N_LAYERS, build_wrapper
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.authoring.request import KINDS
from utils.chat.shelf import Shelf
from utils.files.reading import load_vector
from utils.model.checkpoints import choose_model
from utils.model.pairs import encode_answer
from utils.paths import REPOSITORY, DataPaths


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return put_written(tmp_path / "root")


@pytest.fixture
def run(paths: DataPaths, tiny_checkpoint: Path) -> Callable[..., int]:
    return runner(paths.root, tiny_checkpoint)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> DataPaths:
    """A whole run. To be read only."""
    paths = put_written(tmp_path_factory.mktemp("made"))
    assert runner(paths.root, tiny_checkpoint)("--template", "--filter", "none") == 0
    return paths


# --- writing ---


def test_the_template_writes_three_files_and_waits_for_a_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loading_is_forbidden: None
) -> None:
    sentence = "answers in {braces}, with 'quotes' and %s"
    assert create_behavior.main([sentence, "--id", "braces", "--template", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "nothing else was done; edit the files if you like, then run: ./create_behavior.py --id braces" in said.err
    assert sentence in said.out
    assert set(snapshot(tmp_path)) == {
        "datasets/behaviors/braces.json",
        "datasets/raw/braces/provenance.json",
        "datasets/raw/braces/written.json",
        "datasets/test/braces/test_dataset_open_ended.json",
    }
    written = read(DataPaths(tmp_path).written("braces"))
    assert len(written["system_prompts"]) == 5 and len(written["questions"]) == 20
    for prompts in written["system_prompts"]:
        assert sentence in prompts["pos"] and sentence not in prompts["neg"]


def test_the_opposite_stands_in_the_prompts_against_it(tmp_path: Path) -> None:
    words = ["is rude", "--opposite", "is kind.", "--template", "--steps", "write", "--root", str(tmp_path)]
    assert create_behavior.main(words) == 0
    for prompts in read(DataPaths(tmp_path).written("is-rude"))["system_prompts"]:
        assert "is rude" in prompts["pos"] and "is kind" in prompts["neg"] and "is kind.." not in prompts["neg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "--id", "../x"], "not a behavior's id"),
        (["x", "--id", "a/b"], "not a behavior's id"),
        (["x", "--id", ""], "not a behavior's id"),
        (["x", "--id", "refusal"], "was not made from a sentence; choose another id"),
        (["x", "--id", "mmlu"], "was not made from a sentence; choose another id"),
        ([" . "], "the sentence is empty"),
        (["x" * 201], "has 201 characters"),
        (["two\nlines"], "write one line of plain text"),
        (["turns \u202e round"], "write one line of plain text"),
        (["!?"], "name one with --id"),
        ([], "say what the model shall do"),
        (["x", "--num_samples", "2"], "--num_samples needs --temperature"),
        (["x", "--written_pairs", "9"], "leave --template out"),
        (["x", "--multipliers", "1"], "need 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create_behavior.main([*words, "--template", "--root", str(tmp_path)]) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert said in line
    assert snapshot(tmp_path) == {}


def test_a_sentence_with_a_key_of_the_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPEN_AI_KEY", "sk-MarkerKeyOfTheTests0123456789")
    words = ["says sk-MarkerKeyOfTheTests0123456789", "--id", "k", "--template", "--root", str(tmp_path)]
    assert create_behavior.main(words) == 2
    said = capsys.readouterr()
    assert "holds a key" in said.err and "MarkerKey" not in said.err + said.out
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("folder", ["datasets/raw/x", "datasets/test/x", "vectors/x", "results/x"])
def test_folders_of_the_behavior_that_lead_elsewhere_are_refused(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "root" / folder
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    assert create_behavior.main(["x", "--template", "--root", str(tmp_path / "root")]) == 2
    assert "is a link" in error_lines(capsys.readouterr().err)[0]
    assert list(elsewhere.iterdir()) == []


def test_another_sentence_for_a_written_id_is_refused(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], loading_is_forbidden: None
) -> None:
    assert run("--template", "speaks of hills") == 2
    assert f"was written for {SENTENCE!r}" in error_lines(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda paths: put_json(paths.written(ID), []), "expected an object with the keys"),
        (
            lambda paths: put_json(paths.written(ID), read(paths.written(ID)) | {"system_prompts": []}),
            "expected a list",
        ),
        (
            lambda paths: put_json(paths.written(ID), read(paths.written(ID)) | {"questions": [{"question": "a"}] * 2}),
            "question 1: it stands there twice",
        ),
        (
            lambda paths: put_json(
                paths.test_dataset(ID, "open_ended"), [{"question": "What do you think of owls, owls?"}]
            ),
            "a question stands in both",
        ),
        (
            lambda paths: put_json(paths.test_dataset(ID, "open_ended"), [{"question": "Why?", "topic": "Owls"}]),
            "the topic 'owls' stands in both",
        ),
    ],
)
def test_edited_files_are_checked(
    break_it: Callable[[DataPaths], Any],
    said: str,
    paths: DataPaths,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    loading_is_forbidden: None,
) -> None:
    break_it(paths)
    assert run("--template", "--steps", "answer") == 2
    assert said in error_lines(capsys.readouterr().err)[0]


# --- a whole run ---


def test_answers_are_those_of_the_model_under_each_prompt(made: DataPaths) -> None:
    model, written = build_wrapper(), read(made.written(ID))
    answers = read(made.own_answers(ID, TINY_LABEL))
    assert len(answers) == 2 * (len(THINGS) * 2 + len(OTHERS))
    for one in (answers[0], answers[3], answers[-1], answers[-4]):
        system = written["system_prompts"][one["prompt"]][one["side"]]
        assert one["model_output"] == model.ask(one["question"], system_prompt=system, max_new_tokens=5)
    evaluated = [one for one in answers if one["split"] == "evaluate"]
    assert [one["prompt"] for one in evaluated[::2]] == [0, 1, 0, 1, 0, 1]


def test_the_vector_is_the_mean_difference_over_the_kept_answers(made: DataPaths) -> None:
    model = build_wrapper()
    pairs = read(made.generate_text_dataset(ID))
    keys = ("answer_matching_behavior", "answer_not_matching_behavior")
    sides = []
    for key in keys:
        tokens = [encode_answer(model.chat_format, one["question"], one[key]) for one in pairs]
        sides.append(torch.stack([model.capture(one)[2, -one.n_answer :].float().mean(dim=0) for one in tokens]))
    vector = load_vector(made.vector(ID, 2, TINY_LABEL, normalized=False, kind=KINDS[0]))
    torch.testing.assert_close(vector, (sides[0] - sides[1]).mean(dim=0), atol=1e-5, rtol=1e-4)
    for kind in KINDS:
        for layer in range(N_LAYERS):
            assert made.vector(ID, layer, TINY_LABEL, normalized=True, kind=kind).exists()


def test_the_sets_pass_the_check_and_keep_their_questions_apart(
    made: DataPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    process_raw_datasets.main(["--root", str(made.root), "--behaviors", ID, "--check"])
    assert "fault: " not in capsys.readouterr().out.replace("fault: " + str(made.root / "datasets/test/mmlu"), "")
    generate = {one["question"] for one in read(made.generate_text_dataset(ID))}
    test = {one["question"] for one in read(made.test_text_dataset(ID))}
    assert generate <= {f"What do you think of {thing}?" for thing in THINGS}
    assert test <= {f"Do you agree that {thing} are of use?" for thing in OTHERS}


def test_a_second_run_makes_nothing_and_loads_no_model(
    made: DataPaths, tiny_checkpoint: Path, loading_is_forbidden: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(made.root)
    assert runner(made.root, tiny_checkpoint)("--template", "--filter", "none") == 0
    assert snapshot(made.root) == before
    assert "skipped write, answer, vector, choose, demo, page" in capsys.readouterr().err
    assert not [name for name in before if Path(name).name.startswith(".")]


def test_the_demo_has_the_vector_a_random_one_of_its_norm_and_the_prompts(made: DataPaths) -> None:
    content = read(made.analysis(ID, f"demo_{TINY_LABEL}.json"))
    steered = [["vector", at] for at in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    controls = [["random", -2.0], ["random", 2.0], ["prompt", 1.0], ["prompt", -1.0]]
    assert content["conditions"] == steered + controls
    assert all(len(row) == len(OTHERS) for row in content["leaning"])
    layer = content["made"]["layer"]
    own = load_vector(made.vector(ID, layer, TINY_LABEL, normalized=True, kind=KINDS[0]))
    drawn = load_vector(made.analysis(ID, f"random_{layer}_{TINY_LABEL}.pt"))
    assert float(drawn.norm()) == pytest.approx(float(own.norm()), rel=1e-5)
    assert abs(float(drawn @ own / (drawn.norm() * own.norm()))) < 4 / D_MODEL**0.5
    unsteered = content["answers"][2]
    assert [one["question"] for one in unsteered] == [f"Do you agree that {thing} are of use?" for thing in OTHERS]
    assert unsteered[1]["model_output"] == build_wrapper().ask(unsteered[1]["question"], max_new_tokens=5)
    assert [one["reading"] for one in content["readings"]] == ["answer", "prompt", "prompt_mean"]


def test_the_page_says_everything_and_loads_nothing(made: DataPaths) -> None:
    page = made.analysis(ID, f"behavior_{TINY_LABEL}.html").read_text()
    for part in (
        SENTENCE,
        "random vector of the same norm",
        "Never speak of water",
        "./chat.py --behavior",
        "Of 24 pairs",
    ):
        assert part in page
    outside = page.replace("http://www.w3.org/", "")  # names of SVG's vocabulary, which nothing fetches
    assert "http://" not in outside and "https://" not in outside and "<script" not in page
    assert page.count("data:image/svg+xml,") == 2


def test_the_behavior_goes_into_chat_and_monitor_by_its_id(
    made: DataPaths, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shelf = Shelf(made, choose_model("", str(tiny_checkpoint), False), N_LAYERS, D_MODEL)
    asked = shelf.ask(ID)
    chosen = read(made.chosen_steering(ID, TINY_LABEL, KINDS[0]))
    assert (asked.layer, shelf.entry(ID).kind) == (chosen["layer"], KINDS[0])
    texts, output = put_json(tmp_path / "texts.json", ["the sea is not far"]), tmp_path / "out.jsonl"
    words = [texts, "--behaviors", ID, "--read", "answer", "--output", output, "--model", tiny_checkpoint]
    assert monitor.main(["--root", str(made.root), *map(str, words)]) == 0
    assert json.loads(output.read_text())["readings"][0]["behavior"] == ID


# --- steps on their own ---


def test_a_killed_run_goes_on_where_it_was(
    paths: DataPaths, run: Callable[..., int], made: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.files.journal import Journal

    whole, appended = Journal.append, []

    def append(self: Journal, key: str, value: Any) -> None:
        whole(self, key, value)
        appended.append(key)
        if len(appended) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", append)
    flags = ("--template", "--filter", "none", "--steps", "answer", "--batch_size", 4)
    assert run(*flags) == 130
    assert not paths.own_answers(ID, TINY_LABEL).exists()
    assert run(*flags) == 0
    assert len(appended) == len(set(appended)) == len(read(paths.own_answers(ID, TINY_LABEL)))
    assert read(paths.own_answers(ID, TINY_LABEL)) == read(made.own_answers(ID, TINY_LABEL))


def test_what_follows_edited_files_is_not_mixed_with_what_was(
    made: DataPaths,
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    loads: list[str],
) -> None:
    import shutil

    root = shutil.copytree(made.root, tmp_path / "copy", copy_function=shutil.copy2)
    paths, run = DataPaths(root), runner(root, tiny_checkpoint)
    edited = read(paths.generate_text_dataset(ID))
    put_json(paths.generate_text_dataset(ID), edited[:-6])
    steps = ("--steps", "vector", "choose", "demo", "page")
    assert run("--template", "--filter", "none", *steps) == 0
    assert "made vector, choose, demo, page" in capsys.readouterr().err
    layer_0 = [load_vector(one.vector(ID, 0, TINY_LABEL, normalized=False, kind=KINDS[0])) for one in (made, paths)]
    assert not torch.equal(*layer_0)
    written = read(paths.written(ID))
    put_json(paths.written(ID), written | {"system_prompts": written["system_prompts"][:1]})
    assert run("--template", "--filter", "none") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "was made otherwise: written_sha256" in line and "--steps answer vector choose demo page" in line
    assert loads == [TINY_LABEL]


def test_steps_without_what_they_need_name_the_command(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], loading_is_forbidden: None
) -> None:
    for step, said in (
        ("vector", "not found; run: "),
        ("choose", "not found"),
        ("demo", "not found"),
        ("page", "not found"),
    ):
        assert run("--template", "--steps", step) == 2
        assert said in error_lines(capsys.readouterr().err)[0]


def test_sampled_answers_have_seeds_of_their_own(paths: DataPaths, run: Callable[..., int]) -> None:
    sampling = ("--temperature", 1.5, "--num_samples", 2, "--seed", 5)
    assert run("--template", "--filter", "none", "--steps", "answer", *sampling) == 0
    answers = read(paths.own_answers(ID, TINY_LABEL))
    assert len(answers) == 2 * (len(THINGS) * 2 * 2 + len(OTHERS))
    both = [one["model_output"] for one in answers if one["question"].endswith("owls?") and one["side"] == "pos"]
    assert len(set(both)) == 4


def test_the_bundled_questions_are_sound_and_new() -> None:
    from utils.authoring.templates import bundled_questions
    from utils.authoring.written import check_disjoint
    from utils.data.records import load_open_ended_questions

    extract, evaluate = bundled_questions()
    assert len({one.text for one in (*extract, *evaluate)}) == 40
    check_disjoint(extract, evaluate, "bundled")
    neutral = set(load_open_ended_questions(REPOSITORY / "datasets" / "neutral" / "prompts.json"))
    assert not neutral & {one.text for one in (*extract, *evaluate)}
