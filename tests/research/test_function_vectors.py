"""Head outputs and function vectors on tiny random models, against hooks of these tests' own."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import prompting_with_steering
from llama_wrapper import LlamaWrapper, Steering
from research import function_vectors as script
from tests.models import D_MODEL, N_LAYERS, build_wrapper, count_hooks, decoder_blocks, random_vector
from tests.roots import put_json, write_small_datasets
from utils.errors import UserError
from utils.paths import REPOSITORY
from utils.research.function_measures import CONDITIONS, VECTORS, best_of_other_half
from utils.research.function_vectors import (
    EncodedPrompt,
    Means,
    all_places,
    encode_prompt,
    function_vector,
    indirect_effects,
    mean_over,
    random_heads_vector,
    top_heads,
)
from utils.research.head_rows import NO_EDIT, Heads, LastTokenEdit
from utils.research.task_lists import Task, build_prompt, draw_examples, load_task, sample_pairs

IDS = (1, 7, 30, 12, 55, 9, 41)
ADDS_HEADS_AS_THEY_ARE = ("llama", "qwen2", "gpt2", "gpt_neox")


@pytest.fixture(scope="module")
def model() -> LlamaWrapper:
    return build_wrapper()


def random_means(model: LlamaWrapper, seed: int = 0) -> Means:
    heads = Heads(model.runtime)
    shape = heads.read(IDS).heads.shape
    generator = torch.Generator().manual_seed(seed)
    return Means(torch.randn(shape, generator=generator), torch.randn(N_LAYERS, D_MODEL, generator=generator))


@pytest.mark.parametrize("architecture", ADDS_HEADS_AS_THEY_ARE)
def test_every_edit_behind_one_prompt_gives_what_a_whole_pass_gives(architecture: str) -> None:
    model = build_wrapper(architecture)
    heads, means = Heads(model.runtime), random_means(model)
    edits = [NO_EDIT, *(LastTokenEdit({place: means.heads[place]}) for place in all_places(means))]
    edits += [LastTokenEdit({}, Steering(layer, 2.0, random_vector(layer))) for layer in range(N_LAYERS)]
    packed, plain = heads.logits(IDS, edits), heads.logits(IDS, edits, plainly=True)
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)
    assert model.runtime.guard.allows("last token", pytest.fail, pytest.fail)  # remembered: it was the packed pass
    assert float((packed[1:] - packed[0]).abs().amax(dim=1).min()) > 1e-3  # every edit does something
    assert count_hooks(model.model) == 0


def test_an_edit_puts_the_head_s_output_in_at_the_last_token_only(model: LlamaWrapper) -> None:
    value, layer, head = torch.full((8,), 3.0), 2, 1

    def put(module: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        changed = args[0].clone()
        changed[0, -1, head * 8 : (head + 1) * 8] = value
        return (changed,)

    handle = decoder_blocks(model.model)[layer].self_attn.o_proj.register_forward_pre_hook(put)
    try:
        with torch.no_grad():
            expected = model.model(input_ids=torch.tensor([IDS])).logits[0, -1]
    finally:
        handle.remove()
    found = Heads(model.runtime).logits(IDS, [LastTokenEdit({(layer, head): value})])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_all_heads_of_a_layer_together_add_what_its_attention_adds(architecture: str) -> None:
    model = build_wrapper(architecture)
    heads = Heads(model.runtime)
    outputs: dict[int, Tensor] = {}
    handles = [
        projection.register_forward_hook(
            lambda _m, _a, out, layer=layer: outputs.__setitem__(layer, out[0, -1].clone())
        )
        for layer, projection in enumerate(heads.projections)
    ]
    found = heads.read(IDS)
    for handle in handles:
        handle.remove()
    for layer, projection in enumerate(heads.projections):
        total = heads.project(layer, dict(enumerate(found.heads[layer])))
        bias = projection.bias if getattr(projection, "bias", None) is not None else 0.0
        torch.testing.assert_close(total, (outputs[layer] - bias).detach(), atol=1e-5, rtol=1e-5)


def test_the_vector_of_all_heads_is_the_sum_over_layers_of_what_attention_adds(model: LlamaWrapper) -> None:
    heads = Heads(model.runtime)
    means = mean_over(heads, [EncodedPrompt(IDS, 3), EncodedPrompt(IDS[::-1], 3)])
    both = [heads.read(IDS).heads, heads.read(IDS[::-1]).heads]
    expected = torch.zeros(D_MODEL)
    for layer, projection in enumerate(heads.projections):
        with torch.no_grad():
            expected += sum(projection(one[layer].flatten()) for one in both) / 2
    torch.testing.assert_close(function_vector(heads, means, all_places(means)), expected, atol=1e-5, rtol=1e-5)


def test_the_last_token_s_residual_stream_is_the_captured_one(model: LlamaWrapper) -> None:
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([IDS]), output_hidden_states=True).hidden_states
    found = Heads(model.runtime).read(IDS).outputs
    torch.testing.assert_close(found[:-1], torch.stack([h[0, -1] for h in hidden[1:-1]]), atol=1e-5, rtol=1e-5)


def test_a_planted_head_is_found_by_its_effect(model: LlamaWrapper) -> None:
    """One head's mean points at the answer's unembedding; the others' means are what they put out anyway."""
    heads = Heads(model.runtime)
    answer, layer, head = 77, N_LAYERS - 1, 2
    found = heads.read(IDS).heads.clone()
    weight = heads.projections[layer].weight[:, head * 8 : (head + 1) * 8]  # [d_model, head_dim]
    towards = model.model.get_output_embeddings().weight[answer].detach() @ weight.detach()
    found[layer, head] = 30 * towards
    effects = indirect_effects(heads, [EncodedPrompt(IDS, answer)], Means(found, torch.zeros(N_LAYERS, D_MODEL)))
    assert top_heads(effects, 1) == [(layer, head)]
    others = effects[0].flatten()[torch.arange(effects[0].numel()) != layer * 4 + head]
    assert float(others.abs().max()) < 1e-6 < 0.01 < float(effects[0, layer, head])


def test_the_control_is_of_other_heads_and_of_the_same_norm(model: LlamaWrapper) -> None:
    heads, means = Heads(model.runtime), random_means(model)
    chosen = all_places(means)[:4]
    control = random_heads_vector(heads, means, 4, 7.0, torch.Generator().manual_seed(0), chosen)
    assert float(control.norm()) == pytest.approx(7.0, rel=1e-5)
    every_other = random_heads_vector(heads, means, 12, 1.0, torch.Generator().manual_seed(0), chosen)
    expected = function_vector(heads, means, all_places(means)[4:])
    torch.testing.assert_close(every_other, expected / expected.norm(), atol=1e-5, rtol=1e-5)


def test_models_with_a_norm_behind_attention_are_refused() -> None:
    with pytest.raises(UserError, match="does not add its heads' outputs as they are"):
        Heads(build_wrapper("gemma2").runtime)


# --- tasks and prompts -----------------------------------------------------------------------------

TASK = Task("opposites", "opposites", tuple((f"in{i}", f"out{i}") for i in range(12)), (("in12", "out12"),))


def test_a_prompt_shows_its_examples_and_asks_for_the_next(model: LlamaWrapper) -> None:
    prompt = build_prompt(TASK, [("hot", "cold")], ("big", "small"))
    assert (prompt.text, prompt.answer) == ("Q: hot\nA: cold\n\nQ: big\nA:", " small")
    encoded = encode_prompt(model, prompt)
    assert model.tokenizer.decode([*encoded.ids, encoded.answer_id]).endswith("A: ")  # its words are single bytes


def test_shuffled_examples_keep_inputs_and_outputs_but_not_their_pairs() -> None:
    asked = TASK.training[3]
    right = draw_examples(TASK, asked, 10, random.Random(0), shuffled=False)
    shuffled = draw_examples(TASK, asked, 10, random.Random(0), shuffled=True)
    assert [given for given, _ in right] == [given for given, _ in shuffled]
    assert sorted(output for _, output in right) == sorted(output for _, output in shuffled)
    assert sum(pair in right for pair in shuffled) < 5
    assert asked not in right
    assert all(pair in TASK.training for pair in right)


def test_every_pair_is_asked_once_before_any_comes_again() -> None:
    drawn = sample_pairs(TASK.training, 18, random.Random(1))
    assert len(drawn) == 18
    assert set(drawn[:12]) == set(TASK.training)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "datasets/concepts/tasks").glob("*.json")), ids=lambda p: p.stem)
def test_bundled_tasks_have_60_pairs_and_their_test_pairs_are_not_trained_on(path: Path) -> None:
    task = load_task(path, seed=0)
    assert len(task.training) + len(task.test) >= 60
    assert not {given for given, _ in task.training} & {given for given, _ in task.test}


def test_a_broken_task_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"label": "x", "pairs": [["a", "b"], ["a"]]}')
    with pytest.raises(UserError, match=r"broken\.json, pair 1: expected \[input, output\]"):
        load_task(path, 0)
    path.write_text('{"label": "x", "pairs": [["a", "b"], ["a", "c"]]}')
    with pytest.raises(UserError, match="the input 'a' is there twice"):
        load_task(path, 0)


# --- the script ------------------------------------------------------------------------------------


def test_an_item_counts_at_the_layer_that_is_best_for_the_other_half() -> None:
    values = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])  # layer 0 is right for even items, layer 1 for odd
    np.testing.assert_array_equal(best_of_other_half(values), np.zeros(4))
    everywhere = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(best_of_other_half(everywhere), everywhere[1])


@pytest.fixture
def argv(tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    root = tmp_path / "root"
    write_small_datasets(root, "sycophancy")
    task = put_json(
        tmp_path / "doubling.json", {"label": "doubling", "pairs": [[f"{i}", f"{2 * i}"] for i in range(20)]}
    )
    sizes = [word for name in ("n_shots", "n_prompts", "n_trials", "n_test") for word in (f"--{name}", "2")]
    words = ["--root", root, "--model", tiny_checkpoint, "--tasks", task, "--behaviors", "sycophancy", *sizes]
    return [str(word) for word in [*words, "--layers", 1, 2, "--n_heads", 3, "--behavior_shots", 1]]


def test_the_script_writes_vectors_that_steer_and_goes_on_with_the_next_task(
    argv: list[str], tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_task_only = argv[: argv.index("--behaviors")] + argv[argv.index("--behaviors") + 2 :]
    assert script.main(first_task_only) == 0
    capsys.readouterr()
    assert script.main(argv) == 0
    assert "ran 1 tasks, skipped 1 that are there already" in capsys.readouterr().err
    folder = tmp_path / "root" / "analysis" / "research" / "function_vectors"
    label = tiny_checkpoint.name
    result = json.loads((folder / f"doubling_{label}.json").read_text())
    vector = torch.load(folder / f"doubling_{label}.pt", weights_only=True)
    assert vector.shape == (D_MODEL,)
    assert float(vector.norm()) == pytest.approx(result["norm"], rel=1e-5)
    assert {(a["condition"], a["vector"]) for a in result["accuracy"] if a["layer"] is None} == {
        ("few-shot", "none"),
        *((condition, vector) for condition in CONDITIONS for vector in ("none", *VECTORS)),
    }
    assert len(result["heads"]) == 3
    assert set(result["cosines"]) == {"right - shuffled", "right - none"}
    behavior = json.loads((folder / f"sycophancy_{label}.json").read_text())
    assert {"function vector", VECTORS[2], "random vector"} <= set(behavior["answer_text_effects"])
    figures = {f"{figure}_{name}" for figure in ("layers", "heads") for name in ("doubling", "sycophancy")} | {"tasks"}
    assert {f"{stem}_{label}{s}" for stem in figures for s in (".png", ".pdf", ".txt")} <= {
        p.name for p in folder.iterdir()
    }
    steer = ["--root", str(tmp_path / "root"), "--model", str(tiny_checkpoint), "--behaviors", "sycophancy"]
    steer += ["--layers", "1", "--vector", str(folder / f"doubling_{label}.pt")]
    assert prompting_with_steering.main(steer) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "triple"], "--tasks triple: neither a file nor one of antonyms"),
        (["--tasks", "none"], "nothing to do: name --tasks or --behaviors"),
        (["--layers", "1", "--layer", "2"], "--layer 2 is not among --layers 1"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    words: list[str], message: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--model", str(tiny_checkpoint), *words]) == 2
    assert message in capsys.readouterr().err
