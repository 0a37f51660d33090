"""A run of concept_geometry.py: whiten, measure, the same for the controls, figures and a summary."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from utils.cli.progress import progress
from utils.research.concept_figures import plot_geometry
from utils.research.concept_layout import lay_out
from utils.research.concept_request import GeometryRequest
from utils.research.concept_space import ConceptSpace, FloatArray, whiten
from utils.research.concept_statistics import measure, random_gaps, random_parents
from utils.research.concept_summary import Measured, estimate_json, summarise, summary_lines
from utils.research.concept_words import CategoryTokens, find_tokens, load_concept_words, usable_categories
from utils.saes.requests import write_result

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


def run_geometry(request: GeometryRequest, model: "LlamaWrapper") -> list[str]:
    """Measure, draw, write; the lines of the summary.

    Raises:
        UserError: If the words are broken or too few of them are tokens, or the unembedding cannot be whitened.
    """
    words = load_concept_words(request.words)
    found = find_tokens(words, token_finder(model))
    categories, refused = usable_categories(found, request.words)
    for line in refused:
        log.warning("%s", line)
    n_left_out = sum(one.n_left_out for one in found)
    log.info(
        "%d categories, %d tokens; words that are several tokens, left out: %d of %d",
        len(categories),
        sum(one.n_tokens for one in categories),
        n_left_out,
        n_left_out + sum(len(one.words) for one in found),
    )
    log.info("whitening the unembedding of %s", model.label)
    measured = measure_hierarchy(request, words.label, categories, whiten(unembedding_of(model)))
    plot_geometry(measured, request)
    summary = summarise(measured, request.seed)
    made = {**model.provenance(), "command": request.command}
    content = {
        "summary": {name: estimate_json(value) for name, value in summary.items()},
        "gaps": [asdict(gap) for gap in measured.real.gaps],
    }
    write_result(request.result_path, request.describe(), made, content)
    return summary_lines(summary, measured)


def token_finder(model: "LlamaWrapper") -> Callable[[str], int | None]:
    """From a word to its token behind a blank; None where it takes several."""

    def ids_of(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    before = ids_of("a")

    def token_of(word: str) -> int | None:
        ids = ids_of(f"a {word}")
        return ids[-1] if ids[:-1] == before else None

    return token_of


def unembedding_of(model: "LlamaWrapper") -> FloatArray:
    """Rows of the output embeddings that are tokens of the tokenizer, [vocab_size, d_model] float64."""
    rows = model.model.get_output_embeddings().weight.detach().cpu().double().numpy()
    return np.asarray(rows[: len(model.tokenizer)])


def measure_hierarchy(
    request: GeometryRequest, label: str, categories: Sequence[CategoryTokens], space: ConceptSpace
) -> Measured:
    layout, token_ids = lay_out(categories, request.seed)
    rng = np.random.default_rng(request.seed)
    x, n = space.g[token_ids], len(space.g)
    shuffled, parents, gaps = [], [], []
    for _ in progress(range(request.n_shuffles), desc="controls", unit="draw"):
        shuffled.append(measure(space.g[rng.choice(n, len(x), replace=False)], layout))
        parents.append(random_parents(x, layout, space.g, rng))
        gaps.append(random_gaps(x, layout, rng))
    return Measured(
        label,
        list(categories),
        layout,
        x,
        space.g[rng.choice(n, min(n, 1500), replace=False)],
        measure(x, layout),
        shuffled,
        np.stack(parents),
        float(np.mean(gaps)),
    )
