"""Geometry of concepts: formulas against others' implementations, planted hierarchies, controls, and the script."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from research import concept_geometry as script
from tests.models import build_model, build_tokenizer
from utils.errors import UserError
from utils.research.concept_layout import lay_out
from utils.research.concept_space import concept_vector, shrinkage, whiten
from utils.research.concept_statistics import Vectors, measure, random_parents
from utils.research.concept_words import (
    CategoryTokens,
    ConceptWords,
    WordTokens,
    find_tokens,
    load_concept_words,
    singular_and_plural,
    usable_categories,
    word_forms,
)

RNG = np.random.default_rng(0)
D = 120
PARENTS, CHILDREN = ("animal", "plant"), ("bird", "fish", "snake", "tree", "herb", "moss")


def categories(n_words: int = 30) -> list[CategoryTokens]:
    found, n = [], 0
    for place, child in enumerate(CHILDREN):
        words = tuple(WordTokens(f"{child}{i}", (n + 2 * i, n + 2 * i + 1)) for i in range(n_words))
        found.append(CategoryTokens(child, PARENTS[place // 3], words, 0))
        n += 2 * n_words
    return found


def planted(seed: int = 0) -> np.ndarray:
    """A whitened table in which parents and, orthogonal to them, children have vectors of length 6 and 4."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((D, 8)))[0].T
    rows = rng.standard_normal((360, D)) * 0.5
    for child in range(6):
        rows[60 * child : 60 * child + 60] += 6 * directions[child // 3] + 4 * directions[2 + child]
    return rows


# --- formulas --------------------------------------------------------------------------------------


def test_whitened_rows_have_covariance_one_and_the_inner_product_of_the_logits() -> None:
    rows = RNG.standard_normal((500, 20)) @ RNG.standard_normal((20, 20)) + 3
    space = whiten(rows)
    np.testing.assert_allclose(np.cov(space.g.T, bias=True), np.eye(20), atol=1e-10)
    state = RNG.standard_normal(20)
    logits, causal = rows @ state, space.g @ (space.root @ state)
    np.testing.assert_allclose(causal - causal.mean(), logits - logits.mean(), atol=1e-9)
    step = RNG.standard_normal(20)  # added behind the final norm it changes logits by g.step, up to a constant
    change = rows @ (space.inverse_root @ step)
    np.testing.assert_allclose(change - change.mean(), space.g @ step, atol=1e-9)


def test_an_unembedding_without_an_inverse_covariance_is_refused() -> None:
    rows = np.repeat(RNG.standard_normal((100, 1)), 4, axis=1)
    with pytest.raises(UserError, match="has no inverse; the causal inner product is not defined"):
        whiten(rows)


@pytest.mark.parametrize(("n", "d"), [(15, 60), (80, 60), (200, 10)])
def test_a_concept_s_vector_is_that_of_the_shrunk_covariance_s_inverse(n: int, d: int) -> None:
    rows = RNG.standard_normal((n, d)) * np.linspace(0.5, 3, d) + RNG.standard_normal(d)
    covariance, shrunk_by = ledoit_wolf(rows)
    direction = np.linalg.solve(covariance, rows.mean(axis=0))
    unit = direction / np.linalg.norm(direction)
    assert shrinkage(rows) == pytest.approx(shrunk_by, rel=1e-9)
    np.testing.assert_allclose(concept_vector(rows), (rows.mean(axis=0) @ unit) * unit, rtol=1e-6, atol=1e-9)


def test_equal_rows_give_their_mean() -> None:
    row = RNG.standard_normal(8)
    np.testing.assert_allclose(concept_vector(np.repeat(row[None], 5, axis=0)), row)


# --- statistics ------------------------------------------------------------------------------------


def test_a_planted_hierarchy_is_found_and_random_rows_show_none() -> None:
    layout, _ = lay_out(categories(), seed=0)
    real = measure(planted(), layout)
    noise = measure(np.random.default_rng(1).standard_normal((360, D)) * 0.5, layout)
    assert np.abs(real.nested).max() < 0.2
    assert real.apart.min() > -0.3  # not 0: a parent of two children has half of what is theirs alone
    assert noise.apart.mean() < -0.5  # a parent that has nothing of the child is simply subtracted
    assert real.share.min() > 0.6
    assert noise.share.max() < 0.4
    assert np.abs(real.members - 1).max() < 0.15
    assert np.abs(real.outsiders).max() < 0.15
    assert noise.members.max() < 0.5
    assert np.concatenate(real.nearest).mean() > 0.95
    assert np.concatenate(noise.nearest).mean() < 0.7


def test_nestedness_alone_makes_the_first_cosine_small() -> None:
    layout, _ = lay_out(categories(), seed=0)
    noise = np.random.default_rng(2).standard_normal((360, D))
    assert np.abs(measure(noise, layout).nested).max() < 0.25
    drawn = random_parents(planted(), layout, noise, np.random.default_rng(0))
    assert drawn.mean() < 0
    assert measure(planted(), layout).other_parent.max() < -0.4


def test_a_step_between_parents_moves_their_words_and_not_the_children_apart() -> None:
    layout, _ = lay_out(categories(), seed=0)
    gaps = {(gap.kind, gap.held_out, gap.source, gap.target): gap for gap in measure(planted(), layout).gaps}
    step = gaps["parent", True, "animal", "plant"]
    assert step.own == pytest.approx(6 * np.sqrt(2), rel=0.15)
    assert step.other < 1.0
    child = gaps["child", True, "bird", "fish"]
    assert child.own == pytest.approx(4 * np.sqrt(2), rel=0.15)
    assert child.other < 1.0
    assert len(gaps) == 2 * (1 + 6)


def test_words_set_aside_are_not_in_the_vectors_that_they_test() -> None:
    layout, _ = lay_out(categories(), seed=0)
    rows = planted()
    before = Vectors(rows, layout, layout.is_training).children
    rows[~layout.is_training] += 100
    np.testing.assert_array_equal(Vectors(rows, layout, layout.is_training).children, before)
    of_words = [layout.is_training[layout.word_of_row == word] for word in np.unique(layout.word_of_row)]
    assert all(len(set(flags.tolist())) == 1 for flags in of_words)  # all forms of a word are on one side
    assert 0.65 < layout.is_training.mean() < 0.75


def test_corners_of_a_regular_simplex_have_the_cosine_of_one() -> None:
    layout, _ = lay_out(categories(), seed=0)
    real = measure(planted(), layout)
    np.testing.assert_allclose(real.corners, -0.5, atol=0.01)


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "plural"),
    [
        ("dog", "dogs"),
        ("berry", "berries"),
        ("monkey", "monkeys"),
        ("fox", "foxes"),
        ("church", "churches"),
        ("mouse/mice", "mice"),
    ],
)
def test_plurals_are_made_by_rule_or_taken_as_written(entry: str, plural: str) -> None:
    assert singular_and_plural(entry)[1] == plural


def test_forms_are_singular_and_plural_also_with_a_capital_letter() -> None:
    assert word_forms("mouse/mice", plurals=True) == ["mouse", "Mouse", "mice", "Mice"]
    assert word_forms("red", plurals=False) == ["red", "Red"]


def test_words_of_several_tokens_are_counted_and_left_out() -> None:
    known = {"dog": 1, "dogs": 2, "Cat": 3}
    words = ConceptWords("x", True, {"animal": {"pet": ("dog", "cat", "iguana")}})
    [found] = find_tokens(words, known.get)
    assert [one.token_ids for one in found.words] == [(1, 2), (3,)]
    assert (found.n_left_out, found.n_tokens) == (1, 3)


def test_a_category_with_fewer_than_15_tokens_is_refused_with_a_line() -> None:
    found = categories()
    small = CategoryTokens("fern", "plant", found[0].words[:7], 0)
    kept, lines = usable_categories([*found, small], Path("w.json"))
    assert [one.name for one in kept] == list(CHILDREN)
    assert lines == ["fern (plant): 14 tokens, but a category needs 15; left out"]
    with pytest.raises(UserError, match="it takes two parents with two categories each: fern"):
        usable_categories([*found[:3], small], Path("w.json"))


def test_a_word_in_two_categories_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"label": "x", "categories": {"a": {"b": ["bat"], "c": ["bat/bats"]}}}))
    with pytest.raises(UserError, match="'bat' stands in 'b' and in 'c'"):
        load_concept_words(path)


def test_the_bundled_nouns_are_whole() -> None:
    words = load_concept_words(script.BUNDLED_WORDS)
    assert words.plurals
    assert all(len(children) >= 3 for children in words.categories.values())


# --- the script ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a token for each of 120 words, whose unembedding has their hierarchy."""
    import torch

    folder = tmp_path_factory.mktemp("concepts") / "tiny-words"
    tokenizer, model = build_tokenizer(), build_model("llama")
    n_before = len(tokenizer)
    tokenizer.add_tokens([f" {child}x{i}" for child in CHILDREN for i in range(20)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    directions = torch.linalg.qr(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))[0].T
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        for place in range(120):
            child = place // 20
            rows[n_before + place] += 2 * directions[child // 3] + 1.5 * directions[2 + child]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    words = {child: [f"{child}x{i}" for i in range(20)] + ["several words"] for child in CHILDREN[:1]}
    words |= {child: [f"{child}x{i}" for i in range(20)] for child in CHILDREN[1:]}
    tree = {parent: {child: words[child] for child in CHILDREN[3 * p : 3 * p + 3]} for p, parent in enumerate(PARENTS)}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"label": "own", "categories": tree}))
    return path


def test_the_script_writes_figures_tables_and_numbers_once(
    checkpoint: Path,
    words_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    argv = ["--root", root, "--model", checkpoint, "--words", words_file, "--n_shuffles", 3]
    command = [str(word) for word in argv]
    assert script.main(command) == 0
    shown = capsys.readouterr()
    assert "step between parents: parent gap, held-out words" in shown.out
    assert "words that are several tokens, left out: 1 of 121" in shown.err
    folder = root / "analysis" / "research" / "concept_geometry"
    stems = [f"{figure}_own_tiny-words" for figure in ("hierarchy", "cosines", "projections", "interventions")]
    names = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf", ".txt")}
    assert {path.name for path in folder.iterdir()} == names | {"own_tiny-words.json"}
    result = json.loads((folder / "own_tiny-words.json").read_text())
    found = result["summary"]
    assert found["parent_step_held_out_own"]["value"] > 3 * found["parent_step_held_out_own_shuffled"]["high"]
    assert script.main(command) == 0
    assert "is there already" in capsys.readouterr().err
    assert script.main([*command, "--seed", "1"]) == 2
    assert "was made with another seed" in capsys.readouterr().err


def test_missing_words_are_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--root", str(tmp_path), "--words", str(tmp_path / "none.json")]) == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.embedded
@pytest.mark.slow
def test_float64_whitens_the_embedded_unembedding_to_rounding() -> None:
    from llama_wrapper import LlamaWrapper
    from utils.research.concept_run import unembedding_of

    rows = unembedding_of(LlamaWrapper.load("135m"))
    g = whiten(rows).g
    assert np.abs(g.T @ g / len(g) - np.eye(g.shape[1])).max() < 1e-10
