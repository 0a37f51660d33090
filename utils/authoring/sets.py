"""From the answers to the sets that the other scripts take: contrast pairs to extract from and to test with."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.authoring.answers import Answer
from utils.authoring.request import AuthoringRequest
from utils.authoring.written import Written
from utils.data.checks import check_behavior
from utils.data.processing import write_together
from utils.data.records import PROMPT_KEYS, SYSTEM_KEYS
from utils.data.splitting import pair_record
from utils.errors import UserError
from utils.files.provenance import read_provenance, record_provenance
from utils.files.reading import sha256_of

if TYPE_CHECKING:
    from utils.authoring.filtering import Kept

log = logging.getLogger(__name__)

MIN_PAIRS = 12
"""To extract from: fewer are too few for `choose_steering.py` to set a third of them aside."""
MIN_TEST_PAIRS = 4


@dataclass(frozen=True)
class KeptSets:
    """What was kept of both splits."""

    extract: "Kept"
    evaluate: "Kept"


def write_sets(
    request: AuthoringRequest,
    written: Written,
    answered: Mapping[str, Sequence[tuple[Answer, Answer]]],
    kept: KeptSets,
) -> None:
    """Write the generate and test set of text form and the pairs of prompts; check all of the behavior's sets.

    Raises:
        UserError: If too few pairs are left, or the sets have faults.
    """
    paths, behavior = request.paths, request.behavior
    for name, one, least in (("extract", kept.extract, MIN_PAIRS), ("evaluate", kept.evaluate, MIN_TEST_PAIRS)):
        log.info("%s: questions to %s: %s", behavior, name, one.line())
        if len(one.pairs) < least:
            raise UserError(
                f"{behavior}, questions to {name}: {one.line()}; it takes at least {least}: the model may not do what "
                f"the prompts ask; edit {paths.written(behavior)}, or take --filter none"
            )
    contents: dict[Path, list[dict[str, str]]] = {
        paths.generate_text_dataset(behavior): _records(answered["extract"], kept.extract),
        paths.generate_prompts(behavior): _prompt_records(written, answered["extract"], kept.extract),
        paths.test_text_dataset(behavior): _records(answered["evaluate"], kept.evaluate),
    }
    run = set_facts(request) | {
        "n_answer_pairs": [kept.extract.n, kept.evaluate.n],
        "n_kept": [len(kept.extract.pairs), len(kept.evaluate.pairs)],
        "dropped": [dict(kept.extract.dropped), dict(kept.evaluate.dropped)],
        "told_apart_held_out": kept.extract.apart
        and [kept.extract.apart.value, kept.extract.apart.low, kept.extract.apart.high],
        "command": request.command,
    }
    for path in contents:
        record_provenance(path.parent, [path.name], run)
    write_together(contents)
    check_sets(request)


def set_facts(request: AuthoringRequest) -> dict[str, Any]:
    """What the sets depend on."""
    answers = request.paths.own_answers(request.behavior, request.choice.label)
    return {"own_answers_sha256": sha256_of(answers), "filter": request.filter, "model": request.choice.label}


def are_written(request: AuthoringRequest) -> bool:
    """Whether the sets are there and were made of these answers."""
    paths, behavior = request.paths, request.behavior
    files = (paths.generate_text_dataset(behavior), paths.generate_prompts(behavior), paths.test_text_dataset(behavior))
    answers = paths.own_answers(behavior, request.choice.label)
    if not answers.exists() or not all(path.exists() for path in files):
        return False
    facts = set_facts(request)
    made = [read_provenance(path) or {} for path in files]
    return all(facts.items() <= one.items() for one in made)


def read_kept(request: AuthoringRequest) -> dict[str, Any]:
    """What was noted when the sets were written; empty where they are not this script's."""
    return read_provenance(request.paths.generate_text_dataset(request.behavior)) or {}


def check_sets(request: AuthoringRequest) -> None:
    """What `process_raw_datasets.py --check` looks for.

    Raises:
        UserError: If there are faults; it names the first.
    """
    found = check_behavior(request.paths, request.behavior)
    faults = [fault for one in found for fault in one.faults]
    if faults:
        check = request.paths.command("process_raw_datasets", "--behaviors", request.behavior, "--check")
        raise UserError(f"{faults[0]} ({len(faults)} faults; {check} lists them)")


def _records(pairs: Sequence[tuple[Answer, Answer]], kept: "Kept") -> list[dict[str, str]]:
    from utils.authoring.filtering import text_pairs

    return [pair_record(pair) for pair in text_pairs(pairs, kept.pairs)]


def _prompt_records(written: Written, pairs: Sequence[tuple[Answer, Answer]], kept: "Kept") -> list[dict[str, str]]:
    """The prompts behind the kept pairs, each once."""
    asked = dict.fromkeys((pairs[place][0].question, pairs[place][0].prompt) for place in kept.pairs)
    return [
        {
            **dict.fromkeys(PROMPT_KEYS, question),
            SYSTEM_KEYS[0]: written.system_prompts[prompt].pos,
            SYSTEM_KEYS[1]: written.system_prompts[prompt].neg,
        }
        for question, prompt in asked
    ]
