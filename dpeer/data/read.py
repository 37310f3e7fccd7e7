"""Files to rows, strictly: every fault names file and row. No interpretation of the columns here."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow
import pyarrow.parquet

from dpeer.data.faults import Fault, excerpt
from dpeer.integrity import Damaged, verify

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True, slots=True)
class Row:
    """source: "file:row". where: the same for messages, with the line if it differs. fields: values by column.
    columns: what the user calls a column that was made from others."""

    source: str
    where: str
    fields: dict[str, object]
    columns: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> str:
        """What the user calls a column, or part of one such as responses[0].text."""
        made = max((c for c in self.columns if name == c or name.startswith((f"{c}[", f"{c}."))), key=len, default=None)
        return name if made is None else self.columns[made] + name[len(made) :].removesuffix(".text")


def suffix(path: Path) -> str:
    """What a file holds, by its name: ".jsonl" also of x.jsonl.gz and x.jsonl.zst; "" if that cannot be read."""
    inner = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return inner if inner in SUFFIXES else ""


def rows(path: Path) -> tuple[list[Row], list[Fault]]:
    """All readable rows of a CSV (UTF-8, comma), JSONL, JSON (a list of objects) or Parquet file, each also as .gz or
    .zst, and the faults of the rest."""
    faults: list[Fault] = []
    reader = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}.get(suffix(path))
    if reader is None:
        given = f"a {path.suffix}" if path.suffix else "a file without suffix"
        return [], [
            Fault(
                path.name, "", f"{given} is not read; use .csv, .json, .jsonl or .parquet, as it is or as .gz or .zst"
            )
        ]
    try:
        rows_read = list(reader(path, faults))
    except OSError as error:
        return [], [Fault(path.name, "", f"cannot be read: {error.strerror or error}")]
    if not rows_read and not faults:
        faults.append(Fault(path.name, "", "holds no records; one row (line) per record is needed"))
    return rows_read, faults


def _bytes(path: Path, faults: list[Fault]) -> bytes:
    data = path.read_bytes()
    if path.suffix not in COMPRESSED:
        return data
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), COMPRESSED[path.suffix]) as stream:
            content: bytes = stream.read()
            return content
    except (pyarrow.ArrowException, OSError) as error:
        faults.append(Fault(path.name, "", f"is not a whole {path.suffix} file: {excerpt(str(error), 120)}"))
        return b""


def _text(path: Path, faults: list[Fault]) -> str:
    data = _bytes(path, faults)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        faults.append(Fault(path.name, "", "is UTF-16; save it as UTF-8"))
        return ""
    if 0 in data:
        line = data[: data.index(0)].count(b"\n") + 1
        faults.append(
            Fault(path.name, "", f"line {line} holds a NUL byte: not a text file, or damaged; save it as UTF-8 text")
        )
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        near = excerpt(data[max(0, error.start - 15) : error.start + 15])
        faults.append(
            Fault(path.name, "", f"line {line} is not UTF-8 (byte {error.start}, near {near}); save it as UTF-8")
        )
        return ""


def _csv(path: Path, faults: list[Fault]) -> Iterator[Row]:
    yield from delimited(path, faults, lambda header: ",")


def delimited(path: Path, faults: list[Fault], delimiter: Callable[[str], str]) -> Iterator[Row]:
    """Rows of a text table, one at a time; `delimiter` tells from the header line what stands between its cells."""
    text = _text(path, faults)
    if not text.strip():
        return
    mark = delimiter(text.lstrip().splitlines()[0])
    # The module's cell limit is process-wide and too small for long answers; the parser checks lengths by column.
    before = csv.field_size_limit(len(text) + 1)
    try:
        yield from csv_rows(path.name, io.StringIO(text, newline=""), faults, mark)
    finally:
        csv.field_size_limit(before)


def csv_rows(name: str, text: TextIO, faults: list[Fault], mark: str = ",") -> Iterator[Row]:
    """The rows of a text table with `mark` between its cells, read as they are taken."""
    reader = csv.reader(text, strict=True, delimiter=mark)
    header: list[str] = []
    number = 0
    line = 1
    try:
        for fields in reader:
            where = f"{name}, row {number} (line {line})"
            line = reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = [c.strip() for c in fields]
                if fault := header_fault(header):
                    faults.append(Fault(f"{name}, header", "", fault))
                    return
                number = 1
                continue
            if len(fields) == len(header):
                yield Row(f"{name}:{number}", where, dict(zip(header, fields, strict=True)))
            else:
                faults.append(
                    Fault(
                        where,
                        "",
                        f"{len(fields)} cells, the header has {len(header)}; quote cells that hold commas, quotes or "
                        f"line breaks. Starts {excerpt(mark.join(fields))}",
                    )
                )
            number += 1
    except csv.Error as error:
        faults.append(
            Fault(
                f"{name}, row {number} (starts at line {line})",
                "",
                f"{error}: a quote is not closed or not doubled; reading stopped here",
            )
        )


def header_fault(header: list[str]) -> str:
    if duplicate := _duplicate(header):
        return f"column {duplicate!r} occurs twice; keep one"
    if len(header) == 1 and any(d in header[0] for d in ";\t|"):
        return f"one column {excerpt(header[0])}: the delimiter is not a comma; save it as comma-separated"
    return ""


def _duplicate(names: list[str]) -> str | None:
    return next((n for i, n in enumerate(names) if n in names[:i]), None)


def _jsonl(path: Path, faults: list[Fault]) -> Iterator[Row]:
    yield from json_rows(path.name, _text(path, faults), 1, faults)


def json_rows(name: str, text: str, first: int, faults: list[Fault]) -> Iterator[Row]:
    """The rows of lines of JSON, numbered from `first`."""
    # Not splitlines(): JSON strings may hold U+2028 and its like. They may hold no bare line end of any kind.
    for number, line in enumerate(LINE_END.split(text), start=first):
        if not line.strip():
            continue
        where = f"{name}, row {number}"
        try:
            value = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
        except RecursionError:
            faults.append(Fault(where, "", f"nested too deeply: {excerpt(line)}"))
            continue
        except ValueError as error:
            near = line[max(0, error.pos - 20) : error.pos + 20] if isinstance(error, json.JSONDecodeError) else line
            faults.append(Fault(where, "", f"is not JSON: {error}; near {excerpt(near)}"))
            continue
        if isinstance(value, dict):
            yield Row(f"{name}:{number}", where, value)
        else:
            faults.append(Fault(where, "", f"one JSON object per line is needed, got {excerpt(value)}"))


def _json(path: Path, faults: list[Fault]) -> Iterator[Row]:
    text = _text(path, faults)
    if not text.strip():
        return
    try:
        values = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        lines = text.count("\n") + 1
        advice = "; for one object per line call the file .jsonl" if "Extra data" in str(error) and lines > 1 else ""
        faults.append(Fault(path.name, "", f"is not JSON: {str(error) or 'nested too deeply'}{advice}"))
        return
    if not isinstance(values, list):
        faults.append(Fault(path.name, "", f"a list of objects, one per record, is needed, got {excerpt(values)}"))
        return
    for number, value in enumerate(values, start=1):
        where = f"{path.name}, row {number}"
        if isinstance(value, dict):
            yield Row(f"{path.name}:{number}", where, value)
        else:
            faults.append(Fault(where, "", f"an object is needed, got {excerpt(value)}"))


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value; write null or leave the key out")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if duplicate := _duplicate([k for k, _ in pairs]):
        raise ValueError(f"key {duplicate!r} occurs twice in one object")
    return dict(pairs)


def _parquet(path: Path, faults: list[Fault]) -> Iterator[Row]:
    try:
        content = _bytes(path, faults)
        if faults:
            return
        verify(content)
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read()
        if duplicate := _duplicate(table.column_names):
            faults.append(Fault(path.name, "", f"column {duplicate!r} occurs twice; keep one"))
            return
        values = table.to_pylist()
    except Damaged as error:
        remedy = "restore it from a copy, or make it again: `dpeer judge RECIPE` does so for a table of its ratings"
        faults.append(Fault(path.name, "", f"{error}; {remedy}"))
        return
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        faults.append(Fault(path.name, "", f"is not a whole Parquet file: {excerpt(str(error), 120)}"))
        return
    for number, fields in enumerate(values, start=1):
        yield Row(f"{path.name}:{number}", f"{path.name}, row {number}", fields)
