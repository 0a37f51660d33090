"""What commands write is either ignored by git or not written again while it is there."""

import subprocess

import pytest

from utils.paths import REPOSITORY

OUTPUTS = (
    "activations",
    "analysis",
    "exports",
    "finetuned_models",
    "finetune_logs",
    "refusal",
    "results",
    "saes_trained",
)


def git(*words: str) -> subprocess.CompletedProcess[str]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("folder", OUTPUTS)
def test_the_folders_of_outputs_are_ignored_and_hold_nothing_tracked(folder: str) -> None:
    assert git("ls-files", folder).stdout == ""
    assert git("check-ignore", "--quiet", f"{folder}/any/file.txt").returncode == 0


def test_the_carried_numbers_are_not_ignored() -> None:
    """Their folders bear the names of output folders."""
    assert git("check-ignore", "--quiet", "tests/reference/activations/refusal/x.pt").returncode == 1
    assert len(git("ls-files", "tests/reference").stdout.splitlines()) == 185
