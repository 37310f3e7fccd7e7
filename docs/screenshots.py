"""Every figure of docs/concepts.md and every screenshot of docs/reading_reports.md, from one run of the demo.

python docs/screenshots.py [--run runs/demo] [--out docs/img]

Chromium or Chrome takes the screenshots, the one on PATH or in CHROME. Equal results give equal figures; screenshots
also depend on the browser and on the fonts of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.figures import figures  # noqa: E402
from dpeer.launcher.pdf import QUIET, browser  # noqa: E402

WIDTH, HEIGHT, SCALE = 900, 5000, 2
"""Of the window, in CSS pixels: pages are as tall as that at most, and cut where they end."""
COLOURS = 48
BORDER = 16
LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Shot:
    """A part of a page: `heading` is the h2 that it stands under, or empty for the head of the page.

    keep: what of the section's own elements stays, as CSS selectors; all of it where there is none.
    hide: what is taken out of that, as CSS selectors.
    """

    page: str
    heading: str
    keep: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()


TRAINING, EVALUATION = "lagrangian/report.html", "evaluation/irt/report.html"
SHOTS = {
    "demo_arms": Shot("demo.html", "Good behaviour per dimension", (".scroll", "table")),
    "demo_cost": Shot("demo.html", "What it costs", ("p", ".scroll", "table")),
    "train_certificate": Shot(TRAINING, "Held-out records", (".scroll",), ("tr > :nth-child(n+9)",)),
    "train_range": Shot(TRAINING, "Held-out records", (".plots",), ("figure:nth-of-type(n+2)",)),
    "train_loss": Shot(TRAINING, "Loss per dimension"),
    "train_balance": Shot(TRAINING, "How the dimensions were balanced", (".plots",)),
    "train_side_effects": Shot(TRAINING, "Side effects and speed", (".plots",), ("figure:nth-of-type(3)",)),
    "eval_head": Shot(EVALUATION, ""),
    "eval_abilities": Shot(EVALUATION, "Abilities", (".plots",)),
    "eval_table": Shot(
        EVALUATION,
        "Abilities",
        (".scroll:has(tr:nth-child(16))",),
        ("tbody tr:nth-child(-n+15)", "tr > :nth-child(n+8)"),
    ),
    "eval_ranks": Shot(EVALUATION, "Ranks", (".scroll",), ("tbody tr:nth-child(-n+15)",)),
    "eval_judges": Shot(EVALUATION, "Judges", (".plots",), ("figure:nth-of-type(n+2):nth-of-type(-n+5)",)),
    "eval_ppc": Shot(EVALUATION, "Does the fit reproduce the scores?", (".plots",), ("figure:nth-of-type(n+3)",)),
    "eval_diagnostics": Shot(EVALUATION, "Diagnostics", (), ("details",)),
}

SCRIPT = """
const {heading, keep, hide} = %s;
const main = document.querySelector("main"), header = document.querySelector("header");
if (heading) {
  const first = [...main.querySelectorAll("h2")].find(h => h.textContent.trim() === heading);
  const stay = new Set();
  for (let e = first?.nextElementSibling; e && e.tagName !== "H2"; e = e.nextElementSibling) {
    if (!keep.length || keep.some(selector => e.matches(selector))) stay.add(e);
  }
  if (stay.size) stay.add(first);
  for (const e of [...main.children]) if (!stay.has(e)) e.remove();
  header.remove();
} else main.remove();
for (const e of document.querySelectorAll(["footer", "nav", ...hide].join())) e.style.display = "none";
for (const e of document.querySelectorAll("h2")) e.style.border = "0";
"""


def taken(program: str, demo: Path, shot: Shot) -> Image.Image:
    """The part of the page as a picture in few colours, cut where it ends."""
    page = demo / shot.page
    if not page.is_file():
        raise SystemExit(f"{page} is not there. Run `make demo`, or name its folder: --run FOLDER")
    script = SCRIPT % json.dumps({"heading": shot.heading, "keep": shot.keep, "hide": shot.hide})
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    with tempfile.TemporaryDirectory(prefix="dpeer-shot-") as folder:
        part, picture = Path(folder, "part.html"), Path(folder, "part.png")
        part.write_text(text, encoding="utf-8")
        options = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={folder}/profile"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}", "--hide-scrollbars"]
        command = [program, *options, f"--screenshot={picture}", part.as_uri()]
        environment = os.environ | {"HOME": folder}
        subprocess.run(command, env=environment, capture_output=True, timeout=LIMIT_S, check=True)
        return cut(Image.open(picture).convert("RGB"))


def cut(picture: Image.Image) -> Image.Image:
    """Without the empty paper around it, with a border, in a palette."""
    paper = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, paper).getbbox()
    if box is None:
        raise SystemExit("An empty picture: the page has no such part any more. Look at SHOTS.")
    edge = BORDER * SCALE
    left, top, right, bottom = box
    size = min(left, edge), min(top, edge)
    whole = picture.crop((left - size[0], top - size[1], min(picture.width, right + edge), bottom + edge))
    return whole.quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="folder that `make demo` left")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img", help="folder of the pictures")
    parser.add_argument("--only", nargs="*", default=None, help="names of pictures, without suffix")
    arguments = parser.parse_args()
    wanted = set(arguments.only or [])
    for name, svg in figures(arguments.run).items():
        if wanted and name not in wanted:
            continue
        write(arguments.out / "concepts" / f"{name}.svg", svg)
    program = browser()
    for name, shot in SHOTS.items():
        if wanted and name not in wanted:
            continue
        path = arguments.out / "reports" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        taken(program, arguments.run, shot).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{path}: {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
