"""Lines of JSON, each with a running checksum over all lines up to it: none can change, go or come unseen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpeer.integrity import digest

LINK = re.compile(r', "chain": "([0-9a-f]{32})"\}$')


def linked(line: Mapping[str, Any], before: str) -> tuple[str, str]:
    """Text of a line after the one whose checksum is `before`, and its own checksum."""
    text = json.dumps(line, allow_nan=False)
    own = digest(before.encode(), text.encode())
    return f'{text[:-1]}, "chain": "{own}"}}', own


def append(path: Path, lines: Iterable[Mapping[str, Any]], before: str | None) -> str | None:
    """Add lines to a file whose last line has the checksum `before`; returns that of the new last line. None: a file
    of an earlier version, whose lines have none."""
    texts = []
    for line in lines:
        written, before = linked(line, before) if before is not None else (json.dumps(line, allow_nan=False), None)
        texts.append(f"{written}\n")
    with path.open("a") as stream:
        stream.write("".join(texts))
    return before


def text(lines: Iterable[Mapping[str, Any]], start: str) -> str:
    """A whole file of linked lines."""
    texts = []
    for line in lines:
        written, start = linked(line, start)
        texts.append(f"{written}\n")
    return "".join(texts)


def whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline; what a killed writer left behind the last one is not among them."""
    return path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []


def checksum(line: str) -> str | None:
    """The one that a line carries."""
    found = LINK.search(line)
    return found.group(1) if found else None


def follows(line: str, before: str) -> bool:
    """Whether a line is unchanged and comes after the one with the checksum `before`."""
    found = LINK.search(line)
    return found is not None and digest(before.encode(), f"{line[: found.start()]}}}".encode()) == found.group(1)


def complete(lines: Sequence[str], manifest: Mapping[str, Any]) -> bool:
    """Whether lines end where those of the finished run ended; True for runs that have not said where."""
    ended = manifest.get("ledger")
    return ended is None or checksum((lines or [""])[-1]) == ended


def broken(lines: Iterable[str], start: str | None = None) -> Iterator[int]:
    """Numbers, from 1, of lines that were changed or do not follow the line before. `start` is what the first one must
    follow; without it only later ones are held against those before them."""
    before = start
    for number, line in enumerate(lines, start=1):
        if before is not None and not follows(line, before):
            yield number
        before = checksum(line) or before


def samples_up_to(path: Path, step: int) -> list[str]:
    """The leading whole lines of the samples up to `step`; none for step 0, where a run starts anew."""
    lines: list[str] = []
    for line in path.read_text(errors="replace").splitlines() if step else ():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        lines.append(line)
    return lines


def steps_up_to(path: Path, step: int) -> list[str]:
    """The leading lines of a JSONL file that hold steps 1, 2, ... in order, at most `step` of them."""
    lines: list[str] = []
    for line in path.read_text(errors="replace").splitlines()[:step] if path.exists() else ():
        try:
            if json.loads(line)["step"] != len(lines) + 1:
                break
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        lines.append(line)
    return lines
