"""What a browser makes of a page: the independent judge of whether text from data became active."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
ACTIVE = {"script", "iframe", "object", "embed", "base", "form", "input", "link", "meta-refresh"}


class _Active(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags += 1
        leads = [k for k, v in attributes if k in ("href", "src", "action") and "javascript:" in (v or "").lower()]
        wrong = leads + [k for k, _ in attributes if k.startswith("on")]
        if tag in ACTIVE or wrong or (tag == "meta" and ("http-equiv", "refresh") in attributes):
            self.found.append(f"{tag} {wrong}")


def active_parts(page: Path) -> list[str]:
    """Tags of the page that do something, as headless Chromium reads it; skips where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH to open pages with")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={page.parent}/.browser"]
    done = subprocess.run(
        [CHROMIUM, *options, page.absolute().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(page.parent)},
    )
    seen = _Active()
    seen.feed(done.stdout)
    assert seen.tags > 20, done.stderr[-500:]
    return seen.found
