"""Votes of people between two conversations, as rows that `dpeer irt fit` reads; each is on disk before it counts."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from dpeer.errors import ConfigError
from dpeer.escape import csv_cell

TIE = "tie"
csv.field_size_limit(1 << 30)  # conversations are longer than the 128 KiB that a cell may have by default


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote. model stood first, at the left; winner: the name of either model, or `tie`; sample: which conversation
    with these messages it is about, None until the first vote on it is kept."""

    item: str
    dimension: str
    judge: str
    model: str
    other_model: str
    winner: str
    sample: int | None
    prompt: str
    response: str
    other_response: str
    time: str


COLUMNS = tuple(field.name for field in fields(Vote))


class Votes:
    """The table at `path`, to which votes are added at the end, by several servers too.

    ConfigError: the file is another table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Mapping[str, str]] = []
        self._end = 0
        try:
            if path.exists():
                with self._locked() as file:
                    self._catch_up(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read and written ({error}); give --votes another file") from None

    def add(self, vote: Vote) -> int:
        """Its sample. Raises OSError where the disk does not take it; then nothing of it is left, and it does not
        count."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            self._catch_up(file)
            if vote.sample is None:
                taken = [
                    int(row["sample"]) for row in self.rows if row["item"] == vote.item and row["sample"].isdigit()
                ]
                vote = replace(vote, sample=max(taken, default=-1) + 1)
            row = {name: str(csv_cell(value)) for name, value in asdict(vote).items()}
            self._write(file, ("" if self._end else _line(COLUMNS)) + _line([row[name] for name in COLUMNS]))
            self.rows.append(row)
            return int(row["sample"])

    @property
    def counts(self) -> dict[str, int]:
        """Votes per dimension."""
        return dict(Counter(row["dimension"] for row in self.rows))

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        """The file, which no other server writes meanwhile."""
        with self.path.open("a+b", buffering=0) as file:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _catch_up(self, file: io.FileIO) -> None:
        """Reads what others have added; takes off a last row that a kill or a full disk cut, which never counted."""
        if file.seek(0, os.SEEK_END) == self._end:
            return
        file.seek(0)
        content = file.readall()
        self.rows, whole = _read(content, self.path)
        if whole < len(content):
            os.ftruncate(file.fileno(), whole)
        self._end = whole
        if whole and not content[:whole].endswith((b"\n", b"\r")):
            self._write(file, "\n")

    def _write(self, file: io.FileIO, text: str) -> None:
        left = memoryview(text.encode("utf-8"))
        try:
            while left:
                left = left[file.write(left) or 0 :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), self._end)
            raise
        self._end = file.seek(0, os.SEEK_END)


def _read(content: bytes, path: Path) -> tuple[list[Mapping[str, str]], int]:
    """Whole rows of a table, and the bytes up to the end of the last one. UnicodeDecodeError, ConfigError."""
    used = 0

    def lines() -> Iterator[str]:
        nonlocal used
        for line in content.splitlines(keepends=True):
            used += len(line)
            yield line.decode("utf-8", "strict" if line.endswith((b"\n", b"\r")) else "replace")

    rows: list[Mapping[str, str]] = []
    if _line(COLUMNS).encode().startswith(content):  # the first vote was cut in its heading
        return rows, 0
    reader = csv.reader(lines())
    if tuple(next(reader, ())) != COLUMNS:
        raise ConfigError(f"{path}: holds another table than votes ({COLUMNS[0]}, ...); give --votes another file")
    begin = last = used
    cells: list[str] = []
    for cells in reader:
        last, begin = begin, used
        if len(cells) == len(COLUMNS):
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows, last if 0 < len(cells) < len(COLUMNS) else used


def _line(cells: Sequence[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()
