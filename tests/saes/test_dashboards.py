"""Dashboards: the values are the SAE's, hostile text is escaped, and a browser shows them without network or script."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llama_wrapper import LlamaWrapper
from saes import latent_dashboards
from tests.models import final_norm
from utils.paths import DataPaths
from utils.saes.dictionary import SAE
from utils.saes.directions import encode_all, prompt_activations
from utils.saes.latents import SideBySide, choose_latents, view_latents
from utils.saes.prompts import PromptSource

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HOSTILE = '<script>alert(1)</script> & "quoted" </div> \u202e\x07'
Dashboard = Callable[..., int]


@pytest.fixture
def hostile_file(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.jsonl"
    rows = [{"user": f"the answer {HOSTILE} {n}", "assistant": f"not {HOSTILE} to you {n}"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sae_folder(train: Callable[..., int], hostile_file: Path, tmp_path: Path) -> Path:
    assert train("--data", hostile_file) == 0
    return tmp_path / "saes_trained" / "tiny-chat_hostile"


@pytest.fixture
def dashboard(sae_folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> Dashboard:
    def run(*argv: object) -> int:
        command = ["--root", tmp_path, "--model", tiny_checkpoint, "--saes", sae_folder, "--tokens", 300]
        return latent_dashboards.main([str(word) for word in [*command, "--n_prompts", 6, *argv]])

    return run


def numbers(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / "analysis" / "sae" / "dashboard_tiny-chat_hostile.json").read_text())["latents"]


def page(root: Path) -> Path:
    return root / "analysis" / "sae" / "dashboard_tiny-chat_hostile.html"


def test_every_number_is_what_the_sae_gives(
    dashboard: Dashboard, sae_folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    assert dashboard("--latents", 3, 7) == 0
    sae, model = SAE.load(sae_folder), LlamaWrapper.load(tiny_checkpoint)
    [rows] = (tmp_path / "saes_trained" / "_activations").rglob("*.safetensors")
    x = load_file(rows)["activations"][:300].float()
    f = sae.encode(x)
    prompts = PromptSource(DataPaths(tmp_path)).load("train", 6)
    at_end = [
        prompt_activations(model, encode_all(model, side), [1])[:, 0, 0] for side in (prompts.harmful, prompts.harmless)
    ]
    direction = (at_end[0] - at_end[1]).mean(dim=0)
    head = model.model.get_output_embeddings().weight.detach()
    for found in numbers(tmp_path):
        latent = found["index"]
        fired = f[:, latent] > 0
        assert found["frac_nonzero"] == pytest.approx(float(fired.float().mean()))
        assert sum(found["freq_hist_data_bar_heights"]) == int(fired.sum())
        assert found["max_act"] == pytest.approx(float(f[:, latent].max()))
        cosine = torch.cosine_similarity(sae.W_dec[latent], direction, dim=0)
        assert found["cosine_with_direction"] == pytest.approx(float(cosine), abs=1e-5)
        means = [float(sae.encode(x)[:, latent].mean()) for x in at_end]
        assert [found["mean_on_harmful"], found["mean_on_harmless"]] == pytest.approx(means, abs=1e-5)
        direct = head @ (sae.W_dec[latent] * final_norm(model.model).weight.detach())
        best = direct.topk(10).indices.tolist()
        decoded = [model.tokenizer.decode([token]) for token in best]
        assert [text if text in decoded else "\ufffd" for text in found["pos_str"]] == decoded  # parts of characters
        for example in found["examples"]:
            at = example["position"] - example["window_start"]
            of_sae = float(f[example["sequence"] * 15 + example["position"] - 1, latent])
            assert example["values"][at] == pytest.approx(of_sae)


def test_examples_are_the_strongest_with_text_of_their_own_and_windows_around_them() -> None:
    """A dictionary that reads the first coordinate: the text says which token is how strong."""
    eye = torch.eye(2)
    about = {"architecture": "standard", "k": None, "layer": 0, "model": "m", "source": "s", "name": "n"}
    sae = SAE(eye, torch.zeros(2), eye.clone(), torch.zeros(2), **about)
    rows = torch.zeros(2, 49, 2)  # two sequences of 50 tokens, the first left out
    rows[0, 29, 0], rows[1, 4, 0] = 5.0, 9.0
    token_ids = torch.arange(100).view(2, 50)
    [view] = view_latents(sae, rows.flatten(0, 1), token_ids, [0])
    strongest, second = view.top
    assert (view.largest, strongest.peak, second.peak) == (9.0, 9.0, 5.0)
    assert (strongest.sequence, strongest.position, second.position) == (1, 5, 30)
    assert strongest.token_ids == tuple(range(50, 50 + 5 + 13))
    assert second.token_ids == tuple(range(10, 43))
    assert np.isnan(strongest.activations[0])
    assert strongest.activations[5] == 9.0
    assert view.neighbours == ((1, 0.0),)
    again = torch.cat([token_ids[:1], token_ids[:1]])  # the same text twice is shown once
    rows[1] = rows[0]
    [view] = view_latents(sae, rows.flatten(0, 1), again, [0])
    assert len(view.top) == 1


def test_latents_are_taken_in_turn_from_the_three_orders() -> None:
    beside = SideBySide(
        cosine=np.array([0.1, 0.9, 0.2, 0.3]),
        on_harmful=np.array([0.0, 0.0, 0.0, 5.0]),
        on_harmless=np.array([9.0, 0.0, 1.0, 0.0]),
        density=np.array([0.1, 0.2, 0.9, 0.3]),
    )
    assert beside.orders() == {"cosine": [1, 3, 2, 0], "delta": [0, 3, 2, 1], "density": [2, 3, 1, 0]}
    assert choose_latents(beside, 3) == [1, 0, 2]
    assert choose_latents(beside, 99) == [1, 0, 2, 3]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src"):
                self.links.add(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_hostile_text_and_loads_nothing(dashboard: Dashboard, tmp_path: Path) -> None:
    assert dashboard("--top", 6) == 0
    content = page(tmp_path).read_text()
    tags = Tags()
    tags.feed(content)
    assert "script" not in tags.names
    assert "&lt;" in content
    assert "\u202e" not in content
    assert "\x07" not in content
    assert "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"" in content
    assert tags.links
    assert all(link.removeprefix("#") in tags.ids and link.startswith("#") for link in tags.links)
    assert "<|im_start|>" in tags.text
    assert len(re.findall(r"<h2 id=", content)) == 6


def test_a_second_run_loads_no_model_and_other_latents_are_not_taken_for_these(
    dashboard: Dashboard, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loads.clear()
    assert dashboard("--top", 2) == 0
    assert dashboard("--top", 2) == 0
    assert len(loads) == 1
    assert dashboard("--top", 3) == 2
    assert "was made with another top; --overwrite makes it again" in capsys.readouterr().err


def test_a_latent_that_is_none_and_another_models_sae_are_refused(
    dashboard: Dashboard, sae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard("--latents", 48) == 2
    assert "--latents 48: SAE tiny-chat_hostile has latents 0 to 47" in capsys.readouterr().err
    config = sae_folder / "cfg.json"
    config.write_text(config.read_text().replace('"model_name": "tiny-chat"', '"model_name": "other"'))
    assert dashboard("--top", 2) == 2
    assert "was trained on other, not on tiny-chat" in capsys.readouterr().err
    assert dashboard("--top", 2, "--other_model") == 0


@pytest.mark.skipif(not CHROMIUM, reason="no chromium or chrome here")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_is_wider_than_the_window(dashboard: Dashboard, tmp_path: Path, width: int) -> None:
    assert dashboard("--top", 4) == 0
    shown = tmp_path / "framed.html"
    # a frame of that width, since the window itself does not get so narrow; the frame tells its own measures
    content = page(tmp_path).read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    probe = "<script>addEventListener('load',()=>{document.title='W'+document.documentElement.scrollWidth})</script>"
    (tmp_path / "inner.html").write_text(content.replace("</body>", probe + "</body>"))
    shown.write_text(
        f"<iframe src=inner.html style='width:{width}px;height:800px;border:0' onload=\"setTimeout(()=>document.body."
        "append('W'+this.contentDocument.documentElement.scrollWidth),50)\"></iframe>"
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom", shown.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    [found] = re.findall(r"W(\d+)", dom)
    assert int(found) <= width
