"""The durable tables: content-addressed rows in part files that are whole or absent, and who may write them."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpeer.disk import GONE, disk_fault, remedy
from dpeer.errors import DataError
from dpeer.eval.store.schema import LATER, OUTCOMES, RATINGS
from dpeer.files import clear_temporary, write_bytes
from dpeer.integrity import BLANK, TAIL, seal, verify

SHOWN = 3
END_BYTES = 1 << 16
"""At the end of a Parquet file, with its footer's words."""


def content_id(**parts: Any) -> str:
    """32 hex digits of the sha256 over the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_part(folder: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema = RATINGS) -> Path:
    """Write rows as one new part file of `folder`: on disk when this returns, absent when it is interrupted before.

    Raises DataError where the disk is full or refuses.
    """
    _make_folder(folder)
    ids = sorted(row[schema.names[0]] for row in rows)
    name = f"part-{content_id(ids=ids)}.parquet"
    return _replace(folder / name, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def _replace(path: Path, table: pa.Table) -> Path:
    content = io.BytesIO()
    with pq.ParquetWriter(content, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"checksum": BLANK})
    try:
        write_bytes(path, seal(content.getvalue()))
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> DataError:
    fault, what = disk_fault(error), f"cannot be written ({error.strerror or error})"
    if fault is not None and fault not in GONE:  # where a part of the path is a file, nothing is gone
        what = remedy(fault)
    return DataError(f"{path}: {what}. What was finished before is saved: then run the same command again.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_table(path: Path, table: pd.DataFrame, schema: pa.Schema = RATINGS) -> Path:
    """Write a whole table as one file, which replaces an earlier one at once."""
    _make_folder(path.parent)
    return _replace(path, pa.Table.from_pandas(table, schema=schema, preserve_index=False))


def parts(folder: Path) -> list[Path]:
    """Finished part files under `folder`, in the order of their names. What an interruption left is not among them."""
    return sorted(folder.rglob("part-*.parquet"))


def read_table(folder: Path, schema: pa.Schema = RATINGS) -> pd.DataFrame:
    """All rows under `folder`.

    DataError for a damaged part file (names it) and for ids that occur twice (names ids and files).
    """
    files = parts(folder)
    tables = [_read(path, schema) for path in files]
    _refuse_duplicates(files, [t.column(schema.names[0]) for t in tables])
    return (pa.concat_tables(tables) if tables else schema.empty_table()).to_pandas()


def done_ids(folder: Path, schema: pa.Schema = RATINGS) -> set[str]:
    """Ids of all rows under `folder`. Raises as `read_table` does."""
    files = parts(folder)
    columns = [_read(path, pa.schema([schema.field(0)])).column(0) for path in files]
    _refuse_duplicates(files, columns)
    return {i for column in columns for i in column.to_pylist()}


def anti_join(planned: pd.DataFrame, done: Collection[str], key: str = RATINGS.names[0]) -> pd.DataFrame:
    """Planned rows that are not done yet, in planned order."""
    return planned[~planned[key].isin(done)]


def drop_rows(folder: Path, statuses: Collection[str], schema: pa.Schema = RATINGS) -> int:
    """Take rows with these statuses out of their part files, so that they are planned again; how many there were.

    Every part is replaced in one step. An interruption leaves rows either in place or absent, never twice.
    """
    dropped = 0
    for path in parts(folder):
        table = _read(path, schema)
        kept = table.filter(pa.array([s not in statuses for s in table.column("status").to_pylist()], pa.bool_()))
        dropped += len(table) - len(kept)
        if not len(kept):
            path.unlink()
        elif len(kept) < len(table):
            _replace(path, kept)
    return dropped


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """The right to write to `folder` for the length of the block; DataError when another run holds it.

    What a killed run left half-written is removed.
    """
    _make_folder(folder)
    try:
        stream = (folder / ".lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise DataError(
                f"{folder} is being written by another run ({stream.read().strip() or 'unknown process'}). Two runs in "
                "one folder would make every row twice: wait for it or end it, or give this evaluation another name."
            ) from None
        except OSError as error:
            raise DataError(
                f"{folder}: this file system knows no locks ({error.strerror or error}), so that two runs could write "
                "every row twice. Put output_dir on another one."
            ) from error
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        for place in (folder, *folder.glob("*/")):
            clear_temporary(place)
        if folder.name == "ratings":
            clear_temporary(folder.parent, ".ratings.parquet.*.tmp")
        yield


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return read_sealed(path, schema)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise DataError(
            f"{path}: this part file is damaged or was written by another version ({reason}). Restore it from a copy, "
            "or delete it: the next run makes its rows again."
        ) from error


def read_sealed(path: Path, schema: pa.Schema) -> pa.Table:
    """These columns of a Parquet file, unless bytes of it have changed since `write_part` or `write_table`: then
    Damaged. What Arrow raises for a file of another kind passes."""
    content = path.read_bytes()
    verify(content)
    table = pq.ParquetFile(pa.BufferReader(content)).read(columns=schema.names)
    for name in [name for name in LATER if name in schema.names and name not in table.column_names]:
        table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names).cast(schema)


def unsealed(paths: Iterable[Path]) -> list[Path]:
    """Those of the files that carry no checksum: of an earlier version, or made by another program."""
    return [path for path in paths if TAIL.encode() not in _end(path)]


def _end(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - END_BYTES))
        return stream.read()


def refuse_off_scale(folder: Path, scale: Collection[int]) -> None:
    """DataError for a usable rating that is no score of the rubric: names part file and row."""
    for path in parts(folder):
        table = _read(path, RATINGS).select(["rating_id", "status", "score", "other_model"]).to_pylist()
        rated = [row for row in table if row["status"] == "ok"]
        wrong = [row for row in rated if row["score"] not in (scale if row["other_model"] is None else OUTCOMES)]
        if wrong:
            raise DataError(
                f"{path}: {len(wrong)} ratings have scores that the rubric does not know, such as {wrong[0]['score']} "
                f"of {wrong[0]['rating_id']}; its scale is {min(scale)} to {max(scale)}. Restore the file from a copy, "
                "or delete it: the next run makes its rows again."
            )


def _refuse_duplicates(files: Sequence[Path], columns: Sequence[pa.ChunkedArray]) -> None:
    ids = pd.Series([i for column in columns for i in column.to_pylist()], dtype="str")
    twice = ids[ids.duplicated()].unique()
    if not len(twice):
        return
    owner = pd.Series([path for path, column in zip(files, columns, strict=True) for _ in range(len(column))])
    shown = "; ".join(f"{i} in {', '.join(p.name for p in owner[ids == i].unique())}" for i in twice[:SHOWN])
    raise DataError(
        f"{files[0].parent}: {len(twice)} ids occur more than once ({shown}{'; …' if len(twice) > SHOWN else ''}). "
        "Were part files of another folder copied here? Delete the copies; the next run makes what is missing."
    )
