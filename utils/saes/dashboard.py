"""The page of an SAE's latents: one file without scripts, which loads nothing.

All text reaches it through a template that escapes it.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.inside.token_texts import spelled_out, visible_text
from utils.saes.latents import Example, LatentView

if TYPE_CHECKING:
    from jinja2 import Environment

    from utils.saes.dashboard_run import Dashboard

_TEMPLATES = Path(__file__).parent / "templates"
_BAR_WIDTH, _HEIGHT = 10, 60
_ORDER_LABELS = {
    "cosine": "by cosine with the direction",
    "delta": "by |harmful \N{MINUS SIGN} harmless|",
    "density": "by density",
}


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def dashboard_page(dashboard: "Dashboard") -> str:
    """The whole page."""
    latents = [_latent(dashboard, place) for place in range(len(dashboard.views))]
    by_id = {one["id"]: one for one in latents}
    orders = [
        {"label": _ORDER_LABELS[name], "name": name, "latents": [by_id[latent] for latent in order]}
        for name, order in dashboard.orders().items()
    ]
    return (
        _environment()
        .get_template("dashboard.html.j2")
        .render(sae=dashboard.sae, dashboard=dashboard, latents=latents, orders=orders)
    )


def _latent(dashboard: "Dashboard", place: int) -> dict[str, Any]:
    """One latent as the template wants it."""
    view, effects, beside = dashboard.views[place], dashboard.effects[place], dashboard.beside
    latent = view.latent
    shown = {other.latent for other in dashboard.views}
    return {
        "id": latent,
        "cosine": f"{beside.cosine[latent]:+.3f}",
        "delta": f"{beside.delta[latent]:+.3g}" if beside.delta[latent] else "0",
        "density": f"{beside.density[latent]:.3%}",
        "largest": f"{view.largest:.3g}",
        "on_harmful": f"{beside.on_harmful[latent]:.3g}",
        "on_harmless": f"{beside.on_harmless[latent]:.3g}",
        "promoted": [(visible_text(text), f"{value:+.2f}") for text, value in effects.promoted],
        "suppressed": [(visible_text(text), f"{value:+.2f}") for text, value in effects.suppressed],
        "neighbours": [(other, f"{cosine:.2f}", other in shown) for other, cosine in view.neighbours],
        "histogram": _histogram(view),
        "groups": [
            {"label": f"the {len(view.top)} strongest", "examples": _examples(dashboard, view, view.top)},
            *(
                {"label": f"{band} of its activations", "examples": _examples(dashboard, view, examples)}
                for band, examples in view.lower
            ),
        ],
    }


def _histogram(view: LatentView) -> dict[str, Any]:
    """Bars in an SVG of their own units; heights on a square-root scale, so that few are seen beside many."""
    counts = [count for _, count in view.histogram]
    most = max(counts, default=0) or 1
    bars = []
    for place, (edge, count) in enumerate(view.histogram):
        height = _HEIGHT * (count / most) ** 0.5
        bars.append(
            {"x": place * _BAR_WIDTH, "y": f"{_HEIGHT - height:.1f}", "height": f"{height:.1f}"}
            | {"title": f"from {edge:.3g}: {count} tokens"}
        )
    return {"bars": bars, "width": max(1, len(counts)) * _BAR_WIDTH, "height": _HEIGHT, "n": sum(counts)}


def _examples(dashboard: "Dashboard", view: LatentView, examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"peak": f"{example.peak:.3g}", "tokens": _tokens(dashboard, view, example)} for example in examples]


def _tokens(dashboard: "Dashboard", view: LatentView, example: Example) -> list[dict[str, Any]]:
    """Tokens with their colours; neighbours without activation are one piece of text, to keep the page small."""
    pieces: list[dict[str, Any]] = []
    for token, value in zip(example.token_ids, example.activations, strict=True):
        text = _shown(dashboard.texts[token])
        special = token in dashboard.special_ids
        plain = not special and not value > 0
        if plain and pieces and pieces[-1]["plain"]:
            pieces[-1]["text"] += text
            continue
        share = value / view.largest if value > 0 and view.largest else 0.0
        pieces.append(
            {"text": text, "plain": plain, "special": special, "share": f"{share:.2f}"}
            | {"value": f"{value:.4g}" if value > 0 else ""}
        )
    return pieces


def _shown(text: str) -> str:
    """A line break is shown as such, other invisible characters are spelled out."""
    line_break = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    return "".join(line_break if one == "\n" else spelled_out(one) for one in text) or "\N{EMPTY SET}"
