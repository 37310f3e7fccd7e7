"""A source as chunks of rows, one after the other: never the whole of it in memory."""

from __future__ import annotations

import codecs
import csv
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet
import xxhash

from dpeer.data import load
from dpeer.data.faults import Fault
from dpeer.data.read import SUFFIXES, Row, csv_rows, json_rows
from dpeer.integrity import Damaged, verify

ROWS = 512
"""Of a chunk whose rows are read here."""
BLOCK = 1 << 20
"""Bytes of a chunk of lines, up to the end of its last line."""


class Unreadable(Exception):
    """Something in the source cannot be read; `load` says what and where."""


class Chunk(Protocol):
    """May go to another process, which then reads the rows."""

    def rows(self) -> list[Row]:
        """Raises Unreadable."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are read already."""

    content: list[Row]

    def rows(self) -> list[Row]:
        return self.content


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of JSON, of which the first is line `first` of the file `name`."""

    name: str
    content: bytes
    first: int

    def rows(self) -> list[Row]:
        faults: list[Fault] = []
        try:
            found = list(json_rows(self.name, self.content.decode(), self.first, faults))
        except UnicodeDecodeError as error:
            raise Unreadable from error
        if faults or 0 in self.content:
            raise Unreadable
        return found


def chunks(source: str, split: str) -> Iterator[Chunk]:
    """All rows of a source, in order. Raises Unreadable; DataError where there is no such source."""
    path = local(source, split)
    if path is None:
        return _many(_hub_rows(source, split))
    readers = {".csv": _csv, ".parquet": _parquet}
    if path.suffix == ".jsonl":
        return _lines(path)
    if path.suffix not in readers:
        raise Unreadable
    return _many(readers[path.suffix](path))


def local(source: str, split: str) -> Path | None:
    """The file of a source; None for a data set of the hub."""
    path = Path(source)
    if path.exists() or not load.HUB_ID.fullmatch(source) or path.suffix in SUFFIXES:
        return load._file(path, split)
    return None


def content_hash(path: Path) -> str:
    """XXH3 with 128 bits (hex) of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def hub_fingerprint(name: str, split: str) -> str:
    """What `datasets` calls the content of a split."""
    return str(_hub_table(name, split)._fingerprint)


def _many(rows: Iterable[Row]) -> Iterator[Chunk]:
    rows = iter(rows)
    while some := list(islice(rows, ROWS)):
        yield Rows(some)


def _lines(path: Path) -> Iterator[Chunk]:
    first = 1
    try:
        with path.open("rb") as stream:
            marked = stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
            stream.seek(len(codecs.BOM_UTF8) if marked else 0)
            while block := stream.read(BLOCK):
                block += stream.readline()
                yield Lines(path.name, block, first)
                first += block.count(b"\n")
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


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    for number, fields in enumerate(_hub_table(name, split), start=1):
        yield Row(f"{name}/{split}:{number}", f"{name}, split {split}, row {number}", dict(fields))


def _hub_table(name: str, split: str) -> Any:
    with load._hub(name) as datasets:
        return datasets.load_dataset(name, split=split)
