"""A file of text and a tiny model for the SAE scripts."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

_WORDS = ("the", "answer", "is", "not", "what", "you", "think", "and", "of", "that", "to", "do", "agree", "are")


def write_documents(path: Path, n: int = 120, seed: int = 0) -> Path:
    """JSON Lines of conversations made of the tiny tokenizer's words, no two alike."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        said = [" ".join(draw.choices(_WORDS, k=draw.randint(4, 12))) for _ in range(2)]
        rows.append({"user": f"{said[0]} {number}", "assistant": said[1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "talk.jsonl")


@pytest.fixture
def train(tmp_path: Path, tiny_checkpoint: Path, text_file: Path) -> Callable[..., int]:
    """Run train_sae.py on the tiny model with few tokens; further arguments come behind."""
    from saes import train_sae

    def run(*argv: object) -> int:
        command = ["--root", tmp_path, "--model", tiny_checkpoint, "--layer", 1, "--data", text_file]
        command += ["--tokens", 600, "--context", 16, "--batch", 64, "--epochs", 2, "--d_sae", 48, "--k", 4]
        return train_sae.main([str(word) for word in [*command, *argv]])

    return run
