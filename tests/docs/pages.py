"""The pages for readers: their blocks of code, links and anchors, as plain functions of the text."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^([ ]*)(```+|~~~+)[ ]*([^\n`]*)\n(.*?)^[ ]*\2[`~]*[ ]*$", re.M | re.S)
HIDDEN = re.compile(r"<!--[ ]*python\n(.*?)-->", re.S)
TEXT_LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"<(?:img|a|source)\s[^>]*?(?:src|href|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.M)
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"|\{[^}\n]*#([\w-]+)[^}\n]*\}")


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line of its first statement, source) of each block that a reader may run, in order.

    A comment `<!-- python ... -->` holds set-up that is run and not shown.
    """
    spans = [(m.start(4), dedent(m[4])) for m in FENCE.finditer(text) if m[3].split()[:1] == ["python"]]
    spans += [(m.start(1), m[1]) for m in HIDDEN.finditer(text)]
    return [(text.count("\n", 0, start) + 1, source) for start, source in sorted(spans)]


def script(text: str) -> str:
    """All Python of a page, each statement on the line that it has on the page, so that tracebacks name that line."""
    lines = [""] * (text.count("\n") + 1)
    for first, source in python_blocks(text):
        block = source.splitlines()
        lines[first - 1 : first - 1 + len(block)] = block
    return "\n".join(lines) + "\n"


def prose(text: str) -> str:
    """The text without blocks and spans of code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and pictures, outside code."""
    return TEXT_LINK.findall(prose(text)) + HTML_LINK.findall(prose(text))


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading of plain words."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip())


def anchors(text: str) -> set[str]:
    """Anchors of a page; a repeated heading counts on, as GitHub (-1) and MkDocs (_1) do."""
    bare = FENCE.sub("", text)
    slugs = [slug(m[1]) for m in HEADING.finditer(bare)]
    repeated = {f"{s}{sign}{slugs[:i].count(s)}" for i, s in enumerate(slugs) for sign in "-_" if slugs[:i].count(s)}
    return set(slugs) | repeated | {m[1] or m[2] for m in ANCHOR.finditer(bare)}


def dead_links(page: Path) -> list[str]:
    """Relative links of a page whose file or anchor does not exist."""
    dead = []
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            dead.append(target)
    return dead
