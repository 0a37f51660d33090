"""From prompts to a direction, its choice, and what it does to test prompts."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.journal import open_journal
from utils.files.writing import write_json
from utils.model.ablation import References
from utils.saes.condition_figures import completion_records, condition_lines, plot_conditions
from utils.saes.conditions import Outcome, Summary, ablating, adding, run_conditions, summarize
from utils.saes.direction_figures import plot_candidates
from utils.saes.direction_request import DirectionRequest
from utils.saes.directions import DirectionPlace, candidate_directions, encode_all, harmless_means, save_direction
from utils.saes.prompts import Prompts, SystemPrompt, end_tokens
from utils.saes.refusal import next_token_logits, refusal_metric, refusal_tokens
from utils.saes.requests import write_result
from utils.saes.selection import CandidateValues, Evaluator, Scores, SelectionRule, as_json, random_direction, select

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Made:
    """A direction, and where it is read."""

    direction: Tensor
    place: DirectionPlace
    lines: tuple[str, ...] = ()
    """What is printed of its choice."""


def make_direction(model: "LlamaWrapper", request: DirectionRequest) -> Iterator[str]:
    """Make or choose a direction, write it, and try it on test prompts; yields what is printed."""
    refusal_tokens(model, request.refusal_tokens)  # before anything is computed
    train = request.source.load("train", request.n_prompts)
    test = request.source.load("test", request.n_test)
    made = _choose(model, request, train) if request.select else _read(model, request, train)
    record = {**model.provenance(), "command": request.command}
    facts = {"n_prompts": len(train), "system_prompt": request.system_prompt, "norm": float(made.direction.norm())}
    save_direction(request.folder, made.direction, made.place, {**facts, "made": record})
    log.info("wrote %s", request.folder / "direction.pt")
    yield from made.lines
    outcomes, summaries = _try(model, request, made, train, test)
    plot_conditions(
        summaries,
        request.test_stem,
        f"{request.model.name}: direction of layer {made.place.layer}, position {made.place.position}, on test prompts",
    )
    content = {
        "place": made.place.metadata(),
        "conditions": [one.as_json() for one in summaries],
        "completions": completion_records(outcomes, test, whole=request.save_completions),
    }
    stem = request.test_stem
    write_result(stem.with_name(stem.name + ".json"), request.settings(), record, content)
    request.journal.unlink(missing_ok=True)
    yield from condition_lines(summaries)


def _read(model: "LlamaWrapper", request: DirectionRequest, train: Prompts) -> Made:
    found = candidate_directions(model, train, request.layers, request.positions, request.system_prompt)
    return Made(found[0, 0], DirectionPlace(request.layers[0], request.positions[0]))


def _choose(model: "LlamaWrapper", request: DirectionRequest, train: Prompts) -> Made:
    system = request.system_prompt
    ends = end_tokens(model.chat_format, system)
    positions = request.positions or tuple(range(-len(ends), 0))
    tokens = refusal_tokens(model, request.refusal_tokens)
    val = request.source.load("val", request.n_val)
    if request.filtered:
        train, val = (told_apart(model, prompts, tokens, system) for prompts in (train, val))
    directions = candidate_directions(model, train, request.layers, positions, system)
    harmless = encode_all(model, train.harmless, system)
    references: list[References | None] = [None] * len(positions)
    if request.ablation == "affine":
        references = [harmless_means(model, harmless, position) for position in positions]
    harmful_val, harmless_val = (encode_all(model, texts, system) for texts in (val.harmful, val.harmless))
    evaluator = Evaluator(model, harmful_val, harmless_val, tokens, request.ablation)
    values, control = _measure_all(evaluator, request, positions, directions, references)
    scores = [
        one.scores(position, layer)
        for position, row in zip(positions, values, strict=True)
        for layer, one in zip(request.layers, row, strict=True)
    ]
    rule = SelectionRule(model.n_layers, request.max_kl)
    write_json(request.folder / "direction_evaluations.json", as_json(scores))
    log.info("wrote %s (%d candidates)", request.folder / "direction_evaluations.json", len(scores))
    plot_candidates(request, positions, ends, values, control, evaluator, rule)
    selection = select(scores, rule)
    chosen = selection.chosen
    layer = chosen.layer - 1
    direction = directions[request.layers.index(layer), positions.index(chosen.position)]
    line = _choice_line(chosen, len(selection.kept), len(scores), evaluator, len(val))
    return Made(direction, DirectionPlace(layer, chosen.position), (line,))


def told_apart(model: "LlamaWrapper", prompts: Prompts, tokens: Sequence[int], system: SystemPrompt) -> Prompts:
    """Harmful prompts that the model begins to refuse and harmless ones that it does not, equally many, in their order.

    As Arditi et al. do before they choose: a prompt that is answered against its side says nothing of its direction,
    and a harmless one that is refused counts as KL what is meant.

    Raises:
        UserError: If fewer than two of a side are left.
    """
    kept = []
    for texts, sign in ((prompts.harmful, 1), (prompts.harmless, -1)):
        metric = refusal_metric(next_token_logits(model, encode_all(model, texts, system)), tokens)
        kept.append([text for text, value in zip(texts, metric, strict=True) if sign * value > 0])
    n = min(map(len, kept))
    log.info("%d of %d harmful prompts are refused, %d harmless ones are not", len(kept[0]), len(prompts), len(kept[1]))
    if n < 2:
        raise UserError(
            f"{model.label} refuses {len(kept[0])} of {len(prompts)} harmful prompts and answers {len(kept[1])} "
            "harmless ones: too few to choose a direction by; use ./saes/make_refuser.py, or --no_filter"
        )
    return Prompts(tuple(kept[0][:n]), tuple(kept[1][:n]))


def _measure_all(
    evaluator: Evaluator,
    request: DirectionRequest,
    positions: Sequence[int],
    directions: Tensor,
    references: Sequence[References | None],
) -> tuple[list[list[CandidateValues]], list[CandidateValues]]:
    """Every candidate, a row a position; and for every layer a random direction of the norm at the last position.

    What is measured is kept in a journal until a direction is chosen and tried, so that a run that was killed, or found
    none with little enough KL, goes on with it.
    """
    layers, last = request.layers, positions.index(max(positions))
    tasks = [
        (f"{position} {layer}", directions[place, row], layer, references[row])
        for row, position in enumerate(positions)
        for place, layer in enumerate(layers)
    ]
    tasks += [
        (
            f"random {layer} {positions[last]}",
            random_direction(directions[place, last], request.seed + layer),
            layer,
            references[last],
        )
        for place, layer in enumerate(layers)
    ]
    found = []
    with open_journal(request.journal, {"candidates of": request.model.name}) as journal:
        for key, direction, layer, of_position in progress(tasks, desc="candidates"):
            if key not in journal.entries:
                journal.append(key, evaluator.measure(direction, layer, of_position).as_rows())
            found.append(CandidateValues.of_rows(journal.entries[key]))
    rows = [found[start : start + len(layers)] for start in range(0, len(found), len(layers))]
    return rows[:-1], rows[-1]


def _choice_line(chosen: Scores, n_kept: int, n: int, evaluator: Evaluator, n_val: int) -> str:
    return (
        f"chosen: layer {chosen.layer - 1} (input of block {chosen.layer}), position {chosen.position}, of {n_kept} "
        f"kept of {n} candidates; on {n_val} validation prompts a side: bypass {chosen.refusal_score:+.2f} (before "
        f"{evaluator.harmful_before.mean():+.2f}), induce {chosen.steering_score:+.2f} (before "
        f"{evaluator.harmless_before.mean():+.2f}), KL {chosen.kl_div_score:.3f}"
    )


def _try(
    model: "LlamaWrapper", request: DirectionRequest, made: Made, train: Prompts, test: Prompts
) -> tuple[list[Outcome], list[Summary]]:
    """The direction and a random one of its norm, ablated on harmful and added on harmless test prompts."""
    system, place = request.system_prompt, made.place
    references = None
    if request.ablation == "affine":
        references = harmless_means(model, encode_all(model, train.harmless, system), place.position)
    control = random_direction(made.direction, request.seed)
    conditions = [
        make(what, direction)
        for make in (
            lambda what, direction: ablating(what, direction, model.n_layers, references),
            lambda what, direction: adding(what, direction, place.layer),
        )
        for what, direction in (("direction", made.direction), ("random direction", control))
    ]
    tokens = refusal_tokens(model, request.refusal_tokens)
    sides = {"harmful": encode_all(model, test.harmful, system), "harmless": encode_all(model, test.harmless, system)}
    outcomes = run_conditions(model, sides, conditions, tokens, request.max_new_tokens)  # type: ignore[arg-type]
    return outcomes, summarize(outcomes, request.seed)
