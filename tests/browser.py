"""A headless Chromium that tests drive through its DevTools protocol, and what it complained about or asked for."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def drawn(file: Path) -> str:
    """The body of a page from disk as Chromium has drawn it, half a minute of its own time later."""
    options = [*OPTIONS, f"--user-data-dir={file.parent / 'profile'}", "--virtual-time-budget=30000", "--dump-dom"]
    command = ["chromium", *options, file.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    return found[found.index("<body") :]


class Page:
    """One page.

    Attributes:
        requests: addresses that were asked for, without the page's own, data and blobs.
        complaints: errors and exceptions on the console, broken policies among them.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:")):
                self.requests.append(address)
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.complaints.append(str(parameters["args"]))
        elif message["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])

    def evaluate(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a report and wait until all of it is drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + 60
        while self.evaluate("document.body && document.body.dataset.ready") != "yes":
            assert time.monotonic() < deadline, self.complaints
            time.sleep(0.1)

    def visit(self, address: str, *, width: int = 1300, height: int = 1200) -> None:
        """Go to a page of a server; `find` waits for what is to be on it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)

    def find(self, selector: str, text: str = "", *, seconds: float = 60) -> str:
        """A script for the last element of a kind, of those with exactly this text if any, once it is there."""
        same = f".filter((e) => e.textContent.trim() === {json.dumps(text)})" if text else ""
        script = f"[...document.querySelectorAll({json.dumps(selector)})]{same}.pop()"
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"no {selector} {text!r} at {self.evaluate('location.href')}"
            time.sleep(0.1)
        return script

    def click(self, selector: str, text: str = "") -> None:
        """Click what `find` finds."""
        self.evaluate(f"({self.find(selector, text)}).click()")

    def type_into(self, script: str, text: str) -> None:
        """Replace what a field holds, as a person does."""
        self.evaluate(f"(() => {{ const field = {script}; field.focus(); field.select(); }})()")
        self.call("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        """What is seen, as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def press(self, key: str, code: int) -> None:
        """A key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


@contextmanager
def browser(place: Path) -> Iterator[Page]:
    """A page of a browser of its own.

    Args:
        place: an empty folder for its profile.
    """
    from websockets.sync.client import connect

    profile = place / "profile"
    log = (place / "chromium.log").open("wb")
    options = [*OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen(["chromium", *options, "about:blank"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (profile / "DevToolsActivePort").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.2)
        port, path = (profile / "DevToolsActivePort").read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, ping_interval=None) as socket:
            socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            target = next(t for t in _answer(socket, 1)["targetInfos"] if t["type"] == "page")
        with connect(
            f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}", max_size=None, proxy=None, ping_interval=None
        ) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()
        log.close()


def _answer(socket: Any, number: int) -> dict[str, Any]:
    while (message := json.loads(socket.recv(timeout=60))).get("id") != number:
        pass
    return message["result"]
