"""What to make of a sentence, checked before anything is written. Light: nothing heavy is imported here."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from utils.behaviors import check_id
from utils.data.published import KNOWLEDGE_SETS
from utils.data.splitting import MIN_PAIRS
from utils.errors import UserError
from utils.files.redaction import redact
from utils.judge.requests import JudgeFlags
from utils.model.checkpoints import ModelChoice
from utils.paths import REPOSITORY, DataPaths
from utils.settings import VectorKind

Step = Literal["write", "answer", "vector", "choose", "demo", "page"]
STEPS: tuple[Step, ...] = get_args(Step)
Filter = Literal["judge", "projection", "none"]
FILTERS: tuple[Filter, ...] = get_args(Filter)

KIND = VectorKind("answer")
"""The vectors that are chosen and shown: the mean over the answers' tokens."""
KINDS = (KIND, VectorKind("prompt"), VectorKind("prompt_mean"))
"""All that are made: those of persona vectors (Chen et al. 2025, arXiv 2507.21509)."""
MAX_SENTENCE = 200


class UnfinishedError(Exception):
    """Requests failed or were not sent, so that a step is not done; what came is kept. Its message is to be shown."""


@dataclass(frozen=True)
class AuthoringRequest:
    """What to make, and how.

    Raises:
        UserError: If the flags do not belong together.
    """

    paths: DataPaths
    choice: ModelChoice
    behavior: str
    sentence: str | None
    """None for that which was written already."""
    opposite: str | None = None
    """What is asked for instead of the behavior, in the prompts against it; None for plain answers."""
    steps: tuple[Step, ...] = STEPS
    template: bool = False
    """Fill bundled templates instead of asking a model."""
    filter: Filter = "projection"
    n_written_pairs: int = 0
    """Contrast pairs that the judge model is to write as well."""
    judge: JudgeFlags | None = None
    """None where no step needs one."""
    layers: tuple[int, ...] | None = None
    """To choose among; None for every second one in the middle of the model."""
    multipliers: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    max_new_tokens: int = 32
    temperature: float = 0.0
    num_samples: int = 1
    kl: float = 1.0
    seed: int = 0
    assume_yes: bool = False
    overwrite: bool = False
    batch_size: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.num_samples > 1 and not self.temperature:
            raise UserError("--num_samples needs --temperature: without it every answer to a question is the same")
        if self.template and self.n_written_pairs:
            raise UserError("--written_pairs are written by the judge model; leave --template out")
        if 0 < self.n_written_pairs < MIN_PAIRS:
            raise UserError(f"--written_pairs {self.n_written_pairs}: a set needs at least {MIN_PAIRS} pairs")
        if self.choice.use_base_model:
            raise UserError("a base model takes no system prompts; leave --use_base_model out")
        if 0.0 not in self.multipliers:
            raise UserError("--multipliers need 0, the unsteered answers that all others are compared with")

    def go_on(self) -> str:
        """The command that does what is left."""
        words = ["--id", self.behavior, *self.choice.command_words, *(["--template"] if self.template else [])]
        return self.paths.command("create_behavior", *words)

    def again(self, *steps: Step) -> str:
        """The command that makes some steps again."""
        words = ["--id", self.behavior, *self.choice.command_words, "--steps", *steps]
        words += ["--template"] if self.template else []
        return self.paths.command("create_behavior", *words, "--overwrite")


def check_sentence(text: str, flag: str) -> str:
    """A sentence as it is used: in one line, without a mark at its end.

    Raises:
        UserError: If it is empty, too long, or has line breaks or control characters.
    """
    plain = " ".join(text.split(" ")).strip().rstrip(".!;,").strip()
    if not plain:
        raise UserError(f'{flag} is empty; say what the model is to do, such as "answers like a pirate"')
    if len(plain) > MAX_SENTENCE:
        raise UserError(f"{flag} has {len(plain)} characters; one short sentence is meant, at most {MAX_SENTENCE}")
    if redact(plain) != plain:
        raise UserError(f"{flag} holds a key of the environment, which must not be sent or written; leave it out")
    if bad := [character for character in plain if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]:
        raise UserError(f"{flag} holds {bad[0]!r}; write one line of plain text")
    return plain


def id_of(sentence: str) -> str:
    """An id made of a sentence's letters and digits, e.g. `answers-like-a-pirate`.

    Raises:
        UserError: If it has none.
    """
    plain = unicodedata.normalize("NFKD", sentence).encode("ascii", "ignore").decode().casefold()
    words = re.findall(r"[a-z0-9]+", plain)
    if not words:
        raise UserError("the sentence has no letters that could make an id; name one with --id")
    made = words[0][:64]
    for word in words[1:]:
        if len(made) + 1 + len(word) > 64:
            break
        made += f"-{word}"
    return made


def check_target(paths: DataPaths, behavior: str) -> None:
    """Refuse an id that is another's, and folders that lead elsewhere.

    Raises:
        UserError: If it cannot be an id, names a behavior that was not made from a sentence, or a path leads elsewhere.
    """
    check_id(behavior)
    is_ours = paths.written(behavior).exists()
    there = [at.behavior_file(behavior) for at in (paths, DataPaths(REPOSITORY)) if at.behavior_file(behavior).exists()]
    if behavior in KNOWLEDGE_SETS or (there and not is_ours):
        what = there[0] if there else behavior
        raise UserError(f"--id {behavior}: {what} is there already and was not made from a sentence; choose another id")
    check_folders(paths, behavior)


def written_files(paths: DataPaths, behavior: str) -> tuple[Path, ...]:
    """All files that are written under datasets/."""
    return (
        paths.behavior_file(behavior),
        paths.written(behavior),
        paths.raw_dataset(behavior),
        paths.raw_text_dataset(behavior),
        paths.generate_dataset(behavior),
        paths.generate_text_dataset(behavior),
        paths.generate_prompts(behavior),
        paths.test_dataset(behavior, "ab"),
        paths.test_text_dataset(behavior),
        paths.test_dataset(behavior, "open_ended"),
    )


def check_folders(paths: DataPaths, behavior: str) -> None:
    """
    Raises:
        UserError: If one of the behavior's own folders is a link: what is written for it could land in another's.
    """
    folders = [file.parent for file in written_files(paths, behavior) if file.parent.name == behavior]
    folders += [paths.vectors_dir(behavior, normalized=flag) for flag in (False, True)]
    folders += [paths.results_dir / behavior, paths.grades(paths.own_answers(behavior, "any")).parent]
    folders += [paths.metrics_dir / behavior, paths.analysis(behavior)]
    for folder in folders:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link (to {folder.resolve()}); remove it, or choose another --id")
