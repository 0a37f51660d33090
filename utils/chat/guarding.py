"""What keeps strangers out of a server on this machine: names, origins, a token, and a content policy."""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_OPEN = ("/chat.js", "/chat.css")
"""The same for everybody, and without a secret."""


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token(host: str) -> str | None:
    """What a client must know; None at loopback, where only this machine comes by."""
    return None if is_loopback(host) else secrets.token_urlsafe(24)


class Guard:
    """Middleware: whom to let in, and the headers of every response.

    Without a token the server is for loopback alone, and a request whose Host is another name comes from a page of
    another site that has had its name point here.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if reason := _refusal(Request(scope), self.token):
            await JSONResponse({"error": reason}, status_code=403, headers=HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _refusal(request: Request, token: str | None) -> str | None:
    host = request.url.hostname or ""
    if token is None and not is_loopback(host):
        return "this server answers on loopback only"
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return "this request comes from a page of another site"
    if token is not None and request.url.path not in _OPEN:
        given = request.headers.get("x-token") or request.query_params.get("token") or ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            return "the token is missing or wrong; open the address that the server printed"
    return None
