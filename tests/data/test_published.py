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
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range header of each request, in order."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = self.path.removeprefix("/data/")
        asked = self.headers.get("Range")
        self.server.requests.append((path, asked))
        faults = self.server.faults.get(path, [])
        fault = (faults.pop(0) if len(faults) > 1 else faults[0]) if faults else ""
        content = self.server.files.get(path)
        if fault == "404" or content is None:
            return self._answer(404, b"not here", 8)
        if fault == "503":
            return self._answer(503, b"busy", 4)
        if fault == "truncated":
            content = content[: len(content) // 2]
        if fault == "longer":
            content += b"more"
        if fault == "wrong":
            content = content[:-1] + b"!"
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "no ranges" else 0
        if start >= len(content):
            return self._answer(416, b"", 0)
        rest = content[start:]
        if fault in ("no length", "no length, longer"):
            return self._answer(206 if start else 200, rest + b"more" * (fault != "no length"), None, start)
        sent = rest[: len(rest) // 2] if fault == "drop" else b"" if fault == "drop at once" else rest
        return self._answer(206 if start else 200, sent, len(rest), start)

    def _answer(self, status: int, body: bytes, length: int | None, start: int = 0) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + (length or len(body)) - 1}/*")
        if length != len(body):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_data, "RETRY_WAIT_S", 0.0)
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
    """Every file under datasets/ that is no provenance record, dot-files included."""
    datasets = root / "datasets"
    return {
        path.relative_to(datasets).as_posix(): path.read_bytes()
        for path in sorted(datasets.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


def _partial(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.download.tmp"


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
    assert _installed(tmp_path) == {**_knowledge_only(), _partial(GENERATE): CONTENT[GENERATE]}
    del server.faults[TEST]
    server.requests.clear()
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT
    assert server.requests == [(TEST, None)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "has 58500 bytes there, the published file has 117000; damaged, or changed upstream"),
        ("longer", "has 117004 bytes there, the published file has 117000; damaged, or changed upstream"),
        ("wrong", "its sha256 is not the published file's; damaged, or changed upstream"),
        ("no length, longer", "is longer there than the published file; damaged, or changed upstream"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_refused_and_what_was_there_stays(
    fault: str, message: str, tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {GENERATE: b"my generate set", TEST: b"my test set"}
    for path, content in own.items():
        target = tmp_path / "datasets" / path
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
    server.faults[GENERATE] = [fault]
    assert _fetch(tmp_path, server, "--overwrite") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refusal")]
    assert errors == [f"refusal: not installed: {server.url}/{GENERATE}: {message}"]
    assert _installed(tmp_path) == {**_knowledge_only(), **own}, "nothing replaced, nothing left over"


def test_a_connection_that_drops_midway_is_resumed_at_once(tmp_path: Path, server: _Server) -> None:
    server.faults[GENERATE] = ["drop", "drop", "503", "drop at once", ""]
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT
    ranges = [asked for path, asked in server.requests if path == GENERATE]
    first = _whole_chunks(len(CONTENT[GENERATE]) // 2)
    second = first + _whole_chunks((len(CONTENT[GENERATE]) - first) // 2)
    assert ranges == [None, f"bytes={first}-", *[f"bytes={second}-"] * 3]


def _whole_chunks(n_bytes: int) -> int:
    """What is kept of `n_bytes` that came before a connection dropped."""
    return n_bytes // published_data._CHUNK_BYTES * published_data._CHUNK_BYTES


def test_an_answer_of_unknown_length_that_is_complete_is_taken(tmp_path: Path, server: _Server) -> None:
    server.faults[GENERATE] = ["no length"]
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT


def test_a_connection_that_stays_away_keeps_the_part_for_the_next_run(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    n_bytes = len(CONTENT[GENERATE])
    kept = _whole_chunks(n_bytes // 2)
    server.faults[GENERATE] = ["drop", "503"]
    assert _fetch(tmp_path, server) == 1
    assert (
        f"{GENERATE}: the server answers 503 Service Unavailable; {kept} of {n_bytes} bytes are kept: "
        "run again to resume" in capsys.readouterr().err
    )
    assert _installed(tmp_path) == {**_knowledge_only(), _partial(GENERATE): CONTENT[GENERATE][:kept]}
    del server.faults[GENERATE]
    server.requests.clear()
    assert _fetch(tmp_path, server) == 0
    assert server.requests == [(GENERATE, f"bytes={kept}-"), (TEST, None)]
    assert _installed(tmp_path) == CONTENT


@pytest.mark.parametrize("fault", ["", "no ranges"])
@pytest.mark.parametrize(
    "left_over",
    [b"of another version", CONTENT[GENERATE][:1000], CONTENT[GENERATE] + b"too long", b"?" * len(CONTENT[GENERATE])],
    ids=["unfit", "fit", "too long", "unfit and full"],
)
def test_a_part_from_earlier_never_spoils_the_file(
    left_over: bytes, fault: str, tmp_path: Path, server: _Server
) -> None:
    partial = tmp_path / "datasets" / _partial(GENERATE)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left_over)
    server.faults[GENERATE] = [fault]
    assert _fetch(tmp_path, server) == 0
    assert _installed(tmp_path) == CONTENT


def test_a_part_that_is_longer_than_what_is_there_is_given_up(
    tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "datasets" / _partial(GENERATE)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[GENERATE][:-10])
    server.faults[GENERATE] = ["truncated"]
    assert _fetch(tmp_path, server) == 1
    assert "is shorter there than the published file" in capsys.readouterr().err
    assert _installed(tmp_path) == _knowledge_only()


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
    assert "no connection (Connection refused); check the network, or name another address with --mirror" in errors[0]
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
