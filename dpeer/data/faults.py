"""Faults of a data set: where, what, and a short excerpt; many of them on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpeer.errors import DataError

SHOWN = 5
EXCERPT = 60
LINE = 240


def excerpt(value: object, width: int = EXCERPT) -> str:
    """One printable line of at most `width` characters (plus an ellipsis) from any value."""
    text = repr(value[: width + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= width else text[:width] + "..."


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `where` is "file, row 3 (line 7)", `column` may be empty for a fault of the whole row or file."""

    where: str
    column: str
    message: str

    @property
    def text(self) -> str:
        """In full."""
        return f"{self.where}, column {self.column}: {self.message}" if self.column else f"{self.where}: {self.message}"

    def __str__(self) -> str:
        return self.text if len(self.text) <= LINE else self.text[:LINE] + "..."


def data_error(subject: str, faults: Sequence[Fault]) -> DataError:
    """The error for all faults of `subject`."""
    return DataError("\n".join([f"{subject}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", *screen(faults)]))


def screen(faults: Sequence[Fault]) -> list[str]:
    """At most SHOWN + 1 lines: faults of the same kind (a missing column is one in every row) share a line. A single
    fault is told in full, as a way out stands at the end."""
    kinds: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        kinds.setdefault((fault.column, fault.message), []).append(fault)
    lines = [
        f"  {alike[0] if len(kinds) > 1 else alike[0].text[: SHOWN * LINE]}"
        + (f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else "")
        for alike in list(kinds.values())[:SHOWN]
    ]
    if rest := sum(len(alike) for alike in list(kinds.values())[SHOWN:]):
        lines.append(f"  ... and {rest} more")
    return lines
