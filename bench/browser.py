"""A headless Chromium that pages are looked at with, by its own protocol over a websocket."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
SETTLED_SECONDS = 2.5
"""After so long without a change of its text, a page is taken to be drawn."""


def installed() -> str | None:
    """The browser's command; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._number = 0
        self.asked: list[str] = []
        """Addresses that the page asked for, since the network was cut."""
        self._call("Page.enable")

    def cut(self) -> None:
        """Cut the network, and note whatever the page asks for from now on."""
        self._call("Network.enable")
        self._call(
            "Network.emulateNetworkConditions",
            offline=True, latency=0, downloadThroughput=0, uploadThroughput=0,
        )  # fmt: skip

    def look(self, width: int, height: int = 1000, *, dark: bool = False) -> None:
        """Have a screen of this width, in light or in dark; a narrow one is a phone's."""
        self._call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    def open(self, url: str) -> None:
        """Go to an address, and wait until the page is drawn."""
        self._call("Page.navigate", url=url)
        self.settle()

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until the page's text no longer changes."""
        deadline = time.monotonic() + seconds
        before, since = "", time.monotonic()
        while time.monotonic() < deadline:
            now = self.text()
            if now != before or len(now) < 20:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLED_SECONDS:
                return
            time.sleep(0.2)

    def text(self) -> str:
        """What can be read on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def click(self, words: str) -> None:
        """Press the button or the link that says this.

        Raises:
            LookupError: there is none.
        """
        found = self.run(
            "(() => { const all = [...document.querySelectorAll('button, a, [role=tab]')];"
            f"const one = all.find(e => e.innerText.trim() === {json.dumps(words)});"
            "if (one) one.click(); return Boolean(one); })()"
        )
        if not found:
            raise LookupError(f"nothing to press says '{words}'")

    def fill(self, label: str, value: str) -> None:
        """Write into the field that follows a label.

        Raises:
            LookupError: there is no such label.
        """
        found = self.run(
            "(() => { const labels = [...document.querySelectorAll('label')];"
            f"const label = labels.find(e => e.innerText.startsWith({json.dumps(label)}));"
            "if (!label) return false;"
            "const field = document.getElementById(label.htmlFor)"
            " || label.parentElement.querySelector('input, textarea');"
            "field.focus(); return true; })()"
        )
        if not found:
            raise LookupError(f"no field is called '{label}'")
        self._call("Input.insertText", text=value)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return told["result"].get("value")

    def picture(self, path: Path) -> None:
        """Keep what is seen as a PNG."""
        told = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            told = json.loads(self._connection.recv(timeout=60))
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return dict(told["result"])


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """A page in a browser of its own, whose profile goes with it.

    Raises:
        FileNotFoundError: no Chromium is installed.
    """
    command = installed()
    if command is None:
        raise FileNotFoundError("no Chromium; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", f"--user-data-dir={profile}",
                f"--window-size={width},{height}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = _port(Path(profile) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as reply:
                tabs = json.loads(reply.read())
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


def _port(file: Path) -> int:
    for _ in range(300):
        with suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start within 30 s")
