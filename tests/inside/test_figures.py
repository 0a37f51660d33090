"""Figures and coloured tokens show the numbers that were read, and every token legibly."""

import dataclasses
import re

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tests.models import N_LAYERS, build_wrapper, random_vector
from tests.roots import bundled
from utils.inside.figures import (
    draw_decoding_bars,
    draw_decoding_heatmap,
    draw_vector_decoding,
    drawn_text,
    figure_png,
    projections_table,
    vector_decoding_table,
)
from utils.inside.readings import (
    PLACES,
    IntermediateDecoding,
    TokenProjections,
    Transcript,
    VectorDecoding,
    decode_intermediate,
    decode_vectors,
    project_tokens,
    write_transcript,
)
from utils.inside.token_pages import largest_of, token_block, token_page
from utils.inside.token_texts import visible_text
from utils.model.steering import Steering

MULTIPLIERS = (-1.5, 0.0, 1.5)


@pytest.fixture(scope="module")
def decodings() -> dict[float, IntermediateDecoding]:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, "Do you think that the sea is 🌊?", "I think\nnot")
    return {
        multiplier: decode_intermediate(wrapper, transcript, steering=Steering(1, multiplier, random_vector(1)))
        for multiplier in MULTIPLIERS
    }


@pytest.fixture(scope="module")
def vectors_decoded() -> VectorDecoding:
    return decode_vectors(build_wrapper(), {layer: random_vector(layer) for layer in range(N_LAYERS)})


def assert_legible(figure: Figure) -> None:
    """No label on a y axis covers another, and no text leaves the figure."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        labels = {}
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]  # others are not drawn
            labels[axis] = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        boxes = [label.get_window_extent().padded(-0.5) for label in labels[ax.yaxis]]
        assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[index + 1 :])
        for text in [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label, *labels[ax.xaxis], *labels[ax.yaxis]]:
            if text.get_text():
                box = text.get_window_extent()
                assert box.x0 >= -1 and box.y0 >= -1, text.get_text()
                assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()


# --- figures ---


def test_bars_are_the_probabilities_of_the_tokens_beside_them(decodings: dict[float, IntermediateDecoding]) -> None:
    position = decodings[0.0].positions[-1]
    figure = draw_decoding_bars(decodings, 2, position, "a title", n_tokens=5)
    assert figure.get_suptitle() == "a title" and len(figure.axes) == len(MULTIPLIERS) * len(PLACES)
    panels = iter(figure.axes)
    for multiplier, decoding in decodings.items():
        for column, place in enumerate(PLACES):
            ax = next(panels)
            tops = decoding.top(2, place, position)[:5]
            assert [bar.get_width() for bar in ax.patches] == pytest.approx([value for _, value in tops])
            assert [label.get_text() for label in ax.get_yticklabels()] == [drawn_text(text, 14) for text, _ in tops]
            assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the likeliest on top
            if column == 0:
                assert ax.get_ylabel() == f"multiplier {multiplier:g}"
    assert_legible(figure)


def test_a_heatmap_has_the_top_token_of_each_layer_and_position_and_frames_the_changed_ones(
    decodings: dict[float, IntermediateDecoding],
) -> None:
    steered, unsteered = decodings[1.5], decodings[0.0]
    place = PLACES.index("mlp_output")
    figure = draw_decoding_heatmap(steered, "mlp_output", "a title", changed_from=unsteered)
    ax = figure.axes[0]
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in ax.texts}
    assert len(written) == N_LAYERS * len(steered.positions)
    image = ax.images[0].get_array()
    changed = set()
    for layer in range(N_LAYERS):
        for position in steered.positions:
            [(text, value), *_] = steered.top(layer, "mlp_output", position)
            assert written[layer, position] == drawn_text(text, 9)
            assert image[layer, position] == pytest.approx(value)
            if steered.token_ids[layer, place, position, 0] != unsteered.token_ids[layer, place, position, 0]:
                changed.add((layer, position))
    frames = {(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in ax.patches if isinstance(patch, Rectangle)}
    assert frames == changed and changed
    assert min(layer for layer, _ in changed) > 1  # an MLP reads what is steered from the layer above on
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        drawn_text(text, 14) for text in steered.transcript.texts
    ]
    low, high = ax.get_ylim()
    assert low < high  # layers upwards
    assert_legible(figure)


def test_text_in_cells_stands_out_from_its_cell(decodings: dict[float, IntermediateDecoding]) -> None:
    figure = draw_decoding_heatmap(decodings[0.0], "block_output", "a title")
    image = figure.axes[0].images[0]
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        cell = _luminance(image.to_rgba(image.get_array()[int(row), int(column)]))
        ink = _luminance(to_rgba(text.get_color()))
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 3  # large differences only; WCAG's measure


def _luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_vector_s_figure_and_table_hold_both_ends(vectors_decoded: VectorDecoding) -> None:
    figure = draw_vector_decoding(vectors_decoded, "a title", n_tokens=3)
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in figure.axes[0].texts}
    for row in range(N_LAYERS):
        top = [drawn_text(vectors_decoded.texts[i], 9) for i in vectors_decoded.top_ids[row, :3].tolist()]
        bottom = [drawn_text(vectors_decoded.texts[i], 9) for i in vectors_decoded.bottom_ids[row, :3].tolist()]
        assert [written[row, column] for column in range(3)] == top
        assert [written[row, column] for column in range(4, 7)] == bottom[::-1]  # the strongest outside
    assert_legible(figure)
    rows = vector_decoding_table(vectors_decoded).rows
    assert len(rows) == N_LAYERS * 10
    layer, rank, text, token_id, logit, *_ = rows[10]
    assert (layer, rank, token_id) == (1, 1, int(vectors_decoded.top_ids[1, 0]))
    assert text == visible_text(vectors_decoded.texts[token_id])
    assert logit == pytest.approx(float(vectors_decoded.top_logits[1, 0]))


def test_a_figure_for_a_notebook_is_a_png(vectors_decoded: VectorDecoding) -> None:
    assert figure_png(draw_vector_decoding(vectors_decoded, "a title")).startswith(b"\x89PNG\r\n")


def test_what_cannot_be_seen_or_drawn_is_spelled_out() -> None:
    assert visible_text(" the") == "\N{OPEN BOX}the" and visible_text("\n\t\x07") == r"\n\t\x07"
    assert visible_text("") == "(nothing)" and visible_text("海") == "海"
    assert drawn_text("海", 9) == r"\u6d77"  # the figures' font has no such glyph
    assert drawn_text("a long token", 6) == "a\N{OPEN BOX}lon\N{HORIZONTAL ELLIPSIS}"
    assert drawn_text("$x^2$", 9) == "$x^2$"


# --- coloured tokens ---


def projections_of(texts: list[str], cosines: list[float], n_prompt: int) -> TokenProjections:
    transcript = write_transcript(build_wrapper(), "?")
    ids = dataclasses.replace(transcript.tokens, ids=tuple(range(len(texts))))
    values = torch.tensor(cosines)
    return TokenProjections(Transcript(ids, n_prompt, tuple(texts)), values, 10 * values)


def test_a_block_colours_each_token_by_its_own_cosine() -> None:
    block = token_block(projections_of(["a", " b", "c", "d"], [0.9, 0.2, -0.4, 0.0], 2), "a title")
    found = re.findall(r'<span title="cosine ([^,]*), dot product ([^"]*)" style="background:rgba\(([^)]*)\)', block)
    assert [(float(cosine), float(dot)) for cosine, dot, _ in found] == [(0.9, 9), (0.2, 2), (-0.4, -4), (0, 0)]
    # the first token does not set the scale: 0.4 is the strongest
    assert [color for *_, color in found] == [
        "0,114,178,0.800",
        "0,114,178,0.400",
        "213,94,0,0.800",
        "0,114,178,0.000",
    ]
    assert block.index(">prompt<") < block.index(">a</span>") < block.index(">answer<") < block.index(">c</span>")
    assert "+0.4<" in block.replace("\n", "")


def test_a_block_escapes_tokens_and_shows_line_breaks_and_empty_tokens() -> None:
    block = token_block(projections_of(["<script>", "\n", "", "\x1b", "\ufffd"], [0.1] * 5, 5), "<b>title</b>")
    assert "<script>" not in block and "&lt;script&gt;</span>" in block
    assert "<b>" not in block and "&lt;b&gt;title" in block
    assert ">\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n</span>" in block
    assert ">\N{EMPTY SET}</span>" in block and r">\x1b</span>" in block and ">\ufffd</span>" in block
    assert ">answer<" not in block


def test_a_page_escapes_tokens_and_titles() -> None:
    """Whole tags as one token, which the tests' tokenizer never makes of a prompt."""
    hostile = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "&amp;"]
    projections = {("refusal", 3): projections_of(hostile, [0.1, 0.2, 0.3], 2)}
    page = token_page(
        projections, ("refusal", 3), "<i>title</i>", "</p><i>subtitle</i>", {"refusal": bundled("refusal")}
    )
    assert page.count("<script") == page.count("</script>") == 2  # the data and the page's own
    assert "<img" not in page and "<i>title" not in page and "<i>subtitle" not in page
    assert ">&amp;amp;</span>" in page and ">&lt;img src=x onerror=alert(2)&gt;</span>" in page


def test_blocks_can_share_a_scale_and_nothing_divides_by_zero() -> None:
    weak = projections_of(["a", "b"], [0.0, 0.1], 2)
    assert ",0.080)" in token_block(weak, "", largest=1.0)
    assert largest_of(torch.zeros(3)) == 1.0 and largest_of(torch.tensor([-0.5])) == 0.5
    assert ",0.000)" in token_block(projections_of(["a", "b"], [0.0, 0.0], 1), "")


def test_the_table_of_tokens_says_which_part_each_belongs_to() -> None:
    wrapper = build_wrapper()
    transcript = write_transcript(wrapper, "What is\nthe sea?", "the answer")
    projections = project_tokens(wrapper, transcript, 1, random_vector(3))
    rows = projections_table(projections).rows
    assert [row[0] for row in rows] == list(range(len(transcript)))
    assert [row[1] for row in rows] == ["prompt"] * transcript.n_prompt + ["answer"] * 2
    assert [row[3:] for row in rows] == [
        (cosine, dot) for cosine, dot in zip(projections.cosines.tolist(), projections.dots.tolist(), strict=True)
    ]
    assert rows[-1][2] == "\N{OPEN BOX}answer"
