"""A real browser, driven over the DevTools protocol: opens a page, types, presses, clicks and looks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium")
KEYS = {"Enter": (13, "\r"), "Escape": (27, "")}


class Browser:
    """One tab. errors: what the console and the page complained of."""

    def __init__(self, address: str) -> None:
        self.socket = connect(address, max_size=None, open_timeout=60)
        self.last, self.errors = 0, list[str]()
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": parameters}))
        while True:
            came = json.loads(self.socket.recv(timeout=60))
            if came.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(came["params"]["exceptionDetails"]))
            if came.get("method") == "Log.entryAdded" and came["params"]["entry"]["level"] == "error":
                self.errors.append(str(came["params"]["entry"]))
            if came.get("id") == self.last:
                assert "error" not in came, came
                result: dict[str, Any] = came["result"]
                return result

    def js(self, expression: str) -> Any:
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, limit_s: float = 60) -> Any:
        """The value of the expression, once it is true."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if value := self.js(expression):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}\n{self.js('document.body.innerText')}\n{self.errors}")

    def open(self, address: str) -> None:
        self.do("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def type(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.do("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.do("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """At the middle of the element, as a hand would."""
        middle = "e.scrollIntoView(), (r => [r.x + r.width / 2, r.y + r.height / 2])(e.getBoundingClientRect())"
        at = self.js(f"(e => ({middle}))(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def shape(self, width: int, height: int, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.do("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.do("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH to open pages with")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    try:
        told, deadline = folder / "profile" / "DevToolsActivePort", time.monotonic() + 120
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < deadline, "chromium did not start"
            time.sleep(0.1)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as came:
            page = next(tab for tab in json.load(came) if tab["type"] == "page")
        tab = Browser(page["webSocketDebuggerUrl"])
        yield tab
        tab.socket.close()
    finally:
        process.terminate()
        process.wait(30)
