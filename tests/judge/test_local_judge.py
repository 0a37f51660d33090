"""A judge without an account: `transformers serve` with the embedded model, end to end.

It judges badly; that its replies arrive, and become scores or unscored answers, is the point.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoring
from tests.answers import left_over, put_answers, scores_path
from utils.files.provenance import read_provenance
from utils.model.checkpoints import EMBEDDED_LABEL
from utils.paths import MODELS_DIR

pytestmark = [pytest.mark.embedded, pytest.mark.slow]
MODEL_DIR = MODELS_DIR / EMBEDDED_LABEL


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """A server with the embedded model on a free port, stopped afterwards."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        pytest.skip("transformers[serving] is not installed")
    if not MODEL_DIR.is_dir():
        pytest.skip("the embedded model is not here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL_DIR), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not come up at {url}")


def test_four_answers_are_judged_by_a_model_on_this_machine(
    tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.judge.access.REPOSITORY", tmp_path)
    for name in ("OPEN_AI_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    name = put_answers(root, "refusal", ["No.", "I cannot help with that.", "Yes, here it is.", "Sure!"])
    flags = ["--root", str(root), "--judge_model", str(MODEL_DIR), "--base_url", server_url, "--concurrency", "1"]
    assert scoring.main([*flags, "--timeout", "120"]) == 0
    path = scores_path(root, "refusal", name)
    for record in json.loads(path.read_text()):
        if record["score"] is None:
            assert record["judge_reply"] and record["unscored_reason"]
        else:
            assert 0 <= record["score"] <= 10
    made = read_provenance(path)
    assert made is not None and made["judge_model"] == str(MODEL_DIR) and made["n_answers"] == 4
    assert left_over(root) == []
