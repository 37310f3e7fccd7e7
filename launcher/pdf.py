"""Pages as PDF, printed by the Chromium that is on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from dpeer.errors import DpeerError
from dpeer.files import follow_umask

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PAGES = (
    "report.html",
    "compare.html",
    "sweep.html",
    "bench.html",
    "quality.html",
    "loop.html",
    "demo.html",
    "index.html",
)
"""What commands call their pages, the one that a folder is known for first."""
LIMIT_S = 300
QUIET = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-pdf-header-footer",
)


class PdfError(DpeerError):
    """No browser here prints, or it did not."""


def browser() -> str:
    """The program to print with: what CHROME names, else the first on PATH. PdfError: there is none."""
    if named := os.environ.get("CHROME"):
        if found := shutil.which(named):
            return found
        raise PdfError(f"CHROME={named}: no such program. Give the path of Chromium or Chrome, or unset it.")
    if found := next((path for name in BROWSERS if (path := shutil.which(name))), None):
        return found
    raise PdfError(
        "--pdf prints with Chromium or Chrome, and neither is on PATH. Install one (Debian, Ubuntu: apt install "
        "chromium; macOS: brew install --cask chromium), or name one: CHROME=/path/to/chrome"
    )


def page_in(place: Path) -> Path:
    """The page that a folder is known for, or the page itself. PdfError: there is none."""
    if place.is_file() and place.suffix == ".html":
        return place
    if page := next((place / name for name in PAGES if (place / name).is_file()), None):
        return page
    raise PdfError(f"{place}: no page here ({', '.join(PAGES)}). Give the folder of a result, or the page itself.")


def print_page(page: Path) -> Path:
    """Print `page` to the PDF beside it, whole or not at all; returns its path. PdfError: the browser failed."""
    program, target = browser(), page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory(prefix="dpeer-pdf-") as folder:
        printed = Path(folder, "page.pdf")
        # Chromium's sandbox does not start as root; our pages hold no scripts.
        options = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={folder}/profile"]
        command = [program, *options, f"--print-to-pdf={printed}", page.absolute().as_uri()]
        try:
            done = subprocess.run(
                command, env=os.environ | {"HOME": folder}, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise PdfError(f"{program} had not printed {page} after {LIMIT_S} s and was ended") from None
        if done.returncode or not printed.is_file() or printed.read_bytes()[:5] != b"%PDF-":
            said = (done.stderr.strip() or f"exit code {done.returncode}")[-300:]
            raise PdfError(f"{program} did not print {page}: {said}. Another browser may be named by CHROME=PATH")
        whole = target.with_name(f".{target.name}.tmp")
        shutil.move(printed, whole)
        follow_umask(whole)
        os.replace(whole, target)
    return target
