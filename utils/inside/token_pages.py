"""Coloured tokens as HTML: a block for notebooks, and a page of its own with switches for layer and behavior.

Texts reach the HTML only through templates that escape them, and numbers as JSON that cannot end its script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.behaviors import Behavior
from utils.inside.readings import TokenProjections
from utils.inside.token_texts import spelled_out

if TYPE_CHECKING:
    from jinja2 import Environment
    from torch import Tensor

_TEMPLATES = Path(__file__).parent / "templates"
_POSITIVE, _NEGATIVE = "0,114,178", "213,94,0"  # red, green, blue
_STRONGEST = 0.8  # opacity of the largest value; more would make the text hard to read


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)


def token_block(projections: TokenProjections, title: str, largest: float | None = None) -> str:
    """Tokens coloured by their cosine, blue above 0 and orange below; values show under the pointer.

    Args:
        projections: What to show.
        title: Above it.
        largest: Cosine of the strongest colour, to compare blocks (default: see `largest_of`).
    """
    scale = largest or largest_of(projections.cosines)
    values = _by_strength(projections.cosines, scale)
    return (
        _environment()
        .get_template("token_spans.html.j2")
        .render(title=title, parts=_parts(projections, values, _STRONGEST), largest=f"{scale:.3g}")
    )


def token_page(
    projections: Mapping[tuple[str, int], TokenProjections],
    start: tuple[str, int],
    title: str,
    subtitle: str,
    behaviors: Mapping[str, Behavior],
) -> str:
    """A whole page that needs nothing else: prompt and answer, with a switch for behavior, layer and measure.

    Args:
        projections: By behavior and layer, all of one transcript.
        start: Behavior and layer that are shown first.
        title: Heading.
        subtitle: Which model, how the answer came about.
        behaviors: Those of the projections, by id.
    """
    return texts_page([PageText("", projections, {})], start, title, subtitle, behaviors)


@dataclass(frozen=True)
class PageText:
    """One of the texts on a page."""

    name: str
    """Before the headings of its parts; empty where it is the only one."""
    projections: Mapping[tuple[str, int], TokenProjections]
    """By behavior and layer, the same ones for all texts of a page."""
    notes: Mapping[tuple[str, int], str]
    """Behind the heading of its last part, by behavior and layer."""


def texts_page(
    texts: Sequence[PageText],
    start: tuple[str, int],
    title: str,
    subtitle: str,
    behaviors: Mapping[str, Behavior],
) -> str:
    """A page of several texts, coloured on one scale; arguments as for `token_page`."""
    largest = max(largest_of(text.projections[start].cosines) for text in texts)
    parts = []
    for text in texts:
        shown = text.projections[start]
        of_text = _parts(shown, _by_strength(shown.cosines, largest), 1.0)
        for part in of_text:
            part["name"] = f"{text.name}: {part['name']}" if text.name else part["name"]
            part["note"] = text.notes.get(start, "") if part is of_text[-1] else ""
        parts += of_text
    return (
        _environment()
        .get_template("token_page.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            behaviors=[behaviors[one] for one in dict.fromkeys(behavior for behavior, _ in texts[0].projections)],
            start={"behavior": start[0], "layer": start[1]},
            parts=parts,
            largest=f"{largest:.3g}",
            data=_page_data(texts, start, behaviors),
        )
    )


def _page_data(texts: Sequence[PageText], start: tuple[str, int], behaviors: Mapping[str, Behavior]) -> dict[str, Any]:
    """What the page's switches need: values over the tokens of all texts, one behind the other."""
    layers: dict[str, list[int]] = {}
    values: dict[str, dict[str, list[list[float]]]] = {}
    notes: dict[str, list[list[str]]] = {}
    for key in sorted(texts[0].projections):
        behavior, layer = key
        layers.setdefault(behavior, []).append(layer)
        measures = values.setdefault(behavior, {"cosine": [], "dot": []})
        measures["cosine"].append([value for text in texts for value in _rounded(text.projections[key].cosines)])
        measures["dot"].append([value for text in texts for value in _rounded(text.projections[key].dots)])
        of_parts = [note for text in texts for note in _notes_of_parts(text, key)]
        notes.setdefault(behavior, []).append(of_parts)
    meanings = {
        behavior: f"Blue: towards the answer that {behaviors[behavior].meaning}. Orange: away from it."
        for behavior in layers
    }
    return {
        "start": {"behavior": start[0], "layer": start[1]},
        "layers": layers,
        "values": values,
        "meanings": meanings,
        "notes": notes,
        "sinks": _first_tokens(texts),
    }


def _notes_of_parts(text: PageText, key: tuple[str, int]) -> list[str]:
    """A note for each part that the page shows: of the last one alone."""
    transcript = next(iter(text.projections.values())).transcript
    n_parts = (transcript.n_prompt > 0) + (len(transcript) > transcript.n_prompt)
    return [""] * (n_parts - 1) + [text.notes.get(key, "")]


def _first_tokens(texts: Sequence[PageText]) -> list[int]:
    """Where the first token of each text stands, for texts of more than one."""
    found, place = [], 0
    for text in texts:
        length = len(next(iter(text.projections.values())).transcript)
        found += [place] if length > 1 else []
        place += length
    return found


def _rounded(values: "Tensor") -> list[float]:
    """Four significant digits: more would only make the page larger."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def largest_of(values: "Tensor") -> float:
    """What the strongest colour stands for: the largest absolute value behind the first token.

    Many models park a residual stream hundreds of times as long as any other at the first token; its dot
    product would leave no colour to the rest.
    """
    behind_first = values[1:] if len(values) > 1 else values
    return float(behind_first.abs().max()) or 1.0


def _by_strength(values: "Tensor", largest: float) -> list[float]:
    """Values as shares of the largest, from -1 to 1."""
    return (values / largest).clamp(-1, 1).tolist()


def _parts(projections: TokenProjections, shares: list[float], strongest: float) -> list[dict[str, Any]]:
    """Prompt and answer, each with its tokens as the templates want them."""
    tokens = [
        {
            "text": _shown(text),
            "cosine": f"{cosine:.4f}",
            "dot": f"{dot:.4g}",
            "side": "below" if share < 0 else "above",
            "color": _NEGATIVE if share < 0 else _POSITIVE,
            "opacity": f"{abs(share) * strongest:.3f}",
        }
        for (text, cosine, dot), share in zip(projections.rows(), shares, strict=True)
    ]
    n_prompt = projections.transcript.n_prompt
    parts = [("prompt", tokens[:n_prompt]), ("answer", tokens[n_prompt:])]
    return [{"name": name, "tokens": of_part} for name, of_part in parts if of_part]


def _shown(text: str) -> str:
    """A token's text with its line breaks made visible and control characters spelled out."""
    line_break = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"
    shown = {"\n": line_break, "\t": "\t"}
    return "".join(shown.get(character) or spelled_out(character) for character in text) or "\N{EMPTY SET}"
