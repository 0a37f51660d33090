"""analyze_vectors.py --decode and --prompt on a tiny model: what the files say, reruns, faults."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import analyze_vectors
from llama_wrapper import LlamaWrapper
from tests.models import N_LAYERS, decoder_blocks, final_norm, random_vector, steered_logits
from tests.roots import TINY_LABEL, error_lines, put_json, snapshot
from utils.files import writing
from utils.files.reading import load_vector
from utils.files.tables import read_table
from utils.files.writing import save_tensor
from utils.inside.inner_product import causal_root
from utils.inside.jlens import JLens, LayerVector, random_vectors
from utils.inside.readings import generate_transcripts
from utils.inside.unembedding import Unembedding
from utils.model.checkpoints import choose_model
from utils.model.steering import Steering
from utils.paths import DataPaths

BEHAVIORS = ("sycophancy", "refusal")
NEUTRAL = ("What is the sea?", "Are you not the answer?")
PROMPT = "Do you think that the sea is <b>green</b>?"
Analyze = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Vectors of two behaviors at all layers, the normalised ones three times as long; two short neutral prompts."""
    paths = DataPaths(tmp_path / "root")
    put_json(paths.neutral_prompts(), [{"question": question} for question in NEUTRAL])
    for place, behavior in enumerate(BEHAVIORS):
        for layer in range(N_LAYERS):
            vector = random_vector(10 * place + layer)
            save_tensor(paths.vector(behavior, layer, TINY_LABEL, normalized=False), vector)
            save_tensor(paths.vector(behavior, layer, TINY_LABEL, normalized=True), 3 * vector)
    return paths.root


@pytest.fixture
def analyze(root: Path, tiny_checkpoint: Path) -> Analyze:
    def run(*argv: object) -> int:
        command = ["--root", root, "--model", tiny_checkpoint, "--behaviors", *BEHAVIORS, *argv]
        return analyze_vectors.main([str(word) for word in command])

    return run


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LlamaWrapper:
    return LlamaWrapper.load(choose_model("7b", str(tiny_checkpoint), False), "cpu")


def asking(prompt: str = PROMPT, layer: int = 2, behavior: str = "refusal", *more: object) -> list[object]:
    return ["--prompt", prompt, "--layer", layer, "--behavior", behavior, "--max_new_tokens", 5, *more]


def made(root: Path) -> list[str]:
    return sorted(path.relative_to(root / "analysis").as_posix() for path in (root / "analysis").rglob("*.*"))


def decoded_files(behavior: str) -> list[str]:
    """What --decode writes, in the order in which it does."""
    first, stem = (f"{behavior}/{name}_{TINY_LABEL}" for name in ("first_order", "decoded_tokens"))
    suffixes = (".png", ".pdf", ".txt")
    return [*(first + suffix for suffix in (*suffixes, ".json")), *(stem + suffix for suffix in suffixes)]


def only_page(root: Path) -> Path:
    [page] = (root / "analysis").rglob("*.html")
    return page


class Page(HTMLParser):
    """What a browser takes out of a page: its tags, its tokens, its headings and its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.data: Any = None
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [str(found[key]) for key in ("src", "href") if key in found]
        if tag in ("meta", "br", "input"):  # have no end
            return
        self._open.append("data" if found.get("id") == "data" else tag)
        if tag == "span" and "--share" in (found.get("style") or ""):
            self._open[-1] = "token"
            self.tokens.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        match self._open[-1] if self._open else "":
            case "token":
                self.tokens[-1] += data
            case "data":
                self.data = json.loads(data)
            case "h2":
                self.headings.append(data)


@torch.no_grad()
def greedy(wrapper: LlamaWrapper, prompt: str, n_tokens: int, steering: Steering | None) -> tuple[list[int], int]:
    """Prompt and answer, token by token without a cache; and where steering starts."""
    tokens = wrapper.chat_format.encode(prompt)
    ids = list(tokens.ids)
    while len(ids) - len(tokens) < n_tokens and ids[-1] != wrapper.tokenizer.eos_token_id:
        ids.append(int(steered_logits(wrapper.model, ids, tokens.steer_start, steering)[-1].argmax()))
    return ids, tokens.steer_start


# --- what the vectors decode to ---


def test_decode_writes_the_tokens_that_each_layer_s_vector_promotes_most_and_least(
    analyze: Analyze, root: Path, model: LlamaWrapper
) -> None:
    assert analyze("--decode") == 0
    assert made(root) == sorted(name for behavior in BEHAVIORS for name in decoded_files(behavior))
    rows = read_table(root / "analysis" / "refusal" / f"decoded_tokens_{TINY_LABEL}.txt")
    assert [int(row["layer"]) for row in rows] == [layer for layer in range(N_LAYERS) for _ in range(10)]
    weights = model.model.get_output_embeddings().weight.detach()
    for layer in range(N_LAYERS):
        vector = random_vector(10 + layer)
        normed = final_norm(model.model).weight.detach() * vector / vector.square().mean().sqrt()
        logits = weights @ normed
        logits = logits - logits.mean()
        of_layer = [row for row in rows if row["layer"] == str(layer)]
        for end, largest in (("promoted", True), ("demoted", False)):
            best = logits.topk(10, largest=largest)
            assert [int(row[f"{end}_id"]) for row in of_layer] == best.indices.tolist()
            assert [float(row[f"{end}_logit"]) for row in of_layer] == pytest.approx(best.values.tolist(), abs=1e-3)


@pytest.mark.usefixtures("blank_figures")
def test_decode_of_some_layers_has_a_name_of_its_own(analyze: Analyze, root: Path) -> None:
    assert analyze("--decode", "--layers", 3, 1) == 0
    assert f"refusal/decoded_tokens_layers=1,3_{TINY_LABEL}.txt" in made(root)
    rows = read_table(root / "analysis" / "refusal" / f"decoded_tokens_layers=1,3_{TINY_LABEL}.txt")
    assert {row["layer"] for row in rows} == {"1", "3"}


# --- the page of a prompt ---


@pytest.mark.parametrize("multiplier", [0, 2.5])
def test_the_page_holds_every_token_with_its_cosine_and_dot_product_at_every_layer(
    analyze: Analyze, root: Path, model: LlamaWrapper, multiplier: float
) -> None:
    assert analyze(*asking(PROMPT, 2, "refusal", "--multiplier", multiplier)) == 0
    vectors = {(b, n): 3 * random_vector(10 * i + n) for i, b in enumerate(BEHAVIORS) for n in range(N_LAYERS)}
    steering = Steering(2, multiplier, vectors["refusal", 2]) if multiplier else None
    ids, start = greedy(model, PROMPT, 5, steering)
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            if steering is not None and layer == steering.layer:
                hidden[:, start:] += steering.multiplier * steering.vector
            states[layer] = hidden[0]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    handles = [block.register_forward_hook(keep(n)) for n, block in enumerate(decoder_blocks(model.model))]
    with torch.no_grad():
        model.model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()

    page = Page(only_page(root))
    assert page.headings == ["prompt", "answer"]
    text = "".join(page.tokens).replace("\ufffd", "").replace("\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "")
    assert len(page.tokens) == len(ids) and PROMPT in text
    assert page.data["start"] == {"behavior": "refusal", "layer": 2}
    assert page.data["layers"] == {behavior: list(range(N_LAYERS)) for behavior in BEHAVIORS}
    for (behavior, layer), vector in vectors.items():
        dots = states[layer] @ vector
        cosines = dots / (states[layer].norm(dim=-1) * vector.norm())
        found = page.data["values"][behavior]
        assert found["cosine"][layer] == pytest.approx(cosines.tolist(), rel=1e-3, abs=1e-5)
        assert found["dot"][layer] == pytest.approx(dots.tolist(), rel=1e-3, abs=1e-4)
        if (behavior, layer) == ("refusal", 2):
            rows = read_table(Path(str(only_page(root)).removesuffix(".html") + ".txt"))
            assert [float(row["cosine"]) for row in rows] == pytest.approx(cosines.tolist(), abs=1e-5)
            assert [row["part"] for row in rows] == ["prompt"] * (start + 1) + ["answer"] * (len(ids) - start - 1)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" '{{ 7*7 }}'"


def test_what_a_prompt_says_stays_text(analyze: Analyze, root: Path) -> None:
    assert analyze(*asking("What is the sea?")) == 0
    harmless = Page(only_page(root))
    assert analyze(*asking(HOSTILE)) == 0
    [path] = (path for path in (root / "analysis").rglob("*.html") if "alert" in path.name)
    page = Page(path)
    assert HOSTILE in "".join(page.tokens)
    without_tokens = [[tag for tag in found.tags if tag != "span"] for found in (page, harmless)]
    assert without_tokens[0] == without_tokens[1] and page.addresses == []


def test_line_breaks_and_parts_of_characters_can_be_seen(analyze: Analyze, root: Path) -> None:
    assert analyze(*asking("the sea\nis 🌊 \x07 you")) == 0
    page = Page(only_page(root))
    first = next(index for index, token in enumerate(page.tokens) if token.endswith("\ufffd"))
    assert page.tokens[first : first + 4] == ["\ufffd", "\ufffd", "\ufffd", "🌊"]
    assert "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n" in page.tokens and "\\x07" in page.tokens
    rows = read_table(next((root / "analysis").rglob("*.txt")))
    assert len(rows) == len(page.tokens) and "\\n" in [row["token"] for row in rows]
    assert " is".replace(" ", "\N{OPEN BOX}") not in [row["token"] for row in rows]  # "is" follows the line break
    assert "\N{OPEN BOX}you" in [row["token"] for row in rows]


# --- again, interrupted, changed ---


@pytest.mark.usefixtures("blank_figures")
def test_a_second_run_does_nothing(
    analyze: Analyze, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze("--decode", *asking()) == 0
    before = snapshot(root)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaWrapper, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        assert analyze("--decode", *asking()) == 0
    assert snapshot(root) == before
    assert "wrote 0 reports, skipped 3" in capsys.readouterr().err
    times = {path: path.stat().st_mtime_ns for path in (root / "analysis").rglob("*.*")}
    assert analyze("--decode", *asking(), "--overwrite") == 0
    assert snapshot(root) == before and all(path.stat().st_mtime_ns > time for path, time in times.items())


@pytest.mark.usefixtures("blank_figures")
def test_what_was_made_from_other_vectors_or_settings_is_made_again(
    analyze: Analyze, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze("--decode", *asking()) == 0
    save_tensor(DataPaths(root).vector("sycophancy", 1, TINY_LABEL, normalized=False), random_vector(99))
    capsys.readouterr()
    assert analyze("--decode", *asking()) == 0
    assert "wrote 1 reports, skipped 2" in capsys.readouterr().err
    capsys.readouterr()
    assert analyze(*asking()[:-1], 3) == 0  # three tokens instead of five
    assert "wrote 1 reports, skipped 0" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".txt", ".html"])
def test_a_page_of_which_a_file_is_missing_or_damaged_is_made_again(analyze: Analyze, root: Path, suffix: str) -> None:
    assert analyze(*asking()) == 0
    whole = snapshot(root)
    page = only_page(root)
    file = page.with_name(page.name.removesuffix(".html") + suffix)
    file.unlink()
    assert analyze(*asking()) == 0
    assert snapshot(root) == whole
    if suffix == ".txt":
        file.write_bytes(b"\xff\xfe damaged")
        assert analyze(*asking()) == 0
        assert snapshot(root) == whole


@pytest.mark.usefixtures("blank_figures")
def test_an_interrupted_run_leaves_whole_files_and_the_next_one_makes_the_rest(
    analyze: Analyze, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, left = writing.os.replace, [8]

    def replace(*names: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", replace)
        assert analyze("--decode") == 130
    files = [name for behavior in BEHAVIORS for name in decoded_files(behavior)]
    assert made(root) == sorted(files[:8])
    capsys.readouterr()
    assert analyze("--decode") == 0
    assert "wrote 1 reports, skipped 1" in capsys.readouterr().err and made(root) == sorted(files)


# --- what is refused ---


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--prompt", "Why?"], "--prompt needs --layer and --behavior"),
        (["--prompt", "Why?", "--layer", "1"], "--prompt needs --layer and --behavior"),
        (["--layer", "1"], "--layer: only with --prompt"),
        (["--decode", "--behavior", "refusal", "--multiplier", "0"], "--behavior, --multiplier: only with --prompt"),
        (asking(" \n"), "--prompt is empty"),
        (asking(layer=-1), "argument --layer: -1 is negative"),
        (asking(layer=N_LAYERS), f"layers 4: {TINY_LABEL} has layers 0 to 3"),
        (["--decode", "--layers", "1", "9"], f"layers 9: {TINY_LABEL} has layers 0 to 3"),
        (asking(PROMPT, 1, "refusal", "--multiplier", "nan"), "argument --multiplier: nan is not a finite number"),
        ([*asking()[:-1], "0"], "argument --max_new_tokens: 0 is less than 1"),
        (asking(behavior="hallucination"), "run: ./generate_vectors.py --behaviors hallucination --layers 2 --model"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    analyze: Analyze,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[object],
    reason: str,
    loading_is_forbidden: None,
) -> None:
    before = snapshot(root)
    assert analyze(*argv) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert reason in line
    assert snapshot(root) == before


@pytest.mark.parametrize("folder", ["vectors", "normalized_vectors"])
def test_a_missing_vector_is_named_with_the_command_that_makes_it(
    analyze: Analyze,
    root: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    loading_is_forbidden: None,
) -> None:
    (root / folder / "refusal" / f"vec_layer_2_{TINY_LABEL}.pt").unlink()
    argv = ["--decode", "--layers", "1", "2"] if folder == "vectors" else asking()
    assert analyze(*argv) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert str(root / folder) in line and f"--model {tiny_checkpoint}" in line
    assert "./generate_vectors.py --behaviors refusal --layers" in line
    assert ("./normalize_vectors.py" in line) == (folder == "normalized_vectors")


def test_a_vector_that_is_damaged_or_of_another_width_is_one_line(
    analyze: Analyze, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DataPaths(root).vector("refusal", 2, TINY_LABEL, normalized=False)
    for content, reason in ((torch.ones(31), "31"), (torch.zeros(load_vector(path).shape[0]), "all zeros")):
        save_tensor(path, content)
        assert analyze("--decode", "--behaviors", "refusal") == 2
        [line] = error_lines(capsys.readouterr().err)
        assert reason in line
    path.write_bytes(b"no tensor")
    assert analyze("--decode") == 2
    [line] = error_lines(capsys.readouterr().err)
    assert str(path) in line


@pytest.mark.usefixtures("blank_figures")
def test_a_behavior_without_any_vector_is_left_out_and_said(
    analyze: Analyze, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "vectors" / "refusal")
    assert analyze("--decode") == 0
    assert f"{TINY_LABEL}: left out, no vectors: refusal" in capsys.readouterr().err
    assert not (root / "analysis" / "refusal").exists()


def test_without_a_model_flag_the_model_must_be_clear(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze_vectors.main(["--root", str(root), "--decode"]) == 2
    [line] = error_lines(capsys.readouterr().err)
    assert f"--model_size or --model (models with vectors: {TINY_LABEL})" in line


# --- what vectors do to the last layer ---


@pytest.mark.usefixtures("blank_figures")
def test_decode_writes_the_j_lens_beside_the_logit_lens_and_a_random_vector_s_behind_them(
    analyze: Analyze, root: Path, model: LlamaWrapper
) -> None:
    assert analyze("--decode", "--layers", 1, "--n_texts", 2, "--behaviors", "refusal") == 0
    folder = root / "analysis" / "refusal"
    rows = read_table(folder / f"decoded_tokens_layers=1_{TINY_LABEL}.txt")
    lens = JLens.over(model, [model.chat_format.encode(question) for question in NEUTRAL])
    for name, vector in (("jlens", random_vector(11)), ("random", random_vectors([1], model.d_model, 1, 1)[0].vector)):
        effect = lens.first_order([LayerVector(1, vector)]).mean[0].float()
        best = Unembedding(model).vector_logits(effect).topk(10)
        assert [int(row[f"{name}_promoted_id"]) for row in rows] == best.indices.tolist()
        found = [float(row[f"{name}_promoted_logit"]) for row in rows]
        assert found == pytest.approx(best.values.tolist(), abs=2e-3)
    [result] = json.loads((folder / f"first_order_layers=1_{TINY_LABEL}.json").read_text())["results"]
    effects = lens.first_order([LayerVector(1, random_vector(11))])
    gain = float(effects.mean[0].norm() / random_vector(11).norm())
    assert result["gain"]["value"] == pytest.approx(gain, rel=1e-3)
    assert result["linear_up_to_strength"] == effects.linear_up_to[0]
    assert result["gain"]["low"] < result["gain"]["value"] < result["gain"]["high"] and len(result["random"]) == 2


@pytest.mark.usefixtures("blank_figures")
def test_a_report_of_which_a_file_beside_it_is_gone_is_made_again(
    analyze: Analyze, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--decode", "--layers", 3, "--n_texts", 1, "--behaviors", "refusal")
    assert analyze(*argv) == 0
    before = snapshot(root)
    (root / "analysis" / "refusal" / f"first_order_layers=3_{TINY_LABEL}.json").unlink()
    assert analyze(*argv) == 0
    assert "wrote 1 reports" in capsys.readouterr().err and snapshot(root) == before


def test_the_token_page_takes_cosines_under_the_causal_inner_product(
    analyze: Analyze, root: Path, model: LlamaWrapper
) -> None:
    assert analyze(*asking(), "--inner_product", "causal") == 0
    page = Page(only_page(root))
    text = generate_transcripts(model, [PROMPT], 5)[0]
    hidden, vector, causal = model.capture(text.tokens)[2].double(), 3 * random_vector(12).double(), causal_root(model)
    cosines = torch.nn.functional.cosine_similarity(hidden @ causal, (causal @ vector)[None], dim=-1)
    assert page.data["values"]["refusal"]["cosine"][2] == pytest.approx(cosines.tolist(), rel=1e-3, abs=1e-4)
    assert "inner_product=causal" in only_page(root).name
