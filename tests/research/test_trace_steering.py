"""research/trace_steering.py on a tiny model: what it writes is what plain passes give; reruns; what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_wrapper import LlamaWrapper
from research import trace_steering
from tests.models import D_MODEL, N_LAYERS, random_vector
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot, write_vector
from utils.files.tables import read_table
from utils.inside.unembedding import Unembedding
from utils.model.downstream import changes
from utils.model.side_effects import neutral_answers
from utils.model.steering import Steering
from utils.paths import REPOSITORY, DataPaths
from utils.research.trace_result import _spreads
from utils.saes.dictionary import SAE

Trace = Callable[..., int]
BEHAVIORS = ("sycophancy", "refusal")
QUESTIONS = ("What is the sea?", "Do you think that owls are wise?", "Is that the answer?")
M = 1.5


@pytest.fixture(autouse=True)
def _figures_are_rendered_once(request: pytest.FixtureRequest) -> None:
    if "latent" not in request.node.name:
        request.getfixturevalue("blank_figures")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for place, behavior in enumerate(BEHAVIORS):
        for layer in range(N_LAYERS):
            write_vector(root, behavior, layer, random_vector(10 * place + layer))
    put_json(root / "datasets" / "neutral" / "prompts.json", [{"question": question} for question in QUESTIONS])
    return root


@pytest.fixture
def trace(root: Path, tiny_checkpoint: Path) -> Trace:
    def run(*argv: object) -> int:
        shared = ["--root", root, "--model", tiny_checkpoint, "--behaviors", "refusal", "--layers", 1, "--n_random", 2]
        return trace_steering.main([str(word) for word in [*shared, "--multiplier", M, *argv]])

    return run


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LlamaWrapper:
    return LlamaWrapper.load(str(tiny_checkpoint), "cpu")


def result(root: Path, layer: int = 1) -> Any:
    path = DataPaths(root).research("refusal", f"trace_layer={layer}_{TINY_LABEL}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def cosines(change: Tensor, vector: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(change.double(), vector.double(), dim=-1)


def sae_folder(folder: Path, layer: int = 2, model_label: str = TINY_LABEL, width: int = D_MODEL) -> Path:
    """Latents that read one entry of the residual stream each, from either side."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    about: Any = {"architecture": "standard", "k": None, "layer": layer, "model": model_label, "source": "s"}
    sae = SAE(both.T.contiguous(), torch.zeros(2 * width), both, torch.zeros(width), **about, name=folder.name)
    sae.save(folder)
    return folder


def test_every_number_is_what_one_plain_pass_a_steering_gives(trace: Trace, root: Path, model: LlamaWrapper) -> None:
    assert trace() == 0
    found = result(root)["results"]
    vector = random_vector(11)
    texts = neutral_answers(model, [model.chat_format.encode(question) for question in QUESTIONS])
    assert found["layers"] == [1, 2, 3] and found["n_texts"] == 3
    assert found["n_tokens"] == sum(text.n_answer for text in texts)
    steerings = [Steering(1, sign * M, vector) for sign in (1, -1)]
    per_text: dict[str, list[list[float]]] = {"relative_size": [], "cosine_with_vector": [], "sycophancy": []}
    odd = []
    for text in texts:
        plus, minus = changes(model, text, steerings, plainly=True).double()
        base = model.capture(text)[:, text.steer_start : -1].double()
        per_text["relative_size"].append((plus.norm(dim=-1) / base.norm(dim=-1)).mean(dim=1)[1:].tolist())
        per_text["cosine_with_vector"].append(cosines(plus[1:], vector).mean(dim=1).tolist())
        own = [random_vector(layer) for layer in (1, 2, 3)]
        per_text["sycophancy"].append([float(cosines(plus[layer], own[layer - 1]).mean()) for layer in (1, 2, 3)])
        odd_part, even_part = (plus - minus).mean(dim=1) / 2, (plus + minus).mean(dim=1) / 2
        squares = [part.square().sum(dim=-1)[1:] for part in (odd_part, even_part)]
        odd.append((squares[0] / (squares[0] + squares[1])).tolist())
    for name, numbers in (
        ("relative_size", found["relative_size"]["plus"]),
        ("cosine_with_vector", found["cosine_with_vector"]["plus"]),
        ("sycophancy", found["cosine_with_behaviors"]["sycophancy"]["plus"]),
    ):
        expected = torch.tensor(per_text[name]).mean(dim=0).tolist()
        assert [one["value"] for one in numbers] == pytest.approx(expected, rel=2e-3, abs=2e-4), name
    assert [one["value"] for one in found["odd_share"]["vector"]] == pytest.approx(
        torch.tensor(odd).mean(dim=0).tolist(), abs=2e-4
    )
    assert found["cosine_with_vector"]["plus"][0]["value"] == pytest.approx(1.0, abs=1e-6)
    assert found["checks"]["largest_error_at_layer"] < 1e-4


def test_the_logits_that_move_are_those_of_the_model_itself(trace: Trace, root: Path, model: LlamaWrapper) -> None:
    assert trace() == 0
    texts = neutral_answers(model, [model.chat_format.encode(question) for question in QUESTIONS])
    unembedding = Unembedding(model)
    means, divergences = [], []
    for text in texts:
        steered, base = (
            model.capture(text, one)[-1, text.steer_start : -1] for one in (Steering(1, M, random_vector(11)), None)
        )
        after, before = (unembedding.logits(one)[:, : unembedding.n_tokens].double() for one in (steered, base))
        means.append((after - before).mean(dim=0))
        p = before.log_softmax(-1)
        divergences.append(float((p.exp() * (p - after.log_softmax(-1))).sum(-1).mean()))
    change = torch.stack(means).mean(dim=0)
    best = (change - change.mean()).topk(10).values.tolist()
    found = result(root)["results"]
    assert [value for _, value in found["logits"]["raised"]] == pytest.approx(best, abs=5e-3)
    assert found["kl"]["plus"]["value"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-2)
    rows = read_table(DataPaths(root).research("refusal", f"trace_layer=1_{TINY_LABEL}_logits.txt"))
    assert {row["vector"] for row in rows} == {"vector", "random"}


def test_a_latent_that_the_vector_is_made_of_is_the_one_that_changes(
    trace: Trace, root: Path, tmp_path: Path, model: LlamaWrapper
) -> None:
    planted = torch.zeros(D_MODEL)
    planted[7], planted[12] = 40.0, -25.0
    write_vector(root, "refusal", 2, planted)
    assert trace("--layers", 2, "--saes", sae_folder(tmp_path / "entries")) == 0
    [found] = result(root, 2)["results"]["latents"]
    first, second = found["latents"][:2]
    assert {first["latent"], second["latent"]} <= {7, D_MODEL + 7, 12, D_MODEL + 12}
    texts = neutral_answers(model, [model.chat_format.encode(question) for question in QUESTIONS])
    base = torch.cat([model.capture(text)[2, text.steer_start : -1] for text in texts])
    by_latent = {one["latent"]: one for one in found["latents"]}
    assert by_latent[7]["change"] == pytest.approx(
        float(((base[:, 7] + M * 40).relu() - base[:, 7].relu()).mean()), rel=1e-4
    )
    assert by_latent[7]["density"] == pytest.approx(float((base[:, 7] > 0).double().mean()))
    assert by_latent[7]["density_steered"] == 1.0 and "[[" in by_latent[7]["examples"][0]
    assert first["change"] > 2 * first["random"]
    assert DataPaths(root).research("refusal", f"trace_layer=2_{TINY_LABEL}_latents_entries.png").exists()


def test_layers_of_a_behavior_share_their_passes_and_a_second_run_does_nothing(
    trace: Trace, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace("--layers", 2) == 0
    assert trace("--layers", 1, 2) == 0
    assert "traced 1 vectors, skipped 1" in capsys.readouterr().err
    before = snapshot(root)
    monkeypatch.setattr(LlamaWrapper, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert trace("--layers", 1, 2) == 0
    assert snapshot(root) == before and "traced 0 vectors, skipped 2" in capsys.readouterr().err


def test_together_and_alone_a_layer_gives_the_same_numbers(trace: Trace, root: Path) -> None:
    assert trace("--layers", 1, 3) == 0
    together = result(root)["results"]["relative_size"]["plus"]
    assert trace("--overwrite") == 0
    alone = result(root)["results"]["relative_size"]["plus"]
    assert [one["value"] for one in together] == pytest.approx([one["value"] for one in alone], rel=1e-4)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--layers", "9"], f"--layers 9: {TINY_LABEL} has layers 0 to 3"),
        (["--behaviors", "hallucination"], "run: ./generate_vectors.py --behaviors hallucination --layers 1"),
        (["--saes", "nowhere"], "--saes nowhere: no SAE is there"),
        (["--multiplier", "0"], "argument --multiplier: 0 is not more than 0"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    trace: Trace,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    reason: str,
    loading_is_forbidden: None,
) -> None:
    before = snapshot(root)
    assert trace(*argv) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert reason in line and snapshot(root) == before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"layer": 0}, "reads layer 0, below the steered layer 1"),
        ({"model_label": "other"}, "was trained on other, not on tiny-chat"),
        ({"width": 16}, "has width 16, but the residual stream of tiny-chat has 32"),
        ({"layer": 8}, "reads layer 8, but tiny-chat has layers 0 to 3"),
    ],
)
def test_an_sae_that_does_not_fit_is_one_line(
    trace: Trace, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], reason: str
) -> None:
    folder = sae_folder(tmp_path / "sae", **changed)
    before = snapshot(root)
    assert trace("--saes", folder) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert reason in line and snapshot(root) == before


def test_a_trace_of_other_settings_is_neither_kept_nor_replaced_unasked(
    trace: Trace, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace() == 0
    before = snapshot(root)
    assert trace("--n_texts", 2) == 2
    assert "was made with another n_texts; --overwrite makes it again" in capsys.readouterr().err
    assert snapshot(root) == before


def test_the_limits_of_the_control_hold_another_random_vector_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.3, 0.1, (4000, 6))  # 4000 times five random vectors, and a sixth
    [*spreads] = _spreads(drawn[:, :5].T[..., None])
    inside = [one.low <= sixth <= one.high for one, sixth in zip(spreads, drawn[:, 5], strict=True)]
    assert 0.94 < np.mean(inside) < 0.96


@pytest.mark.slow
@pytest.mark.skipif("CAA_KILLS" not in os.environ, reason="part of the campaign: CAA_KILLS=20 runs it")
def test_two_processes_find_what_one_finds_also_where_one_of_them_has_no_text(
    trace: Trace, root: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    sae = sae_folder(tmp_path / "sae")
    assert trace("--saes", sae, "--n_texts", 1) == 0
    alone = result(root)
    flags = ["--root", root, "--model", tiny_checkpoint, "--behaviors", "refusal", "--layers", 1, "--n_random", 2]
    flags += ["--multiplier", M, "--saes", sae, "--device", "cpu", "--n_texts", 1, "--overwrite"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [str(word) for word in [*launcher, REPOSITORY / "research" / "trace_steering.py", *flags]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr.count("traced 1 vectors") == 1, done.stderr
    together = result(root)
    assert together["settings"] == alone["settings"]
    for name in ("relative_size", "cosine_with_vector"):
        one, two = ([each["value"] for each in found["results"][name]["plus"]] for found in (alone, together))
        assert one == pytest.approx(two, rel=1e-6)
    one, two = (found["results"]["latents"][0]["latents"][0] for found in (alone, together))
    assert one["latent"] == two["latent"] and one["change"] == pytest.approx(two["change"], rel=1e-6)
