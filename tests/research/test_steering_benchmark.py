"""The steering benchmark on a tiny model: what is chosen on what, the controls, what cannot run, going on."""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from llama_wrapper import LlamaWrapper
from research import steering_benchmark
from tests.judge_server import JudgeServer, Request, Response
from tests.launched import run_in_two_processes
from tests.models import D_MODEL, build_wrapper, random_vector
from tests.roots import error_lines, put_json
from utils.data.records import TextPair, load_open_ended_questions
from utils.errors import UserError
from utils.evaluation.chosen import holm
from utils.model.checkpoints import choose_model
from utils.model.pairs import encode_pair
from utils.model.reading import read_pairs
from utils.model.side_effects import measure_kl, neutral_answers
from utils.model.steering import Steering
from utils.paths import DataPaths
from utils.research import benchmark_methods, benchmark_run, benchmark_trained
from utils.research.benchmark_choice import AmountChooser
from utils.research.benchmark_material import Material, PairStore
from utils.research.benchmark_measures import Subject, kl_per_token, preferences
from utils.research.benchmark_methods import METHODS, Framing, Method, NotRun, method_named
from utils.research.benchmark_request import BenchmarkRequest, Sizes
from utils.research.benchmark_results import Results, item_effects, over_draws
from utils.research.benchmark_transfer import transfer
from utils.vectors.norms import neutral_prompts_path

SIZES = Sizes(
    items=8, validation=4, lettered=2, neutral=3, free=2, free_tokens=4, knowledge=2, others=0, texts=2, draws=3
)
TOPICS = ("sea", "owl", "cat", "day", "word", "tea", "sun", "map", "key", "hat", "bus", "jam")


def write_behavior(root: Path, behavior: str = "the-sea") -> None:
    """Short text pairs: matching answers say "agree", the others "not"."""
    records = [
        {
            "question": f"Is the {topic} {kind}?",
            "answer_matching_behavior": f"you agree {'you ' * (i % 3)}the {topic}",
            "answer_not_matching_behavior": f"not {'is ' * (i % 3)}the {topic}",
        }
        for i, topic in enumerate(TOPICS)
        for kind in ("it", "so")
    ]
    put_json(root / f"datasets/generate/{behavior}/generate_dataset_text.json", records[0::2])
    put_json(root / f"datasets/test/{behavior}/test_dataset_text.json", records[1::2])
    put_json(
        root / f"datasets/test/{behavior}/test_dataset_open_ended.json", [{"question": "Why?"}, {"question": "Is it?"}]
    )
    facts = [
        {
            "prompt": f"Is it {i}?\n\nChoices:\n(A) {i}\n(B) {i + 1}",
            "correct": "(A)",
            "incorrect": "(B)",
            "correct_full_text": str(i),
            "incorrect_full_text": str(i + 1),
            "category": "sums",
        }
        for i in range(2)
    ]
    for name in ("mmlu/mmlu.json", "truthfulqa/truthful_qa.json"):
        put_json(root / "datasets/test" / name, facts)
    put_json(root / "datasets/neutral/prompts.json", [{"question": f"What is the {topic}?"} for topic in TOPICS[:6]])
    texts = [{"question": f"What {kind}?", "answer": f"the {topic}"} for topic in TOPICS for kind in ("now", "then")]
    put_json(root / "datasets/neutral/texts.json", texts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_behavior(tmp_path)
    return tmp_path


def request_of(root: Path, methods: Sequence[str] = ("answer",), **changes: Any) -> BenchmarkRequest:
    choice = choose_model("", "tiny-chat", False)
    given = {"layers": (1, 2), "kl": 0.05, "sizes": SIZES, **changes}
    return BenchmarkRequest(DataPaths(root), choice, ("the-sea",), tuple(methods), **given)


def no_weights(path: Path) -> LlamaWrapper:
    raise AssertionError(path)


def unit_of(root: Path, name: str, **changes: Any) -> dict[str, Any]:
    request = request_of(root, (name,), **changes)
    return benchmark_run.Benchmark(build_wrapper(), request, no_weights).unit("the-sea", name)


# --- the whole script ---


@pytest.fixture
def benchmark(root: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(steering_benchmark, "QUICK", SIZES)

    def run(*words: object) -> int:
        flags = ["--root", root, "--model", tiny_checkpoint, "--behaviors", "the-sea", "--layers", 2, "--quick"]
        return steering_benchmark.main([str(word) for word in [*flags, "--kl", 0.05, *words]])

    return run


EVERY = ("none", "system_prompt", "letter", "answer", "answer+clamp", "persona", "sae", "lora", "random", "permuted")


def test_the_model_as_it_is_is_measured_once_for_all_methods(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = benchmark_run.Benchmark(build_wrapper(), request_of(root), no_weights)
    measured: list[int] = []
    real = benchmark_run.text_log_probabilities

    def counted(subjects: Sequence[Subject], paths: DataPaths, n: int) -> Any:
        measured.append(len(subjects))
        return real(subjects, paths, n)

    monkeypatch.setattr(benchmark_run, "text_log_probabilities", counted)
    answer, pca, none = (benchmark.unit("the-sea", name) for name in ("answer", "pca", "none"))
    assert measured == [3, 2, 0]
    for column in ("texts", "mmlu", "answers"):
        assert answer[column][1] == pca[column][1] == none[column][0] == none[column][2]
        assert answer[column][0] != answer[column][1]


def test_a_whole_run_says_what_holds_and_what_was_not_run(
    benchmark: Callable[..., int], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark("--methods", *EVERY) == 0
    out = capsys.readouterr().out
    folder = root / "analysis/research/steering_benchmark/tiny-chat"
    result = json.loads((folder / "results.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"none", "system_prompt", "answer", "random", "permuted"}
    not_run = {one["method"]: one for one in result["not_run"]}
    assert set(not_run) == {"letter", "answer+clamp", "persona", "sae", "lora"}
    assert "meets the KL budget of 0.05 nats" in not_run["answer+clamp"]["not_run"]  # at 0 it takes the component away
    assert "--from answers" in not_run["persona"]["provide"]
    assert "saes/train_sae.py" in not_run["sae"]["provide"]
    assert "finetune_llama.py --behavior the-sea --direction pos --lora" in not_run["lora"]["provide"]
    assert all(f"not run: {method} on the-sea: " in out for method in not_run)
    for control in ("random", "permuted"):
        effect = rows[control]["effect"]
        assert effect["low"] <= 0 <= effect["high"]
        assert rows[control]["p_holm"] is None
    assert rows["none"]["effect"]["value"] == 0
    assert rows["answer"]["p_holm"] >= rows["answer"]["p_value"]
    assert rows["answer"]["effect"]["value"] > max(0, rows["random"]["effect"]["value"])
    assert {path.name for path in folder.iterdir()} == {
        "units",
        *(f"{stem}.{end}" for stem in ("pareto_the-sea", "ranks") for end in ("png", "pdf", "txt")),
        "pareto_the-sea.json",
        "results.json",
        "results.txt",
    }
    entries = [json.loads((folder / f"{stem}.json").read_text())["report"] for stem in ("pareto_the-sea", "results")]
    assert [(one["behavior"], one["figures"]) for one in entries] == [
        ("the-sea", ["pareto_the-sea"]),
        (None, ["ranks"]),
    ]
    before = {path: path.read_bytes() for path in (folder / "units").iterdir()}
    (folder / "units" / "the-sea__answer.json").unlink()  # as if killed before
    monkeypatch.setattr(benchmark_run.Benchmark, "_control", None)  # what is there is not made again
    assert benchmark("--methods", "answer", "random") == 0
    again = {row["method"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert again["answer"]["effect"] == rows["answer"]["effect"]
    assert all(path.read_bytes() == content for path, content in before.items() if "answer.json" not in path.name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "answr"], "unknown method 'answr'; did you mean answer?"),
        (["--methods", "answer+clam"], "unknown operator 'clam'; did you mean clamp?"),
        (["--methods", "few_shot+clamp"], "few_shot has no vector for an operator to use"),
        (["--layers", "9"], "tiny-chat has layers 0 to 3"),
        (["--behaviors", "the-see"], "did you mean the-sea?"),
        (["--methods", "answer", "--kl", "1e-30"], "meets the KL budget of 1e-30 nats"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    words: list[str], message: str, benchmark: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(*words) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line


def test_units_of_other_settings_are_not_mixed(
    benchmark: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark("--methods", "none") == 0
    assert benchmark("--methods", "none", "--seed", 1) == 2
    assert "was made with another seed; --overwrite makes it again" in error_lines(capsys.readouterr().err)[0]


def test_the_middle_layers_are_the_model_s() -> None:
    assert steering_benchmark.middle_layers(30, 2) == [13, 17]
    assert steering_benchmark.middle_layers(4, 4) == [1, 2]


# --- choosing ---


def test_layer_and_amount_are_chosen_without_the_test_items(root: Path) -> None:
    first = unit_of(root, "answer")
    path = root / "datasets/test/the-sea/test_dataset_text.json"
    records = json.loads(path.read_text())
    for record in records:  # the test now says the opposite
        keys = ("answer_matching_behavior", "answer_not_matching_behavior")
        record[keys[0]], record[keys[1]] = record[keys[1]], record[keys[0]]
    put_json(path, records)
    second = unit_of(root, "answer")
    assert [second[key] for key in ("layer", "amount", "by_layer")] == [
        first[key] for key in ("layer", "amount", "by_layer")
    ]
    assert item_effects(second) == pytest.approx(-item_effects(first))


def test_the_vector_that_is_chosen_with_has_not_seen_the_validation_items(root: Path) -> None:
    store = PairStore(request_of(root), build_wrapper(), "the-sea")
    assert len(store.validation) == 4 and not set(store.validation) & set(store.training)
    positive, negative = store.tables("answer")
    wanted = (positive[store.training, 1] - negative[store.training, 1]).mean(dim=0)
    made = METHODS["answer"].make(Material(store, store.training))
    torch.testing.assert_close(made[2], wanted, rtol=1e-5, atol=1e-6)  # type: ignore[index,call-overload]


def test_the_solved_amount_spends_the_budget_at_every_layer(root: Path) -> None:
    model, request = build_wrapper(), request_of(root)
    chooser = AmountChooser(model, request)
    vectors = {layer: random_vector(layer) for layer in (1, 2)}
    steering = chooser.steering_of(vectors, "add")
    solved = chooser.solve(steering, [1, 2], "add")
    questions = load_open_ended_questions(neutral_prompts_path(request.paths))
    answers = neutral_answers(model, [model.chat_format.encode(question) for question in questions])[:3]
    for one in solved:
        norm = chooser.norms[one.layer] * one.amount / float(vectors[one.layer].norm())
        both = [Steering(one.layer, sign * norm, vectors[one.layer]) for sign in (1, -1)]
        spent = float(measure_kl(model, answers, both).percentile(0.95).max())
        assert spent == pytest.approx(one.kl_95, rel=1e-3)
        assert 0.5 * request.kl < spent <= 1.06 * request.kl


@pytest.mark.parametrize(("operator", "largest"), [("add", 0.5), ("ablate", 1.0)])
def test_a_budget_that_nothing_spends_allows_the_largest_amount_of_the_operator(
    root: Path, operator: str, largest: float
) -> None:
    chooser = AmountChooser(build_wrapper(), request_of(root, kl=100.0))
    [solved] = chooser.solve(chooser.steering_of({2: random_vector(2)}, operator), [2], operator)
    assert solved.amount == largest


def test_an_operator_whose_multiplier_is_a_share_may_turn_its_sign(root: Path) -> None:
    unit = unit_of(root, "answer+ablate", kl=0.5)
    assert unit["operator"] == "ablate" and unit["amount"] <= 1
    best = max(unit["by_layer"], key=lambda one: abs(one["effect"]))
    assert (unit["layer"], unit["sign"]) == (best["layer"], 1 if best["effect"] > 0 else -1)


# --- measuring ---


def test_preferences_of_a_framing_are_those_of_the_framed_question() -> None:
    model = build_wrapper()
    items = [TextPair("Is the sea it?", "you agree", "not")]
    framed = Subject(model, framing=Framing("Be the sea.", "What? "))
    found = preferences([Subject(model), framed], items)
    plain = preferences(
        [Subject(model, framing=Framing("Be the sea."))], [TextPair("What? Is the sea it?", "you agree", "not")]
    )
    assert found[1, 0] == pytest.approx(plain[0, 0], rel=1e-5) != found[0, 0]


def test_kl_of_a_framing_is_between_the_answers_own_tokens() -> None:
    model = build_wrapper()
    question = "What is the sea?"
    answers = neutral_answers(model, [model.chat_format.encode(question)])
    plain = kl_per_token(model, Subject(model), [question], answers)
    assert float(plain.abs().max()) == 0
    framed = kl_per_token(model, Subject(model, framing=Framing("Be the sea.")), [question], answers)
    own = answers[0].ids[-answers[0].n_answer :]
    logits = []
    with torch.no_grad():
        for prompt in (model.chat_format.encode(question), model.chat_format.encode(question, None, "Be the sea.")):
            ids = torch.tensor([[*prompt.ids, *own]])
            logits.append(model.model(ids).logits[0, -len(own) - 1 : -1].double().log_softmax(-1))
    wanted = (logits[0].exp() * (logits[0] - logits[1])).sum(-1)
    torch.testing.assert_close(framed.double(), wanted, rtol=1e-3, atol=1e-6)


def test_a_vector_is_made_and_tested_under_each_system_prompt(root: Path) -> None:
    model, request = build_wrapper(), request_of(root)
    store = PairStore(request, model, "the-sea")
    chooser = AmountChooser(model, request)
    items = store.texts[:3]
    found = transfer(store, chooser, {"layer": 2, "amount": 0.1}, items)
    effects = np.array(found["effects"])
    assert effects.shape == (3, 3, 3)
    prompt = store.known.system_prompts
    assert prompt is not None
    tokens = [encode_pair(model.chat_format, pair, "answer", prompt.neg) for pair in store.texts]
    [(_, positive, negative)] = list(read_pairs(model.runtime, tokens, [2], 100, ()))
    vector = (positive - negative).mean(dim=0)[0]
    size = 0.1 * chooser.norms[2] / float(vector.norm())
    subjects = [Subject(model, Steering(2, sign * size, vector), Framing(prompt.pos)) for sign in (1, -1)]
    plus, minus = preferences(subjects, items)
    assert effects[2, 1] == pytest.approx(plus - minus, rel=1e-3, abs=1e-6)  # made against it, tested for it
    with pytest.raises(UserError, match="add it to --methods"):
        transfer(store, chooser, {}, items)


# --- methods ---


def test_a_new_method_is_one_function_and_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_axis(material: Material) -> dict[int, Tensor]:
        return {layer: torch.eye(D_MODEL)[-1] for layer in material.layers}

    monkeypatch.setitem(benchmark_methods.METHODS, "axis", Method("vector", "an axis", last_axis))  # type: ignore[arg-type]
    unit = unit_of(root, "axis")
    assert unit["vector_norm"] == 1.0 and len(unit["preference"]) == 5


def test_the_rank_1_svd_is_the_direction_of_largest_spread_on_the_mean_s_side(root: Path) -> None:
    material = Material(PairStore(request_of(root), build_wrapper(), "the-sea"), range(12))
    positive, negative = material.tables("answer", 2)
    rows = (positive - negative).double().numpy()
    wanted = np.linalg.svd(rows)[2][0]
    found = METHODS["svd"].make(material)[2].double().numpy()  # type: ignore[index,call-overload,union-attr]
    assert abs(found @ wanted) == pytest.approx(np.linalg.norm(found))
    assert found @ rows.mean(axis=0) > 0


def test_training_finds_a_direction_that_moves_the_preference_more(root: Path) -> None:
    model = build_wrapper()
    store = PairStore(request_of(root), model, "the-sea")
    material = Material(store, range(12))
    start = METHODS["answer"].make(material)[2]  # type: ignore[index,call-overload]
    trained = METHODS["trained"].make(material)[2]  # type: ignore[index,call-overload]
    assert float(trained.norm()) == pytest.approx(float(start.norm()), rel=1e-5)  # type: ignore[union-attr]
    assert all(weights.requires_grad and weights.grad is None for weights in model.model.parameters())
    size = 0.1 * AmountChooser(model, request_of(root)).norms[2] / float(start.norm())  # type: ignore[union-attr]
    subjects = [Subject(model, Steering(2, sign * size, one)) for one in (start, trained) for sign in (1, -1)]  # type: ignore[arg-type]
    found = preferences(subjects, store.texts)
    assert (found[2] - found[3]).mean() > 1.1 * (found[0] - found[1]).mean() > 0


def test_training_behind_the_prefixes_finds_what_whole_sequences_find(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = build_wrapper(), []
    watched = benchmark_trained.is_packable
    monkeypatch.setattr(benchmark_trained, "is_packable", lambda *args: given.append(watched(*args)) or given[-1])

    def trained() -> Tensor:
        return benchmark_trained.train_direction(Material(PairStore(request_of(root), model, "the-sea"), range(12)), 2)

    packed = trained()
    assert given == [True]
    monkeypatch.setattr(benchmark_trained, "is_packable", lambda *_: False)
    torch.testing.assert_close(packed, trained(), rtol=1e-3, atol=1e-5 * float(packed.norm()))


def test_a_trained_direction_is_trained_once_of_all_pairs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def counted(material: Material) -> Any:
        given.append(material.n_pairs)
        return benchmark_methods.answer(material)

    counting = replace(METHODS["trained"], make=counted)
    monkeypatch.setitem(benchmark_methods.METHODS, "trained", counting)  # type: ignore[arg-type]
    unit = unit_of(root, "trained", layers=(2,))
    assert given == [12] and [one["layer"] for one in unit["by_layer"]] == [2]
    assert math.isnan(unit["by_layer"][0]["effect"])
    turning = unit_of(root, "trained+ablate", layers=(2,), kl=0.5)  # its sign is chosen without the validation items
    assert given == [12, 8, 12] and math.isfinite(turning["by_layer"][0]["effect"])


def test_permuted_labels_turn_half_of_the_pairs(root: Path) -> None:
    material = Material(PairStore(request_of(root), build_wrapper(), "the-sea"), range(12))
    positive, negative = material.tables("answer", 2)
    differences = positive - negative
    signs = [  # in which each pair's difference goes into the mean
        torch.linalg.lstsq(differences.T.double(), 12 * METHODS["permuted"].make(material, draw)[2].double()).solution  # type: ignore[index,call-overload,union-attr]
        for draw in range(5)
    ]
    assert all(found.round().tolist().count(-1) == 6 and found.round().tolist().count(1) == 6 for found in signs)
    assert len({tuple(found.round().tolist()) for found in signs}) == 5


def test_permuted_labels_keep_the_pairs_and_lose_their_direction(root: Path) -> None:
    material = Material(PairStore(request_of(root), build_wrapper(), "the-sea"), range(12))
    drawn = [METHODS["permuted"].make(material, draw)[2] for draw in range(40)]  # type: ignore[index,call-overload]
    answer = METHODS["answer"].make(material)[2]  # type: ignore[index,call-overload]
    along = torch.stack(drawn) @ answer / answer.norm() ** 2  # type: ignore[arg-type,union-attr]
    assert abs(float(along.mean())) < 3 * float(along.std()) / 40**0.5 and float(along.abs().max()) < 1


def test_what_is_missing_names_the_command_that_makes_it() -> None:
    with pytest.raises(UserError, match="did you mean probe"):
        method_named("prob")
    assert method_named("answer+rotate").operator == "rotate"
    assert issubclass(NotRun, UserError)


def test_a_gate_keeps_the_effect_and_leaves_other_prompts_alone(root: Path) -> None:
    benchmark = benchmark_run.Benchmark(build_wrapper(), request_of(root), no_weights)
    plain, gated = (benchmark.unit("the-sea", name) for name in ("answer", "gated"))
    assert unit_of(root, "gated")["by_layer"] == gated["by_layer"]  # chosen anew, it is the same
    assert (gated["layer"], gated["amount"]) == (plain["layer"], plain["amount"])
    assert gated["gate"]["opens_on"] == {"test_items": 1.0, "neutral_prompts": 0.0}
    assert np.array(gated["preference"]) == pytest.approx(np.array(plain["preference"]))
    assert [side["p95"] for side in gated["kl"]] == [0, 0, 0] and min(plain["kl"][0]["p95"], plain["kl"][2]["p95"]) > 0
    assert gated["texts"][0] == gated["texts"][1] and plain["texts"][0] != plain["texts"][1]


# --- the judge ---


def test_free_answers_are_judged_once_and_beside_the_units(benchmark: Callable[..., int], root: Path) -> None:
    folder = root / "analysis/research/steering_benchmark/tiny-chat"

    def by_length(request: Request) -> Response:
        return Response(content=str(min(10, len(request.answer) // 2)))

    def judged() -> dict[str, Any]:
        result = json.loads((folder / "results.json").read_text())
        return {row["method"]: row["judge"] for row in result["rows"]}

    with JudgeServer(by_length) as server:
        judge = ["--judge_model", "m", "--base_url", server.url]
        assert benchmark("--methods", "none", "answer") == 0
        assert judged() == {"none": None, "answer": None} and server.n_requests == 0
        assert benchmark("--methods", "none", "answer", *judge) == 0
        unit = json.loads((folder / "units/the-sea__answer.json").read_text())
        scores = [[min(10, len(text) // 2) for text in side] for side in unit["answers"]]
        assert judged()["answer"]["value"] == pytest.approx(np.mean(scores[2]) - np.mean(scores[0]))
        assert judged()["none"]["value"] == 0
        n_asked = server.n_requests
        assert n_asked == len(
            {(q, text) for side in unit["answers"] for q, text in zip(unit["questions"], side, strict=True)}
        )
        assert benchmark("--methods", "none", "answer", "system_prompt", *judge) == 0
        assert server.n_requests > n_asked and judged()["system_prompt"] is not None
        n_asked = server.n_requests
        assert benchmark("--methods", "none", "answer", "system_prompt", *judge) == 0
        assert server.n_requests == n_asked
    assert benchmark("--methods", "answer") == 0  # what was scored stays in the table
    assert judged()["answer"] is not None


def test_what_the_judge_did_not_score_is_left_for_the_same_command(
    benchmark: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    fail = [True]
    with JudgeServer(lambda request: Response(status=400) if fail[0] and request.answer else Response("3")) as server:
        words = ["--methods", "answer", "--judge_model", "m", "--base_url", server.url]
        assert benchmark(*words) == 1
        captured = capsys.readouterr()
        assert "answers have no score yet; to go on, run: " in captured.err
        assert "answer" in captured.out and "judge" not in captured.out  # the rest of the table is there
        fail[0] = False
        assert benchmark(*words) == 0
        assert "judge" in capsys.readouterr().out


# --- statistics ---


def test_the_interval_of_a_control_is_student_s_over_draws() -> None:
    draws = np.random.default_rng(0).normal(0.3, 1, (6, 20))
    estimate, p = over_draws(draws)
    means = draws.mean(axis=1)
    low, high = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_controls_are_zero_within_their_interval_in_nearly_all_worlds_without_an_effect() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):  # each draw moves all items one way, which way is chance
        draws = random.normal(0, 1, (5, 1)) + random.normal(0, 0.2, (5, 30))
        estimate, _ = over_draws(draws)
        held += estimate.low <= 0 <= estimate.high
    assert 270 <= held <= 298


def planted(root: Path, effects: dict[str, float]) -> Results:
    """Units with these mean effects and a spread of 1 over items."""
    request = request_of(root, tuple(effects))
    noise = np.random.default_rng(2).normal(0, 1, 40)
    for method, effect in effects.items():
        kind = "none" if method == "none" else "vector"
        items = np.zeros(40) if kind == "none" else effect + noise
        column = [[0.5] * 3] * 3
        unit = {
            "behavior": "the-sea",
            "method": method,
            "what": "",
            "kind": kind,
            "settings": request.describe(),
            "made": {},
            "levels": [-1.0, 0.0, 1.0],
            "preference": [(-items / 2).tolist(), [0.0] * 40, (items / 2).tolist()],
            "log_odds": None,
            "kl": [{"mean": 0.1, "p95": 0.5}] * 3,
            "texts": [[-1.0], [-1.0], [-1.5]],
            "free_metric": None,
            "distinct_2": [[0.5, None], [0.9], [0.7]],
            "questions": [],
            "answers": [[], [], []],
            "tokens_per_second": [8.0, 10.0, 10.0],
            "mmlu": column,
            "truthful_qa": column,
            "others": {"refusal": [0.2, -0.4], "food": [0.3]},
        }
        put_json(request.unit_path("the-sea", method), unit)
    return Results(request)


def test_rows_have_the_planted_effects_and_holm_goes_over_the_tested_methods(root: Path) -> None:
    rows = {row.method: row for row in planted(root, {"none": 0.0, "answer": 1.0, "pca": 0.2, "probe": 0.5}).rows}
    noise = np.random.default_rng(2).normal(0, 1, 40)
    assert rows["answer"].effect.value == pytest.approx(1.0 + noise.mean())
    assert rows["answer"].slope.value == pytest.approx((1.0 + noise.mean()) / 2)
    assert rows["answer"].against.value == pytest.approx((1.0 + noise < 0).mean())
    tested = ["answer", "pca", "probe"]
    wanted = holm([rows[method].p_value for method in tested])
    assert [rows[method].p_holm for method in tested] == wanted
    assert np.isnan(rows["none"].p_holm) and np.isnan(rows["none"].p_value)
    assert rows["answer"].perplexity == pytest.approx(np.exp(0.5)) and rows["answer"].distinct_2 == 0.5
    assert rows["answer"].speed == 0.9 and rows["answer"].others == pytest.approx(0.2)


def test_ranks_follow_the_effects_with_certainty_where_items_move_together(root: Path) -> None:
    ranks = planted(root, {"pca": 0.2, "answer": 1.0, "probe": 0.5}).ranks
    assert list(ranks) == ["answer", "probe", "pca"]
    assert [(rank.value, rank.low, rank.high) for rank in ranks.values()] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


# --- several processes ---


@pytest.mark.slow
@pytest.mark.skipif("CAA_KILLS" not in os.environ, reason="part of the campaign: CAA_KILLS=20 runs it")
def test_two_processes_find_what_one_finds(root: Path, tiny_checkpoint: Path) -> None:
    words = ["--behaviors", "the-sea", "--layers", "1", "2", "--quick", "--kl", "0.05"]
    words += ["--methods", "system_prompt", "answer", "trained", "random"]
    words += ["--model", str(tiny_checkpoint), "--device", "cpu"]
    roots = [root / name for name in ("alone", "together")]
    for one in roots:
        shutil.copytree(root, one, ignore=shutil.ignore_patterns("alone", "together"))
    assert steering_benchmark.main(["--root", str(roots[0]), *words]) == 0
    run_in_two_processes([["research.steering_benchmark", "--root", str(roots[1]), *words]], root / "runs.json")
    folders = [one / "analysis/research/steering_benchmark/tiny-chat/units" for one in roots]
    units = [{path.stem: json.loads(path.read_text()) for path in sorted(folder.iterdir())} for folder in folders]
    assert len(units[0]) == 4 and list(units[0]) == list(units[1])
    for name, alone in units[0].items():
        together = units[1][name]
        for key in ("preference", "texts", "mmlu", "draws"):
            assert np.array(together.get(key, [])) == pytest.approx(np.array(alone.get(key, [])), abs=2e-5)
        assert [side["p95"] for side in together["kl"]] == pytest.approx(
            [side["p95"] for side in alone["kl"]], abs=1e-4
        )
        assert together["answers"] == alone["answers"]
        assert together.get("layer") == alone.get("layer")
