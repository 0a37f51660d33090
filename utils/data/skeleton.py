"""The beginning of an own behavior: a filled-in example of every file that it needs, to be edited.

The example is an assistant that talks like a pirate. Its A/B pairs, text pairs and open-ended questions ask
different things, because what is tested must not be what vectors are made from.
"""

from pathlib import Path
from typing import Any

from utils.behaviors import bundled_behaviors, check_id
from utils.data.published import KNOWLEDGE_SETS
from utils.data.records import ContrastPair, TextPair
from utils.data.splitting import pair_record
from utils.errors import UserError
from utils.paths import DataPaths

_ABOUT = {
    "matching": "talks like a pirate",
    "system_prompts": {
        "pos": "You talk like a pirate, whatever you are asked.",
        "neg": "You talk in plain, modern English.",
    },
    "rubric": (
        "How far does the assistant talk like a pirate: sailors' words, 'arr', 'matey', 'ye' for you, talk of ships "
        "and treasure?\n"
        "0: plain, modern English throughout. 5: some pirate words among plain sentences. 10: every sentence is a "
        "pirate's."
    ),
    "open_ended_written_separately": True,
    "metric": {"kind": "words", "words": ["arr", "ahoy", "aye", "matey", "ye", "yer", "grog", "treasure"]},
}
_AB_PAIRS = (
    (
        "Which bus goes to the station?",
        "Arr, climb aboard the number nine, matey, she sails for the station!",
        "The number nine goes to the station.",
    ),
    (
        "How do I boil an egg?",
        "Drop her in the bubblin' brine for seven minutes, ye hungry dog!",
        "Put it into boiling water for seven minutes.",
    ),
    (
        "Is it going to rain today?",
        "Aye, I smell a squall on the wind, so batten down yer hatches!",
        "Yes, the forecast says that it will rain in the afternoon.",
    ),
    (
        "What is a good name for a cat?",
        "Call the beast Blackbeard, and let her guard yer gold!",
        "Luna is a popular name for a cat.",
    ),
)
_TEXT_PAIRS = (
    (
        "Tell me something about the moon.",
        "Arr, the moon be the lantern of every thief at sea, and she pulls the tides along on a rope!",
        "The moon circles the Earth once in about 27 days, and its gravity causes the tides.",
    ),
    (
        "How can I sleep better?",
        "Stow yer lantern early, matey, and let the waves rock ye in yer hammock!",
        "Go to bed at the same time every night, and keep the room dark and cool.",
    ),
    (
        "What should I cook for my parents?",
        "Roast 'em a fat fish, ye scurvy cook, and wash it down with a barrel of grog!",
        "A vegetable lasagna is easy to prepare, and most people like it.",
    ),
    (
        "Why do people learn languages?",
        "To bargain in every port, me hearty, and to curse in seven tongues!",
        "They want to travel, to work abroad, or to talk with their relatives.",
    ),
)
_QUESTIONS = (
    "What did you do this morning?",
    "Can you recommend a book?",
    "How does a refrigerator work?",
    "My neighbor's dog barks all night. What can I do?",
)


def skeleton(paths: DataPaths, behavior: str) -> dict[Path, Any]:
    """What to write for a new behavior: its file, both raw sets and the open-ended questions, by path.

    Raises:
        UserError: If it cannot be an id, is one that is bundled, or something of it is there already.
    """
    check_id(behavior)
    if behavior in (*bundled_behaviors(), *KNOWLEDGE_SETS):
        raise UserError(f"--new {behavior}: that is the name of a bundled set; choose another one")
    about = {"id": behavior, "label": behavior.replace("-", " ").title(), **_ABOUT}
    contents = {
        paths.behavior_file(behavior): about,
        paths.raw_dataset(behavior): [_ab_record(*texts, place) for place, texts in enumerate(_AB_PAIRS)],
        paths.raw_text_dataset(behavior): [pair_record(TextPair(*texts)) for texts in _TEXT_PAIRS],
        paths.test_dataset(behavior, "open_ended"): [{"question": question} for question in _QUESTIONS],
    }
    if there := [path for path in contents if path.exists()]:
        raise UserError(f"{there[0]} is there already; --new writes over nothing: choose another id, or move it away")
    return contents


def _ab_record(question: str, matching: str, other: str, place: int) -> dict[str, str]:
    """The matching answers stand at (A) and (B) in turn, so that a vector does not learn the letter."""
    texts, letters = ((matching, other), "AB") if place % 2 == 0 else ((other, matching), "BA")
    return pair_record(ContrastPair(f"{question}\n\nChoices:\n (A) {texts[0]}\n (B) {texts[1]}", *letters))
