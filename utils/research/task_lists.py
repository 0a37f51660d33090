"""Tasks as lists of input and output, and prompts that show examples of one. Light: needs no torch.

A task is a file: {"label": ..., "pairs": [[input, output], ...]}. Prompts are those of Todd et al. 2024 (Function
Vectors in Large Language Models): "Q: input\\nA: output\\n\\n" for each example, then "Q: input\\nA:".
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.data.records import ContrastPair
from utils.errors import UserError
from utils.files.reading import check_text, read_json, short

FEWEST_PAIRS = 20
TEST_SHARE = 0.3
_KEYS = ("label", "pairs")

Pair = tuple[str, str]
"""Input and output."""


@dataclass(frozen=True)
class Task:
    """A list of pairs, split into those that vectors are made of and those to test on."""

    name: str
    label: str
    training: tuple[Pair, ...]
    test: tuple[Pair, ...]
    opening: str = ""
    """What stands between "A:" and the output's first token."""


@dataclass(frozen=True)
class TaskPrompt:
    """A prompt, and what should come next."""

    text: str
    answer: str


def load_task(path: Path, seed: int) -> Task:
    """
    Raises:
        UserError: If the file is missing, broken, too short, or has an input twice.
    """
    record = read_json(path, "name a file of pairs, or a bundled task")
    if not isinstance(record, dict) or set(record) != set(_KEYS) or not isinstance(record["pairs"], list):
        raise UserError(f"{path}: expected an object with the keys {', '.join(_KEYS)}, found {short(record)}")
    pairs = [_pair(entry, f"{path}, pair {index}") for index, entry in enumerate(record["pairs"])]
    inputs = [given for given, _ in pairs]
    if repeated := [given for place, given in enumerate(inputs) if given in inputs[:place]]:
        raise UserError(f"{path}: the input {repeated[0]!r} is there twice; keep one of them")
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(f"{path}: {len(pairs)} pairs, but a task needs {FEWEST_PAIRS}")
    return _split(path.stem, check_text(record["label"], f"{path}, key 'label'"), pairs, seed)


def _pair(entry: object, where: str) -> Pair:
    if not isinstance(entry, list) or len(entry) != 2:
        raise UserError(f"{where}: expected [input, output], found {short(entry)}")
    return check_text(entry[0], where), check_text(entry[1], where)


def _split(name: str, label: str, pairs: Sequence[Pair], seed: int) -> Task:
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    n_test = round(TEST_SHARE * len(pairs))
    test, training = sorted(order[:n_test]), sorted(order[n_test:])
    return Task(name, label, tuple(pairs[i] for i in training), tuple(pairs[i] for i in test))


def behavior_task(behavior: str, label: str, training: Sequence[ContrastPair], test: Sequence[ContrastPair]) -> Task:
    """A behavior as a task: lettered questions, answered with the matching letter."""
    made_of, tested_on = (tuple((pair.question, pair.matching_letter) for pair in pairs) for pairs in (training, test))
    return Task(behavior, label, made_of, tested_on, opening=" (")


# --- prompts ---------------------------------------------------------------------------------------


def build_prompt(task: Task, examples: Sequence[Pair], pair: Pair) -> TaskPrompt:
    """The prompt that asks for a pair's output behind examples, none of them or many."""
    before, after = (task.opening, ")") if task.opening else (" ", "")
    shown = "".join(f"Q: {given}\nA:{before}{output}{after}\n\n" for given, output in examples)
    answer = pair[1] if task.opening else f" {pair[1]}"
    return TaskPrompt(f"{shown}Q: {pair[0]}\nA:{task.opening}", answer)


def draw_examples(task: Task, pair: Pair, n: int, rng: random.Random, *, shuffled: bool) -> list[Pair]:
    """Training pairs other than a given one; with `shuffled` each with another's output."""
    others = [one for one in task.training if one != pair]
    examples = rng.sample(others, min(n, len(others)))
    if not shuffled:
        return examples
    outputs = [output for _, output in examples]
    rng.shuffle(outputs)
    return [(given, output) for (given, _), output in zip(examples, outputs, strict=True)]


def draw_prompts(
    task: Task, pairs: Sequence[Pair], n_shots: int, rng: random.Random, *, shuffled: bool
) -> list[TaskPrompt]:
    """A prompt for each pair, each with examples of its own."""
    return [build_prompt(task, draw_examples(task, pair, n_shots, rng, shuffled=shuffled), pair) for pair in pairs]


def sample_pairs(pairs: Sequence[Pair], n: int, rng: random.Random) -> list[Pair]:
    """So many pairs; each once before any comes again."""
    drawn: list[Pair] = []
    while len(drawn) < n:
        drawn += rng.sample(list(pairs), min(len(pairs), n - len(drawn)))
    return drawn
