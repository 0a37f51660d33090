"""Where the judge is, and the key that it wants. The key is never printed, logged or written."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from utils.errors import UserError
from utils.paths import REPOSITORY

KEY_NAMES = ("OPEN_AI_KEY", "OPENAI_API_KEY")
_NO_KEY = "none-needed"  # the SDK wants something to send


@dataclass(frozen=True)
class Access:
    """Where the judge is, and the key that it wants."""

    model: str
    base_url: str
    key: str = field(repr=False)

    @property
    def hidden_key(self) -> str | None:
        """The key as a text that must not be shown; None where none is needed."""
        return None if self.key == _NO_KEY else self.key


def check_base_url(base_url: str) -> str:
    """The server's address, without a slash at its end.

    Raises:
        UserError: If it is no http address, or carries a password or a query, which would be recorded.
    """
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError as err:
        raise UserError("--base_url is not an address; give one such as http://127.0.0.1:8341/v1") from err
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError("--base_url must not carry a user, password or query; put the key into .env as OPEN_AI_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base_url {base_url!r} is not an address; give one such as http://127.0.0.1:8341/v1")
    return base_url.rstrip("/")


def is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_key(base_url: str) -> str:
    """The API key from the environment or the repository's .env; a placeholder for a server on loopback.

    Raises:
        UserError: If there is none and the server is not on loopback.
    """
    from dotenv import dotenv_values

    for source in (os.environ, dotenv_values(REPOSITORY / ".env", interpolate=False)):
        for name in KEY_NAMES:
            key = (source.get(name) or "").strip()
            if key and not re.fullmatch(r"[!-~]+", key):
                raise UserError(f"{name} holds characters that no key has; check it in .env or the environment")
            if key:
                return key
    if is_loopback(base_url):
        return _NO_KEY
    raise UserError(
        "no API key: put OPEN_AI_KEY=... into .env (see .env.example), or name a server that needs none, "
        "such as --base_url http://127.0.0.1:8341/v1"
    )
