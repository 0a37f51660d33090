"""What kills, Ctrl-C, a second process, full and vanished disks do to the scripts: nothing is lost.

`CAA_KILLS=20 pytest tests/robustness/test_fault_campaign.py` kills each script that often; the default is less.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.judge_server import JudgeServer, Request, Response
from tests.models import N_LAYERS, random_vector
from tests.roots import TINY_LABEL, snapshot, write_raw_dataset, write_small_datasets, write_vector
from tests.script_processes import End, ScriptProcess, run_script
from utils.files.writing import save_tensor

IS_CAMPAIGN = "CAA_KILLS" in os.environ
N_KILLS = int(os.environ.get("CAA_KILLS", "2"))
LONGEST_STOP_S = 2.0 if IS_CAMPAIGN else 6.0
"""From Ctrl-C to the end; other tests run beside this one unless it is the campaign."""
DISKS = (0, 4096, 20480) if IS_CAMPAIGN else (4096,)
"""Bytes that are left."""
BEHAVIORS = ("sycophancy", "refusal")
MODEL = ("--model", TINY_LABEL)
SWEEP = ("--behaviors", "sycophancy", *MODEL, "--layers", "1", "2", "--multipliers", "-1", "0", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate_vectors": ("--behaviors", *BEHAVIORS, *MODEL, "--save_activations", "--overwrite"),
    "generate_vectors, missing": ("--behaviors", "myopic-reward", *MODEL, "--save_activations"),
    "normalize_vectors": ("--behaviors", *BEHAVIORS, "--model", "other"),
    "prompting_with_steering": (*SWEEP, "--type", "ab", "--batch_size", "1"),
    "prompting_with_steering, free": (*SWEEP, "--type", "open_ended", "--max_new_tokens", "5", "--batch_size", "4"),
    "scoring": ("--behaviors", "refusal"),
    "process_raw_datasets": ("--behaviors", "hallucination", "corrigible-neutral-HHH"),
    "finetune_llama": (
        *("--behavior", "refusal", "--direction", "pos", *MODEL, "--device", "cpu"),
        *("--batch_size", "2", "--epochs", "2", "--checkpoints", "3"),
    ),
    "plot_results": (*("--behaviors", "refusal", *MODEL, "--layers", "1"), "--type", "ab"),
    "analyze_vectors": ("--behaviors", "refusal", "--model", TINY_LABEL, "--layers", "1", "2"),
}
MANY_LAYERS, MANY_PAIRS = 60, 2000  # so that there is time to hit the quick scripts
SLOW_JUDGE = 0.01  # seconds an answer
PARSING = 0.05  # seconds until a script has read its flags: before that Ctrl-C is Python's own affair
FIGURES = (".png", ".pdf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The working folder of all scripts, with the checkpoint; roots come and go in it."""
    folder = tmp_path_factory.mktemp("campaign")
    shutil.copytree(tiny_checkpoint, folder / TINY_LABEL)
    return folder


@pytest.fixture(scope="module")
def template(folder: Path) -> Path:
    """A root with all that the scripts read."""
    root = folder / "template"
    for place, behavior in enumerate((*BEHAVIORS, "myopic-reward")):
        write_small_datasets(root, behavior)
        pairs = write_raw_dataset(root, behavior, 12)
        shutil.move(pairs, root / "datasets" / "generate" / behavior / "generate_dataset.json")
        for layer in range(N_LAYERS):
            write_vector(root, behavior, layer, random_vector(10 * place + layer))
    for place, behavior in enumerate(BEHAVIORS):
        for layer in range(MANY_LAYERS):
            for label in ("other", TINY_LABEL)[: 2 if layer < N_LAYERS else 1]:
                path = root / "vectors" / behavior / f"vec_layer_{layer}_{label}.pt"
                save_tensor(path, random_vector(10 * place + layer))
    for behavior in ("hallucination", "corrigible-neutral-HHH"):
        write_raw_dataset(root, behavior, MANY_PAIRS)
    for kind in (["--type", "ab"], ["--type", "open_ended", "--max_new_tokens", "5"]):
        flags = ["--root", "template", "--behaviors", "refusal", *MODEL, "--layers", "1", "2", *kind]
        assert run_script(folder, "prompting_with_steering", flags).code == 0
    return root


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    def respond(request: Request) -> Response:
        time.sleep(SLOW_JUDGE)
        return Response(content=str(len(request.answer) % 11))

    patch = pytest.MonkeyPatch()
    patch.setenv("OPEN_AI_KEY", "sk-test")  # before the first script process: they inherit it
    with JudgeServer(respond) as server:
        yield server
    patch.undo()


@dataclass(frozen=True)
class Script:
    """A command of the campaign, and what it leaves when nobody disturbs it."""

    folder: Path
    template: Path
    name: str
    flags: tuple[str, ...]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def fresh_root(self, root: Path | None = None) -> Path:
        root = root or self.root
        shutil.rmtree(root, ignore_errors=True)
        return Path(shutil.copytree(self.template, root, dirs_exist_ok=True))

    def start(self) -> ScriptProcess:
        return ScriptProcess(self.folder, self.name, self.flags)

    def run(self) -> End:
        return self.start().end()

    def undisturbed(self) -> tuple[dict[str, bytes], float]:
        """The files that an undisturbed run leaves, and how many seconds it takes."""
        self.fresh_root()
        end = self.run()
        assert end.code == 0, end.stderr
        return files(self.root), end.seconds


def files(root: Path) -> dict[str, bytes]:
    """All files with their content; of figures, whose bytes may differ, only that they are there."""
    return {name: b"" if name.endswith(FIGURES) else content for name, content in snapshot(root).items()}


def finished(root: Path, expected: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Identity of the files that are there as they should be and need not be made again.

    Not of records of runs, figures and logs, nor of activations, which count when their layer's vector is there.
    """
    there = files(root)
    return {
        name: ((root / name).stat().st_ino, (root / name).stat().st_mtime_ns)
        for name, content in expected.items()
        if there.get(name) == content
        and not name.endswith("provenance.json")
        and not name.startswith(("analysis/", "activations/", "finetune_logs/"))
    }


def is_kept_aside(name: str) -> bool:
    """Journals, checkpoints, temporary files: what a killed run leaves for the next one, not artifacts."""
    return "/." in name or "/checkpoint-" in name or name.endswith(("/run.json", ".lock"))


def assert_only_whole_files(root: Path, expected: dict[str, bytes], before: dict[str, bytes]) -> None:
    """Every file is as it was before, or as an undisturbed run leaves it; or no artifact."""
    for name, content in files(root).items():
        if not is_kept_aside(name) and not name.endswith("provenance.json"):
            assert content in (before.get(name), expected.get(name)), name


def hits(script: Script, number: signal.Signals, seconds: float, least: float = 0.0) -> Iterator[tuple[End, float]]:
    """Runs on fresh roots that a signal hits at random moments of their work; those that end before do not count.

    Args:
        script: The script.
        number: The signal.
        seconds: The latest moment.
        least: The earliest moment.

    Yields:
        How the run ended, and after how many seconds.
    """
    chance = random.Random(script.name)
    n_hits = 0
    for _ in range(10 * N_KILLS):
        script.fresh_root()
        process = script.start()
        time.sleep(chance.uniform(least, max(seconds, 2 * least)))
        process.send(number)
        sent = time.monotonic()
        end = process.end()
        if end.code == 0:
            continue
        yield end, time.monotonic() - sent
        n_hits += 1
        if n_hits == N_KILLS:
            return
    pytest.fail("the script ends before a signal can hit it")


@pytest.fixture(params=COMMANDS)
def script(request: pytest.FixtureRequest, folder: Path, judge: JudgeServer, template: Path) -> Script:
    name = request.param.split(",")[0]
    flags = ("--root", "root", *COMMANDS[request.param])
    if name == "scoring":
        flags = (*flags, "--base_url", judge.url, "--concurrency", "1")
    return Script(folder, template, name, flags)


# --- killed -----------------------------------------------------------------------------------------


def test_a_killed_script_loses_nothing_and_the_next_run_leaves_what_an_undisturbed_one_does(
    script: Script, judge: JudgeServer
) -> None:
    expected, seconds = script.undisturbed()
    before = files(script.template)
    for killed, _ in hits(script, signal.SIGKILL, seconds):
        assert killed.code == -signal.SIGKILL
        judge.wait_until_idle()
        assert_only_whole_files(script.root, expected, before)
        done = {} if "--overwrite" in script.flags else finished(script.root, expected)
        end = script.run()
        assert end.code == 0, end.stderr
        assert files(script.root) == expected
        assert done.items() <= finished(script.root, expected).items(), "made again"


@pytest.mark.skipif(not IS_CAMPAIGN, reason="part of the campaign: CAA_KILLS=20 runs it")
def test_a_script_that_is_killed_again_and_again_ends_as_an_undisturbed_one(script: Script, judge: JudgeServer) -> None:
    expected, seconds = script.undisturbed()
    chance = random.Random(script.name)
    script.fresh_root()
    for _ in range(N_KILLS):
        process = script.start()
        time.sleep(chance.uniform(0.2, 0.9) * seconds)
        process.send(signal.SIGKILL)
        process.end()
        judge.wait_until_idle()
    assert script.run().code == 0
    assert files(script.root) == expected


# --- Ctrl-C -----------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_script_soon_with_one_line(script: Script) -> None:
    expected, seconds = script.undisturbed()
    before = files(script.template)
    for end, seconds_to_end in hits(script, signal.SIGINT, seconds, PARSING):
        assert seconds_to_end < LONGEST_STOP_S
        assert end.code == 130, end.stderr
        assert "Traceback" not in end.stderr
        [line] = [line for line in end.stderr.splitlines() if "interrupted" in line]
        assert "finished work is saved; to go on, run: " in line
        assert_only_whole_files(script.root, expected, before)
        assert not [name for name in files(script.root) if name.endswith(".tmp")]
        assert script.run().code == 0
        assert files(script.root) == expected


# --- two at once ------------------------------------------------------------------------------------


def test_two_processes_of_one_command_leave_what_one_does(script: Script) -> None:
    expected, _ = script.undisturbed()
    script.fresh_root()
    processes = [script.start(), script.start()]
    ends = [process.end() for process in processes]
    assert [end.code for end in ends] == [0, 0], ends
    assert files(script.root) == expected


# --- disks ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(folder: Path, template: Path) -> Iterator[Path]:
    """A file system of its own at the root, with room for little more than the template."""
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def fill(root: Path, n_bytes_left: int) -> Path:
    """Take the space of the disk, but for so much."""
    filler = root / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(root).free - n_bytes_left))
    return filler


@pytest.mark.parametrize("n_bytes_left", DISKS)
def test_a_full_disk_is_one_line_and_leaves_whole_files(script: Script, small_disk: Path, n_bytes_left: int) -> None:
    shutil.copytree(script.template, small_disk, dirs_exist_ok=True)
    before = files(small_disk)
    assert script.run().code == 0
    expected = files(small_disk)
    for path in small_disk.iterdir():
        shutil.rmtree(path)
    shutil.copytree(script.template, small_disk, dirs_exist_ok=True)
    filler = fill(small_disk, n_bytes_left)
    end = script.run()
    assert "Traceback" not in end.stderr
    if end.code != 0:  # else what it wrote did fit
        [line] = [line for line in end.stderr.splitlines() if "error: " in line]
        assert end.code in (1, 2) and ("No space left" in line or "GB free" in line)
    assert n_bytes_left > 0 or end.code != 0
    filler.unlink()
    assert_only_whole_files(small_disk, expected, before)
    assert not [name for name in files(small_disk) if name.endswith(".tmp")]
    assert script.run().code == 0
    assert files(small_disk) == expected


def test_a_read_only_disk_is_one_line_and_changes_nothing(script: Script, small_disk: Path) -> None:
    shutil.copytree(script.template, small_disk, dirs_exist_ok=True)
    before = snapshot(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    end = script.run()
    assert end.code in (1, 2) and "Traceback" not in end.stderr
    [line] = [line for line in end.stderr.splitlines() if "error: " in line]
    assert "Read-only file system" in line
    assert snapshot(small_disk) == before


def test_a_root_that_vanishes_is_one_line_or_does_no_harm(script: Script) -> None:
    expected, seconds = script.undisturbed()
    chance = random.Random(script.name)
    for _ in range(N_KILLS):
        script.fresh_root()
        process = script.start()
        time.sleep(chance.uniform(0, seconds))
        shutil.rmtree(script.root, ignore_errors=True)
        end = process.end()
        assert end.code in (0, 1, 2) and "Traceback" not in end.stderr, end.stderr
        if end.code != 0:
            assert "error: " in end.stderr or "not processed: " in end.stderr
        for name, content in files(script.root).items():
            if not is_kept_aside(name) and not name.endswith("provenance.json"):
                assert content == expected.get(name), name
