"""A hub on loopback: it serves the files of folders, and refuses as the real one does."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INVALID = "Invalid credentials in Authorization header"


class HubServer:
    """Models are the folders `<name>` of a root, under the account `org`; other names mean a refusal:

    gated, missing, invalid-token, forbidden, gone (410), cut (the connection ends without an answer).
    """

    def __init__(self, root: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.root = root  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        name, _, file = self.path.removeprefix("/api/models").removeprefix("/org/").partition("/resolve/main/")
        has_token = "Authorization" in self.headers
        match name.split("/")[0]:
            case "gated":
                self._refuse(403 if has_token else 401, code="GatedRepo")
            case "missing":
                self._refuse(404 if has_token else 401, code="RepoNotFound")
            case "invalid-token":
                self._refuse(401, message=INVALID)
            case "forbidden":
                self._refuse(403, message="The token may not read this")
            case "gone":
                self._refuse(410)
            case "cut":
                self.close_connection = True
            case folder:
                path = self.server.root / folder / file  # type: ignore[attr-defined]
                if path.is_file():
                    self._serve(path.read_bytes())
                else:
                    self._refuse(404, code="EntryNotFound")

    do_GET = do_HEAD  # noqa: N815

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
