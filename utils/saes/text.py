"""The text that SAEs are trained and measured on: documents, and of them sequences of tokens of one length.

Every source comes in the model's chat format (user: the first part, assistant: the rest), so that SAEs of two
sources differ by what was said and not by how it was written.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import UserError
from utils.files.reading import check_text, parse_json, sha256_of, short
from utils.paths import DataPaths
from utils.saes import corpora
from utils.saes.corpora import HUB_SETS, Turns
from utils.saes.turns import SystemPrompt, TurnFormat, turn_format

if TYPE_CHECKING:
    from utils.model.chat_format import ChatFormat

TextFormat = Literal["chat", "plain"]
Split = Literal["train", "held_out"]
"""A twentieth of all documents is never trained on; which ones, their text says."""
Document = Turns | str

BUNDLED_SOURCES = ("chat", "web")
TEXT_VERSION = 1
"""Goes up whenever the same source comes out as other tokens."""
DOCUMENTS_AT_ONCE = 256
"""Tokenised in one call."""


@dataclass(frozen=True)
class TextSource:
    """Which text, and how it is written for the model."""

    data: str
    """chat, web, lmsys, pile, or a file of JSON Lines."""
    format: TextFormat = "chat"
    system_prompt: SystemPrompt = "none"

    @property
    def label(self) -> str:
        """As in the names of SAE folders and figures; a format that is not the usual one is named."""
        name = self.data if self.is_named else Path(self.data).stem
        system = "-system" if self.system_prompt == "default" and self.format == "chat" else ""
        return name + system + ("-plain" if self.format == "plain" else "")

    @property
    def is_named(self) -> bool:
        return self.data in (*BUNDLED_SOURCES, *HUB_SETS)

    def identity(self) -> dict[str, Any]:
        """What the tokens depend on, for comparing runs."""
        content = None if self.is_named else sha256_of(Path(self.data))
        facts = {"data": self.label, "format": self.format, "system_prompt": self.system_prompt}
        return {**facts, "data_sha256": content, "text_version": TEXT_VERSION}


def check_source(source: TextSource) -> None:
    """Refuse a source that cannot be there; nothing is fetched.

    Raises:
        UserError: If it is neither a known name nor a file.
    """
    if not source.is_named and not Path(source.data).is_file():
        names = ", ".join((*BUNDLED_SOURCES, *HUB_SETS))
        raise UserError(f"--data {source.data}: neither a file nor one of {names}; name a file of JSON Lines")


# --- documents ------------------------------------------------------------------------------------


def documents(source: TextSource, paths: DataPaths, split: Split) -> Iterator[Document]:
    """The documents of a source, always in the same order. Chat and web are shuffled; files come as they are.

    Raises:
        UserError: If they cannot be fetched, or a line of a file is no document.
    """
    for document in _all_documents(source, paths):
        if split == split_of(document):
            yield document


def split_of(document: Document) -> Split:
    """Of equal documents all are on one side."""
    digest = hashlib.sha256(json.dumps(document).encode()).digest()
    return "held_out" if digest[0] % 20 == 0 else "train"


def _all_documents(source: TextSource, paths: DataPaths) -> Iterator[Document]:
    if source.data == "chat":
        talk = _read_lines(corpora.ensure_chitchat(paths))
        yield from _one_to_one(_shuffled(corpora.contrast_documents(paths)), _shuffled(talk))
    elif source.data == "web":
        yield from _shuffled(_read_lines(corpora.ensure_wikipedia(paths)))
    elif source.data in HUB_SETS:
        for number, row in enumerate(corpora.hub_documents(source.data), 1):
            yield as_document(row, f"{source.data}, row {number}")
    else:
        yield from _read_lines(Path(source.data))


def _shuffled(some: Iterable[Document]) -> list[Document]:
    found = list(some)
    random.Random(0).shuffle(found)
    return found


def _one_to_one(first: Iterable[Document], second: Iterable[Document]) -> Iterator[Document]:
    """Alternately from both; when one is used up, what is left of the other."""
    for pair in zip_longest(first, second):
        yield from (document for document in pair if document is not None)


def _read_lines(path: Path) -> Iterator[Document]:
    """JSON Lines: `text`, or `user` and `assistant`, or `messages`."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield as_document(parse_json(line, path), f"{path}, line {number}")
        except UnicodeDecodeError as err:
            raise UserError(f"{path} is not UTF-8 text; save it as UTF-8 JSON Lines") from err


def as_document(row: Any, where: str) -> Document:
    """A row in one of the three forms.

    Raises:
        UserError: Starting with `where`, if it is in none of them.
    """
    if isinstance(row, dict):
        if "text" in row:
            return check_text(row["text"], f"{where}: text")
        if "user" in row and "assistant" in row:
            return [(check_text(row["user"], f"{where}: user"), check_text(row["assistant"], f"{where}: assistant"))]
        if isinstance(messages := row.get("messages"), list):
            return _turns_of(messages, where)
    raise UserError(f"{where}: expected an object with text, or user and assistant, or messages; found {short(row)}")


def _turns_of(messages: list[Any], where: str) -> Turns:
    """Pairs of turns; a system prompt and a last question without an answer are left out."""
    said = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f"{where}: a message is {short(message)}; expected role and content")
        said.append((message.get("role"), message["content"]))
    turns = [
        (user, answer)
        for (role, user), (next_role, answer) in pairwise(said)
        if (role, next_role) == ("user", "assistant")
    ]
    if not turns:
        raise UserError(f"{where}: messages have no turn of a user with an assistant's after it")
    return turns


_FIRST_SENTENCE = re.compile(r"(.{20,}?[.!?])\s+(.+)", re.DOTALL)


def as_turns(document: Document) -> Turns:
    """A text as a conversation: the user says its first sentence, the assistant the rest."""
    if not isinstance(document, str):
        return document
    found = _FIRST_SENTENCE.match(document)
    middle = len(document) // 2
    return [(found[1], found[2]) if found else (document[:middle], document[middle:])]


# --- tokens ---------------------------------------------------------------------------------------


def written(document: Document, turns: TurnFormat | None) -> str:
    """A document in the chat format; as plain text without one."""
    if turns is not None:
        return turns.conversation(as_turns(document))
    if isinstance(document, str):
        return document + "\n\n"
    return "".join(f"{user}\n{answer}\n\n" for user, answer in document)


def token_sequences(
    source: TextSource, paths: DataPaths, chat_format: "ChatFormat", context: int, split: Split
) -> Iterator[list[int]]:
    """Sequences of exactly `context` token ids: the documents one behind the other, cut to that length.

    A document that does not fit goes on in the next sequence, behind the words with which a turn is opened: every
    sequence begins as texts of this model begin. What stands first is the attention sink; begun with any word, or
    with a special token before any word, a few sequences in a thousand have a second sink among their next tokens.
    Only a few documents are in memory at a time.
    """
    turns = turn_format(chat_format, source.system_prompt) if source.format == "chat" else None
    adds = turns.adds_special_tokens if turns else False
    opening = opening_tokens(chat_format, turns)
    texts = (written(document, turns) for document in documents(source, paths, split))
    sequence: list[int] = []
    while batch := list(islice(texts, DOCUMENTS_AT_ONCE)):
        for ids in chat_format.tokenizer(batch, add_special_tokens=adds, verbose=False)["input_ids"]:
            start = 0
            while start < len(ids):
                if not sequence and (start or turns is None):
                    sequence += opening
                end = start + context - len(sequence)
                sequence += ids[start:end]
                start = end
                if len(sequence) == context:
                    yield sequence
                    sequence = []


def opening_tokens(chat_format: "ChatFormat", turns: TurnFormat | None) -> list[int]:
    """What texts begin with: the opening of a turn, or for plain text what the tokenizer puts there by itself."""
    if turns is None:
        return list(chat_format.tokenizer("")["input_ids"])
    opening = turns.beginning + turns.before_user
    return list(chat_format.tokenizer(opening, add_special_tokens=turns.adds_special_tokens)["input_ids"])


def check_length(
    source: TextSource, paths: DataPaths, chat_format: "ChatFormat", context: int, split: Split, n_sequences: int
) -> None:
    """Refuse text that is too short for a run, before the run. Sets on the hub are taken to be long enough.

    Raises:
        UserError: Says how many tokens there are.
    """
    if source.data in HUB_SETS:
        return
    found = sum(1 for _ in islice(token_sequences(source, paths, chat_format, context, split), n_sequences))
    if found < n_sequences:
        raise too_short(source, split, found, n_sequences, context)


def too_short(source: TextSource, split: Split, found: int, n_sequences: int, context: int) -> UserError:
    of_split = "to train on" if split == "train" else "held out from training (a twentieth of its documents)"
    return UserError(
        f"--data {source.data} has {found * (context - 1)} tokens {of_split} in sequences of {context}, but "
        f"{n_sequences * (context - 1)} are wanted; lower --tokens or --context, or give more text"
    )
