"""plot_results.py --report: the page says what the files say, whatever they say, and needs nothing but itself."""

import json
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

from plot_results import main
from tests.roots import TINY_LABEL, error_lines, put_json, write_small_datasets
from utils.errors import UserError
from utils.files.tables import read_table
from utils.model.checkpoints import choose_model
from utils.model.loading import load_local_tokenizer
from utils.paths import DataPaths
from utils.settings import SteeringSettings

HOSTILE = (
    "</script><script>document.title = 'owned'</script><!-- <img src=x onerror=alert(1)>",
    'line\u2028paragraph\u2029 "quoted" \x00\x07 \u202eturned\u202c &amp; {{ 7 * 7 }} \\',
    "x" * 100_000,
    "",
)
MULTIPLIERS = (-1.0, 0.0, 1.0)
SCORES: dict[float, list[float | None]] = {
    -1.0: [1.0, None, 0.0, 2.5],
    0.0: [3.0, 4.0, None, 2.0],
    1.0: [9.0, 8.0, 7.0, 10.0],
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _BROWSERS if (found := shutil.which(name))), "")


def settings(**changes: Any) -> SteeringSettings:
    given = {"layer": 3, "multiplier": 0.0, "behavior": "refusal", "type": "ab", "model": TINY_LABEL, **changes}
    return SteeringSettings(**given)


def ab_values(at: SteeringSettings, n_items: int = 10) -> list[float]:
    """p(matching) of each item: rises with the multiplier, more at layer 4 than at layer 3."""
    starts = np.linspace(-1, 1, n_items)
    return [float(1 / (1 + np.exp(-(start + at.multiplier * (at.layer - 2))))) for start in starts]


def put_ab(root: Path, at: SteeringSettings) -> None:
    records = [
        {
            "question": f"Question {index}?\n\nChoices:\n (A) Yes\n (B) No",
            "answer_matching_behavior": "(B)",
            "answer_not_matching_behavior": "(A)",
            "a_prob": 0.8 * (1 - p),
            "b_prob": 0.8 * p,
        }
        for index, p in enumerate(ab_values(at))
    ]
    put_json(DataPaths(root).result(at), records)


def put_answers(root: Path, at: SteeringSettings, scores: list[float | None] | None) -> None:
    """Hostile answers, scored; None: nobody scored them."""
    records: list[dict[str, Any]] = [
        {"question": f"{index}: {HOSTILE[0] if index == 1 else 'why?'}", "model_output": f"{text}"}
        for index, text in enumerate(HOSTILE)
    ]
    if scores is None:
        put_json(DataPaths(root).result(at), records)
        return
    for record, score in zip(records, scores, strict=True):
        record["score"] = score
        if score is None:
            record["unscored_reason"] = "no number <b>in</b> it"
    put_json(DataPaths(root).scores(at), records)


def open_ended(**changes: Any) -> SteeringSettings:
    return settings(type="open_ended", **changes)


def make_root(root: Path) -> Path:
    for layer in (3, 4):
        for multiplier in MULTIPLIERS:
            put_ab(root, settings(layer=layer, multiplier=multiplier))
    for multiplier, scores in SCORES.items():
        put_answers(root, open_ended(multiplier=multiplier), scores)
    put_answers(root, open_ended(layer=4, multiplier=1.0), SCORES[1.0])
    put_answers(root, open_ended(multiplier=1.0, system_prompt="pos"), SCORES[0.0])
    put_answers(root, open_ended(multiplier=2.0), None)
    return root


@dataclass
class Page(HTMLParser):
    """What a parser finds in a page: tags, texts of scripts and figures."""

    path: Path
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.open = ""
        self.source = self.path.read_bytes().decode("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def answers(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])

    @property
    def tokens(self) -> list[tuple[str, str]]:
        """Role and text of every token below the legend."""
        spans = zip(self.attributes("span"), self.texts["span"], strict=True)
        found = [((one.get("class") or ""), text) for one, text in spans if one.get("title")]
        return [(name.removeprefix("token "), text) for name, text in found]


@dataclass(frozen=True)
class Run:
    root: Path
    argv: list[str]
    page: Page
    out: str


def report_of(root: Path) -> Path:
    (path,) = (root / "analysis").glob("report_*.html")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Run:
    """One run over A/B results and hostile open-ended answers; its page and its terminal output."""
    root = make_root(tmp_path_factory.mktemp("report"))
    argv = ["--root", str(root), "--model", str(tiny_checkpoint), "--behaviors", "refusal", "--report"]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("plot_results.sys.stdout.write", lines.append)
        assert main(argv) == 0
    return Run(root, argv, Page(report_of(root)), "".join(lines))


# --- numbers and figures ---------------------------------------------------------------------------


def test_the_headline_holds_the_numbers_of_the_terminal_and_of_the_files(made: Run) -> None:
    printed = re.findall(r"-?\d+\.\d+ \[[^]]+\]", made.out)
    # A/B: means, changes, steerability; scores at the layer that has both ends: means, changes
    # (one change of the scores has no interval: too few answers differ)
    assert len(printed) == 3 + 2 + 2 + 3 + 1
    cells = " ".join(made.page.texts["td"])
    assert all(number in cells for number in printed)
    best = {m: np.mean(ab_values(settings(layer=4, multiplier=m))) for m in MULTIPLIERS}
    for multiplier in MULTIPLIERS:
        assert f"{best[multiplier]:.3f} [" in cells
    for multiplier in MULTIPLIERS:
        assert f"{np.mean([score for score in SCORES[multiplier] if score is not None]):.3f} [" in cells
    assert f"{best[1.0] - best[0.0]:.4f} [" in cells
    assert "3 of 4" in made.page.texts["td"]  # an answer without a score
    assert made.page.texts["td"].count("4") == 1, "layer 4 has the larger effect"
    assert made.page.source.count('class="holds"') == 2  # the A/B changes; those of the scores do not
    assert made.page.source.count("does not hold") == 2


def test_every_figure_is_on_the_page_with_its_data_and_a_text_for_those_who_do_not_see_it(made: Run) -> None:
    stems = sorted(path.with_suffix("").name for path in (made.root / "analysis").rglob("*.png"))
    images = made.page.attributes("img")
    assert len(images) == len(stems) > 2
    for image in images:
        source = image["src"] or ""
        assert source.startswith("data:image/svg+xml,")
        assert ElementTree.fromstring(unquote(source.split(",", 1)[1])).tag.endswith("svg")
        assert TINY_LABEL in (image["alt"] or "")
        assert "Vertical: " in (image["alt"] or "")
    shown = [[line for line in text.splitlines() if not line.startswith("#")] for text in made.page.texts["pre"][:-1]]
    tables = {path.name: read_table(path) for path in (made.root / "analysis").rglob("*.txt")}
    for stem in stems:
        table = tables[f"{stem}.txt"]
        same = [lines for lines in shown if lines[0].split("\t") == list(table[0]) and len(lines) == len(table) + 1]
        assert any(_equal(lines[1:], table) for lines in same), f"the data of {stem} are not on the page"


def _equal(lines: list[str], table: list[dict[str, str]]) -> bool:
    def close(shown: str, full: str) -> bool:
        try:
            return float(shown) == pytest.approx(float(full), rel=1e-5, nan_ok=True)
        except ValueError:
            return shown == full

    return all(
        close(shown, full)
        for line, row in zip(lines, table, strict=True)
        for shown, full in zip(line.split("\t"), row.values(), strict=True)
    )


# --- answers ---------------------------------------------------------------------------------------


def test_answers_and_scores_are_those_of_the_files_and_missing_scores_are_null(made: Run) -> None:
    data = made.page.answers
    found = {(one["layer"], one["multiplier"], one["condition"]): one["answers"] for one in data["sets"]}
    plain, prompted = "no system prompt", "positive system prompt"
    assert set(found) == {
        *((3, m, plain) for m in (*MULTIPLIERS, 2.0)),
        (4, 1.0, plain),
        (4, 0.0, plain),
        (3, 1.0, prompted),
    }
    for multiplier, scores in SCORES.items():
        answers = found[3, multiplier, plain]
        assert [answer[2] for answer in answers] == scores
        assert [data["texts"][answer[1]] for answer in answers] == list(HOSTILE)
        reasons = [answer[3:] for answer in answers]
        assert reasons == [["no number <b>in</b> it"] if score is None else [] for score in scores]
    assert [answer[2] for answer in found[3, 2.0, plain]] == [None] * 4
    assert found[4, 0.0, plain] == found[3, 0.0, plain], "multiplier 0 is the same at every layer"
    assert "24 answers, 17 of them scored" in made.page.source


def test_flags_narrow_the_answers_down(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.root / "results", tmp_path / "results")
    argv = ["--root", str(tmp_path), *made.argv[2:], "--layers", "4", "--multipliers", "0", "1", "--type", "open_ended"]
    assert main(argv) == 0
    found = {(one["layer"], one["multiplier"]) for one in Page(report_of(tmp_path)).answers["sets"]}
    assert found == {(4, 0.0), (4, 1.0)}


def test_hostile_texts_stay_texts_and_the_page_asks_nobody_for_anything(made: Run) -> None:
    page = made.page
    assert [one.get("type") for one in page.attributes("script")] == ["application/json", None]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/svg+xml,")), (tag, name, value)
    assert not set(page.source) & {"\x00", "\x07", "\u2028", "\u2029", "\u202e"}
    (policy,) = [one["content"] for one in page.attributes("meta") if "http-equiv" in one]
    assert "default-src 'none'" in (policy or "")
    assert len(page.texts["title"]) == 1


def test_the_same_command_leaves_the_page_as_it_is_and_a_changed_score_changes_it(
    made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.root / "results", tmp_path / "results", copy_function=shutil.copy2)
    argv = ["--root", str(tmp_path), *made.argv[2:], "--type", "open_ended", "--layers", "3"]
    assert main(argv) == 0
    path = report_of(tmp_path)
    sets = Page(path).answers["sets"]
    before, inode = path.read_bytes(), path.stat().st_ino
    assert main(argv) == 0
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)
    assert "is up to date" in capsys.readouterr().err
    put_answers(tmp_path, open_ended(multiplier=1.0), [9.5, 8.0, 7.0, 10.0])
    assert main(argv) == 0
    assert Page(path).answers["sets"] != sets


# --- token positions -------------------------------------------------------------------------------


def test_the_marked_tokens_are_where_steering_starts_and_where_the_vector_is_read(made: Run) -> None:
    tokens = made.page.tokens
    roles = [role for role, _ in tokens]
    bracket, read = roles.index("bracket"), roles.index("read")
    assert (tokens[bracket][1].strip(), tokens[read][1], read) == ("(", "B", bracket + 1)
    assert roles[bracket - 1] == "start"
    prompt = "".join(text for _, text in tokens[:bracket]).replace("\\n\n", "\n")
    assert prompt.endswith("(B) No<|im_end|>\n<|im_start|>assistant\n")
    rest = tokens[read + 1 :]
    (start,) = [place for place, (role, _) in enumerate(rest) if role == "start"]
    assert {role for role, _ in rest[:start]} == {"prompt"}
    assert {role for role, _ in rest[start + 1 :]} == {"steered"}
    answer = "".join(text for _, text in rest[start + 1 :])
    assert answer == HOSTILE[0][:160], "the answer under the strongest steering"


def test_llama_2_is_steered_from_the_bracket_that_ends_inst(tmp_path: Path, seven_b_is_tiny: None) -> None:
    for multiplier in MULTIPLIERS:
        put_ab(tmp_path, replace(settings(multiplier=multiplier), model=None, model_size="7b"))
    assert main(["--root", str(tmp_path), "--behaviors", "refusal", "--report"]) == 0
    tokens = Page(report_of(tmp_path)).tokens
    start = [role for role, _ in tokens].index("start")
    assert tokens[start][1].endswith("]")
    assert [text.strip() for _, text in tokens[start + 1 :]] == ["(", "B"]
    assert "".join(text for _, text in tokens[: start + 1]).endswith("[/INST]")


def test_without_a_tokenizer_the_page_names_the_command_and_marks_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for multiplier in MULTIPLIERS:
        put_ab(tmp_path, replace(settings(multiplier=multiplier), model=None, model_size="13b"))
    assert main(["--root", str(tmp_path), "--behaviors", "refusal", "--model_size", "13b", "--report"]) == 0
    page = Page(report_of(tmp_path))
    assert "hf download meta-llama/Llama-2-13b-chat-hf" in page.source
    tokens = page.tokens
    assert [role for role, _ in tokens] == ["prompt", "start", "bracket", "read"]
    assert [text for _, text in tokens[1:]] == ["]", " (", "B"]


def test_the_local_tokenizer_is_never_looked_for_on_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    def connect(*args: Any) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("utils.model.loading.MODELS_DIR", tmp_path)
    for choice in (
        choose_model("7b", "nobody/nothing-here", False),
        choose_model("70b", None, False),
        choose_model("135m", None, False),
    ):
        with pytest.raises(UserError, match="on this machine; run: "):
            load_local_tokenizer(choice)
    assert load_local_tokenizer(choose_model("7b", str(tiny_checkpoint), False)).is_fast


# --- little or nothing -----------------------------------------------------------------------------


def run_on(root: Path, checkpoint: Path, *flags: str) -> int:
    return main(["--root", str(root), "--model", str(checkpoint), "--behaviors", "refusal", "--report", *flags])


def test_only_ab_results_leave_no_section_empty(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_small_datasets(tmp_path, "refusal")
    for multiplier in MULTIPLIERS:
        put_ab(tmp_path, settings(multiplier=multiplier))
    assert run_on(tmp_path, tiny_checkpoint) == 0
    page = Page(report_of(tmp_path))
    assert "./prompting_with_steering.py --behaviors refusal --type open_ended" in page.source
    assert "./scoring.py --behaviors refusal" in page.source
    assert len(page.texts["script"]) == 1
    assert [role for role, _ in page.tokens].count("start") == 2, "an open-ended question out of the test set"


def test_every_multiplier_with_results_is_on_the_page_and_the_sweep_stays_after_a_probe(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for layer in (3, 4, 5):
        for multiplier in MULTIPLIERS:
            put_ab(tmp_path, settings(layer=layer, multiplier=multiplier))
    for multiplier in (-40.0, 40.0):
        put_ab(tmp_path, settings(layer=4, multiplier=multiplier))
    assert run_on(tmp_path, tiny_checkpoint, "--type", "ab") == 0
    page = Page(report_of(tmp_path))
    cells = [text for text in page.texts["td"] if re.fullmatch(r"-?\d+", text)]
    assert cells == ["5", "-1", "0", "1", "4", "-40", "40"]  # layer, its multipliers; layer, the others
    assert page.source.count('<tr class="other">') == 2
    assert "layer 5: of 3 layers, where 1 and -1 differ most" in page.texts["span"]
    wide = [one for one in page.attributes("figure") if one.get("class") == "wide"]
    assert wide == [], "one behavior's figures are as wide as a column"


def test_a_page_about_one_kind_of_results_says_that_the_answers_are_left_out(
    made: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    shutil.copytree(made.root / "results", tmp_path / "results")
    assert run_on(tmp_path, tiny_checkpoint, "--type", "ab") == 0
    page = Page(report_of(tmp_path))
    assert page.path.name == f"report_type=ab_use_base_model=False_model={TINY_LABEL}.html"
    assert "Left out: this page is about <code>--type ab</code> alone." in page.source
    assert "make some with" not in page.source


def test_answers_that_nobody_scored_yet_make_a_page_without_numbers(tmp_path: Path, tiny_checkpoint: Path) -> None:
    put_answers(tmp_path, open_ended(multiplier=1.0), None)
    assert run_on(tmp_path, tiny_checkpoint) == 0
    page = Page(report_of(tmp_path))
    assert {answer[2] for one in page.answers["sets"] for answer in one["answers"]} == {None}
    assert "No numbers" in page.source
    assert "No figures" in page.source
    assert "4 answers, 0 of them scored" in page.source


def test_an_unreadable_score_file_is_named_on_the_page_and_the_exit_code_is_1(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    make_root(tmp_path)
    broken = DataPaths(tmp_path).scores(open_ended(multiplier=1.0))
    broken.write_text("[{")
    assert run_on(tmp_path, tiny_checkpoint, "--type", "open_ended") == 1
    assert broken.name in " ".join(Page(report_of(tmp_path)).texts["li"])


def test_nothing_at_all_is_one_line_that_names_the_command(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on(tmp_path, tiny_checkpoint) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "run: ./prompting_with_steering.py --behaviors refusal" in line
    assert not (tmp_path / "analysis").exists()


# --- in a browser ----------------------------------------------------------------------------------

_PROBE = """
<script>
const seen = {};
const cards = () => [...document.querySelectorAll("#compared article")];
const textOf = (card, what) => card.querySelector(what).textContent;
const note = name => { seen[name] = cards().map(card => [textOf(card, "h4"), textOf(card, ".score")]); };
const choose = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event("change")); };
note("start");
seen.title = document.title;
seen.asked = byId("asked").textContent;
choose("question", "1"); note("second"); seen.second_text = cards()[0].querySelector(".text").textContent;
seen.second_asked = byId("asked").textContent;
choose("layer", "4"); note("layer 4");
choose("layer", "all"); choose("condition", "all"); note("all");
choose("layer", "3"); choose("condition", "no system prompt");
const box = document.querySelector("#multipliers input[value='-1']"); box.click(); note("without -1"); box.click();
choose("order", "change"); seen.order = [...byId("question").options].map(option => option.value);
choose("question", "0"); seen.at_first = byId("question").selectedIndex;
byId("next").click(); seen.stepped = byId("question").selectedIndex;
const details = document.querySelector("details.data"); details.open = true;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.images = [...document.images].every(image => image.complete && image.naturalWidth > 0);
document.addEventListener("securitypolicyviolation", event => { seen.blocked = event.blockedURI; });
new Image().src = "http://127.0.0.1:9/never";
setTimeout(() => {
  seen.cells = details.querySelectorAll("table td").length;
  const asked = performance.getEntriesByType("resource").map(one => one.name);
  seen.asked_network = asked.filter(name => /^http/.test(name) && !name.includes("127.0.0.1:9"));
  document.body.append(make("pre", "", JSON.stringify(seen)));
}, 300);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium or chrome here")
def test_in_a_browser_the_filters_work_and_nothing_leaves_the_page(made: Run, tmp_path: Path) -> None:
    probed = tmp_path / "page.html"
    probed.write_text(made.page.source.replace("</body>", _PROBE), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,900",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    dumped = tmp_path / "dumped.html"
    dumped.write_text(done.stdout, encoding="utf-8")
    seen = json.loads(Page(dumped).texts["pre"][-1])
    unscored = "no score: no number <b>in</b> it"
    assert seen["title"] == f"Steering {TINY_LABEL}"
    assert seen["start"] == [
        ["multiplier -1", "judge's score 1 of 10"],
        ["multiplier 0 (no steering)", "judge's score 3 of 10"],
        ["multiplier 1", "judge's score 9 of 10"],
        ["multiplier 2", "no score"],
    ]
    assert seen["asked"] == "0: why?"
    assert [score for _, score in seen["second"]] == [
        unscored,
        "judge's score 4 of 10",
        "judge's score 8 of 10",
        "no score",
    ]
    assert seen["second_asked"] == f"1: {HOSTILE[0]}"
    assert seen["second_text"].startswith('line\\u2028paragraph\\u2029 "quoted" \\u0000\\u0007 \\u202eturned')
    assert [name for name, _ in seen["layer 4"]] == ["multiplier 0 (no steering)", "multiplier 1"]
    assert len(seen["all"]) == 4 + 2 + 1
    assert [name for name, _ in seen["without -1"]] == ["multiplier 0 (no steering)", "multiplier 1", "multiplier 2"]
    assert seen["order"] == ["0", "3", "2", "1"]  # changes of 8, 8, 7 and 4
    assert (seen["at_first"], seen["stepped"]) == (0, 1)
    assert seen["sideways"] <= 0, "the page scrolls sideways"
    assert seen["images"]
    assert seen["cells"] > 16
    assert seen["asked_network"] == []
    assert seen["blocked"].startswith("http://127.0.0.1:9")
