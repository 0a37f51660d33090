"""The page in a real browser: it streams, stops, keeps tabs apart, shows hostile text as text, and asks nobody else."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from llama_wrapper import LlamaWrapper
from tests.browser import CHROMIUM, Browser, Tab, until
from tests.models import D_MODEL, N_LAYERS
from tests.roots import put_json
from utils.chat.commands import Knobs
from utils.chat.shelf import Ask, Shelf
from utils.chat.web import build_app, listen
from utils.model.checkpoints import choose_model
from utils.paths import REPOSITORY, DataPaths

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no chromium or chrome here")]
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> \u202e {{ 7 * 7 }}"
MEASURED = "document.querySelectorAll('[data-measured]').length"
TEXTS = "[...document.querySelectorAll('.column .text')].map(one => one.textContent)"


def chosen_at(layer: int) -> dict[str, object]:
    outcome = {"n": 3, "effect": 1.0, "low": 0.5, "high": 1.5, "p_value": 0.01, "at_minus": -1.0, "at_plus": 1.0}
    return {
        "behavior": "sycophancy",
        "layer": layer,
        "strength": 0.2,
        "multiplier": 1.7,
        "n_validation": 4,
        "linear_up_to_strength": 0.1,
        "kl_budget": 1.0,
        "validation": [
            {"layer": at, "strength": 0.2, "kl_95": 0.5, "effect": 1.0, "low": 0.5, "high": 1.5} for at in (1, 2)
        ],
        "test": {**outcome, "moved_right": 1.0},
        "controls": {},
    }


@pytest.fixture(scope="module")
def address(
    chat_root: Path, chat_model: LlamaWrapper, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    root = tmp_path_factory.mktemp("page") / "root"
    shutil.copytree(chat_root, root)
    put_json(root / "vectors/sycophancy/chosen_tiny-chat.json", chosen_at(2))
    neutral = DataPaths(root).neutral_prompts()
    neutral.parent.mkdir(parents=True)
    shutil.copyfile(DataPaths(REPOSITORY).neutral_prompts(), neutral)
    shelf = Shelf(DataPaths(root), choose_model("", str(tiny_checkpoint), False), N_LAYERS, D_MODEL)
    app = build_app(chat_model, shelf, Knobs((Ask("sycophancy", 2, 1.5),), max_new_tokens=8))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the server starts", 10)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def opened(browser: Browser, address: str, width: int = 1280) -> Tab:
    tab = browser.tab(address, width)
    tab.wait("document.body?.dataset.ready")
    return tab


def say(tab: Tab, text: str) -> None:
    tab.run(f"byId('message').value = {text!r}; byId('send').click()")


def turn(tab: Tab, knob: str, value: object) -> None:
    """As a hand does: the knob moves, and is let go."""
    tab.run(
        f"byId('{knob}').value = '{value}';"
        f"for (const kind of ['input', 'change']) byId('{knob}').dispatchEvent(new Event(kind, {{ bubbles: true }}))"
    )


def answered(tab: Tab, n_columns: int = 2) -> list[str]:
    tab.wait(f"running === null && {MEASURED} === {n_columns}")
    return tab.run(TEXTS)


def test_the_slider_changes_the_steered_answer_and_snaps_to_the_unsteered_one(browser: Browser, address: str) -> None:
    tab = opened(browser, address)
    assert tab.run("[byId('layer-0').value, byId('multiplier-0').value]") == ["2", "1.5"]
    shaded = tab.run("[byId('range').getBoundingClientRect().width, byId('mark').getBoundingClientRect().x]")
    assert shaded[0] > 5
    thumb = "byId('layer-0').getBoundingClientRect()"
    assert tab.run(f"{thumb}.x + .5 * 16 + ({thumb}.width - 16) * 2 / 3") == pytest.approx(shaded[1] + 4, abs=2)
    say(tab, "What is the sea?")
    unsteered, steered = answered(tab)
    assert unsteered != steered
    assert [text.strip() for text in (unsteered, steered)] == tab.run("columns.map(column => column.said)")
    turn(tab, "multiplier-0", 3.5)
    moved = answered(tab)
    assert moved[0] == unsteered
    assert moved[1] not in (steered, unsteered)
    turn(tab, "multiplier-0", 0.1)
    assert answered(tab) == [unsteered, unsteered]
    assert tab.run("byId('multiplier-shown').textContent") == "0"
    turn(tab, "multiplier-0", 1.5)
    assert answered(tab) == [unsteered, steered]
    assert tab.run("[...document.querySelectorAll('.text span')].some(one => one.style.backgroundColor !== '')")
    tab.run("byId('strip').click()")
    assert answered(tab, 5)[2] == unsteered
    tab.run("byId('command').click()")
    assert "./prompting_with_steering.py" in tab.wait("byId('command-shown').textContent")
    assert tab.complaints == []
    assert {one.startswith((address, "data:")) for one in tab.requested} == {True}


def test_stop_ends_an_answer_in_the_middle_and_the_chat_goes_on(browser: Browser, address: str) -> None:
    tab = opened(browser, address)
    turn(tab, "max", 300)
    say(tab, "What is the sea?")
    tab.wait("columns[1]?.tokens.length > 3")
    tab.run("byId('stop').click()")
    n_tokens = tab.run("columns[1].tokens.length")
    time.sleep(0.3)
    assert tab.run("columns[1].tokens.length") == n_tokens < 300
    turn(tab, "max", 4)
    answered(tab)
    say(tab, "And now?")
    answered(tab)
    assert tab.run("document.querySelectorAll('#log .turn').length") == 2
    assert tab.complaints == []


def test_two_tabs_share_nothing(browser: Browser, address: str) -> None:
    one, other = opened(browser, address), opened(browser, address)
    turn(one, "multiplier-0", -3)
    turn(one, "seed", 9)
    for tab in (one, other):
        say(tab, "What is the sea?")
    texts = [answered(tab) for tab in (one, other)]
    assert texts[0][0] == texts[1][0]
    assert texts[0][1] != texts[1][1]
    assert other.run("[byId('multiplier-0').value, byId('seed').value]") == ["1.5", "0"]


def test_a_long_chat_meets_the_context_with_one_line(browser: Browser, address: str) -> None:
    tab = opened(browser, address, width=390)
    say(tab, "owl " * 130)
    tab.wait("!byId('problem').hidden")
    problem = tab.run("byId('problem').textContent")
    assert "no room for an answer" in problem
    assert "\n" not in problem
    tab.run("byId('new').click()")
    say(tab, "Why?")
    answered(tab)
    assert tab.run("byId('problem').hidden")
    assert tab.run("document.documentElement.scrollWidth - innerWidth") <= 0, "the page scrolls sideways"


def test_hostile_text_is_shown_as_text(browser: Browser, address: str) -> None:
    tab = opened(browser, address)
    say(tab, HOSTILE)
    answered(tab)
    assert tab.run("byId('asked').textContent") == HOSTILE
    assert tab.run("document.title") == "Steered chat: tiny-chat"
    assert tab.run("document.querySelectorAll('#chat img, #chat script').length") == 0
    blocked = tab.run(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.blockedURI));"
        "new Image().src = 'http://127.0.0.1:9/never'; })"
    )
    assert blocked.startswith("http://127.0.0.1:9")
