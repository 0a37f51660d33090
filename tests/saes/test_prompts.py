"""The bundled instructions, those of one's own, and how a model is asked them."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.models import build_tokenizer
from utils.data.duplicates import find_duplicates
from utils.errors import UserError
from utils.model.chat_format import ChatFormat
from utils.paths import REPOSITORY, DataPaths
from utils.saes.prompts import (
    PUBLISHED_SPLITS,
    SIDES,
    PromptSource,
    encode_instruction,
    end_tokens,
    fetch_published,
    read_instructions,
)

BUNDLED = PromptSource(DataPaths(REPOSITORY))
SIZES = {"refuser": 64, "train": 64, "val": 32, "test": 32}


def test_the_bundled_splits_have_their_sizes_and_pairs_in_matched_wording() -> None:
    shared = []
    for split, size in SIZES.items():
        prompts = BUNDLED.load(split)  # type: ignore[arg-type]
        assert len(prompts.harmful) == len(prompts.harmless) == size
        for harmful, harmless in zip(prompts.harmful, prompts.harmless, strict=True):
            words, others = harmful.lower().split(), harmless.lower().split()
            shared.append(len(set(words) & set(others)) / max(len(words), len(others)))
            assert len(harmful.split()) <= 12  # short: no detail
    assert sum(shared) / len(shared) > 0.5


def test_no_bundled_instruction_is_in_two_splits_nor_nearly() -> None:
    texts = {split: BUNDLED.load(split) for split in SIZES}  # type: ignore[arg-type]
    where = [split for split in SIZES for _ in range(2 * SIZES[split])]
    every = [text for prompts in texts.values() for text in (*prompts.harmful, *prompts.harmless)]
    assert len(set(every)) == len(every) == 2 * sum(SIZES.values())
    crossing = [(every[i], every[j]) for i, j in find_duplicates(every).pairs if where[i] != where[j]]
    assert crossing == []


def write(path: Path, texts: list[Any]) -> Path:
    path.write_text(json.dumps(texts))
    return path


def test_files_of_ones_own_are_split_without_overlap_and_the_same_for_a_seed(tmp_path: Path) -> None:
    harmful = write(tmp_path / "bad.json", [f"harmful {i}" for i in range(20)] + ["harmful 3"])
    harmless = write(tmp_path / "good.json", [{"instruction": f"harmless {i}"} for i in range(12)])
    source = PromptSource(DataPaths(tmp_path), "files", harmful, harmless, seed=5)
    splits = {split: source.load(split) for split in PUBLISHED_SPLITS}
    assert [len(prompts) for prompts in splits.values()] == [6, 3, 3]  # of the smaller side
    for one, other in combinations(splits.values(), 2):
        for side in SIDES:
            assert not set(getattr(one, side)) & set(getattr(other, side))
    assert source.load("train") == splits["train"]
    assert PromptSource(DataPaths(tmp_path), "files", harmful, harmless, seed=6).load("train") != splits["train"]
    assert source.load("train", 2) == splits["train"].first(2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([f"harmless {i}" for i in range(7)] * 2, "7 different prompts; at least 8 are needed"),
        ([f"harmful {i}" for i in range(20)], "is in .* too; a prompt has one side"),
        (["x", 3], "item 1: expected text that is not empty, found 3"),
        (["x", "  "], "item 1: expected text"),
        ([{"text": "x"}], "item 0: expected a text under one of the keys instruction"),
    ],
)
def test_broken_files_of_ones_own_are_refused_by_file_and_item(tmp_path: Path, texts: list[Any], message: str) -> None:
    harmful = write(tmp_path / "bad.json", [f"harmful {i}" for i in range(20)])
    source = PromptSource(DataPaths(tmp_path), "files", harmful, write(tmp_path / "good.json", texts))
    with pytest.raises(UserError, match=message) as refused:
        source.load("train")
    assert "good.json" in str(refused.value)
    with pytest.raises(UserError, match="expected a JSON list"):
        read_instructions(write(tmp_path / "object.json", {"a": 1}))  # type: ignore[arg-type]


def test_published_files_that_cannot_be_had_or_are_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    path = DataPaths(tmp_path).refusal_prompts("harmful", "val", published=True)

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(UserError, match=r"harmful_val.json could not be fetched .* put it at"):
        PromptSource(DataPaths(tmp_path), "published").load("val")

    class Response:
        content = b"[]"

        def raise_for_status(self) -> None: ...

    def other_file(*args: Any, **kwargs: Any) -> Response:
        return Response()

    monkeypatch.setattr(requests, "get", other_file)
    with pytest.raises(UserError, match=r"its sha256 is 4f53cda1.*, not the published file's"):
        fetch_published(path)
    assert not path.exists()


SYSTEM_OF_ITS_OWN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IN_THE_USERS_TURN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% elif message['role'] == 'user' %}"
    "[INST] {% if loop.index == 2 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ message['content'] }}[/INST]{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "<s><|im_start|>user\nWhat is that?<|im_end|>\n<|im_start|>assistant\n"),
        (SYSTEM_OF_ITS_OWN, "<|im_start|>user\nWhat is that?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "{{ bos_token }}" + SYSTEM_OF_ITS_OWN,
            "<s><|im_start|>user\nWhat is that?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (IN_THE_USERS_TURN, "<s>[INST] What is that?[/INST]"),
        (REFUSES_SYSTEM, "<|im_start|>user\nWhat is that?<|im_end|>\n<|im_start|>assistant\n"),
    ],
    ids=["no system prompt", "one of its own", "one behind bos", "in the user's turn", "none allowed"],
)
def test_the_template_s_own_system_prompt_is_left_out_and_nothing_else(template: str | None, expected: str) -> None:
    tokenizer = build_tokenizer() if template is None else build_tokenizer(template)
    chat_format = ChatFormat(tokenizer, "tiny", False)
    encoded = encode_instruction(chat_format, " What is that? ")
    assert tokenizer.decode(list(encoded.ids)) == expected and encoded.steer_start == 0
    default = encode_instruction(chat_format, "What is that?", "default")
    assert ("kind" in tokenizer.decode(list(default.ids))) is ("kind" in (template or ""))


def test_the_tokens_behind_the_instruction_are_those_that_all_prompts_end_with() -> None:
    chat_format = ChatFormat(build_tokenizer(), "tiny", False)
    assert end_tokens(chat_format, "none") == ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
