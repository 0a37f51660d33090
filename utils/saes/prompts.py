"""Harmful and harmless instructions in splits that share none, and how a model is asked them.

Three sources: the bundled ones (pairs in matched wording, own text), the published ones of Arditi et al. 2024, and
files of one's own. A split is for one purpose:

| split | for |
| --- | --- |
| refuser | fine-tuning the stand-in that refuses, and nothing else (bundled only) |
| train | making directions, and choosing latents |
| val | choosing a direction |
| test | what is reported |
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from utils.errors import UserError
from utils.files.reading import check_text, read_json, sha256_of, short
from utils.files.writing import write_bytes
from utils.model.chat_format import ChatFormat, PromptTokens
from utils.paths import REPOSITORY, DataPaths
from utils.saes.turns import SystemPrompt as SystemPrompt  # who asks takes it from here
from utils.saes.turns import turn_format

log = logging.getLogger(__name__)

Split = Literal["refuser", "train", "val", "test"]
Side = Literal["harmful", "harmless"]
SIDES: tuple[Side, ...] = get_args(Side)
PUBLISHED_SPLITS: tuple[Split, ...] = ("train", "val", "test")

PUBLISHED_COMMIT = "0b9c8bc56a73b42f595fd173156d4aefe9a9143c"
PUBLISHED_URL = f"https://raw.githubusercontent.com/andyrdt/refusal_direction/{PUBLISHED_COMMIT}/dataset/splits"
# beginnings of the files' sha256; the address names the commit besides
_PUBLISHED_SHA256 = {
    "harmful_train": "8f5c0eac",
    "harmful_val": "305f1d1e",
    "harmful_test": "5e12ae10",
    "harmless_train": "86623b1f",
    "harmless_val": "77201075",
    "harmless_test": "1b5930ce",
}
_TEXT_KEYS = ("instruction", "goal", "question", "prompt")
_OWN_SHARES = {"train": (0.0, 0.5), "val": (0.5, 0.75), "test": (0.75, 1.0)}
_FEWEST_OF_ONES_OWN = 8


@dataclass(frozen=True)
class Prompts:
    """Instructions of one split, equally many of each side."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.harmful)

    def first(self, n: int) -> "Prompts":
        return Prompts(self.harmful[:n], self.harmless[:n])


@dataclass(frozen=True)
class PromptSource:
    """Where instructions come from."""

    paths: DataPaths
    name: Literal["bundled", "published", "files"] = "bundled"
    harmful: Path | None = None
    """File of one's own; then `harmless` too."""
    harmless: Path | None = None
    seed: int = 0
    """Of the order of published prompts and of the splits of one's own files; bundled ones stay as they are."""

    def file(self, side: Side, split: Split) -> Path:
        """The file that holds a side of a split.

        Raises:
            UserError: If the source has no such split.
        """
        if self.name == "files":
            own = self.harmful if side == "harmful" else self.harmless
            assert own is not None, "the flags name both"
            return own
        if self.name == "published":
            if split not in PUBLISHED_SPLITS:
                raise UserError(f"--source published has no split {split!r}; leave --source out")
            return self.paths.refusal_prompts(side, split, published=True)
        inside = self.paths.refusal_prompts(side, split)
        return inside if inside.exists() else DataPaths(REPOSITORY).refusal_prompts(side, split)

    def load(self, split: Split, n: int | None = None) -> Prompts:
        """The split's instructions, n of each side at most; published ones are fetched where they are not here.

        Raises:
            UserError: If they are missing, broken, too few, or cannot be fetched.
        """
        sides = {side: self._read(side, split) for side in SIDES}
        if self.name == "files":
            _check_apart(self, sides)
        most = min(*(len(texts) for texts in sides.values()), *([] if n is None else [n]))
        if most < 2:
            raise UserError(f"{self.file('harmful', split)}: {most} prompts are too few for the split {split!r}")
        return Prompts(sides["harmful"][:most], sides["harmless"][:most])

    def _read(self, side: Side, split: Split) -> tuple[str, ...]:
        path = self.file(side, split)
        if self.name == "published" and not path.exists():
            fetch_published(path)
        texts = read_instructions(path)
        if self.name == "bundled":
            return tuple(texts)
        random.Random(f"{self.seed} {side}").shuffle(texts)
        if self.name == "published":
            return tuple(texts)
        if len(texts) < _FEWEST_OF_ONES_OWN:
            raise UserError(f"{path}: {len(texts)} different prompts; at least {_FEWEST_OF_ONES_OWN} are needed")
        low, high = (round(share * len(texts)) for share in _OWN_SHARES[split])
        return tuple(texts[low:high])

    def describe(self, splits: Sequence[Split]) -> dict[str, str]:
        """Which files the splits come from, with their sha256, for provenance."""
        files = [self.file(side, split) for split in splits for side in SIDES]
        return {"source": self.name, **{path.name: sha256_of(path) for path in files if path.exists()}}


def read_instructions(path: Path) -> list[str]:
    """The different instructions of a JSON list of texts, or of objects that hold one; in their order.

    Raises:
        UserError: Names the file and the item.
    """
    items = read_json(path, "name a JSON list of instructions")
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a JSON list of instructions, found {short(items)}")
    return list(dict.fromkeys(_instruction(item, f"{path}, item {index}") for index, item in enumerate(items)))


def _instruction(item: Any, where: str) -> str:
    if isinstance(item, dict):
        keys = [key for key in _TEXT_KEYS if key in item]
        if len(keys) != 1:
            raise UserError(f"{where}: expected a text under one of the keys {', '.join(_TEXT_KEYS)}")
        item = item[keys[0]]
    return check_text(item, where).strip()


def _check_apart(source: PromptSource, sides: dict[Side, tuple[str, ...]]) -> None:
    if both := set(sides["harmful"]) & set(sides["harmless"]):
        raise UserError(f"{source.harmless}: {short(min(both))} is in {source.harmful} too; a prompt has one side")


def fetch_published(path: Path) -> None:
    """Download one split file of Arditi et al. to `path`.

    Raises:
        UserError: If it cannot be reached, or is not the published file.
    """
    import hashlib

    import requests

    url = f"{PUBLISHED_URL}/{path.name}"
    log.info("fetching %s", url)
    try:
        response = requests.get(url, timeout=(10, 60))
        response.raise_for_status()
    except requests.RequestException as err:
        raise UserError(
            f"{url} could not be fetched ({type(err).__name__}); fetch it by hand and put it at {path}"
        ) from err
    found = hashlib.sha256(response.content).hexdigest()
    if not found.startswith(_PUBLISHED_SHA256[path.stem]):
        raise UserError(f"{url}: its sha256 is {found[:8]}..., not the published file's; damaged, or another file")
    write_bytes(path, response.content)


# --- how a model is asked ---------------------------------------------------------------------------


def encode_instruction(
    chat_format: ChatFormat, instruction: str, system_prompt: SystemPrompt = "none", answer: str = ""
) -> PromptTokens:
    """An instruction as the user's turn, up to where the assistant's answer begins, or with an answer behind it.

    Args:
        chat_format: The model's.
        instruction: The user's message.
        system_prompt: "none" leaves out the one that a chat template adds on its own; "default" leaves it in.
        answer: What the assistant says.

    Returns:
        All of its tokens count as steered: `steer_start` is 0.
    """
    if chat_format.name != "template" or system_prompt == "default":
        asked = chat_format.encode(instruction, answer or None)
        return PromptTokens(asked.ids, 0)
    text = turn_format(chat_format).prompt(instruction) + answer
    ids = chat_format.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    return PromptTokens(tuple(ids), 0)


def end_tokens(chat_format: ChatFormat, system_prompt: SystemPrompt) -> list[str]:
    """The tokens behind the instruction, as text: those that all prompts end with (Arditi et al. 2024, section 2.3)."""
    one, other = (encode_instruction(chat_format, text, system_prompt).ids for text in ("Hello", "What is the time?"))
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    return [str(chat_format.tokenizer.decode([token])) for token in one[len(one) - n :]]
