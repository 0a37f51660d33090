"""The texts that SAEs of small models are trained on, fetched from the Python package index, as documents.

- chat: turns of the Chit Chat Challenge (`chitchat-dataset`, MIT) beside the suite's own contrast questions
- web: paragraphs of the Wikipedia sample among gensim's test data (CC BY-SA; fetched, never part of the suite)

The packages are read as archives, never installed or imported.
"""

import bz2
import html
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

from utils.behaviors import bundled_behaviors
from utils.errors import UserError
from utils.files.reading import read_json
from utils.files.wheels import download_wheel
from utils.files.writing import locked_folder, write_text
from utils.paths import REPOSITORY, DataPaths

CHITCHAT_WHEEL = "chitchat-dataset==0.9.0"
CHITCHAT_SHA256 = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"
CHITCHAT_MEMBER = "chitchat_dataset/dataset.json"
GENSIM_WHEEL = "gensim==4.4.0"
GENSIM_SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
GENSIM_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# one and the same wheel on every machine, because its data are wanted and not its code
GENSIM_PLATFORM = (
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"),
    *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
)
MIN_CHARACTERS = 30
"""Of a pair of turns; shorter ones are greetings."""
MIN_PARAGRAPH = 200

Turns = list[tuple[str, str]]


def ensure_chitchat(paths: DataPaths) -> Path:
    """JSON Lines of `user` and `assistant`: pairs of turns of people who talk; fetched where it is missing."""
    return _ensure(paths.sae_text("chitchat-dataset-0.9.0"), CHITCHAT_WHEEL, CHITCHAT_SHA256, "8 MB")


def ensure_wikipedia(paths: DataPaths) -> Path:
    """JSON Lines of `text`: paragraphs of encyclopedia articles; fetched where it is missing."""
    path, size = paths.sae_text("wikipedia-gensim-4.4.0"), "28 MB, for its 1.7 MB of Wikipedia"
    return _ensure(path, GENSIM_WHEEL, GENSIM_SHA256, size, GENSIM_PLATFORM)


def _ensure(path: Path, wheel: str, sha256: str, size: str, flags: Sequence[str] = ()) -> Path:
    with locked_folder(path.parent):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
                found = zipfile.ZipFile(download_wheel(wheel, sha256, Path(scratch), size, flags))
                documents = _chitchat(found) if wheel == CHITCHAT_WHEEL else _wikipedia(found)
                write_text(path, "".join(json.dumps(document) + "\n" for document in documents))
    return path


def _chitchat(wheel: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    for conversation in json.loads(wheel.read(CHITCHAT_MEMBER)).values():
        turns = [" ".join(one["text"].strip() for one in turn) for turn in conversation["messages"]]
        for user, assistant in zip(turns[::2], turns[1::2], strict=False):
            if user and assistant and len(user) + len(assistant) >= MIN_CHARACTERS:
                yield {"user": user, "assistant": assistant}


def _wikipedia(wheel: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    # the bytes are those of a pinned sha256, so that the parser meets nothing unknown
    root = ElementTree.fromstring(bz2.decompress(wheel.read(GENSIM_MEMBER)))
    for article in root.iterfind(".//{*}revision/{*}text"):
        for line in without_markup(article.text or "").splitlines():
            paragraph = " ".join(line.split())
            is_prose = paragraph[:1].isalnum() and not re.search(r"[{}|\[\]<>=]", paragraph)
            if is_prose and len(paragraph) >= MIN_PARAGRAPH:
                yield {"text": paragraph}


_MARKUP = (
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"<ref[^>]*/>|<(ref|math|gallery|timeline|table|pre|source)\b.*?</\1>", re.DOTALL), ""),
    (re.compile(r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\]]*\]\])*\]\]"), ""),
    (re.compile(r"\[\[(?:[^|\]]*\|)?([^\]|]*)\]\]"), r"\1"),  # [[page|words]] -> words
    (re.compile(r"\[https?://\S+ ?([^\]]*)\]"), r"\1"),
    (re.compile(r"<[^>]+>|'{2,}"), ""),
)
_INNERMOST_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")


def without_markup(wikitext: str) -> str:
    """The prose of an article's source, a paragraph a line."""
    before, text = "", wikitext
    while text != before:
        before, text = text, _INNERMOST_TEMPLATE.sub("", text)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return html.unescape(text)


def contrast_documents(paths: DataPaths) -> Iterator[Turns]:
    """The suite's own contrast questions, each with one answer and then with the other.

    Questions with lettered choices are written out: the question, and the text of the choice as the answer.
    """
    for behavior in bundled_behaviors():
        for of_root, bundled in zip(_contrast_files(paths, behavior), _contrast_files(_OWN, behavior), strict=True):
            path = of_root if of_root.is_file() else bundled
            for item in read_json(path) if path.is_file() else ():
                question, choices = _written_out(item["question"])
                for key in ("answer_matching_behavior", "answer_not_matching_behavior"):
                    yield [(question, choices.get(item[key].strip()[:3], item[key]))]


_OWN = DataPaths(REPOSITORY)


def _contrast_files(paths: DataPaths, behavior: str) -> tuple[Path, Path]:
    return paths.generate_dataset(behavior), paths.generate_text_dataset(behavior)


def _written_out(question: str) -> tuple[str, dict[str, str]]:
    """A question without its lettered choices, and their texts by `(A)`."""
    stem, *choices = re.split(r"\n+(?:Choices:\n)? *(\([A-Z]\)) ", question)
    return stem.strip(), {letter: text.strip() for letter, text in zip(choices[::2], choices[1::2], strict=True)}


def hub_documents(name: str) -> Iterator[dict[str, object]]:
    """Documents of a large set on the Hugging Face hub, one after the other, never all at once.

    Raises:
        UserError: If the library for it is not installed, or the set cannot be had.
    """
    repository = HUB_SETS[name]
    try:
        load_dataset = import_module("datasets").load_dataset  # the suite's own folder of that name is no package
    except (ImportError, AttributeError) as err:
        raise UserError(
            f"--data {name} needs the package datasets; run: pip install -r requirements-sae.txt, or name a file of "
            "JSON Lines"
        ) from err
    try:
        rows = load_dataset(repository, split="train", streaming=True)
        for row in rows:
            yield {"messages": row["conversation"]} if "conversation" in row else {"text": row["text"]}
    except (OSError, ValueError, RuntimeError) as err:
        raise UserError(
            f"--data {name}: {repository} cannot be had ({type(err).__name__}); check the connection, accept its terms "
            "on huggingface.co and set HF_TOKEN where it is gated"
        ) from err


HUB_SETS = {"lmsys": "lmsys/lmsys-chat-1m", "pile": "monology/pile-uncopyrighted"}
"""What the published SAEs were trained on; the first is gated."""
