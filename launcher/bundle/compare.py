"""Whether two trees, tables or pages say the same, up to the rounding of another machine."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

RELATIVE, ABSOLUTE = 1e-6, 1e-8
PICTURES = (".svg", ".png")
_NUMBER = re.compile(r"[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_DRAWN = re.compile(r'src="data:[^"]*"')


def unequal(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Dotted places where two JSON trees differ by more than rounding."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*ours, *theirs)):
            where = f"{path}.{key}" if path else str(key)
            if key in ours and key in theirs:
                yield from unequal(ours[key], theirs[key], where)
            else:
                yield where
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from unequal(a, b, f"{path}.{number}")
    elif not _same(ours, theirs):
        yield path or "the whole"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return type(a) is type(b) and bool(a == b)
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (math.isnan(a) and math.isnan(b))


def file_differs(ours: Path, theirs: Path) -> str:
    """How a written file differs from the same one made again, by more than rounding; empty where it does not. Of
    pictures every byte counts."""
    mine, made = ours.read_bytes(), theirs.read_bytes()
    if mine == made:
        return ""
    if ours.suffix == ".svg":
        return _drawing_differs(mine, made)
    if ours.suffix in PICTURES:
        return "other bytes"
    if ours.suffix == ".json":
        return next(unequal(json.loads(mine), json.loads(made)), "")
    if ours.suffix == ".csv":
        return next(unequal(_rows(mine), _rows(made)), "")
    return words_differ(mine.decode(errors="replace"), made.decode(errors="replace"))


def pictures_differ(ours: str, theirs: str) -> bool:
    """Whether two pages hold other pictures."""
    a, b = (_DRAWN.findall(text) for text in (ours, theirs))
    return len(a) != len(b) or any(_drawing_differs(*map(_decoded, pair)) for pair in zip(a, b, strict=True))


def _decoded(source: str) -> bytes:
    about, _, content = source[len('src="data:') : -1].partition(",")
    return base64.b64decode(content) if about.endswith("base64") else unquote_to_bytes(content)


def _drawing_differs(ours: bytes, theirs: bytes) -> str:
    """Where two SVG pictures differ."""
    return "" if ours == theirs else words_differ(ours.decode(errors="replace"), theirs.decode(errors="replace"))


def words_differ(ours: str, theirs: str) -> str:
    """Where two pages differ first in words, or in numbers by more than a unit of their last digit; empty where they do
    not. Pictures are left out."""
    a, b = (_DRAWN.sub('src=""', text) for text in (ours, theirs))
    between, others = _NUMBER.split(a), _NUMBER.split(b)
    found, made = _NUMBER.findall(a), _NUMBER.findall(b)
    for k in range(min(len(between), len(others))):
        if between[k] != others[k]:
            return f"words: {_around(between[k], others[k])}"
        if k < min(len(found), len(made)) and not _near(found[k], made[k]):
            return f"{found[k]} where {made[k]} follows"
    return "" if len(between) == len(others) else "length"


def _near(a: str, b: str) -> bool:
    x, y = (float(text.replace(",", "").replace("\u2212", "-")) for text in (a, b))
    places = max(len(text.partition(".")[2]) for text in (a, b)) if "e" not in (a + b).lower() else 12
    unit = 10.0**-places if places else 0.0  # whole numbers count something
    return a == b or math.isclose(x, y, rel_tol=RELATIVE, abs_tol=1.01 * unit)


def _around(a: str, b: str) -> str:
    at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{' '.join(a[max(0, at - 20) : at + 30].split())!r}"


def _rows(content: bytes) -> list[list[Any]]:
    def cell(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    return [[cell(text) for text in row] for row in csv.reader(io.StringIO(content.decode(errors="replace")))]
