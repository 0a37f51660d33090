"""Result file names and the settings that they stand for."""

import string
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference import carried_path, reference_path
from utils.behaviors import published_behaviors
from utils.errors import UserError
from utils.settings import KEYS, OPERATORS, RESULT_TYPES, Beside, SteeringSettings, parse_result_name

PLAIN = SteeringSettings(layer=13, multiplier=1.0, behavior="sycophancy", type="ab", model_size="7b")

# Labels as checkpoints bear them: no "=", and so nothing that could be taken for a key.
LABELS = st.text(string.ascii_letters + string.digits + "._- +@", min_size=1, max_size=40)


def optional(labels: st.SearchStrategy[str]) -> dict[str, st.SearchStrategy[object]]:
    """What each setting that may be left out may be."""
    return {
        "system_prompt": st.sampled_from(["pos", "neg"]),
        "override_vector": st.integers(0, 200),
        "override_vector_model": labels,
        "use_base_model": st.just(True),
        "quantize": st.sampled_from(["int8", "nf4"]),
        "override_model_weights_path": labels,
        "steer_positions": st.just("all"),
        "vector_behavior": st.sampled_from(published_behaviors()),
        "temperature": st.floats(0, 10),
        "num_samples": st.integers(1, 1000),
        "seed": st.integers(0, 2**32 - 1),
        "operator": st.sampled_from(OPERATORS),
        "quantile": st.floats(0.01, 0.99),
        "beside": st.sampled_from(["refusal@3", "refusal@3x-0.5+the-sea@0"]),
        "condition": labels,
    }


@st.composite
def any_settings(draw: st.DrawFn, labels: st.SearchStrategy[str] = LABELS, most: int = 5) -> SteeringSettings:
    """With at most `most` of those that may be left out: a name of all of them is too long for a file."""
    known = optional(labels)
    size = draw(st.one_of(st.none(), st.sampled_from(["7b", "13b", "70b", "135m"])))
    return SteeringSettings(
        layer=draw(st.integers(0, 200)),
        multiplier=draw(st.floats(allow_nan=False, allow_infinity=False)),
        behavior=draw(st.sampled_from(published_behaviors())),
        type=draw(st.sampled_from(RESULT_TYPES)),
        model_size=size,
        model=None if size else draw(labels),
        **{key: draw(known[key]) for key in draw(st.sets(st.sampled_from(sorted(known)), max_size=most))},
    )


@settings(max_examples=300, deadline=None)
@given(any_settings())
def test_a_name_reads_back_as_the_settings_that_built_it(drawn: SteeringSettings) -> None:
    """So different settings have different names, too."""
    assume(fits(drawn))
    assert parse_result_name(drawn.result_name) == drawn
    assert "/" not in drawn.result_name


def fits(drawn: SteeringSettings) -> bool:
    """Whether the settings give a name that a file can have: all flags at once may not."""
    return len(f"results_{drawn.describe()}.json".encode()) <= 255


@given(any_settings(most=15))
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_computed(drawn: SteeringSettings) -> None:
    assume(not fits(drawn))
    with pytest.raises(UserError, match=r"a file name of \d+ bytes, which is more than file systems take \(255\)"):
        _ = drawn.result_name


ADVERSARIAL = st.one_of(
    st.text(max_size=12),
    st.builds(
        "{}_{}={}{}".format,
        st.text("ab", max_size=2),
        st.sampled_from(
            ["layer", "model", "model_size", "seed", "use_base_model", "steer_positions", "temperature", "type"]
        ),
        st.sampled_from(["1", "x", "all", "True", ""]),
        st.sampled_from(["", ".json", "_model=y"]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(any_settings(ADVERSARIAL))
def test_a_label_that_would_make_the_name_ambiguous_is_refused(drawn: SteeringSettings) -> None:
    try:
        name = drawn.result_name
    except UserError as err:
        assert "cannot be written as a file name" in str(err) or "more than file systems take" in str(err)
    else:
        assert parse_result_name(name) == drawn


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_other_name_is_refused_and_nothing_else_happens(text: str) -> None:
    for name in (text, f"results_{text}.json", f"results_layer={text}.json"):
        with pytest.raises(UserError):
            parse_result_name(name)


def test_the_name_is_the_published_one() -> None:
    assert PLAIN.result_name == (
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json"
    )
    everything = replace(
        PLAIN,
        multiplier=-0.5,
        system_prompt="pos",
        override_vector=4,
        override_vector_model="Llama-2-7b-hf",
        override_model_weights_path="finetuned_models-x.pt",
        steer_positions="all",
    )
    assert everything.result_name == (
        "results_layer=13_multiplier=-0.5_behavior=sycophancy_type=ab_system_prompt=pos_override_vector=4"
        "_override_vector_model=Llama-2-7b-hf_use_base_model=False_model_size=7b"
        "_override_model_weights_path=finetuned_models-x.pt_steer_positions=all.json"
    )


@pytest.mark.parametrize("folder", ["carried", "caa", "parity"])
def test_every_published_name_reads_and_is_built_again(folder: str) -> None:
    root = carried_path("results") if folder == "carried" else reference_path(folder, "results")
    names = [path.name for path in root.rglob("results_*.json")]
    assert len(names) > 70
    for name in names:
        assert parse_result_name(name).result_name == name


def test_layer_1_and_override_vector_1_are_not_13() -> None:
    at_1, at_13 = replace(PLAIN, override_vector=1), replace(PLAIN, override_vector=13)
    assert at_1.result_name in at_13.result_name.replace("vector=13", "vector=1")  # as text, one is in the other
    assert parse_result_name(at_1.result_name).override_vector == 1
    assert parse_result_name(at_13.result_name).override_vector == 13
    assert parse_result_name(at_1.result_name) != parse_result_name(at_13.result_name)
    assert parse_result_name(PLAIN.at(1, 1).result_name) != parse_result_name(PLAIN.result_name)


def test_at_moves_layer_and_multiplier_only_and_integers_become_decimals() -> None:
    moved = PLAIN.at(2, -1)
    assert moved == replace(PLAIN, layer=2, multiplier=-1.0)
    assert "_multiplier=-1.0_" in moved.result_name


# --- what follows from the declaration of a key ---

EVERYTHING = replace(
    PLAIN,
    system_prompt="neg",
    override_vector=4,
    override_vector_model="Llama-2-7b-hf",
    use_base_model=True,
    model_size=None,
    model="m",
    override_model_weights_path="finetuned_models-x.pt",
    steer_positions="all",
    vector_behavior="refusal",
    temperature=0.7,
    num_samples=3,
    seed=5,
    part="rank2",
)


def test_every_setting_has_a_key_and_stands_in_names_in_the_order_of_the_declaration() -> None:
    assert list(KEYS) == [field.name for field in fields(SteeringSettings)]
    assert EVERYTHING.describe() == (
        "layer=13_multiplier=1.0_behavior=sycophancy_type=ab_system_prompt=neg_override_vector=4"
        "_override_vector_model=Llama-2-7b-hf_use_base_model=True_model=m"
        "_override_model_weights_path=finetuned_models-x.pt_steer_positions=all_vector_behavior=refusal"
        "_temperature=0.7_num_samples=3_seed=5_part=rank2"
    )


def test_at_multiplier_0_nothing_is_left_of_the_vector_and_of_where_it_is_added() -> None:
    left = replace(
        PLAIN,
        layer=0,
        multiplier=0.0,
        system_prompt="neg",
        use_base_model=True,
        model_size=None,
        model="m",
        override_model_weights_path="finetuned_models-x.pt",
        temperature=0.7,
        num_samples=3,
        seed=5,
    )
    assert EVERYTHING.unsteered() == left
    assert replace(PLAIN, vector_behavior="refusal").unsteered() == PLAIN.unsteered() == PLAIN.at(0, 0)


def test_what_differs_from_plain_steering_is_said_in_words() -> None:
    assert PLAIN.differing() == ""
    assert replace(PLAIN, layer=2, type="mmlu", model_size=None, model="m", use_base_model=True).differing() == ""
    assert EVERYTHING.differing() == (
        "system_prompt=neg, override_vector=4, override_vector_model=Llama-2-7b-hf, "
        "override_model_weights_path=finetuned_models-x.pt, steer_positions=all, vector_behavior=refusal, "
        "temperature=0.7, num_samples=3, seed=5, part=rank2"
    )


def test_the_flags_of_a_command_are_the_keys_that_are_not_at_their_default() -> None:
    assert PLAIN.command_words(str) == ["--type", "ab"]
    assert " ".join(EVERYTHING.command_words(lambda name: f"<{name}>")) == (
        "--type ab --system_prompt neg --override_vector 4 --override_vector_model Llama-2-7b-hf "
        "--override_model_weights_path <finetuned_models-x.pt> --steer_positions all --vector_behavior refusal "
        "--temperature 0.7 --num_samples 3 --seed 5 --part rank2"
    )


def test_settings_name_the_same_model_whatever_else_they_say() -> None:
    assert PLAIN.same_model(replace(PLAIN, layer=2, behavior="refusal", system_prompt="pos"))
    for change in (
        {"use_base_model": True},
        {"model_size": "13b"},
        {"model_size": None, "model": "7b"},
        {"quantize": "nf4"},
    ):
        assert not PLAIN.same_model(replace(PLAIN, **change))


def test_a_description_leaves_out_what_a_figure_runs_over() -> None:
    assert PLAIN.describe("layer", "multiplier") == "behavior=sycophancy_type=ab_use_base_model=False_model_size=7b"


def test_a_vector_beside_another_is_written_as_it_is_read() -> None:
    for text, wanted in (("the-sea@12", Beside("the-sea", 12)), ("refusal@3x-0.5", Beside("refusal", 3, -0.5))):
        assert Beside.parse(text) == wanted
        assert str(wanted) == text
    assert str(Beside.parse("refusal@3x1.0")) == "refusal@3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behavior": "../kindness"}, "'../kindness' is not a behavior's id"),
        ({"vector_behavior": "a_type=mmlu"}, "'a_type=mmlu' is not a behavior's id"),
        ({"system_prompt": "up"}, "unknown system prompt 'up'; choose from: pos, neg"),
        ({"steer_positions": "none"}, "unknown position 'none'; choose from: end_of_prompt, all"),
        ({"type": "essay"}, "unknown result type 'essay'; choose from: ab, open_ended, truthful_qa, mmlu"),
        ({"model": "x"}, "either a model_size or a model"),
        ({"model_size": None}, "either a model_size or a model"),
        ({"operator": "ad"}, "unknown operator 'ad'; did you mean add\\? Else choose from: add, add_keep_norm"),
        ({"beside": "refusal"}, "'refusal' does not name a vector; write BEHAVIOR@LAYER or BEHAVIOR@LAYERxWEIGHT"),
        ({"layer": -1}, "layer -1 is negative"),
        ({"multiplier": float("nan")}, "multiplier nan is not a finite number"),
        ({"temperature": float("inf")}, "temperature inf is not a finite number"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(PLAIN, **change)


@pytest.mark.parametrize(
    "name",
    [
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False.json",
        "results_layer=x_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_layer=14_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=maybe_model_size=7b.json",
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_system_prompt=up_use_base_model=False_model_size=7b.json",
        "layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.txt",
        "notes.json",
        # names that read as settings with another name: two files would stand for one result
        "results_layer=013_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=1_3_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=١٣_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=1_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=-0.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=nan_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=1e400_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_multiplier=1.0_layer=13_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b.json",
        "results_layer=13_multiplier=1.0_behavior=sycophancy_type=ab_use_base_model=False_model_size=7b_seed=0.json",
    ],
)
def test_names_that_the_suite_does_not_write_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        parse_result_name(name)


@pytest.mark.parametrize("label", ["a/b", "..\\b", "a\nb", "x_seed=3", "x_layer=1", "x_use_base_model=True"])
def test_a_label_that_leaves_the_folder_or_looks_like_a_key_is_refused(label: str) -> None:
    with pytest.raises(UserError, match=r"cannot be written as a file name: .*; rename the model"):
        _ = replace(PLAIN, model_size=None, model=label).result_name
