"""Rows of the tables that people keep: CSV with any delimiter, Excel, and what `data.read` reads; one row at a time."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.read import COMPRESSED, SUFFIXES, Row, delimited, header_fault, rows
from dpeer.errors import DataError

TEXTS = (".csv", ".tsv", ".tab", ".txt")
EXCEL = (".xlsx", ".xlsm")
DELIMITERS = (",", ";", "\t", "|")


def kind(path: Path) -> str:
    """What a file holds, by its name: ".csv" also of x.csv.gz; "" if that cannot be read."""
    inner = Path(path.stem).suffix.lower() if path.suffix in COMPRESSED else path.suffix.lower()
    if inner in EXCEL:
        return inner if path.suffix not in COMPRESSED else ""
    return inner if inner in (*TEXTS, *SUFFIXES) else ""


def stream(path: Path) -> Iterator[Row]:
    """All rows of a table. Raises DataError that names file and row, after the last readable row at the latest."""
    faults: list[Fault] = []
    some = False
    try:
        for row in _rows(path, faults):
            some = True
            yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if faults:
        raise data_error(str(path), faults)
    if not some:
        raise DataError(f"{path}: holds no records; a header, and one row per rating or per rated response, are needed")


def _rows(path: Path, faults: list[Fault]) -> Iterable[Row]:
    found = kind(path)
    if found in TEXTS:
        return delimited(path, faults, delimiter_of)
    if found in EXCEL:
        return _excel(path, faults)
    if found:
        read, wrong = rows(path)
        faults += wrong
        return read
    given = f"a {path.suffix}" if path.suffix else "a file without suffix"
    known = ", ".join((*TEXTS, *(s for s in SUFFIXES if s not in TEXTS)))
    faults.append(Fault(path.name, "", f"{given} is not read; use {known} (each also as .gz or .zst) or .xlsx"))
    return ()


def delimiter_of(header: str) -> str:
    """The delimiter that occurs most often outside quotes; a comma where there is none."""
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def _excel(path: Path, faults: list[Fault]) -> Iterator[Row]:
    """The first sheet with anything in it: its first row that is not blank holds the names of the columns."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: reading Excel needs openpyxl, which is not installed: pip install 'dpeer[excel]', or save the "
            "sheet as CSV"
        ) from None
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what openpyxl leaves out, such as styles, is no part of the table
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            filled = [sheet for sheet in book.worksheets if any(_cells(sheet))]
            for sheet in filled[:1]:
                yield from _sheet_rows(path.name, sheet, faults)
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as error:
        faults.append(Fault(path.name, "", f"is not a whole Excel file: {excerpt(str(error), 120)}"))
        return
    if len(filled) > 1:
        others = ", ".join(sheet.title for sheet in filled[1:])
        warnings.warn(f"{path}: only the sheet {filled[0].title} was read, not {others}", stacklevel=2)


def _cells(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """(Excel's number of the row, its cells) of rows that are not blank."""
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        if any(not _blank(cell) for cell in cells):
            yield number, list(cells)


def _sheet_rows(name: str, sheet: Any, faults: list[Fault]) -> Iterator[Row]:
    header: list[str] = []
    for number, cells in _cells(sheet):
        where = f"{name}, row {number}"
        if not header:
            header = ["" if _blank(cell) else str(cell).strip() for cell in cells]
            while not header[-1]:
                header.pop()
            if fault := header_fault([c for c in header if c]):
                faults.append(Fault(f"{where} (header)", "", fault))
                return
            continue
        cells += [None] * (len(header) - len(cells))
        nameless = [k for k, cell in enumerate(cells) if not _blank(cell) and not (k < len(header) and header[k])]
        if nameless:
            faults.append(Fault(where, "", f"cell {nameless[0] + 1} has {excerpt(cells[nameless[0]])}, but no header"))
            return
        yield Row(f"{name}:{number}", where, {c: cell for c, cell in zip(header, cells, strict=False) if c})


def _blank(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())
