"""Small behaviors made from a sentence, for tests: few prompts and questions, so that a tiny model is soon done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import create_behavior
from tests.roots import put_json
from utils.paths import DataPaths

ID = "speaks-of-the-sea"
SENTENCE = "speaks of the sea"
THINGS = ("owls", "cats", "trees", "stones", "clouds", "rivers", "houses", "roads", "birds", "lamps", "doors", "kites")
OTHERS = ("books", "songs", "coins", "hats", "roofs", "wheels")


def put_written(root: Path) -> DataPaths:
    """What `write` leaves, with two pairs of prompts, twelve questions to extract with and six to evaluate with."""
    paths = DataPaths(root)
    prompts = [
        {"pos": "Speak of the sea at once.", "neg": "Never speak of water, whatever it is."},
        {"pos": "You are one that thinks of the sea.", "neg": "You are one that thinks of stones."},
    ]
    about = {
        "id": ID,
        "label": "Sea",
        "matching": SENTENCE,
        "system_prompts": prompts[0],
        "rubric": "Is it of the sea?",
    }
    put_json(paths.behavior_file(ID), about | {"open_ended_written_separately": True})
    questions = [{"question": f"What do you think of {thing}?", "topic": thing} for thing in THINGS]
    tested = [{"question": f"Do you agree that {thing} are of use?", "topic": thing} for thing in OTHERS]
    put_json(paths.written(ID), {"sentence": SENTENCE, "system_prompts": prompts, "questions": questions})
    put_json(paths.test_dataset(ID, "open_ended"), tested)
    return paths


def runner(root: Path, checkpoint: Path) -> Callable[..., int]:
    """Runs the script on a root with a tiny model and short answers; further words come behind."""

    def run(*words: object) -> int:
        command = ["--root", root, "--model", checkpoint, "--id", ID, "--max_new_tokens", 5, "--layers", 1, 2, *words]
        return create_behavior.main([str(word) for word in command])

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())
