"""Result files: found by their settings, checked when read, scored by the letters that the answers bear."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation.result_files import ResultFiles, settings_of
from utils.evaluation.results import align, load_choice_results, load_scores
from utils.model.checkpoints import choose_model
from utils.paths import DataPaths
from utils.settings import SteeringSettings

ITEM = {"question": "Q?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}


def ab_record(question: str, match: str, other: str, **probabilities: float) -> dict[str, Any]:
    return {
        "question": question,
        "answer_matching_behavior": f"({match})",
        "answer_not_matching_behavior": f"({other})",
        **probabilities,
    }


def write(path: Path, records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def test_an_item_is_scored_by_the_letters_that_its_two_answers_bear(tmp_path: Path) -> None:
    records = [
        ab_record("one", "A", "B", a_prob=0.6, b_prob=0.2),
        ab_record("two", "B", "A", a_prob=0.6, b_prob=0.2),
        ab_record("three", "C", "A", a_prob=0.1, b_prob=0.5, c_prob=0.3),
    ]
    items = load_choice_results(write(tmp_path / "r.json", records), "ab")
    assert items.values == pytest.approx([0.75, 0.25, 0.75])
    assert items.letter_mass == pytest.approx([0.8, 0.8, 0.4])
    assert items.log_odds == pytest.approx(np.log([3.0, 1 / 3, 3.0]))
    assert items.share_of_a == pytest.approx([0.75, 0.75, np.nan], nan_ok=True)
    assert items.a_matches.tolist() == [True, False, False]


def test_an_item_whose_letters_are_not_recorded_is_missing_and_not_zero(tmp_path: Path) -> None:
    records = [
        ab_record("one", "A", "B", a_prob=0.6, b_prob=0.2),
        ab_record("two", "C", "A", a_prob=0.6, b_prob=0.2),
        ab_record("three", "A", "B", a_prob=0.0, b_prob=0.0),
        ab_record("four", "A", "B", a_prob=0.5, b_prob=0.0),
    ]
    items = load_choice_results(write(tmp_path / "r.json", records), "ab")
    assert np.isnan(items.values).tolist() == [False, True, True, False]
    assert (items.n_scored, len(items)) == (2, 4)
    assert np.isnan(items.log_odds).tolist() == [False, True, True, True]  # log-odds of certainty are infinite


def test_knowledge_items_are_scored_by_the_correct_answer_and_keep_their_category(tmp_path: Path) -> None:
    record = {"question": "Q?", "correct": "(B)", "incorrect": "(A)", "a_prob": 0.1, "b_prob": 0.3, "category": "Law"}
    items = load_choice_results(write(tmp_path / "r.json", [record]), "mmlu")
    assert items.values == pytest.approx([0.75])
    assert items.categories == ("Law",)


def test_an_answer_without_a_score_is_missing_and_not_zero(tmp_path: Path) -> None:
    records = [{"question": "a", "score": 0}, {"question": "b", "score": None}, {"question": "c"}]
    items = load_scores(write(tmp_path / "r.json", records))
    assert items.values[0] == 0.0
    assert (items.n_scored, len(items)) == (1, 3)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**ITEM, "a_prob": 0.5}], "item 0, key 'b_prob'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": "0.5"}], "item 0, key 'b_prob'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": True}], "item 0, key 'b_prob'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": 1.5}], "item 0, key 'b_prob'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": -0.1}], "item 0, key 'b_prob'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": 0.1, "answer_matching_behavior": "A"}], "'answer_matching_behavior'"),
        ([{**ITEM, "a_prob": 0.5, "b_prob": 0.1, "question": 3}], "key 'question'"),
        ([], "list of result records"),
        ({"records": []}, "list of result records"),
        (["text"], "list of result records"),
    ],
)
def test_a_broken_result_file_is_refused_with_its_name_item_and_key(tmp_path: Path, records: Any, message: str) -> None:
    path = write(tmp_path / "r.json", records)
    with pytest.raises(UserError) as caught:
        load_choice_results(path, "ab")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("score", [11, -1, "7", True, [5]])
def test_a_score_outside_0_to_10_is_refused(tmp_path: Path, score: Any) -> None:
    with pytest.raises(UserError, match="item 1, key 'score'"):
        load_scores(write(tmp_path / "r.json", [{"question": "a", "score": 5}, {"question": "b", "score": score}]))


def test_items_are_paired_by_question_and_letters_whatever_their_order(tmp_path: Path) -> None:
    one, two = ab_record("one", "A", "B", a_prob=0.9, b_prob=0.1), ab_record("two", "A", "B", a_prob=0.2, b_prob=0.8)
    twin = ab_record("one", "B", "A", a_prob=0.3, b_prob=0.7)
    first = load_choice_results(write(tmp_path / "1.json", [one, two, one]), "ab")
    second = load_choice_results(write(tmp_path / "2.json", [twin, two, one]), "ab")
    left, right = align([first, second])
    assert left.keys == right.keys
    assert left.values == pytest.approx([0.9, 0.2, 0.9, np.nan], nan_ok=True)
    assert right.values == pytest.approx([0.9, 0.2, np.nan, 0.7], nan_ok=True)


# --- finding ---------------------------------------------------------------------------------------


def plain(**changes: Any) -> SteeringSettings:
    values = {"layer": 3, "multiplier": 1.0, "behavior": "refusal", "type": "ab", "model_size": "7b", **changes}
    return SteeringSettings(**values)


def add(paths: DataPaths, settings: SteeringSettings, a_prob: float) -> Path:
    records = [ab_record("one", "A", "B", a_prob=a_prob, b_prob=1 - a_prob)]
    return write(paths.result(settings), records)


def value(files: ResultFiles, settings: SteeringSettings) -> float | None:
    found = files.get(settings)
    return None if found is None else float(found.values[0])


def test_files_are_matched_by_parsed_settings_and_not_by_substrings(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    for number, settings in enumerate(
        [plain(), plain(override_vector=13), plain(layer=13), plain(steer_positions="all"), plain(multiplier=1.5)]
    ):
        add(paths, settings, 0.1 * (number + 1))
    files = ResultFiles(paths, "refusal", "ab")
    assert value(files, plain()) == pytest.approx(0.1)
    assert value(files, plain(override_vector=13)) == pytest.approx(0.2)
    assert value(files, plain(override_vector=1)) is None
    assert value(files, plain(steer_positions="all")) == pytest.approx(0.4)
    assert value(files, plain(layer=1)) is None
    assert files.layers(plain()) == [3, 13]
    assert files.multipliers(plain(), 3) == [1.0, 1.5]


def test_multiplier_0_of_any_layer_and_vector_serves_every_layer_but_not_another_prompt_or_model(
    tmp_path: Path,
) -> None:
    paths = DataPaths(tmp_path)
    add(paths, plain(layer=7, multiplier=0.0), 0.3)
    add(paths, plain(layer=7, multiplier=1.0), 0.8)
    files = ResultFiles(paths, "refusal", "ab")
    for served in (
        plain(multiplier=0.0),
        plain(multiplier=0.0, override_vector=2),
        plain(multiplier=0.0, vector_behavior="sycophancy"),
        plain(multiplier=0.0, steer_positions="all"),
    ):
        assert value(files, served) == pytest.approx(0.3)
    for refused in (
        plain(),
        plain(multiplier=0.0, system_prompt="pos"),
        plain(multiplier=0.0, model_size="13b"),
        plain(multiplier=0.0, override_model_weights_path="w.pt"),
        plain(multiplier=0.0, use_base_model=True),
    ):
        assert value(files, refused) is None


def test_the_layers_own_multiplier_0_file_is_taken_before_another_layers(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    add(paths, plain(layer=1, multiplier=0.0), 0.3)
    add(paths, plain(layer=3, multiplier=0.0), 0.4)
    assert value(ResultFiles(paths, "refusal", "ab"), plain(multiplier=0.0)) == pytest.approx(0.4)


def test_other_files_in_the_folder_are_skipped_and_strange_result_names_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = DataPaths(tmp_path)
    folder = add(paths, plain(), 0.5).parent
    write(folder / "provenance.json", {})
    write(folder / ".sweep_1.jsonl", {})
    write(folder / "results_of_last_week.json", [])
    write(folder / plain(behavior="sycophancy").result_name, [])
    with caplog.at_level(logging.WARNING):
        files = ResultFiles(paths, "refusal", "ab")
    assert list(files.paths) == [plain()]
    assert len(caplog.messages) == 2
    assert any("results_of_last_week.json" in message for message in caplog.messages)
    assert any("names behavior sycophancy" in message for message in caplog.messages)


def test_an_unreadable_file_is_reported_once_counted_and_replaced_by_another_layers_multiplier_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = DataPaths(tmp_path)
    add(paths, plain(layer=3, multiplier=0.0), 0.5).write_text('[{"question": ')
    add(paths, plain(layer=4, multiplier=0.0), 0.6)
    files = ResultFiles(paths, "refusal", "ab")
    with caplog.at_level(logging.WARNING):
        assert value(files, plain(multiplier=0.0)) == pytest.approx(0.6)
        assert value(files, plain(multiplier=0.0)) == pytest.approx(0.6)
    assert files.n_unreadable == 1
    assert len(caplog.messages) == 1
    assert "not valid JSON" in caplog.messages[0]


def test_open_ended_results_are_read_from_the_scores_and_models_are_told_apart(tmp_path: Path) -> None:
    paths, choice = DataPaths(tmp_path), choose_model("135m", None, False)
    settings = settings_of(choice, "refusal", "open_ended").at(2, 1.0)
    write(paths.result(settings), [{"question": "a"}])
    write(paths.scores(settings), [{"question": "a", "score": 4.0}])
    files = ResultFiles(paths, "refusal", "open_ended")
    assert value(files, settings) == 4.0
    assert files.of_model(settings) == [settings]
    assert files.of_model(settings_of(choose_model("7b", None, False), "refusal", "open_ended")) == []
