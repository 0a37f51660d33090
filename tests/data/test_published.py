"""Fetching the published datasets, against a real HTTP server on loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import process_raw_datasets
from process_raw_datasets import main
from tests.reference import reference_path
from utils.behaviors import published_behaviors
from utils.data import published as published_data
from utils.data.published import check_base_url, published_files
from utils.errors import UserError
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of
from utils.paths import DataPaths

GENERATE = "generate/refusal/generate_dataset.json"
TEST = "test/refusal/test_dataset_ab.json"
CONTENT = {
    GENERATE: b"generate set " * 9000,
    TEST: b"test set " * 3000,
    "test/truthfulqa/truthful_qa.json": b"truthful " * 500,
    "test/mmlu/mmlu.json": b"mmlu " * 500,
}


class _Server(ThreadingHTTPServer):
    """Serves `files` below /data/; `faults` says what goes wrong with a path."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.faults: dict[str, list[str]] = {}
        """By path: one fault a request, the last one for ever."""
        self.requests: list[str] = []
        """Paths, in order."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = self.path.removeprefix("/data/")
        self.server.requests.append(path)
        faults = self.server.faults.get(path, [])
        fault = (faults.pop(0) if len(faults) > 1 else faults[0]) if faults else ""
        content = self.server.files.get(path)
        if fault == "404" or content is None:
            return self._answer(404, b"not here", 8)
        if fault == "503":
            return self._answer(503, b"busy", 4)
        if fault == "truncated":
            content = content[: len(content) // 2]
        if fault in ("longer", "no length, longer"):
            content += b"more"
        if fault == "wrong":
            content = content[:-1] + b"!"
        sent = content[: len(content) // 2] if fault == "drop" else b"" if fault == "drop at once" else content
        return self._answer(200, sent, None if fault.startswith("no length") else len(content))

    def _answer(self, status: int, body: bytes, length: int | None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if length != len(body):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _serve(files: dict[str, bytes]) -> Iterator[_Server]:
    server = _Server(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A server of a small stand-in for the published data, which is pinned in its place."""
    pins = {path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in CONTENT.items()}
    pinned = {
        "refusal": {"generate": pins[GENERATE], "ab": pins[TEST]},
        "truthfulqa": {"truthful_qa": pins["test/truthfulqa/truthful_qa.json"]},
        "mmlu": {"mmlu": pins["test/mmlu/mmlu.json"]},
    }
    monkeypatch.setattr(published_data, "_PINNED", pinned)
    yield from _serve(dict(CONTENT))


def _fetch(root: Path, server: _Server, *flags: str) -> int:
    return main(
        ["--root", str(root), "--source", "published", "--mirror", server.url, "--behaviors", "refusal", *flags]
    )


def _installed(root: Path) -> dict[str, bytes]:
    """Every file under datasets/ but the provenance records, dot-files included."""
    datasets = root / "datasets"
    return {
        path.relative_to(datasets).as_posix(): path.read_bytes()
        for path in sorted(datasets.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


def _waiting(path: str) -> str:
    """Where a file is while its set is not whole, below datasets/."""
    return f"{published_data._DOWNLOADS}/{path}"


def _knowledge_only() -> dict[str, bytes]:
    return {path: content for path, content in CONTENT.items() if "refusal" not in path}


def test_everything_published_is_fetched_from_a_mirror_byte_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = reference_path("caa", "datasets")
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.json")}
    for put_together in ("raw/hallucination/dataset.json", "raw/sycophancy/dataset.json"):
        del files[put_together]
    for server in _serve(files):
        command = ["--root", str(tmp_path), "--source", "published", "--mirror", server.url]
        assert main(command) == 0
        assert _installed(tmp_path) == files
        assert len(server.requests) == len(files) == 28
        assert "sets: installed 9, already there 0, failed 0" in capsys.readouterr().err
        assert main(command) == 0
        assert len(server.requests) == 28, "what is there is not fetched again"
        assert "sets: installed 0, already there 9, failed 0" in capsys.readouterr().err
        path = tmp_path / "datasets" / GENERATE
        provenance = read_provenance(path)
        assert provenance is not None
        assert (provenance["source"], provenance["sha256"]) == (f"{server.url}/{GENERATE}", sha256_of(path))


def test_every_behavior_and_knowledge_set_is_pinned_with_its_kinds(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    for behavior in published_behaviors():
        kinds = [file.url_path.split("/")[0] for file in published_files(paths, behavior)]
        has_raw = behavior not in ("hallucination", "sycophancy")
        assert kinds == ["raw"] * has_raw + ["generate", "test", "test"]
    assert [file.url_path for name in ("truthfulqa", "mmlu") for file in published_files(paths, name)] == [
        "test/truthfulqa/truthful_qa.json",
        "test/mmlu/mmlu.json",
    ]


def test_a_missing_file_keeps_its_whole_set_out_and_the_other_sets_come(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[TEST] = ["404"]
    assert _fetch(tmp_path, server) == 1
    err = capsys.readouterr().err
    assert f"refusal: not installed: {server.url}/{TEST}: the server answers 404 Not Found" in err
    assert "sets: installed 2, already there 0, failed 1" in err
    # the generate set has come whole, but is not installed without its test set
    assert _installed(tmp_path) == {**_knowledge_only(), _waiting(GENERATE): CONTENT[GENERATE]}
    assert server.requests.count(TEST) == 1, "what is not there is asked for once"
    del server.faults[TEST]
    server.requests.clear()
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT
    assert server.requests == [TEST]
    assert not (tmp_path / "datasets" / published_data._DOWNLOADS).exists()


@pytest.mark.parametrize("fault", ["truncated", "longer", "wrong", "no length, longer"])
def test_a_file_that_is_not_the_published_one_is_refused_and_what_was_there_stays(
    fault: str, tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {GENERATE: b"my generate set", TEST: b"my test set"}
    for path, content in own.items():
        target = tmp_path / "datasets" / path
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
    server.faults[GENERATE] = [fault]
    assert _fetch(tmp_path, server, "--overwrite") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refusal")]
    message = "its sha256 is not the published file's; damaged, or changed upstream"
    assert errors == [f"refusal: not installed: {server.url}/{GENERATE}: {message}"]
    assert _installed(tmp_path) == {**_knowledge_only(), **own}, "nothing replaced, nothing left over"


def test_a_file_is_asked_for_again_after_a_broken_connection_a_busy_server_or_damage(
    tmp_path: Path, server: _Server
) -> None:
    server.faults.update({GENERATE: ["drop", "503", ""], TEST: ["drop at once", "wrong", ""]})
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT
    assert server.requests[:6] == [GENERATE] * 3 + [TEST] * 3


def test_an_answer_of_unknown_length_that_is_complete_is_taken(tmp_path: Path, server: _Server) -> None:
    server.faults[GENERATE] = ["no length"]
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT


def test_what_has_come_waits_for_the_next_run(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[TEST] = ["503"]
    assert _fetch(tmp_path, server) == 1
    assert f"{TEST}: the server answers 503 Service Unavailable" in capsys.readouterr().err
    assert _installed(tmp_path) == {**_knowledge_only(), _waiting(GENERATE): CONTENT[GENERATE]}
    killed = tmp_path / "datasets" / _waiting("generate/refusal/tmp1234")
    killed.write_bytes(b"half of a file that was arriving when the run was killed")
    del server.faults[TEST]
    server.requests.clear()
    assert _fetch(tmp_path, server) == 0
    assert server.requests == [TEST]
    assert _installed(tmp_path) == CONTENT


def test_what_waits_from_earlier_never_spoils_a_file(tmp_path: Path, server: _Server) -> None:
    waiting, outside = tmp_path / "datasets" / _waiting(GENERATE), tmp_path / "outside"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"of another version")
    outside.write_bytes(b"keep me")
    link = tmp_path / "datasets" / _waiting(TEST)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT
    assert outside.read_bytes() == b"keep me", "a link at a download's name is replaced"
    assert not (tmp_path / "datasets" / TEST).is_symlink()


def test_a_server_that_drops_every_connection_is_given_up_in_the_end(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[GENERATE] = ["drop at once"]
    assert _fetch(tmp_path, server) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and err[1].startswith(f"error: {server.url}/{GENERATE}: the connection broke off; check")
    assert len(server.requests) == published_data.ATTEMPTS


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for server in _serve({}):
        gone = server.url
    assert main(["--root", str(tmp_path), "--source", "published", "--mirror", gone]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no connection; check the network, or name another address with --mirror" in errors[0]
    assert not [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]


def _put_own(root: Path) -> Path:
    own = root / "datasets" / GENERATE
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps("mine"))
    return own


def test_without_a_terminal_replacing_demands_overwrite(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    own = _put_own(tmp_path)
    assert _fetch(tmp_path, server) == 2
    assert f"1 files are there that are not the published ones, e.g. {own}; --overwrite" in capsys.readouterr().err
    assert not server.requests and own.read_text() == '"mine"'
    assert _fetch(tmp_path, server, "--overwrite") == 0
    assert _installed(tmp_path) == CONTENT


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("Yes ", 0), ("n", 1), ("", 1), (EOFError, 1)])
def test_on_a_terminal_replacing_is_asked_for(
    answer: str | type[EOFError], code: int, tmp_path: Path, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _put_own(tmp_path)
    asked: list[str] = []

    def answer_it(question: str) -> str:
        asked.append(question)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr("builtins.input", answer_it)
    monkeypatch.setattr(process_raw_datasets.sys.stdin, "isatty", lambda: True, raising=False)
    assert _fetch(tmp_path, server) == code
    assert len(asked) == 1 and asked[0].endswith("Replace them? [y/N] ")
    assert bool(server.requests) == (code == 0)
    assert (own.read_bytes() == CONTENT[GENERATE]) == (code == 0)


@pytest.mark.parametrize("url", ["ftp://host/x", "datasets", "file:///tmp/x", "http://"])
def test_a_mirror_must_be_a_web_address(url: str) -> None:
    with pytest.raises(UserError, match="expected an address such as https://"):
        check_base_url(url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as refusal:
        check_base_url("http://me:secret@host/data")
    assert "secret" not in str(refusal.value)
