"""Every script once, on a tiny model, in a process of its own: `python -m tests.pipeline FOLDER [STEP...]`.

Works in FOLDER, which holds the checkpoint `tiny-chat`; the data root is FOLDER/root. What each step
says goes to FOLDER/said/<step>.out and .err, the exit codes to FOLDER/codes.json.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.roots import TINY_LABEL, put_json, write_raw_dataset, write_small_datasets
from utils.files.provenance import read_folder_provenance
from utils.paths import REPOSITORY

BEHAVIORS = ("sycophancy", "refusal")
HF_TOKEN = "hf_MarkerOfTheHubToken0123456789"
OPEN_AI_KEY = "sk-MarkerOfTheJudgeKey0123456789"
SERVER = "http://127.0.0.1:PORT/v1"


def steps(base_url: str) -> dict[str, list[str]]:
    """Name -> script and flags, in the order in which they depend on each other."""
    behaviors, one_behavior = ["--behaviors", *BEHAVIORS], ["--behaviors", BEHAVIORS[0]]
    model = ["--model", TINY_LABEL]
    evaluation = ["prompting_with_steering", *behaviors, *model, "--layers", "1", "2"]
    free = [*evaluation, "--type", "open_ended", "--max_new_tokens", "6"]
    return {
        "datasets": ["process_raw_datasets", "--behaviors", "myopic-reward", "--seed", "3"],
        "check": ["process_raw_datasets", "--behaviors", "myopic-reward", "--check"],
        "vectors": ["generate_vectors", *behaviors, *model, "--save_activations"],
        "normalized": ["normalize_vectors", *behaviors],
        "ab": [*evaluation, "--multipliers", "-1", "0", "1"],
        "truthful_qa": [*evaluation, "--type", "truthful_qa"],
        "mmlu": [*evaluation, "--type", "mmlu"],
        "answers": [*free, "--multipliers", "-1", "0", "1"],
        "sampled": [*free, "--temperature", "0.9", "--num_samples", "2", "--seed", "5"],
        "scores": ["scoring", *behaviors, "--base_url", base_url],
        "activations": ["plot_activations", *one_behavior, *model, "--layers", "1"],
        "similarities": ["analyze_vectors", *one_behavior, "--layers", "1", "2"],
        "weights": ["finetune_llama", "--behavior", "refusal", "--direction", "pos", *model, "--device", "cpu"],
        "fine-tuned": [
            *evaluation,
            "--override_model_weights_path",
            "root/finetuned_models/refusal_pos_finetune_all.pt",
        ],
        "results": ["plot_results", *one_behavior, *model, "--layers", "1", "--type", "ab"],
    }


def write_root(root: Path) -> None:
    for behavior in BEHAVIORS:
        write_small_datasets(root, behavior)
    write_raw_dataset(root, "myopic-reward")


def run(folder: Path, *only: str, **environment: str) -> Path:
    """Run the pipeline, or some of its steps, with marker values for both keys; the data root."""
    variables = {**os.environ, "HF_TOKEN": HF_TOKEN, "OPEN_AI_KEY": OPEN_AI_KEY, "PYTHONPATH": str(REPOSITORY)}
    variables |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **environment}
    command = [sys.executable, "-m", "tests.pipeline", str(folder), *only]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "root"


def said(root: Path, suffix: str) -> dict[str, str]:
    """What each step wrote to standard output (".out") or error (".err")."""
    return {path.stem: path.read_text() for path in sorted((root.parent / "said").glob(f"*{suffix}"))}


@contextmanager
def _streams_to(stem: Path) -> Iterator[None]:
    """Send standard output and error of this process, libraries' included, to files."""
    kept = os.dup(1), os.dup(2)
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(stem.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def main(folder: Path, only: Sequence[str]) -> None:
    from tests.judge_server import JudgeServer, Request, Response

    write_root(folder / "root")
    (folder / "said").mkdir()
    codes = {}

    def judge(request: Request) -> Response:
        return Response(content=str(len(request.answer) % 11))

    with JudgeServer(judge) as server:
        for name, (script, *flags) in steps(server.url).items():
            if only and name not in only:
                continue
            with _streams_to(folder / "said" / name):
                codes[name] = importlib.import_module(script).main(["--root", "root", *flags, "--verbose"])
    put_json(folder / "codes.json", codes)
    # the judge's port is the system's choice, and run ids depend on it
    for path in (folder / "root" / "results" / "open_ended_scores").rglob("provenance.json"):
        runs = json.dumps(read_folder_provenance(path.parent), sort_keys=True)
        path.write_text(runs.replace(server.url, SERVER))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
