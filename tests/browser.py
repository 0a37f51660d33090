"""A real browser for tests: a headless Chromium, driven through a pair of pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), "")


class Browser:
    """A browser process. Its debugging protocol is spoken over file descriptors 3 and 4, messages end in a zero."""

    def __init__(self, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        # the shell puts the pipes where the browser looks for them
        arguments = [*flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", CHROMIUM, *arguments],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._n_sent = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; what happens meanwhile is added to `events`."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": params}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            found = self._next(60)
            if found.get("id") == self._n_sent:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def _next(self, timeout: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], timeout)
            assert ready, "the browser does not answer"
            self._buffer += os.read(self._read, 1 << 16)
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def tab(self, address: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> "Tab":
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Network", "Runtime", "Log", "Page"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height, dark=dark)
        tab.call("Page.navigate", url=address)
        return tab

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)


class Tab:
    """A page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self.session, **params)

    def resize(self, width: int, height: int, *, dark: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, timeout: float = 60.0) -> Any:
        """Until an expression is true."""
        return until(lambda: self.run(script), script, timeout)

    def picture(self, path: Path) -> None:
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def _own(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self.session
        ]

    @property
    def requested(self) -> list[str]:
        """The addresses of all requests so far."""
        self.run("0")
        return [params["request"]["url"] for params in self._own("Network.requestWillBeSent")]

    @property
    def complaints(self) -> list[str]:
        """What the console has of errors and warnings."""
        self.run("0")
        logged = [
            p["entry"]["text"] for p in self._own("Log.entryAdded") if p["entry"]["level"] in ("error", "warning")
        ]
        said = [str(p["args"]) for p in self._own("Runtime.consoleAPICalled") if p["type"] in ("error", "warning")]
        thrown = [str(p["exceptionDetails"]) for p in self._own("Runtime.exceptionThrown")]
        return logged + said + thrown


def until(condition: Callable[[], Any], what: str, timeout: float) -> Any:
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.03)
    return value
