"""What counts as a refusal, the metric, the KL divergence, and tests of rates, against numbers worked out here."""

import numpy as np
import pytest
import torch

from tests.models import build_wrapper, random_vector
from utils.errors import UserError
from utils.model.ablation import SetComponent
from utils.saes.conditions import ablating, adding, run_conditions, summarize
from utils.saes.directions import encode_all
from utils.saes.refusal import (
    ANYWHERE_PHRASES,
    START_PHRASES,
    Answers,
    kl_divergence,
    mcnemar,
    next_token_logits,
    refusal_metric,
    refusal_tokens,
    refuses,
)


@pytest.mark.parametrize(
    ("answer", "starts", "anywhere"),
    [
        ("I'm sorry, but no.", True, True),
        ("  I cannot do that", True, True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry to hear that", True, True),
        ("i'm sorry", False, True),
        ("Sure! But I cannot promise it.", False, True),
        ("I will not do it", True, False),
        ("Here is how.", False, False),
        ("", False, False),
    ],
)
def test_the_two_matchers_differ_where_they_should(answer: str, starts: bool, anywhere: bool) -> None:
    assert (refuses(answer, "starts"), refuses(answer, "anywhere")) == (starts, anywhere)


def test_there_are_the_published_phrases() -> None:
    assert len(ANYWHERE_PHRASES) == len(set(ANYWHERE_PHRASES)) == 12
    assert len(START_PHRASES) == 20 and len(set(START_PHRASES)) == 19  # one of the published is there twice


def test_rates_have_wilson_s_interval() -> None:
    rate = Answers(("I'm sorry",) * 15 + ("To do that",)).rate("starts")
    z, p, n = 1.959964, 15 / 16, 16
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (rate.value, rate.n) == (p, n)
    assert [rate.low, rate.high] == pytest.approx([(centre + s * half) / (1 + z * z / n) for s in (-1, 1)], abs=1e-6)


def test_mcnemar_counts_the_answers_that_changed() -> None:
    before, after = np.array([1, 1, 1, 1, 1, 0, 0], bool), np.array([0, 0, 0, 0, 0, 0, 1], bool)
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 6) / 2**6)  # 5 one way, 1 the other
    assert mcnemar(before, before) == 1.0


def test_the_metric_and_kl_are_those_of_float64_numpy() -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)) * 4
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits.double().numpy())
    mass = p[:, [2, 7]].sum(axis=-1)
    np.testing.assert_allclose(refusal_metric(logits[0], [2, 7]), np.log(mass + 1e-8) - np.log(1 - mass + 1e-8))
    expected = (p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(axis=-1)
    np.testing.assert_allclose(kl_divergence(logits[0], logits[1]), expected)
    certain = torch.full((1, 11), -1e4).index_fill(1, torch.tensor([2]), 1e4)
    assert refusal_metric(certain, [2])[0] == pytest.approx(-np.log(1e-8), rel=1e-4)  # bounded, not infinite


def test_refusal_tokens_are_single_ones_and_qwen_s_are_two() -> None:
    model = build_wrapper("llama")
    [expected] = model.tokenizer.encode("I", add_special_tokens=False)
    assert refusal_tokens(model) == [expected]
    assert len(refusal_tokens(build_wrapper("qwen2", "Qwen-tiny"), ["I", "A"])) == 2
    with pytest.raises(UserError, match="is 2 tokens"):
        refusal_tokens(model, ["Xy"])


def test_conditions_are_measured_against_the_same_prompts_unedited() -> None:
    model = build_wrapper("llama")
    prompts = {
        "harmful": encode_all(model, ["What is that?", "Is it?", "Do you agree?"]),
        "harmless": encode_all(model, ["Are you?", "What are you?", "The answer?"]),
    }
    direction = random_vector(2, 3.0)
    conditions = [ablating("direction", direction, 4, None), adding("direction", direction, 1)]
    assert conditions[0].steerings[0].operator == SetComponent(0.0) and len(conditions[0].steerings) == 12
    outcomes = run_conditions(model, prompts, conditions, [5], 4)  # type: ignore[arg-type]
    assert [(one.condition.side, one.condition.edit) for one in outcomes] == [
        ("harmful", "none"),
        ("harmless", "none"),
        ("harmful", "ablated"),
        ("harmless", "added"),
    ]
    added = next_token_logits(model, prompts["harmless"], conditions[1].steerings)
    np.testing.assert_allclose(outcomes[3].metric, refusal_metric(added, [5]))
    assert outcomes[0].kl.max() == 0.0 and outcomes[2].kl.min() > 0.0
    summary = summarize(outcomes, 0)[3]
    assert summary.change.value == pytest.approx(float((outcomes[3].metric - outcomes[1].metric).mean()))
    assert summary.rates["starts"].n == 3 and np.isnan(summarize(outcomes, 0)[0].p_change)
