"""Sources as chunks of rows, one after the other: never the whole of them in memory."""

from __future__ import annotations

import codecs
import csv
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from dpeer.config_sources import Source
from dpeer.data import parse
from dpeer.data.faults import Fault
from dpeer.data.load import Meaning, columns_of, meaning, talks
from dpeer.data.map import Tally
from dpeer.data.places import files_of, fingerprint, place
from dpeer.data.read import LINE_END, Row, csv_rows, json_rows
from dpeer.data.schema import DataSet, Record
from dpeer.errors import DataError
from dpeer.integrity import Damaged, verify

ROWS = 512
"""Of a chunk whose rows are read here."""
BLOCK = 1 << 20
"""Bytes of a chunk of lines, up to the end of its last line."""
LINE_ENDS = re.compile(LINE_END.pattern.encode())
GROUPED = "rated rows"
"""The shape of a map whose records come from rows that may lie anywhere."""


class Unreadable(Exception):
    """Something in a source cannot be read in chunks; `load` reads it, or says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are read already, the first of them being row `first` of its file."""

    content: list[Row]
    first: int

    def rows(self) -> list[Row]:
        return self.content


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of JSON, of which the first is line `first` of the file `name`."""

    name: str
    content: bytes
    first: int

    def rows(self) -> list[Row]:
        """Raises Unreadable."""
        faults: list[Fault] = []
        try:
            found = list(json_rows(self.name, self.content.decode(), self.first, faults))
        except UnicodeDecodeError as error:
            raise Unreadable from error
        if faults or 0 in self.content:
            raise Unreadable
        return found


class Parsed(NamedTuple):
    """What a chunk says. places: where each record stands. columns, forms: of its rows."""

    records: list[Record]
    places: list[str]
    columns: tuple[str, ...] = ()
    forms: frozenset[str] = frozenset()
    tally: Tally = Tally()  # not changed


@dataclass(frozen=True, slots=True)
class Records:
    """Records that are read, mapped and weighed already, the first of them being number `first`."""

    content: Sequence[Record]
    first: int
    file = 0
    meaning = Meaning()

    def parsed(self) -> Parsed:
        return Parsed(list(self.content), [r.source for r in self.content])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows with what makes records of them; may go to another process. file: number of their file. weight: of their
    source."""

    content: Rows | Lines
    file: int
    meaning: Meaning
    weight: float

    @property
    def first(self) -> int:
        """Number of the first row in its file, counted from 1."""
        return self.content.first

    def parsed(self) -> Parsed:
        """Raises Unreadable, also for any fault of a row."""
        rows = self.content.rows()
        tally = Tally()
        records, places, forms = [], [], set()
        for row in self.meaning.general(rows, tally):
            record = row if isinstance(row, Fault) else parse.record(row)
            if isinstance(row, Fault) or isinstance(record, Fault):
                raise Unreadable
            records.append(replace(record, weight=record.weight * self.weight))
            places.append(row.where)
            forms.add(parse.form(row.fields))
        return Parsed(records, places, columns_of(rows), frozenset(forms), tally)


@dataclass(frozen=True, slots=True)
class File:
    """source: its number among the sources."""

    path: Path
    source: int


def files(sources: Sequence[Source], split: str) -> list[File] | None:
    """The files of a split in order; None where a source is none that can be read in chunks. DataError: there is no
    such source."""
    found: list[File] = []
    for number, source in enumerate(sources):
        here = place(source.path)
        paths = files_of(here, split) if here.local else []
        if not isinstance(paths, list) or not paths or any(p.suffix not in READERS for p in paths):
            return None
        found += [File(path, number) for path in paths]
    return found


def chunks(sources: Sequence[Source], own: Sequence[bool], every: Sequence[File]) -> Iterator[Chunk]:
    """All rows of the files of these sources, in order. The columns of a source are told from its beginning. own: which
    have a map of their own."""
    means: dict[int, Meaning] = {}
    for number, file in enumerate(every):
        contents = READERS[file.path.suffix](file.path)
        first = next(contents, None)
        if first is None or not (rows := first.rows()):
            raise Unreadable
        source = sources[file.source]
        if file.source not in means:
            means[file.source] = _meaning(source, rows, own[file.source])
        for content in chain([first], contents):
            yield Chunk(content, number, means[file.source], source.weight)


def in_memory(data: DataSet) -> Iterator[Records]:
    """The records of a source that is read already."""
    for start in range(0, len(data.records), ROWS):
        yield Records(data.records[start : start + ROWS], start + 1)


def content(source: str, split: str) -> list[Path] | str:
    """What the rows of a source depend on: its files, or the fingerprint of a split on the hub."""
    here = place(source)
    if not here.local:
        return fingerprint(here, split)
    found = files_of(here, split)
    return found if isinstance(found, list) else sorted(p for p in found.iterdir() if p.is_file())


def _meaning(source: Source, rows: Sequence[Row], own: bool) -> Meaning:
    columns = columns_of(rows)
    try:
        found = meaning(source, columns, rows[0].where, own, partial(talks, rows[0], columns))
    except DataError as error:  # later rows may have the columns that these lack
        raise Unreadable from error
    if found.map and found.map.shape == GROUPED:
        raise Unreadable
    return found


def _many(rows: Iterable[Row]) -> Iterator[Rows]:
    rows, first = iter(rows), 1
    while some := list(islice(rows, ROWS)):
        yield Rows(some, first)
        first += len(some)


def _lines(path: Path) -> Iterator[Lines]:
    first = 1
    try:
        with path.open("rb") as stream:
            marked = stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
            stream.seek(len(codecs.BOM_UTF8) if marked else 0)
            while block := stream.read(BLOCK):
                block += stream.readline()
                yield Lines(path.name, block, first)
                first += len(LINE_ENDS.findall(block)) if b"\r" in block else block.count(b"\n")
    except OSError as error:
        raise Unreadable from error


def _csv(path: Path) -> Iterator[Row]:
    faults: list[Fault] = []
    before = csv.field_size_limit(path.stat().st_size + 1)  # process-wide, and too small for long answers
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            for row in csv_rows(path.name, text, faults):
                if faults or any("\0" in str(cell) for cell in (*row.fields, *row.fields.values())):
                    raise Unreadable
                yield row
    except (OSError, UnicodeError) as error:
        raise Unreadable from error
    finally:
        csv.field_size_limit(before)
    if faults:
        raise Unreadable


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            verify(content)  # type: ignore[arg-type]  # has rfind and slices, as bytes have
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise Unreadable
        number = 0
        for batch in file.iter_batches(batch_size=ROWS):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path.name}:{number}", f"{path.name}, row {number}", fields)
    except (OSError, ValueError, Damaged, pyarrow.ArrowException) as error:
        raise Unreadable from error


READERS: dict[str, Callable[[Path], Iterator[Rows | Lines]]] = {
    ".csv": lambda path: _many(_csv(path)),
    ".jsonl": _lines,
    ".parquet": lambda path: _many(_parquet(path)),
}
