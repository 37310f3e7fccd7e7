"""A table of the page as text in rows, and how one is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dpeer.eval.report.words import between, fixed
from dpeer.report.text import UNKNOWN

FOLD_FROM = 31
"""Tables with at least this many rows are folded."""
MOST_LISTED = 1000
"""Rows of a table on the page; the files beside it hold all."""
Cell = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Table:
    """`head`: (name, whether its column holds numbers). `rows`: one text per column."""

    title: str
    head: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    minor: bool = False
    """Folded whatever its size."""

    @property
    def folded(self) -> bool:
        return self.minor or len(self.rows) >= FOLD_FROM


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def build(title: str, rows: Iterable[Any], **columns: Cell) -> Table:
    """One column per keyword; a name that ends in `_n` holds numbers. Columns without content are left out."""
    rows = list(rows)
    title += f"; the first {MOST_LISTED:,} of {len(rows):,}" if len(rows) > MOST_LISTED else ""
    rows = rows[:MOST_LISTED]
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    kept = {name: column for name, column in cells.items() if any(x not in ("", UNKNOWN) for x in column)}
    head = tuple((name.removesuffix("_n").replace("_", " "), name.endswith("_n")) for name in kept)
    return Table(title, head, tuple(zip(*kept.values(), strict=True)))


def bounded(row: Any, name: str, form: Callable[[Any], str] = fixed) -> str:
    """An estimate above its 95 % interval."""
    return f"{form(getattr(row, name))}\n{between(getattr(row, f'{name}_low'), getattr(row, f'{name}_high'))}".rstrip()
