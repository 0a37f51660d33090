"""Text for SAEs: the chat format without a template's own system prompt, the sources, and sequences of one length."""

import bz2
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.models import CHAT_TEMPLATE, build_tokenizer
from tests.saes.conftest import write_documents
from utils.errors import UserError
from utils.files import wheels
from utils.files.reading import sha256_of
from utils.model.chat_format import ChatFormat
from utils.paths import DataPaths
from utils.saes import corpora
from utils.saes.prompts import encode_instruction
from utils.saes.text import TextSource, as_turns, documents, split_of, token_sequences, written
from utils.saes.turns import turn_format

# as SmolLM2's: a system prompt of its own where none is given
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE.replace("{{ bos_token }}", "")
)


def chat_format(template: str = CHAT_TEMPLATE) -> ChatFormat:
    return ChatFormat(build_tokenizer(template), "tiny-chat", False)


# --- the chat format ---


def test_a_conversation_is_what_the_template_writes() -> None:
    turns = [("What is that?", "The answer."), ("Do you agree?", "That is not it.")]
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    for template, system in ((CHAT_TEMPLATE, "none"), (CHAT_TEMPLATE, "default"), (WITH_SYSTEM, "default")):
        found = chat_format(template)
        by_template = found.tokenizer.apply_chat_template(messages, tokenize=False)
        assert turn_format(found, system).conversation(turns) == by_template  # type: ignore[arg-type]


def test_a_templates_own_system_prompt_is_left_out_by_default() -> None:
    plain = turn_format(chat_format(WITH_SYSTEM))
    assert plain.prompt("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert turn_format(chat_format()).prompt("Hi").startswith("<s><|im_start|>user")
    assert "You help." in turn_format(chat_format(WITH_SYSTEM), "default").prompt("Hi")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_SYSTEM])
@pytest.mark.parametrize("system", ["none", "default"])
def test_prompts_and_text_are_written_alike(template: str, system: Any) -> None:
    found = chat_format(template)
    text = turn_format(found, system).prompt("What is that?")
    assert encode_instruction(found, "What is that?", system).ids == tuple(
        found.tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def test_llama_2_and_base_formats_are_written_out() -> None:
    llama = ChatFormat(build_tokenizer(None), "Llama-2-7b-chat-hf", False)
    assert turn_format(llama).conversation([("a", "b")]) == "[INST] a [/INST] b\n"
    base = ChatFormat(build_tokenizer(None), "some-base", True)
    assert turn_format(base).conversation([("a", "b")]) == "Input: a\nResponse: b\n"


def test_a_template_that_writes_later_turns_otherwise_is_refused() -> None:
    counting = "{% for m in messages %}{{ loop.index }} {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(UserError, match="writes later turns in another way than the first"):
        turn_format(chat_format(counting))


# --- documents ---


def test_a_text_becomes_a_turn_at_its_first_sentence() -> None:
    assert as_turns("This is the first sentence. And the rest! Of it.") == [
        ("This is the first sentence.", "And the rest! Of it.")
    ]
    assert as_turns("0123456789") == [("01234", "56789")]
    assert written("One text.", None) == "One text.\n\n"
    assert written([("q", "a")], None) == "q\na\n\n"


def test_rows_of_three_kinds_are_read_and_splits_share_no_document(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": "a text"},
        {"user": "q", "assistant": "a"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q2"},
                      {"role": "assistant", "content": "a2"}, {"role": "user", "content": "left over"}]},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    both = [list(documents(TextSource(str(path)), DataPaths(tmp_path), split)) for split in ("train", "held_out")]  # type: ignore[arg-type]
    assert sorted(map(str, [*both[0], *both[1]])) == sorted(map(str, ["a text", [("q", "a")], [("q2", "a2")]]))
    many = write_documents(tmp_path / "many.jsonl", 2000)
    train, held_out = (
        list(documents(TextSource(str(many)), DataPaths(tmp_path), split)) for split in ("train", "held_out")
    )  # type: ignore[arg-type]
    assert 60 < len(held_out) < 145  # a twentieth of 2,000
    assert not {split_of(document) for document in train} & {"held_out"}
    assert len(train) + len(held_out) == 2000


def test_sources_are_named_for_what_they_are() -> None:
    assert TextSource("chat").label == "chat"
    assert TextSource("web", "plain").label == "web-plain"
    assert TextSource("chat", system_prompt="default").label == "chat-system"
    assert TextSource("some/where/talk.jsonl").label == "talk"


# --- sequences ---


def test_sequences_are_all_of_the_text_and_each_begins_as_texts_begin(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "talk.jsonl", 40)
    found = chat_format()
    turns = turn_format(found)
    source = TextSource(str(path))
    opening = found.tokenizer(turns.beginning + turns.before_user, add_special_tokens=False)["input_ids"]
    sequences = list(token_sequences(source, DataPaths(tmp_path), found, 20, "train"))
    assert {len(sequence) for sequence in sequences} == {20}
    assert all(sequence[: len(opening)] == opening for sequence in sequences)
    ids = [
        found.tokenizer(written(document, turns), add_special_tokens=False)["input_ids"]
        for document in documents(source, DataPaths(tmp_path), "train")
    ]
    starts = {sum(map(len, ids[:number])) for number in range(len(ids))}
    whole = [token for document in ids for token in document]
    place = 0
    for sequence in sequences:  # the opening is added where a document goes on
        kept = sequence if place in starts else sequence[len(opening) :]
        assert whole[place : place + len(kept)] == kept
        place += len(kept)
    assert len(whole) - place < 20


def test_plain_text_is_cut_as_it_is(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "talk.jsonl", 40)
    found = chat_format()
    sequences = token_sequences(TextSource(str(path), "plain"), DataPaths(tmp_path), found, 20, "train")
    text = "".join(written(one, None) for one in documents(TextSource(str(path)), DataPaths(tmp_path), "train"))
    whole = found.tokenizer(text[:400], add_special_tokens=False)["input_ids"]
    bos = [found.tokenizer.bos_token_id]  # what this tokenizer puts first
    first, second = islice(sequences, 2)
    assert first == bos + whole[:19]
    assert second == bos + whole[19:38]


# --- what is fetched ---


def wheel_of(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[list[str]]]:
    """Stands for `pip download`: every call puts the given wheel into --dest; returns the calls."""

    def serve(content: bytes) -> list[list[str]]:
        calls: list[list[str]] = []

        def pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
            calls.append(command)
            (Path(command[command.index("--dest") + 1]) / "some.whl").write_bytes(content)
            return subprocess.CompletedProcess(command, 0, "", "")

        (tmp_path / "wheel").write_bytes(content)
        monkeypatch.setattr(wheels.subprocess, "run", pip)
        return calls

    return serve


def turn(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def test_conversations_come_out_of_the_wheel_once_as_pairs_of_turns(
    tmp_path: Path, package_index: Callable[[bytes], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = {
        "1": {
            "messages": [turn("Do you like", "the answer to that?"), turn("I think that it is not one."), turn("Hi")]
        },
        "2": {"messages": [turn("Hi"), turn("Hello")]},  # too short to say anything
    }
    calls = package_index(wheel_of(corpora.CHITCHAT_MEMBER, json.dumps(talk).encode()))
    monkeypatch.setattr(corpora, "CHITCHAT_SHA256", sha256_of(tmp_path / "wheel"))
    paths = DataPaths(tmp_path / "root")
    for _ in range(2):
        lines = corpora.ensure_chitchat(paths).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"user": "Do you like the answer to that?", "assistant": "I think that it is not one."}
    ]
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert "--only-binary=:all:" in calls[0]


def test_a_wheel_with_another_sha256_is_not_used(
    tmp_path: Path, package_index: Callable[[bytes], list[list[str]]]
) -> None:
    calls = package_index(b"something else")
    with pytest.raises(UserError, match="does not have the pinned sha256"):
        corpora.ensure_wikipedia(DataPaths(tmp_path / "root"))
    assert len(calls) == 2
    assert "manylinux_2_28_x86_64" in calls[0]
    assert list((tmp_path / "root" / "saes_trained" / "_text").iterdir()) == []


def test_paragraphs_come_out_of_the_wikipedia_sample_without_markup(
    tmp_path: Path, package_index: Callable[[bytes], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prose = (
        "'''Rain''' is [[water|liquid water]] that falls{{cn|date=2016}} from [[cloud]]s.<ref name=x>A book</ref> " * 6
    )
    article = (
        f"{{{{Infobox|{{{{nested}}}}}}}}\n{prose}\n* a list\n[[File:Rain.jpg|thumb|It [[rain]]s]]\nShort.\n== Head =="
    )
    xml = f'<m xmlns="http://x/"><page><revision><text>{article.replace("<", "&lt;")}</text></revision></page></m>'
    package_index(wheel_of(corpora.GENSIM_MEMBER, bz2.compress(xml.encode())))
    monkeypatch.setattr(corpora, "GENSIM_SHA256", sha256_of(tmp_path / "wheel"))
    lines = corpora.ensure_wikipedia(DataPaths(tmp_path / "root")).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [
        ("Rain is liquid water that falls from clouds. " * 6).strip()
    ]


def test_contrast_questions_are_written_out_with_both_answers(tmp_path: Path) -> None:
    found = list(corpora.contrast_documents(DataPaths(tmp_path)))  # the repository's own
    assert len(found) > 1900
    assert all(len(document) == 1 for document in found)
    assert not any("(A)" in user or "Choices" in user for [(user, _)] in found)
    assert not any(answer.startswith("(") for [(_, answer)] in found)


def test_a_hub_set_needs_the_library_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(corpora, "import_module", missing)
    with pytest.raises(
        UserError, match="--data lmsys needs the package datasets; run: pip install -r requirements-sae"
    ):
        next(corpora.hub_documents("lmsys"))
