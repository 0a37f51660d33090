"""chat.py on a real pseudo-terminal: streaming, commands, Ctrl-C."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

import chat
from tests.roots import error_lines
from utils.chat.columns import SideBySide
from utils.paths import REPOSITORY

PROMPT = "\n> "


@pytest.fixture(scope="module")
def terminal(chat_root: Path, tiny_checkpoint: Path) -> Iterator[pexpect.spawn]:
    argv = ["--root", str(chat_root), "--model", str(tiny_checkpoint), "--behavior", "sycophancy", "--device", "cpu"]
    child = pexpect.spawn(
        sys.executable,
        [str(REPOSITORY / "chat.py"), *argv, "--max_new_tokens", "6"],
        dimensions=(40, 100),
        encoding="utf-8",
        codec_errors="replace",
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1"},
    )
    child.setecho(False)
    child.expect_exact("> ")
    yield child
    child.close(force=True)


def said(terminal: pexpect.spawn, line: str) -> str:
    """What the chat writes behind a line, up to the next prompt."""
    terminal.sendline(line)
    terminal.expect("\n(\x1b\\[\\?2004h)?> ")
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", terminal.before or "").replace("\r\n", "\n").replace("\r", "")


def test_a_whole_chat(terminal: pexpect.spawn, tmp_path: Path) -> None:
    first = said(terminal, "What is the sea?")
    assert said(terminal, "/again").strip() == first.strip(), "greedy answers repeat themselves"
    assert "sycophancy x 40 at layer 1" in said(terminal, "/layer 1") + said(terminal, "/multiplier 40")
    assert said(terminal, "/again").strip() != first.strip()
    compared = said(terminal, "/compare")
    assert re.search(r"unsteered +sycophancy x 40\n", compared)
    assert "KL to unsteered" in compared
    strip = said(terminal, "/strip")
    assert strip.count("KL to unsteered") == 4
    assert all(f"[sycophancy x {m:g}]" in strip for m in (-2, -1, 1, 2)), "five columns do not fit: one below the other"
    command = said(terminal, "/command")
    assert "./prompting_with_steering.py" in command
    assert "--layers 1 --multipliers 40.0" in " ".join(command.split())
    assert "at layer 1 (clamp)" in said(terminal, "/operator clamp")
    assert "did you mean clamp?" in said(terminal, "/operator clam")
    assert "--operator clamp" in " ".join((said(terminal, "/again") + said(terminal, "/command")).split())
    assert "(clamp)" not in said(terminal, "/operator add")
    assert "temperature 0.5, seed 3" in said(terminal, "/temperature 0.5") + said(terminal, "/seed 3")
    assert "system prompt: Be brief." in said(terminal, "/system Be brief.")
    assert "system prompt" not in said(terminal, "/system off")
    path = tmp_path / "chat.json"
    assert f"wrote {path}" in said(terminal, f"/save {path}").replace("\n", "")
    saved = json.loads(path.read_text())
    assert [one["role"] for one in saved["conversation"]] == ["user", "assistant"]
    assert saved["settings"]["seed"] == 3
    assert "is there already" in said(terminal, f"/save {path}").replace("\n", " ")
    assert "a new conversation" in said(terminal, "/new")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/layer 99", "layer 99: tiny-chat has layers 0 to 3"),
        ("/multiplier much", "'much' is not a number"),
        ("/multiplier nan", "'nan' is not a number"),
        ("/behavior sycophany", "did you mean sycophancy"),
        ("/vector nowhere.pt", "nowhere.pt not found"),
        ("/nonsense", "there is no command /nonsense"),
        ("/seed -1", "-1 is less than 0"),
        ("word " * 130, "no room for an answer"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(terminal: pexpect.spawn, line: str, error: str) -> None:
    text = " ".join(said(terminal, line).split())
    assert error in text
    assert text.count("error:") == 1


def test_ctrl_c_ends_an_answer_and_not_the_chat(terminal: pexpect.spawn) -> None:
    said(terminal, "/new")
    said(terminal, "/max 420")
    terminal.sendline("Do you agree?")
    time.sleep(0.4)
    terminal.sendintr()
    terminal.expect_exact("(stopped)")
    terminal.expect_exact("> ")
    terminal.sendintr()
    terminal.expect_exact("(/quit or Ctrl-D ends the chat)")
    terminal.expect_exact("> ")
    assert "[" not in said(terminal, "/max 3").split("|")[0]
    assert said(terminal, "And now?") != ""


def test_zz_ctrl_d_ends_it_with_code_0(terminal: pexpect.spawn) -> None:
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--layer", "2"], "name one with --behavior or --vector"),
        (["--behavior", "sycophancy", "--layer", "9"], "layer 9"),
        (["--vector", "x.txt"], "ends in .pt"),
        (["--behavior", "refusal", "--read", "last"], "refusal has no vectors of tiny-chat"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(
    argv: list[str],
    error: str,
    chat_root: Path,
    tiny_checkpoint: Path,
    loading_is_forbidden: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chat.main(["--root", str(chat_root), "--model", str(tiny_checkpoint), *argv]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert error in line


def test_columns_are_written_line_by_line_once_they_cannot_change() -> None:
    page = SideBySide(["one", "two"], 60)
    assert page.width == 29
    left, right = "the sea is wide and deep and blue " * 3, "short"
    lines = []
    for word in left.split(" "):
        lines += page.add(0, f"{word} ")
    assert lines == [], "the other column may still say something"
    lines += page.add(1, right) + page.end(1)
    assert lines, "it has ended"
    lines += page.end(0)
    assert " ".join(line[:29] for line in lines).split() == left.split()
    assert lines[0][31:] == right
    assert SideBySide(["a"] * 5, 60).is_stacked
