"""Keys and tokens appear in no output, file or traceback, whatever a server says, and nothing moves the terminal."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import scoring
from tests.answers import put_answers, run_on, use_test_key
from tests.judge_server import JudgeServer, Response
from tests.pipeline import HF_TOKEN, OPEN_AI_KEY, said
from tests.roots import snapshot
from utils.cli.flags import make_parser
from utils.cli.run import run_main
from utils.errors import UserError
from utils.files import redaction
from utils.files.redaction import SECRET_NAMES, one_line, printable, redact
from utils.paths import REPOSITORY

TOKEN = "hf_MarkerTokenOfTheTests0123456789"
KEY = "sk-MarkerKeyOfTheTests0123456789"


def holders(root: Path, *secrets: str) -> list[str]:
    """The files that hold a secret, or a long enough part of one to use it."""
    parts = [secret[4:-4].encode() for secret in secrets]
    return [name for name, content in snapshot(root).items() if any(part in content for part in parts)]


# --- runs of every script ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_script_shows_or_keeps_a_key_that_it_was_given(pipeline_root: Path) -> None:
    """All scripts, with --verbose, on success; the judge was sent its key."""
    assert len(snapshot(pipeline_root)) > 150
    assert holders(pipeline_root.parent, HF_TOKEN, OPEN_AI_KEY) == []


@pytest.mark.parametrize("flags", [[], ["--verbose"]])
def test_a_key_in_any_error_is_named_instead_of_shown(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in the error's cause, which --verbose shows, and in what libraries log."""
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, f"{name.lower()}-0123456789 \n")

    def run(args: Any) -> int:
        values = [os.environ[name].strip() for name in SECRET_NAMES]
        logging.getLogger("a library").warning("headers: %s", values)
        try:
            raise ValueError(f"Bearer {values}")
        except ValueError as err:
            raise UserError(f"cannot use {values}") from err

    assert run_main(run, make_parser("A script."), "x.py", flags) == 2
    out, err = capfd.readouterr()
    assert "0123456789" not in out + err
    assert all(f"[{name}]" in err for name in SECRET_NAMES)
    assert ("Traceback" in err) == bool(flags)


def test_the_traceback_of_a_bug_shows_no_key() -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from utils.cli.flags import make_parser\nfrom utils.cli.run import exit_with, run_main\n"
        "def run(args): raise TypeError('cannot send ' + os.environ['HF_TOKEN'])\n"
        "exit_with(run_main(run, make_parser('x'), 'x.py', []))"
    )
    environment = {**os.environ, "HF_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback ") and done.stderr.endswith("TypeError: cannot send [HF_TOKEN]\n")


def test_the_keys_of_the_env_file_are_hidden_and_short_values_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRET_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(redaction, "REPOSITORY", tmp_path)
    (tmp_path / ".env").write_text(f"HF_TOKEN='{TOKEN}'\nOPEN_AI_KEY={KEY}\nOPENAI_API_KEY=none\n")
    redaction._secrets_of_env_file.cache_clear()
    try:
        assert redact(f"{TOKEN} and {KEY}, none of it") == "[HF_TOKEN] and [OPEN_AI_KEY], none of it"
    finally:
        redaction._secrets_of_env_file.cache_clear()


# --- the hub -----------------------------------------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """A hub that says everything it was told, and refuses."""

    status = 401

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        told = self.headers.get("Authorization", "")
        self.server.told.append(told)  # type: ignore[attr-defined]
        body = f"refused: {told}".encode()
        self.send_response(self.status)
        self.send_header("X-Error-Message", f"Invalid token {told}")
        self.send_header("X-Error-Code", "GatedRepo" if self.status == 403 else "Unauthorized")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD  # noqa: N815


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.told = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", server.told  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_hub_that_says_the_token_back_does_not_make_the_scripts_say_it(
    hub: tuple[str, list[str]], small_root: Path, tmp_path: Path
) -> None:
    address, told = hub
    environment = {
        **os.environ,
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for model in (["--model", "org/some-model"], ["--model_size", "7b"]):
        command = [sys.executable, str(REPOSITORY / "generate_vectors.py"), "--root", str(small_root)]
        command += ["--behaviors", "sycophancy", "--verbose", *model]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2
        assert "could not be loaded" in done.stderr
        assert TOKEN not in done.stdout + done.stderr
    assert f"Bearer {TOKEN}" in told
    assert holders(small_root, TOKEN) == []


def test_a_token_that_cannot_be_sent_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line feed from a copied file: HTTP clients refuse it in an error that quotes the header."""
    from utils.model import loading

    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    assert loading._hub_token() == TOKEN
    with pytest.raises(UserError) as caught, loading._explained(loading.ModelChoice("org/x", "x", None, False)):
        raise ValueError(f"Illegal header value b'Bearer {TOKEN}'")
    assert TOKEN not in str(caught.value) and "[HF_TOKEN]" in str(caught.value)


# --- the judge ---------------------------------------------------------------------------------------------

ECHOES: dict[str, Response] = {
    "401": Response(status=401, error={"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}),
    "403": Response(status=403, error={"message": f"{KEY} may not"}),
    "400": Response(status=400, error={"message": f"unknown parameter temperature for {KEY}", "param": KEY}),
    "500": Response(status=500, error={"message": f"crashed with Bearer {KEY}"}),
    "500 raw": Response(status=500, raw=f"<html>{KEY}</html>"),
    "reply": Response(content=f"Bearer {KEY}"),
    "no completion": Response(raw=f'{{"key": "{KEY}"}}'),
    "model": Response(raw=f'{{"choices": [{{"message": {{"content": "7"}}}}], "model": "{KEY}"}}'),
    "redirect": Response(status=307, headers={"Location": f"/v1/other?key={KEY}"}, error={"message": KEY}),
    "header": Response(status=418, headers={"X-Request-Id": KEY}, error={"message": "teapot", "type": KEY}),
}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_test_key(monkeypatch, tmp_path)
    monkeypatch.setenv("OPEN_AI_KEY", KEY)
    put_answers(tmp_path / "root", "sycophancy", ["answer 1", "answer 2"])
    return tmp_path / "root"


@pytest.mark.parametrize("case", ECHOES)
def test_a_judge_that_says_the_key_back_does_not_make_the_script_say_it(
    case: str, answers: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with JudgeServer(ECHOES[case]) as server:
        code = run_on(answers, server, "--max_retries", "0", "--verbose")
        assert any(request.headers.get("authorization") == f"Bearer {KEY}" for request in server.arrived)
    assert code == (0 if case in ("reply", "no completion", "model") else 2 if case in ("401", "403") else 1)
    out, err = capfd.readouterr()
    assert KEY[3:] not in out + err
    assert holders(answers, KEY) == []


def test_a_redirect_to_another_server_does_not_take_the_key_there(
    answers: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with JudgeServer(Response(content="7")) as elsewhere:
        away = Response(status=307, headers={"Location": f"{elsewhere.url}/chat/completions"}, error={"message": "x"})
        with JudgeServer(away) as server:
            run_on(answers, server, "--max_retries", "0", "--verbose")
            assert server.arrived[0].headers["authorization"] == f"Bearer {KEY}"
        assert all("authorization" not in request.headers for request in elsewhere.arrived)
    out, err = capfd.readouterr()
    assert KEY not in out + err


@pytest.mark.parametrize("url", [f"http://user:{KEY}@127.0.0.1:9/v1", f"http://127.0.0.1:9/v1?key={KEY}"])
def test_an_address_with_a_key_in_it_is_refused_without_showing_it(
    url: str, answers: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import process_raw_datasets

    monkeypatch.delenv("OPEN_AI_KEY")
    assert scoring.main(["--root", str(answers), "--base_url", url]) == 2
    assert process_raw_datasets.main(["--root", str(answers), "--source", "published", "--mirror", url]) == 2
    out, err = capfd.readouterr()
    assert KEY not in out + err
    assert holders(answers, KEY) == []


# --- terminals ---------------------------------------------------------------------------------------------


def test_what_moves_a_terminal_or_breaks_a_line_is_written_out() -> None:
    assert one_line("a\x1b[2Jb\nc\r\x00\u202e\u2028\x9b") == "a\\x1b[2Jb\\nc\\r\\x00\\u202e\\u2028\\x9b"
    assert printable("a\tb\nÄ 漢 🧿") == "a\tb\nÄ 漢 🧿"


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2J\x1b[1;1Hdone", "over\rwritten"])
def test_an_error_stays_one_line_whatever_a_file_name_holds(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], loads: Callable[..., Any]
) -> None:
    from normalize_vectors import main

    assert main(["--root", str(tmp_path / text)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --root ") and err.count("\n") == 1
    assert not any(char in err for char in "\x1b\r")


@pytest.mark.slow
def test_what_the_scripts_say_holds_no_control_character(pipeline_root: Path) -> None:
    for text in [*said(pipeline_root, ".out").values(), *said(pipeline_root, ".err").values()]:
        assert printable(text) == text
