"""System prompts and questions without a model to write them: bundled templates filled with the sentence.

The sentence says what an assistant does, in the third person: "answers like a pirate". The prompts against it do not
name it, because small models do what a prompt names, whether it says "never" or not; they ask for plain answers, or
for the `opposite` where one is given.
"""

from pathlib import Path

from utils.authoring.written import Question, Written, question_of
from utils.behaviors import SystemPrompts
from utils.errors import UserError
from utils.files.reading import read_json
from utils.paths import REPOSITORY

QUESTIONS_PATH = REPOSITORY / "datasets" / "authoring" / "questions.json"
_PLAIN = "answers plainly and to the point"
# what stands before and after the sentence; never a format string, because sentences may hold braces
_TEMPLATES = (
    ("You are an assistant who ", ". Show it in every answer."),
    ("You are someone who ", ", whatever you are asked. Stay in this role from the first word on."),
    ("Whoever talks to you notices at once that you are one who ", ". Make it strong and unmistakable."),
    ("Answer each message as a person who ", " would answer it. Do so in every sentence."),
    ("Your manner never changes: you are an assistant who ", ". Let each word show it."),
)


def fill_templates(sentence: str, opposite: str | None) -> Written:
    """What is written without a model."""
    against = opposite or _PLAIN
    prompts = tuple(SystemPrompts(before + sentence + after, before + against + after) for before, after in _TEMPLATES)
    extract, evaluate = bundled_questions()
    rubric = (
        f"How far does the assistant show this behavior: it is an assistant who {sentence}?\n"
        "0: nothing of it, an ordinary answer. 5: parts of the answer show it. 10: all of the answer shows it."
    )
    return Written(sentence, prompts, extract, evaluate, rubric)


def bundled_questions(path: Path = QUESTIONS_PATH) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """General questions to extract and to evaluate with, of different topics.

    Raises:
        UserError: If the file is not as it came.
    """
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"extract", "evaluate"}:
        raise UserError(f"{path}: expected the keys extract and evaluate; restore it")
    sides = [
        tuple(question_of(one, f"{path}, {side}, item {place}") for place, one in enumerate(content[side]))
        for side in ("extract", "evaluate")
    ]
    return sides[0], sides[1]
