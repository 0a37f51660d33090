"""What all scripts share: help that is quick, flags that are checked, errors that are one line."""

import argparse
import ast
import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.roots import error_lines
from utils.cli.flags import (
    add_behaviors,
    add_compute,
    add_layers,
    add_model,
    add_multipliers,
    check_layers,
    data_paths,
    make_parser,
    model_choice,
)
from utils.cli.run import command_line, run_main
from utils.errors import UserError
from utils.paths import REPOSITORY

SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.py") if "def build_parser(" in path.read_text())
HEAVY = (
    *("torch", "transformers", "accelerate", "matplotlib", "scipy", "sklearn", "numpy", "openai", "requests"),
    *("huggingface_hub", "jinja2", "tqdm", "asyncio"),
)
LONGEST_HELP_S = 0.3
MOST_STARTS = 3
"""As many times the start of an interpreter with `STANDARD_LIBRARY`: the same limit on a machine that is slow now."""
STANDARD_LIBRARY = "import argparse, asyncio, inspect, json, logging, pathlib, typing, urllib.request, zipfile"
SHOW_HELP = f"""
import runpy, sys
script = sys.argv[1]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stop:
    print(stop.code, [name for name in {HEAVY!r} if name in sys.modules])
"""


def test_there_are_scripts() -> None:
    assert {"generate_vectors.py", "normalize_vectors.py", "prompting_with_steering.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy_and_takes_less_than_three_tenths_of_a_second(script: str) -> None:
    """Of processor time, at its best: what the clock says depends on what else the machine does."""
    limit, seconds = LONGEST_HELP_S, []
    while not seconds or (min(seconds) >= limit and len(seconds) < 5):
        done, took = timed_python(SHOW_HELP, str(REPOSITORY / script))
        assert done.stdout.startswith("usage: ") and done.stdout.splitlines()[-1] == "0 []"
        assert done.stderr == ""
        seconds.append(took)
        if took >= limit:
            limit = max(limit, MOST_STARTS * timed_python(STANDARD_LIBRARY)[1])
    assert min(seconds) < limit


def timed_python(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """`python -c` with the arguments, and the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_reads_and_writes_with_an_example_and_is_executable(script: str) -> None:
    path = REPOSITORY / script
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert all(word in docstring for word in ("Reads:", "Writes:", f"Example: ./{script}"))
    assert source.startswith("#!/usr/bin/env python3\n")
    assert path.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_help(script: str) -> None:
    module = __import__(script.removesuffix(".py"))
    parser: argparse.ArgumentParser = module.build_parser()
    silent = [action.option_strings or action.dest for action in parser._actions if not action.help]
    assert silent == []
    parser.format_help()  # a "%" that is not escaped fails here


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse((REPOSITORY / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {f"{alias.name.split('.')[0]}.py" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(f"{node.module.split('.')[0]}.py")
    assert imported & set(SCRIPTS) == set()


# where the flag would do nothing
WITHOUT = {
    "--overwrite": {"chat.py", "plot_results.py", "serve.py"},
    "--seed": {
        "export_vectors.py",
        "generate_vectors.py",
        "monitor.py",
        "normalize_vectors.py",
        "serve.py",
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", WITHOUT)
def test_a_script_takes_overwrite_and_seed_only_where_they_do_something(script: str, flag: str) -> None:
    parser: argparse.ArgumentParser = __import__(script.removesuffix(".py")).build_parser()
    taken = {option for action in parser._actions for option in action.option_strings}
    assert (flag in taken) == (script not in WITHOUT[flag])


# --- exit codes ---


def run_with(run: Callable[[argparse.Namespace], int], *argv: str) -> int:
    return run_main(run, make_parser("A script.", seed=True), "/somewhere/script.py", argv)


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("code", [0, 1, 2])
def test_what_run_returns_is_the_exit_code(code: int) -> None:
    assert run_with(lambda _: code) == code


def test_what_the_user_can_mend_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(raising(UserError("x.json, item 3: key 'question' is missing"))) == 2
    assert capsys.readouterr().err == "error: x.json, item 3: key 'question' is missing\n"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space and run again"),
        (errno.EACCES, "Permission denied; make it writable or choose another --root"),
        (errno.EROFS, "Read-only file system; choose another --root"),
        (errno.ENOTDIR, "Not a directory; check the folder and run again"),
        (errno.EEXIST, "File exists; check the folder and run again"),
        (errno.EIO, "Input/output error; check the folder and run again"),
    ],
)
def test_an_error_of_the_file_system_is_one_line_and_code_1(
    number: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(raising(OSError(number, "said otherwise", "/data/x.pt"))) == 1
    assert capsys.readouterr().err == f"error: /data/x.pt: {advice} (finished files are whole)\n"


def test_an_interruption_names_the_command_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(raising(KeyboardInterrupt()), "--seed", "3", "--root", "a folder") == 130
    line = "interrupted: finished work is saved; to go on, run: ./script.py --seed 3 --root 'a folder'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), AssertionError("a bug"), OSError(errno.EINVAL, "a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run_with(raising(error))


def test_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(raising(UserError("no such file")), "--verbose") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no such file\n") and "Traceback" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["--nonsense"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--seed", "x"],
        ["--overw"],  # no abbreviations: a flag added later would change what they mean
        ["positional"],
    ],
)
def test_arguments_that_are_not_understood_are_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(lambda _: pytest.fail("ran"), *argv) == 2
    captured = capsys.readouterr()
    assert len(error_lines(captured.err)) == 1 and captured.out == ""


def test_help_is_code_0_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(lambda _: pytest.fail("ran"), "--help") == 0
    captured = capsys.readouterr()
    assert "A script." in captured.out and captured.err == ""


def test_logs_go_to_stderr_and_stdout_stays_for_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    def run(args: argparse.Namespace) -> int:
        logging.getLogger("anything").info("wrote 3")
        logging.getLogger("anything").debug("detail")
        logging.getLogger("httpx").info("noise")
        return 0

    assert run_with(run) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "wrote 3\n")


# --- flags ---


def parse(*argv: str) -> argparse.Namespace:
    parser = make_parser("A script.", overwrite=True, seed=True)
    add_behaviors(parser)
    add_layers(parser)
    add_multipliers(parser, [-1.0, 0.0, 1.0], "-1 0 1")
    add_model(parser)
    add_compute(parser)
    return parser.parse_args(argv)


def test_the_defaults_are_those_of_the_published_commands() -> None:
    args = parse()
    assert len(args.behaviors) == 7
    assert (args.layers, args.multipliers, args.model_size, args.model) == (None, [-1.0, 0.0, 1.0], "7b", None)
    assert (args.device, args.dtype, args.batch_size, args.seed) == ("auto", "auto", "auto", 0)
    assert args.root == REPOSITORY and not args.overwrite and not args.no_packing and not args.use_base_model


def test_minus_zero_is_zero() -> None:
    assert [str(x) for x in parse("--multipliers", "-0.0", "-1").multipliers] == ["0.0", "-1.0"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--behaviors"],
        ["--layers", "-1"],
        ["--layers", "1.5"],
        ["--multipliers", "nan"],
        ["--multipliers", "inf"],
        ["--batch_size", "0"],
        ["--model_size", "8b"],
        ["--model_size", "13b", "--model", "x"],
        ["--dtype", "int8"],
    ],
)
def test_values_that_cannot_be_are_refused_with_the_flag_s_name(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    [line] = error_lines(capsys.readouterr().err)
    assert argv[0] in line or argv[-2] in line


def test_layers_are_sorted_once_each_and_checked_against_the_model() -> None:
    assert check_layers(None, 4, "x") == [0, 1, 2, 3]
    assert check_layers([3, 0, 3], 4, "x") == [0, 3]
    with pytest.raises(UserError, match=r"^--layers 4, 9: tiny has layers 0 to 3$"):
        check_layers([9, 1, 4], 4, "tiny")


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    assert data_paths(parse("--root", str(tmp_path))).root == tmp_path
    (tmp_path / "file").write_text("")
    for name in ("gone", "file"):
        with pytest.raises(UserError, match=rf"--root {tmp_path}/{name} is not a folder"):
            data_paths(parse("--root", str(tmp_path / name)))


@pytest.mark.parametrize(
    ("argv", "source", "label", "size"),
    [
        ([], "meta-llama/Llama-2-7b-chat-hf", "Llama-2-7b-chat-hf", "7b"),
        (["--use_base_model"], "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf", "7b"),
        (["--model_size", "13b"], "meta-llama/Llama-2-13b-chat-hf", "Llama-2-13b-chat-hf", "13b"),
        (["--model_size", "70b", "--use_base_model"], "meta-llama/Llama-2-70b-hf", "Llama-2-70b-hf", "70b"),
        (["--model_size", "135m"], "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", "135m"),
        (["--model", "org/Some-Model"], "org/Some-Model", "Some-Model", None),
        (["--model", "/a/folder/"], "/a/folder/", "folder", None),
    ],
)
def test_the_model_flags_name_checkpoints(argv: list[str], source: str, label: str, size: str | None) -> None:
    choice = model_choice(parse(*argv))
    assert (choice.source, choice.label, choice.size) == (source, label, size)
    assert choice.is_embedded == (size == "135m")
    again = model_choice(parse(*choice.command_words))
    assert again == choice


def test_the_embedded_model_has_no_base_model() -> None:
    with pytest.raises(UserError, match="--model_size 135m is a chat model and has no base checkpoint"):
        model_choice(parse("--model_size", "135m", "--use_base_model"))
    for name in ("", "/", ".", "a/.."):
        with pytest.raises(UserError, match="does not end in a name"):
            model_choice(parse("--model", name))


def test_the_command_line_can_be_pasted_back() -> None:
    argv = ["--root", "a b", "--layers", "1", "2"]
    assert command_line("/x/script.py", argv) == "./script.py --root 'a b' --layers 1 2"


def test_ctrl_c_that_a_library_turned_into_another_error_is_still_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("as code in C does it") from None
        return 0

    handler = signal.getsignal(signal.SIGINT)
    assert run_main(run, make_parser("Does it."), "script.py", []) == 130
    assert "interrupted: finished work is saved; to go on, run: ./script.py" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
