"""Why a checkpoint did not load, in one line that says what to do about it.

transformers wraps what went wrong in errors of its own; what it was stands in their causes.
"""

import errno
import json
import os
from collections.abc import Iterator
from typing import TypeVar

from utils.errors import UserError
from utils.files.redaction import redact
from utils.model.checkpoints import EMBEDDED_SIZE, ModelChoice, local_folder

E = TypeVar("E", bound=BaseException)

_HUB = "https://huggingface.co"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def first_line(err: BaseException) -> str:
    """The first line of an error's text, without a full stop and not too long."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:300].rstrip(".")


def explain(err: Exception, choice: ModelChoice, *, has_token: bool) -> UserError:
    """
    Args:
        err: What the hub client or a loader raised: any kind of error, where a checkpoint is damaged or hostile.
        choice: What was to be loaded.
        has_token: Whether the hub was sent a token.
    """
    what = choice.source if choice.size else f"--model {choice.source}"
    reason = (
        _of_the_disk(err)
        or _of_access(err, choice, has_token=has_token)
        or _of_the_connection(err)
        or _of_the_files(err, choice)
        or first_line(err)
    )
    return UserError(redact(f"{what} could not be loaded: {reason}"))


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


def _find(err: BaseException, *kinds: type[E]) -> E | None:
    return next((link for link in _chain(err) if isinstance(link, kinds)), None)


def _of_the_disk(err: Exception) -> str | None:
    """The machine has no room for the files, or no right to write them."""
    for link in _chain(err):
        number = link.errno if isinstance(link, OSError) else None
        if number in _NO_SPACE or "No space left on device" in str(link):
            return f"No space left on device; free some space in {_cache()} or set HF_HOME to a folder on another disk"
        if number in _NOT_WRITABLE:
            where = getattr(link, "filename", None) or _cache()
            return f"{where}: {os.strerror(number)}; make it accessible or set HF_HOME to another folder"
    return None


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _of_access(err: Exception, choice: ModelChoice, *, has_token: bool) -> str | None:
    """The hub does not have the model, or does not give it to this user."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"{_HUB}/{choice.source}"
    if _find(err, GatedRepoError):
        needed = "the account of HF_TOKEN has no access to it" if has_token else "no HF_TOKEN is set"
        alternative = f". --model_size {EMBEDDED_SIZE} needs neither" if choice.size else ""
        return f"it is gated, and {needed}; ask for access at {page} and put HF_TOKEN=... into .env{alternative}"
    if _find(err, RepositoryNotFoundError):
        private = "or it is private and HF_TOKEN has no access" if has_token else "or it is private and needs HF_TOKEN"
        return f"there is no such folder here and no such model at {page}, {private}; check the name"
    status = error.response.status_code if (error := _find(err, HfHubHTTPError)) and error.response else None
    if status == 401:
        return f"the hub does not take HF_TOKEN (401); make a new token at {_HUB}/settings/tokens and put it into .env"
    if status == 403:
        return f"the hub refuses it to HF_TOKEN (403); see whether {page} opens, and what the token may read"
    if status is not None and status != 404:
        return f"the hub answered {status} ({first_line(error or err)}); try again later"
    return None


def _of_the_connection(err: Exception) -> str | None:
    """The hub was not asked, or not reached."""
    from huggingface_hub.constants import ENDPOINT, is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not (_find(err, LocalEntryNotFoundError, ConnectionError, TimeoutError) or any(map(_is_of_http, _chain(err)))):
        return None
    if is_offline_mode():
        return "it is not on this machine, and HF_HUB_OFFLINE keeps it from being fetched; unset that variable"
    cause = first_line(list(_chain(err))[-1])
    return f"it is not on this machine, and {ENDPOINT} cannot be reached ({cause}); check the connection and run again"


def _is_of_http(err: BaseException) -> bool:
    """Whether an HTTP client raised it before there was an answer (httpx and its successors name it alike)."""
    return any(kind.__name__ == "TransportError" for kind in type(err).__mro__)


def _of_the_files(err: Exception, choice: ModelChoice) -> str | None:
    """A file of the checkpoint is torn or altered."""
    from safetensors import SafetensorError

    if not _find(err, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, EOFError):
        return None
    if choice.is_embedded:
        advice = "remove its folder in models/ and run again"
    elif local_folder(choice) is not None:
        advice = "restore the file or make it again"
    else:
        advice = f"run: hf download {choice.source} --force-download"
    return f"{first_line(err)}: a file of it is damaged; {advice}"
