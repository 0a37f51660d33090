"""What must not be shown: keys and tokens, wherever they turn up in a message, and characters that move a terminal."""

import os
import re
from functools import cache

from utils.paths import REPOSITORY

SECRET_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPEN_AI_KEY", "OPENAI_API_KEY")
_SHORTEST = 8
"""A shorter value is not a secret but a stopgap such as "none", and may be part of any word."""

# all control characters but tab and line feed, line and paragraph separators, and what turns the writing direction
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """The text with the name of each secret in place of its value."""
    for name, value in {**_secrets_of_env_file(), **_secrets_in(os.environ)}.items():
        text = text.replace(value, f"[{name}]")
    return text


def printable(text: str) -> str:
    """The text with its control characters written out, so that it cannot rewrite what a terminal shows."""
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`printable`, with line feeds written out as well."""
    return printable(text).replace("\n", "\\n")


def _secrets_in(variables: "os._Environ[str] | dict[str, str | None]") -> dict[str, str]:
    found = {name: (variables.get(name) or "").strip() for name in SECRET_NAMES}
    return {name: value for name, value in found.items() if len(value) >= _SHORTEST}


@cache
def _secrets_of_env_file() -> dict[str, str]:
    path = REPOSITORY / ".env"
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return _secrets_in(dotenv_values(path, interpolate=False))
