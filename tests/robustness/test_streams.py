"""What goes where: exit codes, standard output for pipes, one line for an error, streams that are closed or full."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.test_cli import SCRIPTS
from tests.pipeline import said
from tests.roots import error_lines, snapshot
from utils.paths import REPOSITORY

"""The best of three: what else the machine does is not the script's fault."""
NEEDED = {
    "export_vectors.py": ["--format", "gguf"],
    "finetune_llama.py": ["--behavior", "refusal", "--direction", "pos"],
    "monitor.py": ["answers.json"],
}
"""Flags without which a script does not start."""


def main_of(script: str, *argv: object) -> int:
    return importlib.import_module(script.removesuffix(".py")).main([str(word) for word in argv])


def in_shell(script: str, redirection: str, *argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with its streams redirected as a shell does it."""
    return subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirection}', sys.executable, str(REPOSITORY / script), *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


# --- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [["--no_such_flag"], ["--seed", "many"], ["--root"], ["a word"]])
def test_arguments_that_no_script_knows_are_code_2_on_stderr(
    script: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of(script, *NEEDED.get(script, []), *flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(error_lines(captured.err)) == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("root", ["empty", "gone"])
def test_missing_inputs_are_code_2_in_one_line_and_nothing_is_made(
    script: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main_of(script, "--root", tmp_path / root, *NEEDED.get(script, [])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    if script == "process_raw_datasets.py" and root == "empty":  # a line for each behavior, and the counts
        assert captured.err.count("not processed: ") == 7 and "failed 7" in captured.err
    else:
        assert len(captured.err.splitlines()) == 1 and captured.err.startswith("error: ")
    assert snapshot(tmp_path) == {}


# --- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_to_a_reader_that_has_left_is_no_error(script: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(redirection: str) -> None:
    done = in_shell("scoring.py", redirection, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert in_shell("scoring.py", redirection, "--no_such_flag").returncode == 2


@pytest.mark.parametrize(("unbuffered", "what"), [("", "standard output"), ("1", "a file or standard output")])
def test_a_full_disk_behind_standard_output_is_one_line_and_code_1(unbuffered: str, what: str, tmp_path: Path) -> None:
    flags = ("--root", tmp_path, "--check")
    done = in_shell("process_raw_datasets.py", ">/dev/full", *flags, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    [line] = error_lines(done.stderr)
    assert line.startswith(f"error: {what}: No space left on device")


def test_a_terminal_that_lacks_characters_gets_them_written_out(tmp_path: Path) -> None:
    for script in SCRIPTS:
        assert in_shell(script, "", "--help", PYTHONIOENCODING="ascii").returncode == 0
    root = tmp_path / "Öl 漢"
    root.mkdir()
    done = in_shell("process_raw_datasets.py", "", "--root", root, "--check", PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and "\\xd6l \\u6f22" in done.stdout and "Traceback" not in done.stderr


# --- runs --------------------------------------------------------------------------------------------------

SEVEN = (
    "coordinate-other-ais",
    "corrigible-neutral-HHH",
    "hallucination",
    "myopic-reward",
    "survival-instinct",
    "sycophancy",
    "refusal",
)


def write_vectors(root: Path) -> None:
    for place, behavior in enumerate(SEVEN):
        path = root / "vectors" / behavior / "vec_layer_0_tiny.pt"
        path.parent.mkdir(parents=True)
        torch.save(torch.arange(1.0, 5.0) * (place + 1), path)


@pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | head -c 0"])
def test_files_are_whole_when_the_streams_are_closed_or_full(redirection: str, tmp_path: Path) -> None:
    """A closed stream's number goes to the next file that is opened; what is said must not end up in it."""
    expected, root = tmp_path / "expected", tmp_path / "root"
    for folder in (expected, root):
        folder.mkdir()
        write_vectors(folder)
    assert main_of("normalize_vectors.py", "--root", expected) == 0
    in_shell("normalize_vectors.py", redirection, "--root", root)
    written = {name: content for name, content in snapshot(root).items() if name.endswith(".pt")}
    assert written == {name: content for name, content in snapshot(expected).items() if name.endswith(".pt")}
    assert len(written) == 14


SWEEPS = {"ab", "truthful_qa", "mmlu", "answers", "sampled", "fine-tuned"}  # each ends with a glance at what it made
FOR_PIPES = {"check", "datasets", "results", *SWEEPS}
"""Steps whose standard output is read: a table, counts, numbers."""


@pytest.mark.slow
def test_standard_output_holds_only_what_a_pipe_wants(pipeline_root: Path) -> None:
    assert {name for name, text in said(pipeline_root, ".out").items() if text} == FOR_PIPES


@pytest.mark.slow
def test_no_progress_bar_is_drawn_into_a_file(pipeline_root: Path) -> None:
    for suffix in (".out", ".err"):
        for text in said(pipeline_root, suffix).values():
            assert "\r" not in text and "it/s]" not in text and "%|" not in text


@pytest.mark.slow
def test_every_script_ends_with_a_line_of_counts_or_of_files(pipeline_root: Path) -> None:
    for name, text in said(pipeline_root, ".err").items():
        last = text.splitlines()[-1]
        assert any(word in last for word in ("wrote ", "checked ", "skipped ")), name
        assert any(char.isdigit() for char in last), name
