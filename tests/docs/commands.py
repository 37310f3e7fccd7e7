"""Commands of the pages: every line of a block of shell, with the mark that says why one is not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.docs.pages import FENCE

SHELLS = ("bash", "console", "sh", "shell")
PROGRAMS = (
    *("dpeer", "make", "python", "python3.11", "torchrun", "pip", "ray", "sbatch", "sky", "docker", "hf", "kubectl"),
    *("export", "mkdir", "umask", "scancel", "bash", "git", "vllm", "ollama"),
)
INDENTED = re.compile(r"(?:\A|(?<=\n\n))((?: {4,}\S[^\n]*\n|\n(?= {4}))+)")
MARK = re.compile(r"<!-- not run((?: `[^`>]+`)*): ([^>]+?) -->\s*\Z")
CONTINUED = "\\"
ASSIGNED = re.compile(r"^(?:\w+=\$\((?P<inner>.*)\)|(?:\w+=\S+ )+)")


@dataclass(frozen=True, slots=True)
class Command:
    """line: of the page; reason: why it is not run, or empty."""

    page: Path
    line: int
    text: str
    reason: str

    @property
    def words(self) -> list[str]:
        """Without assignments before it, what its output is sent to, and a comment behind it."""
        text = ASSIGNED.sub(lambda m: m["inner"] or "", self.text)
        words = shlex.split(text, comments=True)
        return words[: words.index(">")] if ">" in words else words


def commands(page: Path) -> list[Command]:
    """In the page's order, without repeats of a line."""
    text = page.read_text(encoding="utf-8")
    found: dict[str, Command] = {}
    for start, block in _blocks(text):
        before = MARK.search(text[: _region(text, start)])
        only = re.findall(r"`([^`]+)`", before[1] or "") if before else []
        for line, command in _lines(block):
            marked = before and (not only or any(command.startswith(part) for part in only))
            number = text.count("\n", 0, start) + line
            found.setdefault(command, Command(page, number, command, before[2] if before and marked else ""))
    return list(found.values())


def _blocks(text: str) -> list[tuple[int, str]]:
    """(where it begins, source) of each block of shell: fenced by its word, indented by its first line."""
    fenced = [(m.start(), m.end(), m[3].split()[:1], dedent(m[4])) for m in FENCE.finditer(text)]
    found = [(start, source) for start, _, word, source in fenced if word and word[0] in SHELLS]
    for m in INDENTED.finditer(text):
        if any(start <= m.start() < end for start, end, _, _ in fenced):
            continue
        for part in re.finditer(r"(?:^ +\S.*\n)+", m[1], re.M):
            if _is_shell(source := dedent(part[0])):
                found.append((m.start() + part.start(), source))
    return sorted(found)


def _region(text: str, start: int) -> int:
    """Where the indented text around a place begins: a mark stands before all of it."""
    lines = text[:start].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].startswith("    ")):
        lines.pop()
    return len("".join(lines))


def _is_shell(source: str) -> bool:
    first = next((line for line in source.splitlines() if line.strip() and not line.startswith("#")), "")
    words = ASSIGNED.sub(lambda m: m["inner"] or "", first.removeprefix("$ ")).split()
    return bool(words) and Path(words[0]).name in PROGRAMS


def _lines(block: str) -> list[tuple[int, str]]:
    """(line within the block, command), continued lines joined; what a command prints is left out."""
    prompted = any(line.startswith("$ ") for line in block.splitlines())
    joined: list[tuple[int, str]] = []
    open_ = False
    for number, line in enumerate(block.splitlines(), 1):
        text = line.strip()
        if open_:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]} {text.removesuffix(CONTINUED).strip()}")
        elif text and not text.startswith("#") and (not prompted or text.startswith("$ ")):
            joined.append((number, text.removeprefix("$ ").removesuffix(CONTINUED).strip()))
        else:
            continue
        open_ = text.endswith(CONTINUED)
    return joined
