"""What a model answers under a behavior's system prompts: planned, asked in batches, kept as it comes."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from utils.authoring.request import AuthoringRequest
from utils.authoring.written import Written
from utils.cli.progress import progress
from utils.data.records import load_records
from utils.errors import UserError
from utils.files.journal import open_journal
from utils.files.provenance import describe_differences, differences, read_provenance, record_provenance
from utils.files.writing import write_json
from utils.settings import Side

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.model.generation import GenerationRow

log = logging.getLogger(__name__)

Split = Literal["extract", "evaluate"]
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True)
class Answer:
    """One answer, and what it is an answer to."""

    question: str
    split: Split
    prompt: int
    """Which pair of system prompts, from 0."""
    sample: int
    side: Side
    """Under the prompt for (pos) or against (neg) the behavior."""
    model_output: str = ""

    @property
    def pair_key(self) -> tuple[str, str, int, int]:
        """Names both answers of a pair."""
        return self.split, self.question, self.prompt, self.sample


def plan_answers(written: Written, num_samples: int) -> list[Answer]:
    """What to ask, without answers yet.

    Questions to extract with are asked under every pair of prompts, those to evaluate with under one each, in turn.
    """
    n_prompts = len(written.system_prompts)
    asked = [
        (one.text, "extract", prompt, sample)
        for one in written.extract
        for prompt in range(n_prompts)
        for sample in range(num_samples)
    ]
    asked += [(one.text, "evaluate", place % n_prompts, 0) for place, one in enumerate(written.evaluate)]
    return [
        Answer(text, cast(Split, split), prompt, sample, side)
        for text, split, prompt, sample in asked
        for side in SIDES
    ]


def answers_facts(request: AuthoringRequest, written: Written) -> dict[str, Any]:
    """What answers depend on, as far as it is known without the model."""
    return {
        "model": request.choice.label,
        "written_sha256": written.sha256,
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "num_samples": request.num_samples,
        "seed": request.seed if request.temperature else None,
    }


def are_answered(request: AuthoringRequest, written: Written) -> bool:
    """Whether the answers are there.

    Raises:
        UserError: If they are, but to other prompts or questions, or under other settings.
    """
    path = request.paths.own_answers(request.behavior, request.choice.label)
    if not path.exists():
        return False
    if differing := differences(answers_facts(request, written), read_provenance(path) or {}):
        raise UserError(
            f"{path} was made otherwise: {describe_differences([differing])}; to make it again, run: "
            f"{request.again('answer', 'vector', 'choose', 'demo', 'page')}"
        )
    return True


def write_answers(model: "LlamaWrapper", request: AuthoringRequest, written: Written) -> Path:
    """Ask the model all that is planned; answers are kept in a journal until the file is written."""
    path = request.paths.own_answers(request.behavior, request.choice.label)
    planned = plan_answers(written, request.num_samples)
    run = {**model.provenance(), **answers_facts(request, written), "command": request.command}
    facts = json.dumps({key: value for key, value in run.items() if key != "command"}, sort_keys=True)
    name = f".{path.stem}_{hashlib.sha256(facts.encode()).hexdigest()[:16]}.jsonl"
    with open_journal(path.with_name(name), {"answers": path.name}) as journal:
        rows = [_row(model, request, written, place, one) for place, one in enumerate(planned)]
        done = {int(key) for key in journal.entries}
        with progress(total=len(rows), initial=len(done), desc=f"{request.behavior}: own answers") as bar:
            for place, generation in model.generate(
                rows,
                request.max_new_tokens,
                temperature=request.temperature,
                batch_size=request.batch_size,
                skip=done,
            ):
                journal.append(str(place), generation.text)
                bar.update()
        records = [{**asdict(one), "model_output": journal.entries[str(place)]} for place, one in enumerate(planned)]
        record_provenance(path.parent, [path.name], run)
        write_json(path, records)
        journal.remove()
    log.info("wrote %s: %d answers", path, len(records))
    return path


def _row(
    model: "LlamaWrapper", request: AuthoringRequest, written: Written, place: int, one: Answer
) -> "GenerationRow":
    from utils.model.generation import GenerationRow

    prompts = written.system_prompts[one.prompt]
    system = prompts.pos if one.side == "pos" else prompts.neg
    seed = request.seed * 1_000_003 + place if request.temperature else None
    return GenerationRow(model.chat_format.encode(one.question, None, system), None, seed)


def load_answers(request: AuthoringRequest) -> list[tuple[Answer, Answer]]:
    """The answers that are kept, in pairs of both sides.

    Raises:
        UserError: If there are none, or the file is not as it was written.
    """
    path = request.paths.own_answers(request.behavior, request.choice.label)
    records = load_records(path, f"run: {request.again('answer')}")
    return pairs_of([_answer(record, path, place) for place, record in enumerate(records)], path)


def pairs_of(answers: Sequence[Answer], path: Path) -> list[tuple[Answer, Answer]]:
    """Both sides of each question, prompt and sample.

    Raises:
        UserError: If one side is missing.
    """
    by_key: dict[tuple[str, str, int, int], dict[Side, Answer]] = {}
    for one in answers:
        by_key.setdefault(one.pair_key, {})[one.side] = one
    if lacking := [key for key, sides in by_key.items() if set(sides) != set(SIDES)]:
        raise UserError(f"{path}: {len(lacking)} answers have no other half, e.g. to {lacking[0][1]!r}; make it again")
    return [(sides["pos"], sides["neg"]) for sides in by_key.values()]


def _answer(record: Mapping[str, Any], path: Path, place: int) -> Answer:
    match record:
        case {
            "question": str(question),
            "split": "extract" | "evaluate" as split,
            "prompt": int(prompt),
            "sample": int(sample),
            "side": "pos" | "neg" as side,
            "model_output": str(text),
        }:
            return Answer(question, split, prompt, sample, side, text)
    raise UserError(f"{path}, item {place}: not an answer as the suite writes it; make it again with --overwrite")
