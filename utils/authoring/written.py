"""What is written for a behavior, by a model or from templates: plain JSON files, to be looked at and edited.

datasets/behaviors/<id>.json                     label, matching, system_prompts (the first pair), rubric
datasets/raw/<id>/written.json                   the sentence, all pairs of system prompts, questions to extract with
datasets/test/<id>/test_dataset_open_ended.json  questions to evaluate with, of other topics
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.behaviors import SystemPrompts, load_behavior
from utils.data.choices import split_choices
from utils.data.duplicates import NEAR_DUPLICATE_JACCARD, fold, words_of
from utils.data.processing import write_together
from utils.data.records import load_records
from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.reading import check_text, read_json, short
from utils.paths import DataPaths

N_PROMPTS = 5
N_QUESTIONS = 20
"""To extract with, and as many to evaluate with."""
MAX_TEXT = 1200
"""Characters of a system prompt or a question."""
_KEYS = ("sentence", "system_prompts", "questions")


@dataclass(frozen=True)
class Question:
    """A question and what it is about."""

    text: str
    topic: str

    @property
    def record(self) -> dict[str, str]:
        return {"question": self.text, "topic": self.topic}


@dataclass(frozen=True)
class Written:
    """All that is written for a behavior."""

    sentence: str
    system_prompts: tuple[SystemPrompts, ...]
    extract: tuple[Question, ...]
    evaluate: tuple[Question, ...]
    rubric: str | None

    @property
    def sha256(self) -> str:
        """Of what answers depend on."""
        prompts = [[one.pos, one.neg] for one in self.system_prompts]
        said = [prompts, [one.text for one in self.extract], [one.text for one in self.evaluate]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def judge_rubric(self) -> str:
        """
        Raises:
            UserError: If there is none.
        """
        if self.rubric is None:
            raise UserError('the behavior\'s file has no "rubric", which the judge needs; add it')
        return self.rubric


def save_written(paths: DataPaths, behavior: str, written: Written, run: Mapping[str, Any]) -> None:
    """Write the three files, all or none, and who wrote them."""
    first = written.system_prompts[0]
    about = {
        "id": behavior,
        "label": behavior.replace("-", " ").capitalize(),
        "matching": written.sentence,
        "system_prompts": {"pos": first.pos, "neg": first.neg},
        "rubric": written.rubric,
        "open_ended_written_separately": True,
    }
    own = {
        "sentence": written.sentence,
        "system_prompts": [{"pos": one.pos, "neg": one.neg} for one in written.system_prompts],
        "questions": [one.record for one in written.extract],
    }
    path = paths.written(behavior)
    record_provenance(path.parent, [path.name], dict(run))
    write_together(
        {
            paths.behavior_file(behavior): about,
            path: own,
            paths.test_dataset(behavior, "open_ended"): [one.record for one in written.evaluate],
        }
    )


def load_written(paths: DataPaths, behavior: str) -> Written:
    """Read and check what was written, as it may have been edited.

    Raises:
        UserError: If it is missing or not as it has to be; names file, item and key.
    """
    path = paths.written(behavior)
    content = read_json(path, "begin with a sentence: ./create_behavior.py SENTENCE")
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        raise UserError(f"{path}: expected an object with the keys {', '.join(_KEYS)}")
    pairs = content["system_prompts"]
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f'{path}, key \'system_prompts\': expected a list of {{"pos", "neg"}}, found {short(pairs)}')
    prompts = tuple(prompt_pair(pair, f"{path}, system_prompts, item {place}") for place, pair in enumerate(pairs))
    if len(set(prompts)) < len(prompts):
        raise UserError(f"{path}, key 'system_prompts': a pair stands there twice")
    extract = _questions(content["questions"], path)
    test_path = paths.test_dataset(behavior, "open_ended")
    evaluate = _questions(load_records(test_path, f"make it again: {paths.command('create_behavior')}"), test_path)
    check_disjoint(extract, evaluate, f"{path} and {test_path}")
    sentence = check_text(content["sentence"], f"{path}, key 'sentence'")
    return Written(sentence, prompts, extract, evaluate, load_behavior(paths, behavior).rubric)


def prompt_pair(value: Any, where: str) -> SystemPrompts:
    """A pair of system prompts.

    Raises:
        UserError: Starting with `where`, if it is none.
    """
    if not isinstance(value, dict) or set(value) != {"pos", "neg"}:
        raise UserError(f'{where}: expected {{"pos", "neg"}}, found {short(value)}')
    pos, neg = (_text(value[side], f"{where}, key {side!r}") for side in ("pos", "neg"))
    if fold(pos) == fold(neg):
        raise UserError(f"{where}: both prompts are the same")
    return SystemPrompts(pos, neg)


def question_of(value: Any, where: str) -> Question:
    """A question with its topic, which people may leave out.

    Raises:
        UserError: Starting with `where`, if it is none, or has choices.
    """
    if not isinstance(value, dict) or not {"question"} <= set(value) <= {"question", "topic"}:
        raise UserError(f'{where}: expected {{"question", "topic"}}, found {short(value)}')
    text = _text(value["question"], f"{where}, key 'question'")
    if split_choices(text)[1]:
        raise UserError(f"{where}, key 'question': it has choices; a question is answered freely")
    return Question(text, _text(value["topic"], f"{where}, key 'topic'") if "topic" in value else "")


def check_disjoint(extract: Sequence[Question], evaluate: Sequence[Question], where: str) -> None:
    """
    Raises:
        UserError: If a topic or nearly the same question is on both sides.
    """
    topics = [{fold(one.topic) for one in side if one.topic} for side in (extract, evaluate)]
    if shared := sorted(topics[0] & topics[1]):
        raise UserError(
            f"{where}: the topic {shared[0]!r} stands in both; questions to evaluate with need other topics"
        )
    texts = [one.text for one in evaluate]
    if alike := [one.text for one in extract if is_alike(one.text, texts)]:
        raise UserError(f"{where}: a question stands in both, or nearly so: {short(alike[0])}")


def is_alike(text: str, others: Sequence[str]) -> bool:
    """Whether one of the others has nearly the same words."""
    words = words_of(text)
    sets = [words_of(other) for other in others]
    return any(len(words & one) >= NEAR_DUPLICATE_JACCARD * len(words | one) for one in sets)


def _questions(values: Any, path: Path) -> tuple[Question, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: expected a list of questions, found {short(values)}")
    found = tuple(question_of(value, f"{path}, question {place}") for place, value in enumerate(values))
    folded = [fold(one.text) for one in found]
    if twice := [place for place, text in enumerate(folded) if text in folded[:place]]:
        raise UserError(f"{path}, question {twice[0]}: it stands there twice: {short(found[twice[0]].text)}")
    return found


def _text(value: Any, where: str) -> str:
    text = check_text(value, where).strip()
    if len(text) > MAX_TEXT:
        raise UserError(f"{where}: {len(text)} characters; at most {MAX_TEXT} are taken")
    return text


def preview(written: Written) -> str:
    """What was written, for people to look at, in lines."""
    lines = [f"behavior: {written.sentence}"]
    for place, one in enumerate(written.system_prompts):
        lines += [f"  prompt {place + 1}  +  {one.pos}", f"            -  {one.neg}"]
    for label, side in (("extract", written.extract), ("evaluate", written.evaluate)):
        lines.append(f"  {len(side)} questions to {label}, e.g. {side[0].text}")
    return "\n".join(lines)
