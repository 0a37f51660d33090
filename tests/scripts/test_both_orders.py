"""`--orders both`: each lettered question asked in both orders of its answers, averaged in log-odds."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import prompting_with_steering
from tests.models import build_wrapper
from tests.roots import TINY_LABEL, error_lines, put_json, write_vector
from utils.data.choices import exchange_choices
from utils.errors import UserError
from utils.evaluation.results import load_choice_results
from utils.paths import DataPaths

QUESTION = "Is the sea near?\n\nChoices:\n (A) Yes, it is\n (B) No"
ITEMS = [
    {"question": QUESTION, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"},
    {
        "question": "Which one?\n\nChoices:\n (A) the owl\n (B) the cat\n (C) the tree of the system",
        "answer_matching_behavior": "(C)",
        "answer_not_matching_behavior": "(A)",
    },
]


def test_choices_exchange_their_texts_and_nothing_else() -> None:
    assert exchange_choices(QUESTION, "A", "B") == "Is the sea near?\n\nChoices:\n (A) No\n (B) Yes, it is"
    assert exchange_choices(exchange_choices(QUESTION + "\n\nSay.", "B", "A"), "A", "B") == QUESTION + "\n\nSay."
    with pytest.raises(UserError, match=r"no text for choice \(C\)"):
        exchange_choices(QUESTION, "A", "C")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paths = DataPaths(tmp_path)
    put_json(paths.behavior_file("sea"), {"id": "sea", "label": "Sea", "matching": "speaks of the sea"})
    put_json(paths.test_dataset("sea", "ab"), ITEMS)
    vector = torch.randn(build_wrapper().d_model, generator=torch.Generator().manual_seed(0))
    write_vector(tmp_path, "sea", 1, vector)
    return tmp_path


@pytest.fixture
def run(root: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    def run(*flags: object) -> int:
        command = ["--root", root, "--behaviors", "sea", "--model", tiny_checkpoint, "--layers", 1, *flags]
        return prompting_with_steering.main([str(word) for word in command])

    return run


def of_run(root: Path, multiplier: float, *, both: bool) -> Path:
    found = (root / "results" / "sea").glob(f"results_layer=1_multiplier={multiplier}_*.json")
    [path] = [path for path in found if ("_orders=both" in path.name) == both]
    return path


def test_both_orders_are_two_runs_averaged_in_log_odds(
    root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--multipliers", 0, 2, "--orders", "both") == 0
    assert "letter bias" in capsys.readouterr().out
    assert run("--multipliers", 0, 2) == 0
    given = json.loads(of_run(root, 2.0, both=False).read_text())
    exchanged_items = [
        item | {"question": exchange_choices(item["question"], "A", "B" if index == 0 else "C")}
        for index, item in enumerate(ITEMS)
    ]
    put_json(DataPaths(root).test_dataset("sea", "ab"), exchanged_items)
    assert run("--multipliers", 2, "--overwrite") == 0
    exchanged = json.loads(of_run(root, 2.0, both=False).read_text())
    both = json.loads(of_run(root, 2.0, both=True).read_text())
    for one, other, record in zip(given, exchanged, both, strict=True):
        letters = [key for key in one if key.endswith("_prob")]
        assert [record[key] for key in letters] == pytest.approx([one[key] for key in letters], rel=1e-4)
        assert [record[f"{key}_exchanged"] for key in letters] == pytest.approx(
            [other[key] for key in letters], rel=1e-4
        )
    items = load_choice_results(of_run(root, 2.0, both=True), "ab")
    first, second = given[0], exchanged[0]
    as_given = math.log(first["a_prob"] / first["b_prob"])
    as_exchanged = math.log(second["b_prob"] / second["a_prob"])  # the matching answer then is (B)
    assert items.log_odds[0] == pytest.approx((as_given + as_exchanged) / 2, abs=1e-4)
    assert items.values[0] == pytest.approx(1 / (1 + math.exp(-(as_given + as_exchanged) / 2)), abs=1e-5)
    assert items.share_of_a[0] == pytest.approx(1 / (1 + math.exp(-(as_given - as_exchanged) / 2)), abs=1e-5)
    assert np.isnan(items.share_of_a[1])  # its answers are not A and B


def test_a_model_that_only_likes_a_letter_comes_out_at_one_half(tmp_path: Path) -> None:
    record = {**ITEMS[0], "a_prob": 0.8, "b_prob": 0.1, "a_prob_exchanged": 0.8, "b_prob_exchanged": 0.1}
    path = put_json(tmp_path / "r.json", [record])
    items = load_choice_results(path, "ab")
    assert items.values.tolist() == [0.5]
    assert items.share_of_a.tolist() == pytest.approx([8 / 9])
    assert items.letter_mass.tolist() == pytest.approx([0.9])


def test_answers_without_letters_have_no_order(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--orders", "both", "--type", "open_ended") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert "--orders both exchanges lettered answers; --type open_ended has none" in line
    assert TINY_LABEL not in line
