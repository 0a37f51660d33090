"""Fetch the datasets of the CAA paper: pinned by size and sha256, installed set by set, whole or not at all.

A set (one behavior, TruthfulQA, MMLU) is downloaded into a folder beside the datasets. When every file of it
is there and is the published one, they are moved into place; files of a set that failed wait there for the
next run.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.reading import sha256_of
from utils.paths import DataPaths

if TYPE_CHECKING:
    from requests import Response

log = logging.getLogger(__name__)

PUBLISHED_URL = "https://raw.githubusercontent.com/nrimsky/CAA/main/datasets"
KNOWLEDGE_SETS = ("truthfulqa", "mmlu")
ATTEMPTS = 3
"""Requests for a file before it is given up."""
TIMEOUT_S = (10.0, 30.0)
"""To connect, and between two arrivals of data."""
_DOWNLOADS = ".published.tmp"
"""The folder in `datasets/` where sets are put together."""

Kind = Literal["raw", "generate", "ab", "open_ended", "truthful_qa", "mmlu"]

# size in bytes and sha256 of every file; the raw sets of hallucination and sycophancy are not among
# them, because they are not published as one file in this format
_PINNED: Mapping[str, Mapping[Kind, tuple[int, str]]] = {
    "coordinate-other-ais": {
        "raw": (157100, "1d52f1c0fe741e34e459a1d3e831f5840c1dc55c2ffd130173e6c69d834972af"),
        "generate": (138017, "643717af88eeef37468ceb9f80322b1ebdb4e3934a114a79fc9b930105d6ac71"),
        "ab": (18265, "9f315149225f1c1daeb65a684eca097f884b87a153d1ed8ce2c2c15abe5fae23"),
        "open_ended": (11827, "170b7aa95ac6650a69eba281892ae486e34c4dc03265025abed3a5fc34a11f78"),
    },
    "corrigible-neutral-HHH": {
        "raw": (113447, "560d8fae1a8d10da3f91b0256b47b7b14ac03a93d3ecf88fc5fe9e0e480e8820"),
        "generate": (96228, "c93d4d8db72ab1de875b79367d08e00b3ba27675480d4315fd942bf676359893"),
        "ab": (16541, "847759b4daf48b7d941f08a213ed7095414d1a3063354eb4ebe1dfffc4522cd0"),
        "open_ended": (9391, "65f8a9bd2bb9fd2d31deb1a2699b7c7ec47de1c040aae8c4938beffebacf3a50"),
    },
    "hallucination": {
        "generate": (783593, "11dfb47cee064d037b9c66a1e56da6dfb9257f5c53bc29a4310c83a45de1bfe3"),
        "ab": (39851, "aca893768df46b7fb4a546b220fab327a58fd77dedcb49210b396bd24efe7dc6"),
        "open_ended": (11212, "f89d149f24eea3be3caf5e6fa32ea7b31f25798666062489374316b2b303b3ae"),
    },
    "myopic-reward": {
        "raw": (343626, "c9964655ebb29a4b5fcba080ba27e5c7fd1f242e434663103a42561494de958b"),
        "generate": (324646, "3ae9dc68fc4a6f3dbc441ef9956e543b5c7a5a5d97a3cc770f1942477f212b7e"),
        "ab": (16982, "5a7446706263e4bb67965fa48a3beb433cede5476ac735b0e2d26dd7e155d2fe"),
        "open_ended": (8997, "3129eef01e2e7da60648839920dc09a8826fa18948af3c1153750edf57baadb3"),
    },
    "survival-instinct": {
        "raw": (365366, "37c3de0e5eae2d83dc33c9e657d3a84407cbaa64900338dfb466d814e6002e7d"),
        "generate": (325060, "249a1807e6938223e66795cdd7a7212340d8612aa9bb185947669135b052697a"),
        "ab": (18683, "750a96d7864c864b39168efed636cd79289bad6746024922a7367ccc171f951f"),
        "open_ended": (10588, "9b660b7d0ef3ab32ba64f7967100a416f4b9fffe50571fe36a4d0679e0a213af"),
    },
    "sycophancy": {
        "generate": (871127, "1394c959d97ffae28fe9df71ce07a402c13c9333159307a28bd664fbe355b8b0"),
        "ab": (43426, "96391f0468cadb5214c34dff9f614be6725699d9f395387f8a9b6ca630d9cb77"),
        "open_ended": (6662, "6182d58715f29ee38be7427cbcc9da0a9b9c8a09d3f1fda17809e724e062611d"),
    },
    "refusal": {
        "raw": (179392, "e2472065f2cc371256141921cd0dc013ec96f1318c44a7f05d6c90df814a6033"),
        "generate": (159565, "966f6f32d5c2246579a1d9b544c082790fec6067d4efea6c6ef755c9d0a154a4"),
        "ab": (19829, "982838b5429f1389a36fcf59c40ddb7eb4e462cfa1464d7857b8629cd384321b"),
        "open_ended": (3823, "285e4526971c78afd1af372932be1396577424761056ede8a33983403a4b618d"),
    },
    "truthfulqa": {
        "truthful_qa": (419991, "72d83605a8001c40c9d8c51e352ff19b8f168ba5b55b23e2fe35c7843eed88f3"),
    },
    "mmlu": {
        "mmlu": (338728, "0d7292356978bdde9269b353a4c191521b72f71b849acd6798188fbf0f8936d8"),
    },
}


class DownloadError(Exception):
    """A file could not be fetched, or is not the published one; one line."""


@dataclass(frozen=True)
class PublishedFile:
    """One published file and where it goes."""

    datasets_dir: Path
    url_path: str
    """Below the base address, and below `datasets_dir`."""
    n_bytes: int
    sha256: str

    @property
    def target(self) -> Path:
        return self.datasets_dir / self.url_path

    @property
    def download(self) -> Path:
        """Where it waits until its set is whole."""
        return self.datasets_dir / _DOWNLOADS / self.url_path

    def is_installed(self) -> bool:
        return (
            self.target.is_file()
            and self.target.stat().st_size == self.n_bytes
            and sha256_of(self.target) == self.sha256
        )


def published_files(paths: DataPaths, set_name: str) -> list[PublishedFile]:
    """The files of a behavior, of "truthfulqa" or of "mmlu".

    Raises:
        UserError: If that set is not among the published ones.
    """
    if set_name not in _PINNED:
        raise UserError(f"there is no published set of {set_name}; leave it out of --behaviors")
    files = []
    for kind, (n_bytes, sha256) in _PINNED[set_name].items():
        match kind:
            case "raw":
                target = paths.raw_dataset(set_name)
            case "generate":
                target = paths.generate_dataset(set_name)
            case _:
                target = paths.test_dataset(set_name, kind)
        url_path = target.relative_to(paths.datasets_dir).as_posix()
        files.append(PublishedFile(paths.datasets_dir, url_path, n_bytes, sha256))
    return files


def check_base_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        UserError: If it is no http or https address, or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--mirror {url}: expected an address such as {PUBLISHED_URL}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "--mirror: leave user name, password and query out of the address; it is written to provenance files"
        )
    return url.rstrip("/")


def fetch_sets(
    sets: Mapping[str, Sequence[PublishedFile]], base_url: str, command: str, advance: Callable[[int], object]
) -> list[str]:
    """Download and install sets; those that fail are logged and returned, and stay as they were.

    Args:
        sets: The files to fetch, by set.
        base_url: Address of the folder that holds `raw/`, `generate/` and `test/`.
        command: For the provenance record.
        advance: Called with the bytes of a file when it has come.

    Raises:
        UserError: If the server cannot be reached; the sets before it are installed.
    """
    failed = []
    for name, files in sets.items():
        try:
            for file in files:
                _fetch(file, base_url)
                advance(file.n_bytes)
        except DownloadError as err:
            log.error("%s: not installed: %s", name, err)
            failed.append(name)
            continue
        _install(files, base_url, command)
        log.info("%s: installed %d files", name, len(files))
    if not failed:
        for downloads in {file.datasets_dir / _DOWNLOADS for files in sets.values() for file in files}:
            shutil.rmtree(downloads, ignore_errors=True)
    return failed


def _fetch(file: PublishedFile, base_url: str) -> None:
    """Bring `file.download` to the published content, where it is not there already.

    Raises:
        DownloadError: If the server does not have the published file.
        UserError: If the server cannot be reached.
    """
    import pooch
    from requests.exceptions import HTTPError, RequestException

    pooch.get_logger().setLevel(logging.WARNING)
    url, downloads = f"{base_url}/{file.url_path}", file.datasets_dir / _DOWNLOADS
    registry = {file.url_path: f"sha256:{file.sha256}"}
    source = pooch.create(downloads, f"{base_url}/", registry=registry, retry_if_failed=ATTEMPTS - 1)
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S, hooks={"response": _check_status})
    try:
        source.fetch(file.url_path, downloader=downloader)
    except HTTPError as err:
        raise DownloadError(str(err)) from err
    except RequestException as err:
        hint = "check the network, or name another address with --mirror"
        raise UserError(f"{url}: {_describe(err)}; {hint}") from err
    except ValueError as err:
        raise DownloadError(f"{url}: its sha256 is not the published file's; damaged, or changed upstream") from err


def _check_status(response: "Response", **_: object) -> None:
    """Tell answers that may be another time, after which pooch asks again, from those that will not.

    Raises:
        requests.HTTPError: If the server is busy or has trouble.
        DownloadError: If it refuses the request.
    """
    from requests.exceptions import HTTPError

    if response.ok:
        return
    reason = f"{response.url}: the server answers {response.status_code} {response.reason}"
    raise HTTPError(reason) if response.status_code == 429 or response.status_code >= 500 else DownloadError(reason)


def _describe(err: Exception) -> str:
    """A network error in a few words, without the library's nesting."""
    from requests.exceptions import ChunkedEncodingError, Timeout

    if isinstance(err, Timeout):
        return "no answer in time"
    return "the connection broke off" if isinstance(err, ChunkedEncodingError) else "no connection"


def _install(files: Sequence[PublishedFile], base_url: str, command: str) -> None:
    for file in files:
        run = {"command": command, "source": f"{base_url}/{file.url_path}", "sha256": file.sha256}
        record_provenance(file.target.parent, [file.target.name], run)
    for file in files:
        os.replace(file.download, file.target)
