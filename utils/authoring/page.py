"""One HTML page of a behavior, from the sentence to the effect with its interval. It needs nothing but itself.

Texts reach it only through a template that escapes them.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.authoring import sets
from utils.authoring.demo import PROMPT, RANDOM, VECTOR, DemoPoint, as_array, summarise_demo
from utils.authoring.figures import LABELS, plot_demo
from utils.authoring.outputs import measures_path, page_facts, page_path
from utils.authoring.request import KIND, AuthoringRequest
from utils.authoring.vectors import choice_request
from utils.authoring.written import Written
from utils.evaluation.chosen import Choice
from utils.evaluation.effects import ALPHA
from utils.evaluation.words import interval_text
from utils.figures.choice import choice_line, plot_choice
from utils.figures.kept import KeptFigure, keep_figures
from utils.files.provenance import record_provenance
from utils.files.reading import read_json
from utils.files.writing import write_bytes
from utils.report.page import figure_uri, rounded_text

log = logging.getLogger(__name__)

_TEMPLATES = (Path(__file__).parent / "templates", Path(__file__).parents[1] / "report" / "templates")
_N_EXAMPLES = 6
LEANING_LABEL = "leaning to the prompt for it\n(nats per token)"
GRADE_LABEL = "judge's grade of the trait\n(0 to 100)"
_READINGS = {"answer": "answers, mean", "prompt": "last prompt token", "prompt_mean": "prompt, mean"}


def write_page(request: AuthoringRequest, written: Written, choice: Choice) -> Path:
    """Write the page with its figures.

    Raises:
        UserError: If there are no free answers yet.
    """
    content = read_json(measures_path(request), f"run: {request.again('demo')}")
    page = _render(request, written, choice, content).encode("utf-8", "backslashreplace")
    path = page_path(request)
    record_provenance(path.parent, [path.name], {**page_facts(request), "command": request.command})
    write_bytes(path, page)
    log.info("wrote %s (%.1f MB)", path, len(page) / 1e6)
    return path


def _render(request: AuthoringRequest, written: Written, choice: Choice, content: Mapping[str, Any]) -> str:
    points = demo_points(content, request.seed)
    figures: list[KeptFigure] = []
    with keep_figures(figures):
        _plot(request, written, points, LEANING_LABEL, "")
        if content.get("grades"):
            _plot(request, written, demo_points(content, request.seed, graded=True), GRADE_LABEL, "_graded")
        plot_choice(choice, choice_request(request))
    return (
        _environment()
        .get_template("behavior.html.j2")
        .render(
            request=request,
            written=written,
            answers=sets.read_kept(request),
            choice=choice,
            choice_line=choice_line(choice),
            tables=[
                {"label": " ".join(label.split()), "rows": [_row(one) for one in of_points]}
                for label, of_points in _tables(content, points, request.seed)
            ],
            examples=_examples(content),
            figures=figures,
            readings=[_reading(one) for one in content["readings"]],
            told_apart=content["told_apart"],
            commands=commands(request),
            alpha=ALPHA,
        )
    )


def demo_points(content: Mapping[str, Any], seed: int, *, graded: bool = False) -> list[DemoPoint]:
    """The points of the leaning, or of the judge's grades."""
    answers = {
        (condition, multiplier): records
        for (condition, multiplier), records in zip(content["conditions"], content["answers"], strict=True)
    }
    values = as_array(content["grades"]["trait"] if graded else content["leaning"])
    coherence = as_array(content["grades"]["coherence"]) if graded else None
    return summarise_demo(answers, values, as_array(content["perplexity"]), seed, coherence)


def _tables(content: Mapping[str, Any], points: list[DemoPoint], seed: int) -> list[tuple[str, list[DemoPoint]]]:
    tables = [(LEANING_LABEL, points)]
    if content.get("grades"):
        tables.insert(0, (GRADE_LABEL, demo_points(content, seed, graded=True)))
    return tables


def _plot(request: AuthoringRequest, written: Written, points: Sequence[DemoPoint], label: str, suffix: str) -> None:
    stem = request.paths.analysis(request.behavior, f"demo_{request.choice.label}{suffix}")
    title = f"{written.sentence}, {request.choice.label}"
    note = (
        f"{points[0].value.n_total} questions, 95% intervals; filled: p < {ALPHA:g} over all conditions; "
        "orange: the prompt for (dashed) and against (dash-dotted)"
    )
    plot_demo(stem, points, title, note, label)


def _row(one: DemoPoint) -> dict[str, Any]:
    is_base = one.condition == VECTOR and one.multiplier == 0
    amount = f"{one.multiplier:g}" if one.condition != PROMPT else ("for it" if one.multiplier > 0 else "against it")
    return {
        "condition": "no steering" if is_base else LABELS[one.condition],
        "amount": amount,
        "value": interval_text(one.value),
        "n": f"{one.value.n} of {one.value.n_total}",
        "change": "" if is_base or not one.change.exists else interval_text(one.change),
        "p": f"{one.p_family:.2g}" if math.isfinite(one.p_family) else "",
        "holds": math.isfinite(one.p_family) and one.p_family < ALPHA,
        "perplexity": f"{one.fluency.perplexity:.1f}",
        "distinct_2": f"{one.fluency.distinct_2:.2f}",
        "coherence": interval_text(one.coherence, 0) if one.coherence else "",
        "faults": ", ".join(one.faults),
        "is_control": one.condition in (RANDOM, PROMPT),
    }


def _examples(content: Mapping[str, Any]) -> dict[str, Any]:
    """The first questions with their answers under the vector, a column a multiplier."""
    columns = [
        (multiplier, records)
        for (condition, multiplier), records in zip(content["conditions"], content["answers"], strict=True)
        if condition == VECTOR
    ]
    columns.sort(key=lambda column: column[0])
    return {
        "multipliers": [f"{multiplier:g}" for multiplier, _ in columns],
        "rows": [
            {"question": columns[0][1][place]["question"], "texts": [one[place]["model_output"] for _, one in columns]}
            for place in range(min(_N_EXAMPLES, len(columns[0][1])))
        ],
    }


def _reading(one: Mapping[str, Any]) -> dict[str, str]:
    test = one["test"]
    return {
        "reading": _READINGS[one["reading"]],
        "share": f"{100 * one['share']:.1f}%",
        "cosine": f"{one['cosine']:.2f}",
        "effect": f"{test['effect']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]",
        "p": f"{test['p_value']:.2g}",
    }


def commands(request: AuthoringRequest) -> dict[str, str]:
    """What to do with the vector now, as commands."""
    model, paths, behavior = request.choice.command_words, request.paths, request.behavior
    return {
        "talk to the steered model": paths.command("chat", "--behavior", behavior, *model),
        "measure any text along it": paths.command(
            "monitor", "answers.json", "--behaviors", behavior, *KIND.command_words, *model
        ),
        "evaluate it on the test set": paths.command(
            "prompting_with_steering",
            *("--behaviors", behavior, *KIND.command_words, "--type", "answer_text", "--chosen", *model),
        ),
        "make a step again": request.again("demo", "page"),
    }


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure_uri": figure_uri, "rounded": rounded_text}
    return made
