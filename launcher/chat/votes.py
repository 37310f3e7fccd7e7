"""Votes of people between two conversations, as rows that `dpeer irt fit` reads; each is on disk before it counts."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dpeer.errors import ConfigError
from dpeer.escape import csv_cell

TIE = "tie"


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote. model stood first, at the left; winner: the name of either model, or `tie`."""

    item: str
    dimension: str
    judge: str
    model: str
    other_model: str
    winner: str
    sample: int
    prompt: str
    response: str
    other_response: str
    time: str


COLUMNS = tuple(field.name for field in fields(Vote))


class Votes:
    """The table at `path`, to which votes are added at the end. ConfigError: the file is another table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Mapping[str, str]] = []
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); give --votes another file") from None
        if text:
            reader = csv.DictReader(io.StringIO(text))
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(
                    f"{path}: holds another table than votes ({COLUMNS[0]}, ...); give --votes another file"
                )
            self.rows = [row for row in reader if None not in row.values()]  # a killed write leaves a part of a line
            if not text.endswith("\n"):
                self._append("\n")

    def add(self, vote: Vote) -> None:
        """Raises OSError where the disk does not take it; then it does not count."""
        row = {name: csv_cell(value) for name, value in asdict(vote).items()}
        head = "" if self.path.exists() and self.path.stat().st_size else _line(COLUMNS)
        self._append(head + _line([str(row[name]) for name in COLUMNS]))
        self.rows.append({name: str(value) for name, value in row.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Votes per dimension."""
        return dict(Counter(row["dimension"] for row in self.rows))

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _line(cells: Sequence[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()
