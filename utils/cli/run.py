"""How a script runs: logging, streams, Ctrl-C, and errors as one line and an exit code."""

import argparse
import errno
import io
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from utils.errors import UserError
from utils.files.redaction import one_line, printable, redact
from utils.model import processes
from utils.paths import REPOSITORY

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """The command as it can be run again, for provenance records."""
    path = Path(script).resolve()
    name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else Path(path.name)
    return shlex.join([f"./{name}", *(sys.argv[1:] if argv is None else argv)])


def run_main(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    script: str,
    argv: Sequence[str] | None,
) -> int:
    """Parse, set up logging, run, and turn what users can mend into one line and an exit code."""
    _prepare_streams()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    args.command = command_line(script, argv)
    _log_to_stderr(logging.DEBUG if args.verbose else logging.INFO)
    with _watched_interrupts() as interrupts:
        try:
            return run(args)
        except (KeyboardInterrupt, Exception, BaseExceptionGroup) as err:  # the last: Ctrl-C among asyncio's tasks
            if interrupts.came or isinstance(err, KeyboardInterrupt):
                message = f"interrupted: finished work is saved; to go on, run: {args.command}"
                return _report(message, EXIT_INTERRUPTED, None)
            if (code := _explain(err, args)) is None:
                raise
            return code


class _Interrupts:
    """Remembers that Ctrl-C came: library code in C may turn the KeyboardInterrupt into another error."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextmanager
def _watched_interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, or somebody's own
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _explain(err: BaseException, args: argparse.Namespace) -> int | None:
    """Say in one line what users can mend; None for what they cannot."""
    if isinstance(err, UserError):
        return _report(f"error: {err}", EXIT_USAGE, args)
    if isinstance(err, ModuleNotFoundError) and not (err.name or "utils").startswith(("utils", "llama_wrapper")):
        return _report(
            f"error: the package {err.name} is not installed for this Python; run: source .venv/bin/activate "
            "(./quickstart.sh makes that environment)",
            EXIT_USAGE,
            args,
        )
    if isinstance(err, BrokenPipeError):
        return EXIT_FAILED
    if isinstance(err, OSError) and err.errno in _FILE_ERRORS:
        return _report(f"error: {_describe_os_error(err)}", EXIT_FAILED, args)
    return None


def _prepare_streams() -> None:
    """Open closed standard streams on nothing, and let no character stop the output.

    Else the next file that is opened takes a closed stream's number, and what a library prints ends up in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_bug


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of what nobody expected, without secrets."""
    sys.stderr.write(redact(printable("".join(traceback.format_exception(kind, error, trace)))))


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter("%(message)s"))
    logging.basicConfig(level=level if processes.is_main() else logging.ERROR, handlers=[handler], force=True)
    for noisy in _NOISY_LIBRARIES:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noisier in _NOISIER_LIBRARIES:
        logging.getLogger(noisier).setLevel(logging.ERROR)


class _LineFormatter(logging.Formatter):
    """One line a message, whatever names and texts of files are in it, and no secret in it or in a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  overrides
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  overrides
        return printable(super().formatException(ei))


_FILE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.EFBIG,
    errno.ELOOP,
    errno.ESTALE,
}


_NOISIER_LIBRARIES = ("torchao", "torch.utils._pytree")  # warn of kernels for GPUs when they are imported
_NOISY_LIBRARIES = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "urllib3",
    "openai",
    "matplotlib",
    "PIL",
    "fontTools",
    "filelock",
    "asyncio",
    "fsspec",
    "gguf",
)


def _describe_os_error(err: OSError) -> str:
    where = err.filename or "a file or standard output"
    advice = {
        errno.ENOSPC: "free some space and run again",
        errno.EDQUOT: "free some space and run again",
        errno.EACCES: "make it writable or choose another --root",
        errno.EPERM: "make it writable or choose another --root",
        errno.EROFS: "choose another --root",
    }.get(err.errno or 0, "check the folder and run again")
    return f"{where}: {os.strerror(err.errno or 0)}; {advice} (finished files are whole)"


def _report(message: str, code: int, args: argparse.Namespace | None) -> int:
    log.error(message, exc_info=bool(args and args.verbose))
    return code


def exit_with(code: int) -> NoReturn:
    """Leave the process with `code`; after Ctrl-C without waiting for libraries to wind down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: there is nothing left to interrupt
    code = _flush_stdout() or code
    logging.shutdown()
    if code == EXIT_INTERRUPTED:
        os._exit(code)
    sys.exit(code)


def _flush_stdout() -> int:
    """Write out what is buffered; not 0 where that is lost."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted, as `head -1` does
        _drop_stdout()
    except OSError as err:
        log.error("error: standard output: %s", os.strerror(err.errno or 0))
        _drop_stdout()
        return EXIT_FAILED
    return EXIT_DONE


def _drop_stdout() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
