"""Vectors read by an SAE on a tiny model: what is encoded, what is dropped and why, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from research import decompose_vectors
from tests.models import D_MODEL, build_wrapper
from tests.roots import TINY_LABEL, error_lines, snapshot
from tests.saes.conftest import write_documents
from utils.data.records import ContrastPair, TextPair
from utils.files.tables import read_table
from utils.model.pairs import encode_pair
from utils.research.sae_filters import CONTROLS, Filters, LatentFacts, ReadVector, build_variants, latent_facts
from utils.research.sae_readings import PairEncodings, encode_pairs, read_vector
from utils.saes.dictionary import SAE

D_SAE = 64


def make_sae(layer: int = 1, label: str = TINY_LABEL, d_model: int = D_MODEL, data: Path | None = None) -> SAE:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(D_SAE, d_model, generator=generator)
    rows = 2 * rows / rows.norm(dim=1, keepdim=True)  # not of length 1
    return SAE(
        W_enc=rows.T.contiguous(),
        b_enc=0.1 * torch.randn(D_SAE, generator=generator),
        W_dec=rows,
        b_dec=torch.zeros(d_model),
        architecture="topk",
        k=6,
        layer=layer,
        model=label,
        source="talk",
        name="sae",
        own={"data": str(data), "context": 16} if data else {},
    )


@pytest.mark.parametrize("reading", ["letter", "answer", "last"])
def test_pairs_are_encoded_token_by_token_where_they_are_read(reading: str) -> None:
    model, sae = build_wrapper(), make_sae()
    texts = [TextPair(f"What is {i}?", f"The answer is {i}", f"Not {i * 'so '}{i}") for i in range(9)]
    letters = [
        ContrastPair(f"What is {i}?\n\nChoices:\n (A) x\n (B) {i * 'y '}", "AB"[i % 2], "BA"[i % 2]) for i in range(9)
    ]
    pairs = letters if reading == "letter" else texts
    [found] = encode_pairs(model, [sae], pairs, reading)  # type: ignore[arg-type]
    for row in (0, 8):
        tokens = encode_pair(model.chat_format, pairs[row], reading)  # type: ignore[arg-type]
        for half, table in ((tokens.positive, found.positive), (tokens.negative, found.negative)):
            with torch.no_grad():
                states = model.model(torch.tensor([half.ids]), output_hidden_states=True).hidden_states[2][0]
            expected = sae.encode(states[half.read_from :]).mean(dim=0)
            np.testing.assert_allclose(table[row], expected, rtol=1e-4, atol=1e-5)
    if reading == "answer":  # the mean's latents are others
        states = states[tokens.negative.read_from :]
        assert np.abs(found.negative[8] - sae.encode(states.mean(dim=0)).numpy()).max() > 0.01


def test_the_readings_differ_as_they_must_for_a_vector_with_a_negative_latent() -> None:
    sae = make_sae()
    rows = (sae.W_dec / 2).double().numpy()
    delta = np.zeros(D_SAE)
    delta[[5, 9]] = 1.0, -1.0  # of rows of length 2
    readings = read_vector(sae, 2 * rows[5] - 2 * rows[9], delta, (1, 4))
    assert readings["difference"].unexplained == pytest.approx(0, abs=1e-9)
    assert set(readings["signed 4"].latents[:2]) == {5, 9} and readings["signed 4"].explained > 0.999
    for blind in ("encoding", "nonnegative 4"):
        assert 9 not in readings[blind].latents and readings[blind].explained < 0.95


def planted_read(filters: Filters) -> ReadVector:
    """Latents 0 to 3 make up a vector: one that carries it, one dense, one on first tokens, one on both sides."""
    sae = make_sae()
    rows = (sae.W_dec / 2).double().numpy()
    density, side, p_side = np.full(D_SAE, 0.001), np.ones(D_SAE), np.full(D_SAE, 1e-6)
    density[1], p_side[3] = 0.5, 0.8
    first = np.arange(D_SAE) == 2
    facts = LatentFacts(density, first, side, np.ones(D_SAE), p_side)
    vector = np.array([4.0, 3.0, 2.0, 1.0]) @ rows[:4]
    return ReadVector(sae, vector, read_vector(sae, vector, np.zeros(D_SAE), (1, 4)), facts, filters)


def test_each_filter_drops_its_latent_and_the_rest_is_their_sum() -> None:
    read = planted_read(Filters(0.1, named=(0,), obvious=1))
    assert read.base.latents == (0, 1, 2, 3)
    assert read.reasons() == [["named"], ["dense"], ["first token"], ["non-discriminating"]]
    read = replace(read, filters=Filters(0.1, obvious=1))
    rows = (read.sae.W_dec / 2).double().numpy()
    assert [latent for latent, _ in read.candidates()] == [0]
    variants = build_variants(read, (0, 4.0), n_draws=3, seed=0)
    vectors = {one.name: one for one in variants.made}
    np.testing.assert_allclose(vectors["without dense"].vectors[0], read.vector - 3 * rows[1], atol=1e-6)
    np.testing.assert_allclose(vectors["irrelevant removed"].vectors[0], 4 * rows[0], atol=1e-6)
    np.testing.assert_allclose(vectors["single best latent"].vectors[0], rows[0], atol=1e-6)
    assert vectors["irrelevant removed"].n_dropped == 3 and list(vectors)[-2:] == list(CONTROLS)
    assert vectors[CONTROLS[0]].vectors.shape == (3, D_MODEL) and vectors[CONTROLS[0]].n_dropped == 3
    assert variants.absent == {"difference of encodings": "no latent is left"}
    np.testing.assert_allclose(vectors["reconstruction"].vectors[0], read.vector, atol=1e-6)


def test_a_latent_on_the_other_side_than_its_coefficient_does_not_discriminate() -> None:
    read = planted_read(Filters(0.1))
    read = replace(read, facts=replace(read.facts, side=-np.ones(D_SAE)))
    assert read.reasons()[0] == ["non-discriminating"]
    variants = build_variants(read, (0, 4.0), n_draws=2, seed=0)
    assert variants.absent["irrelevant removed"] == variants.absent["obvious only"] == "no latent is left"
    assert CONTROLS[0] not in {one.name for one in variants.made}


def test_facts_of_latents_are_counted() -> None:
    sae = make_sae()
    rows = torch.randn(300, D_MODEL, generator=torch.Generator().manual_seed(1))
    positive, negative = np.zeros((8, D_SAE)), np.zeros((8, D_SAE))
    positive[:, 0], positive[:4, 1], negative[4:, 1] = 1.0, 1.0, 1.0
    facts = latent_facts(sae, rows, rows[0], PairEncodings(positive, negative))
    on = sae.encode(rows) > 0
    np.testing.assert_allclose(facts.density, on.double().mean(dim=0))
    assert facts.fires_first.tolist() == on[0].tolist() and facts.fires_first.sum() <= 6
    assert (facts.agreeing[0], facts.agreeing[1]) == (1, 0.5) and np.isnan(facts.agreeing[2])
    assert facts.p_side[0] == pytest.approx(2 / 2**8) and facts.p_side[1] == facts.p_side[2] == 1


# --- the script ---


@pytest.fixture
def sae_folder(root: Path) -> Path:
    make_sae(data=write_documents(root / "talk.jsonl")).save(root / "saes_trained" / "small")
    return root / "saes_trained" / "small"


QUICK = ("--layers", 1, "--ranks", 1, "--leave_out", 0, "--n_flips", 20, "--n_random", 2, "--tokens", 300, "--limit", 3)


def test_the_script_reads_and_filters_a_vector_and_a_second_run_does_nothing(
    root: Path,
    sae_folder: Path,
    grown: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    flags = (*QUICK, "--saes", sae_folder, "--max_density", 0.3, "--drop_latents", 1, 2)
    assert grown(decompose_vectors, *flags) == 0
    assert "sea, SAE small: signed" in capsys.readouterr().out
    folder, name = root / "analysis/research/sea", f"small_layer=1_{TINY_LABEL}_read=answer"
    found = json.loads((folder / f"sae_latents_{name}.json").read_text())
    assert {"encoding", "difference", "signed 1", "nonnegative 64"} <= set(found["readings"])
    assert found["readings"]["signed 64"]["unexplained"] == pytest.approx(0, abs=1e-9)  # 64 latents, 32 dimensions
    assert found["report"]["figures"] == [f"sae_latents_{name}", f"sae_tradeoff_{name}"]
    variants = [one["vector"] for one in found["variants"]]
    assert variants[0] == "whole" and variants[-1] == "random vector" and "single best latent" in variants
    assert len(variants) + len(found["absent"]) >= 11
    for table in (f"sae_latents_{name}.txt", f"sae_latents_{name}_readings.txt", f"sae_tradeoff_{name}.txt"):
        assert read_table(folder / table)
    assert "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}" in (folder / f"sae_latents_{name}.txt").read_text()
    parts = {path.name.split("part=")[1] for path in (root / "vectors/sea/parts").glob("*_part=sae-*")}
    assert {"sae-small-reconstruction.pt", "sae-small-single-best-latent.pt"} <= parts
    assert not list(folder.glob(".effects_*"))
    request.getfixturevalue("loading_is_forbidden")
    before = snapshot(root)
    assert grown(decompose_vectors, *flags) == 0
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("sae", "flags", "message"),
    [
        (make_sae(layer=2), (), "it reads layer 2, but --layers names 1; add 2"),
        (make_sae(label="other-model"), (), "was trained on other-model, not on tiny-chat"),
        (make_sae(d_model=16), (), "has width 16, but the residual stream of tiny-chat has 32"),
        (make_sae(), ("--drop_latents", 64), "--drop_latents 64: SAE small has latents 0 to 63"),
        (make_sae(data=Path(__file__)), (), "sea: 10 pairs are too few to choose by; it takes at least 12"),
        (None, (), "no SAE is there (cfg.json, sae_weights.safetensors)"),
        (make_sae(), ("--from", "answers"), "--from answers: SAEs read contrast pairs"),
    ],
    ids=["layer", "model", "width", "latent", "pairs", "folder", "origin"],
)
def test_an_sae_that_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    sae: SAE | None,
    flags: tuple[object, ...],
    message: str,
    root: Path,
    made: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = root / "saes_trained" / "small"
    if sae:
        sae.save(folder)
    before = snapshot(root)
    capsys.readouterr()
    assert made(decompose_vectors, *QUICK, "--saes", folder, *flags) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert message in line
    assert snapshot(root) == before
