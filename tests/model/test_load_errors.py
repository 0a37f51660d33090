"""What is said when a checkpoint does not load, with a hub on loopback that refuses as the real one does."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_wrapper import LlamaWrapper
from tests.hub_server import HubServer
from tests.models import save_checkpoint
from utils.errors import UserError
from utils.model import checkpoints as models
from utils.model.checkpoints import choose_model
from utils.model.load_errors import explain
from utils.model.loading import load_config
from utils.paths import REPOSITORY

TOKEN = "hf_ATokenOfTheTests0123456789"
LOAD = f"""
import json, os, sys
from pathlib import Path
from llama_wrapper import LlamaWrapper
from utils.errors import UserError
from utils.model import checkpoints, loading

loading.REPOSITORY = Path("no such folder")  # whose .env may hold a token
checkpoints.LLAMA_2_CHECKPOINTS["7b"] = ("org/gated", "org/gated")
checkpoints.LLAMA_2_CHECKPOINTS["13b"] = ("org/whole", "org/whole")
for case in sys.argv[1:]:
    name, _, token = case.partition("+")
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = {TOKEN!r}
    size = name if name in checkpoints.LLAMA_2_CHECKPOINTS else "7b"
    choice = checkpoints.choose_model(size, None if size == name else "org/" + name, False)
    try:
        LlamaWrapper.load(choice, "cpu")
        said = "loaded"
    except UserError as err:
        said = str(err)
    print(json.dumps([case, said]))
"""
PAGE = "https://huggingface.co/org"
REASONS = {
    "gated": f"it is gated, and no HF_TOKEN is set; ask for access at {PAGE}/gated and put HF_TOKEN=... into .env",
    "gated+token": "it is gated, and the account of HF_TOKEN has no access to it; ask for access at "
    f"{PAGE}/gated and put HF_TOKEN=... into .env",
    "7b": f"it is gated, and no HF_TOKEN is set; ask for access at {PAGE}/gated and put HF_TOKEN=... into .env. "
    "--model_size 135m needs neither",
    "missing": f"there is no such folder here and no such model at {PAGE}/missing, or it is private and needs "
    "HF_TOKEN; check the name",
    "missing+token": f"there is no such folder here and no such model at {PAGE}/missing, or it is private and "
    "HF_TOKEN has no access; check the name",
    "invalid-token+token": "the hub does not take HF_TOKEN (401); make a new token at "
    "https://huggingface.co/settings/tokens and put it into .env",
    "forbidden+token": f"the hub refuses it to HF_TOKEN (403); see whether {PAGE}/forbidden opens, and what the "
    "token may read",
    "gone": "the hub answered 410 (Client error '410 Gone' for url 'HUB/org/gone/resolve/main/config.json'); "
    "try again later",
    "cut": "it is not on this machine, and HUB cannot be reached (Server disconnected without sending a response); "
    "check the connection and run again",
    "torn-config": "It looks like the config file at 'CACHE/config.json' is not a valid JSON file: a file of it is "
    "damaged; run: hf download org/torn-config --force-download",
    "torn-weights": "Error while deserializing header: invalid header length: a file of it is damaged; "
    "run: hf download org/torn-weights --force-download",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """One that has a model `whole`, and copies of it with a file cut short."""
    root = tmp_path_factory.mktemp("hub")
    whole = save_checkpoint(root / "whole")
    for name, file in (("torn-config", "config.json"), ("torn-weights", "model.safetensors")):
        torn = shutil.copytree(whole, root / name) / file
        torn.write_bytes(torn.read_bytes()[:500])
    with HubServer(root) as server:
        yield server


def load(hub: HubServer, cache: Path, *cases: str) -> dict[str, str]:
    """What is said of each, by a process of its own, because the hub's address is read when it starts."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *cases], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def said(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return load(hub, tmp_path_factory.mktemp("cache"), "whole", *REASONS)


def test_a_model_of_the_hub_loads(said: dict[str, str]) -> None:
    assert said["whole"] == "loaded"


@pytest.mark.parametrize("case", REASONS)
def test_each_reason_is_told_from_the_others_with_what_to_do(case: str, said: dict[str, str], hub: HubServer) -> None:
    words = said[case].replace(hub.url, "HUB").split("'")
    words = ["CACHE/config.json" if word.endswith("/config.json") and "/snapshots/" in word else word for word in words]
    name = "org/gated" if case == "7b" else f"--model org/{case.removesuffix('+token')}"
    assert "'".join(words) == f"{name} could not be loaded: {REASONS[case]}"


def test_a_full_disk_is_called_full_for_a_llama_2_size_too(hub: HubServer, tmp_path: Path) -> None:
    """Not gated: what the hub gave does not fit into the cache."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        said = load(hub, tmp_path, "whole", "13b")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    full = f"No space left on device; free some space in {tmp_path}/hub or set HF_HOME to a folder on another disk"
    assert said == {
        "whole": f"--model org/whole could not be loaded: {full}",
        "13b": f"org/whole could not be loaded: {full}",
    }


def test_a_cache_that_may_not_be_written_is_named() -> None:
    refused = OSError("PermissionError when downloading")
    refused.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/hub/models--org--x")
    reason = "/hub/models--org--x: Permission denied; make it accessible or set HF_HOME to another folder"
    said = explain(refused, choose_model("7b", "org/x", False), has_token=True)
    assert str(said) == f"--model org/x could not be loaded: {reason}"


@pytest.mark.parametrize("model", [None, "nobody/nothing-here"])
def test_offline_is_no_matter_of_access(model: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.LLAMA_2_CHECKPOINTS, "7b", ("nobody/nothing-here", "nobody/nothing-here"))
    choice = choose_model("7b", model, False)
    name = f"--model {model}" if model else "nobody/nothing-here"
    for load_it in (load_config, LlamaWrapper.load):
        with pytest.raises(UserError) as caught:
            load_it(choice)
        assert str(caught.value) == (
            f"{name} could not be loaded: it is not on this machine, and HF_HUB_OFFLINE keeps it from being fetched; "
            "unset that variable"
        )
