"""Does one latent do what the refusal direction does: ablating and adding decoder rows, r, and random controls.

Latents are chosen on the prompts that make the direction (the largest cosine of a decoder row with r), and tried on
test prompts, which have no part in the choice. Ablating a row takes it out everywhere; a row that is added has r's
norm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.figures.style import (
    BLUE,
    ORANGE,
    PAGE_WIDTH,
    SKY,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.model.ablation import AblationKind, References, unit_direction
from utils.saes.condition_figures import completion_records, condition_lines, plot_conditions
from utils.saes.conditions import Condition, ablating, adding, run_conditions, summarize
from utils.saes.dictionary import SAE, random_dictionary
from utils.saes.direction_evals import EvalRequest, Read, describe_sae, labels_of, read_all
from utils.saes.directions import encode_all, harmless_means
from utils.saes.fidelity import Range, largest_cosine, latent_cosines, range_of
from utils.saes.fidelity_run import as_range, draw_range
from utils.saes.prompts import Side
from utils.saes.refusal import refusal_tokens
from utils.saes.requests import write_result
from utils.saes.selection import random_direction

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper


@dataclass(frozen=True)
class SteeringOptions:
    """What is tried, on what."""

    top: int
    """Latents of each SAE that are tried; the published script tries one."""
    ablation: AblationKind
    n_test: int
    max_new_tokens: int
    refusal_tokens: tuple[str, ...]
    save_completions: bool


@dataclass(frozen=True, eq=False)
class TopRows:
    """The decoder rows of an SAE that point most along r, beside the same of random dictionaries."""

    read: Read
    latents: tuple[tuple[int, float], ...]
    """Latent and cosine with r, the largest first."""
    random: Range
    """The largest cosine of random dictionaries of this size."""

    @property
    def sae(self) -> SAE:
        return self.read.sae

    def as_json(self) -> dict[str, Any]:
        return {
            **describe_sae(self.sae),
            "top_latents": [list(one) for one in self.latents],
            "random_dictionaries_max_cosine": as_range(self.random),
        }


def top_rows(read: Read, n: int, seed: int, n_random: int) -> TopRows:
    r = read.sides.difference
    cosines, latents = latent_cosines(read.sae, r).topk(min(n, read.sae.d_sae))
    random = [largest_cosine(random_dictionary(read.sae, seed + draw), r)[1] for draw in range(n_random)]
    return TopRows(read, tuple((int(i), float(c)) for i, c in zip(latents, cosines, strict=True)), range_of(random))


def conditions_of(
    found: Sequence[TopRows], options: SteeringOptions, references: References | None, n_layers: int, seed: int
) -> list[Condition]:
    """r, a random direction, a random dictionary's best row, and each SAE's best: ablated, and added."""
    conditions = []
    for layer in sorted({one.sae.layer for one in found}):
        at_layer = [one for one in found if one.sae.layer == layer]
        r = at_layer[0].read.sides.difference.float()
        tried: list[tuple[str, Tensor]] = [
            ("direction r", r),
            ("random direction", random_direction(r, seed)),
            ("random dictionary's top row", _scaled(_best_random_row(at_layer[0], seed), r)),
        ]
        for one in at_layer:
            rows = one.latents[: options.top]
            tried += [(f"{one.sae.name} latent {latent}", _scaled(one.sae.W_dec[latent], r)) for latent, _ in rows]
        where = "" if len({one.sae.layer for one in found}) == 1 else f" (layer {layer})"
        conditions += [ablating(what + where, row, n_layers, references) for what, row in tried]
        conditions += [adding(what + where, row, layer) for what, row in tried]
    return conditions


def _scaled(row: Tensor, r: Tensor) -> Tensor:
    return unit_direction(row) * r.norm()


def _best_random_row(one: TopRows, seed: int) -> Tensor:
    drawn = random_dictionary(one.sae, seed)
    return drawn.W_dec[largest_cosine(drawn, one.read.sides.difference)[0]]


def evaluate_steering(model: "LlamaWrapper", request: EvalRequest, options: SteeringOptions) -> Iterator[str]:
    """Choose latents, try them on test prompts, write and draw; yields what is printed."""
    found = [top_rows(read, max(5, options.top), request.seed, request.n_random) for read in read_all(model, request)]
    system = request.system_prompt
    references = None
    if options.ablation == "affine":
        harmless = request.source.load("train", request.n_prompts).harmless
        references = harmless_means(model, encode_all(model, harmless, system), request.position)
    test = request.source.load("test", options.n_test)
    sides: dict[Side, Any] = {
        "harmful": encode_all(model, test.harmful, system),
        "harmless": encode_all(model, test.harmless, system),
    }
    conditions = conditions_of(found, options, references, model.n_layers, request.seed)
    tokens = refusal_tokens(model, options.refusal_tokens)
    outcomes = run_conditions(model, sides, conditions, tokens, options.max_new_tokens)
    summaries = summarize(outcomes, request.seed)
    title = f"{request.model.name}: latents and r (harmful minus harmless), {options.ablation} ablation, test prompts"
    plot_conditions(summaries, request.stem, title)
    with figure_style():
        stem = request.stem.with_name(request.stem.name + "_cosines")
        log_written(save_figure(_draw_cosines(found, request), stem, cosine_table(found)))
    content = {
        "saes": [one.as_json() for one in found],
        "conditions": [one.as_json() for one in summaries],
        "completions": completion_records(outcomes, test, whole=options.save_completions),
    }
    record = {**model.provenance(), "command": request.command}
    write_result(request.result_path, request.settings(), record, {"results": content})
    for one in found:
        yield cosine_line(one)
    yield from condition_lines(summaries)


def cosine_line(one: TopRows) -> str:
    best = ", ".join(f"{latent} ({cosine:.3f})" for latent, cosine in one.latents[:5])
    return (
        f"{one.sae.name}: latents nearest to r: {best}; the nearest of random dictionaries {one.random.mean:.3f} "
        f"[{one.random.low:.3f}, {one.random.high:.3f}]"
    )


def _draw_cosines(found: Sequence[TopRows], request: EvalRequest) -> Any:
    figure, ax = new_figure(PAGE_WIDTH * 0.7, 1.1 + 0.4 * len(found))
    for row, one in enumerate(found):
        ax.barh(row, one.latents[0][1], height=0.5, color=ORANGE)
        latent, cosine = one.latents[0]
        ax.annotate(f"latent {latent}", (cosine, row), (3, 0), textcoords="offset points", va="center", fontsize=6)
        others = [cosine for _, cosine in one.latents[1:]]
        ax.plot(others, [row] * len(others), "|", color=BLUE, markersize=6)
        draw_range(ax, row + 0.32, one.random, SKY, "^")
    ax.set_yticks(range(len(found)), labels_of([one.sae for one in found]))
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("cosine of a decoder row with r")
    set_title(
        figure,
        f"{request.model.name}: the latent nearest to r (harmful minus harmless)",
        "bar: largest; blue ticks: the next; light triangle: largest of random dictionaries of the same size "
        f"(95% of {request.n_random} draws). A largest value is a selection: it grows with the number of latents",
    )
    return figure


def cosine_table(found: Sequence[TopRows]) -> Table:
    rows = [
        (one.sae.name, place + 1, latent, cosine, one.random.mean, one.random.low, one.random.high)
        for one in found
        for place, (latent, cosine) in enumerate(one.latents)
    ]
    return Table(("sae", "place", "latent", "cosine", "random_max", "random_low", "random_high"), rows)
