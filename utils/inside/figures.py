"""Figures of what `utils.inside.readings` reads: bars, heatmaps and the tables beside them.

A blank in a token is drawn as an open box, so that "the" and " the" can be told apart.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from utils.figures.lines import LAYER_LABEL, multiplier_styles
from utils.figures.style import PAGE_WIDTH, VERMILLION, figure_style, new_figure, set_title
from utils.files.tables import Table
from utils.inside.readings import PLACE_LABELS, IntermediateDecoding, Place, TokenProjections, VectorDecoding
from utils.inside.token_texts import escaped, visible_text

_CELL_HEIGHT = 0.16  # inches, one line of small text
_LEAST_HEIGHT = 2.6  # inches; the labels beside a table of few layers
_CELL_CHARACTERS = 9  # fit a cell of a page-wide table of a dozen columns
_NARROW_CELL_CHARACTERS = 7  # of fifteen
_BAR_CHARACTERS = 14


def drawn_text(text: str, most: int) -> str:
    """A token as it is drawn: in one line, without characters that the font lacks, cut where it is too long."""
    shown = "".join(character if _has_glyph(character) else escaped(character) for character in visible_text(text))
    return shown if len(shown) <= most else shown[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


@cache
def _has_glyph(character: str) -> bool:
    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(character)))


def figure_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG image, for a notebook."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"optimize": True})
    return buffer.getvalue()


# --- intermediate decodings ------------------------------------------------------------------------


def draw_decoding_bars(
    decodings: Mapping[float, IntermediateDecoding], layer: int, position: int, title: str, n_tokens: int = 6
) -> Figure:
    """The most likely tokens at each place of one block: a row for each multiplier, a column for each place.

    Args:
        decodings: By multiplier.
        layer: Which block.
        position: Which token, as in the decodings' `positions`.
        title: Of the figure.
        n_tokens: Bars in a panel.
    """
    styles = multiplier_styles(decodings)
    places = next(iter(decodings.values())).places
    with figure_style():
        figure, axes = new_figure(
            PAGE_WIDTH,
            0.6 + len(decodings) * (0.25 + _CELL_HEIGHT * n_tokens),
            nrows=len(decodings),
            ncols=len(places),
            sharex="col",
            squeeze=False,
        )
        for row, (multiplier, decoding) in zip(axes, decodings.items(), strict=True):
            for ax, place in zip(row, places, strict=True):
                tops = decoding.top(layer, place, position)[:n_tokens]
                ax.barh(range(len(tops)), [value for _, value in tops], color=styles[multiplier].color, height=0.7)
                _label_ticks(ax.yaxis, [drawn_text(text, _BAR_CHARACTERS) for text, _ in tops])
                ax.set_ylim(len(tops) - 0.4, -0.6)
                ax.grid(visible=False, axis="y")
                ax.locator_params(axis="x", nbins=3)
            row[0].set_ylabel(f"multiplier {multiplier:g}")
        for ax, place in zip(axes[0], places, strict=True):
            ax.set_title(textwrap.fill(PLACE_LABELS[place], 18), fontsize=7)
        for ax in axes[-1]:
            ax.set_xlabel("probability")
        set_title(figure, title)
    return figure


def draw_decoding_heatmap(
    decoding: IntermediateDecoding, place: Place, title: str, changed_from: IntermediateDecoding | None = None
) -> Figure:
    """The most likely token and its probability at one place: layers upwards, tokens of the text to the right.

    Args:
        decoding: What to show.
        place: Where in the blocks.
        title: Of the figure.
        changed_from: The same cells under another steering: those with another token there are framed.
    """
    column = decoding.places.index(place)
    values = decoding.probabilities[:, column, :, 0].numpy()
    texts = [[decoding.texts[token_id] for token_id in row] for row in decoding.token_ids[:, column, :, 0].tolist()]
    with figure_style():
        figure, ax = new_figure(PAGE_WIDTH, max(_LEAST_HEIGHT, 1.0 + _CELL_HEIGHT * len(decoding.layers)))
        image = _draw_cells(ax, values, texts, "Blues", (0.0, 1.0))
        if changed_from is not None:
            others = changed_from.token_ids[:, changed_from.places.index(place), :, 0]
            _frame_cells(ax, (decoding.token_ids[:, column, :, 0] != others).nonzero().tolist())
        _label_ticks(ax.yaxis, [str(layer) for layer in decoding.layers])
        read = [drawn_text(decoding.transcript.texts[position], _BAR_CHARACTERS) for position in decoding.positions]
        _label_ticks(ax.xaxis, read)
        ax.invert_yaxis()  # the last layer on top
        ax.set_ylabel(LAYER_LABEL)
        ax.set_xlabel("token that goes in")
        meaning = f"probability of the token in the cell\n({PLACE_LABELS[place]})"
        figure.colorbar(image, ax=ax, pad=0.01, aspect=40, label=meaning)
        set_title(figure, title)
    return figure


# --- vectors ---------------------------------------------------------------------------------------


def draw_vector_decoding(decoding: VectorDecoding, title: str, n_tokens: int = 6) -> Figure:
    """What each layer's vector promotes most (left, the most first) and least (right, the least last)."""
    promoted, demoted = _ends(decoding, n_tokens)
    gap = np.full((len(decoding.layers), 1), np.nan)
    values = np.hstack([promoted[0], gap, demoted[0]])
    texts = [[*left, "", *right] for left, right in zip(promoted[1], demoted[1], strict=True)]
    n_columns = promoted[0].shape[1]
    with figure_style():
        figure, ax = new_figure(PAGE_WIDTH, max(_LEAST_HEIGHT, 1.0 + _CELL_HEIGHT * len(decoding.layers)))
        largest = decoding.largest_logit
        image = _draw_cells(ax, values, texts, "RdBu", (-largest, largest))
        _label_ticks(ax.yaxis, [str(layer) for layer in decoding.layers])
        ax.invert_yaxis()
        ax.set_ylabel(LAYER_LABEL)
        middle = (n_columns - 1) / 2
        ax.set_xticks([middle, middle + n_columns + 1], ["promoted most", "promoted least"])
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, pad=0.01, aspect=40, label="logit above the mean\nof the vocabulary")
        set_title(figure, title)
    return figure


def draw_vector_decodings(
    decodings: Mapping[str, VectorDecoding], title: str, *notes: str, n_tokens: int = 3, layer_label: str = LAYER_LABEL
) -> Figure:
    """Several decodings of the same layers beside each other, by name; each as in `draw_vector_decoding`."""
    n_layers = len(next(iter(decodings.values())).layers)
    values: list[Any] = []
    texts: list[list[str]] = [[] for _ in range(n_layers)]
    ticks: list[tuple[float, str]] = []
    for name, decoding in decodings.items():
        if values:
            values.append(np.full((n_layers, 1), np.nan))
            texts = [[*row, ""] for row in texts]
        for end, (logits, words) in zip(("most", "least"), _ends(decoding, n_tokens), strict=True):
            gap = end == "least"
            start = sum(part.shape[1] for part in values) + gap
            values += [np.full((n_layers, 1), np.nan), logits] if gap else [logits]
            texts = [[*row, *([""] if gap else []), *more] for row, more in zip(texts, words, strict=True)]
            ticks.append((start + (logits.shape[1] - 1) / 2, f"{name}:\npromoted {end}"))
    largest = max(decoding.largest_logit for decoding in decodings.values())
    layers = next(iter(decodings.values())).layers
    with figure_style():
        figure, ax = new_figure(PAGE_WIDTH, max(_LEAST_HEIGHT, 1.2 + _CELL_HEIGHT * n_layers))
        image = _draw_cells(ax, np.hstack(values), texts, "RdBu", (-largest, largest), _NARROW_CELL_CHARACTERS)
        _label_ticks(ax.yaxis, [str(layer) for layer in layers])
        ax.invert_yaxis()
        ax.set_ylabel(layer_label)
        ax.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, pad=0.01, aspect=40, label="logit above the mean\nof the vocabulary")
        set_title(figure, title, *notes)
    return figure


def _ends(decoding: VectorDecoding, n_tokens: int) -> tuple[tuple[Any, list[list[str]]], tuple[Any, list[list[str]]]]:
    """Logits and texts of the promoted and the demoted tokens, in the order in which they are drawn."""
    top_ids, bottom_ids = decoding.top_ids[:, :n_tokens], decoding.bottom_ids[:, :n_tokens].flip(-1)
    top, bottom = decoding.top_logits[:, :n_tokens], decoding.bottom_logits[:, :n_tokens].flip(-1)
    texts = [[[decoding.texts[i] for i in row] for row in ids.tolist()] for ids in (top_ids, bottom_ids)]
    return (top.numpy(), texts[0]), (bottom.numpy(), texts[1])


def vector_decoding_table(decoding: VectorDecoding, notes: Sequence[str] = ()) -> Table:
    """Both ends of every layer, one rank a row."""
    rows = []
    tables = (decoding.top_ids, decoding.top_logits, decoding.bottom_ids, decoding.bottom_logits)
    for layer, *ranked in zip(decoding.layers, *(table.tolist() for table in tables), strict=True):
        for rank, (top, top_logit, bottom, bottom_logit) in enumerate(zip(*ranked, strict=True), start=1):
            top_text, bottom_text = (visible_text(decoding.texts[token_id]) for token_id in (top, bottom))
            rows.append((layer, rank, top_text, top, top_logit, bottom_text, bottom, bottom_logit))
    columns = (
        "layer",
        "rank",
        "promoted",
        "promoted_id",
        "promoted_logit",
        "demoted",
        "demoted_id",
        "demoted_logit",
    )
    return Table(columns, rows, tuple(notes))


# --- tokens ----------------------------------------------------------------------------------------


def projections_table(projections: TokenProjections, notes: Sequence[str] = ()) -> Table:
    """One token a row, prompt and answer."""
    n_prompt = projections.transcript.n_prompt
    rows = [
        (index, "prompt" if index < n_prompt else "answer", visible_text(text), cosine, dot)
        for index, (text, cosine, dot) in enumerate(projections.rows())
    ]
    return Table(("position", "part", "token", "cosine", "dot_product"), rows, tuple(notes))


# --- shared ----------------------------------------------------------------------------------------


def _draw_cells(
    ax: Axes,
    values: Any,
    texts: Sequence[Sequence[str]],
    colors: str,
    limits: tuple[float, float],
    most: int = _CELL_CHARACTERS,
) -> Any:
    """A coloured table with a token in each cell; cells without a value (NaN) stay empty. Returns the image."""
    low, high = limits
    image = ax.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    for row, (of_row, texts_of_row) in enumerate(zip(values, texts, strict=True)):
        for column, (value, text) in enumerate(zip(of_row, texts_of_row, strict=True)):
            if np.isnan(value):
                continue
            red, green, blue, _ = image.to_rgba(value)
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            ax.text(
                column,
                row,
                drawn_text(text, most),
                ha="center",
                va="center",
                fontsize=5.5,
                color="white" if is_dark else "black",
                clip_on=True,
            )
    return image


def _frame_cells(ax: Axes, cells: Sequence[Sequence[int]]) -> None:
    """Frame cells, each (row, column)."""
    for row, column in cells:
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILLION, linewidth=1.5))


def _label_ticks(axis: Any, labels: Sequence[str]) -> None:
    """A label at each of 0, 1, ...; slanted below a figure."""
    axis.set_ticks(range(len(labels)), labels)
    axis.set_tick_params(length=0)
    if axis.axis_name == "x":
        for label in axis.get_ticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
