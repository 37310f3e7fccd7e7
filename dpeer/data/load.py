"""Data sets from files, folders and the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from dpeer.data import parse
from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.names import clashes
from dpeer.data.read import SUFFIXES, Row, rows
from dpeer.data.schema import DataSet, Record
from dpeer.errors import DataError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load(source: str, split: str | None = None, dimensions: Sequence[str] | None = None) -> DataSet:
    """Load a data set and check every row.

    source: a CSV / JSONL / Parquet file, a folder with train.* and test.*, or a hub id "owner/name".
    split: which split of a folder or hub id, default "train"; a file is one split and ignores it.
    dimensions: dimensions and their order, for held-out data of a known training set; default: the names in the masks,
    sorted. Every record's mask follows this order.

    Raises DataError that names file, row, column and an excerpt of up to a screen of faults.
    """
    data, faults = load_with_faults(source, split, dimensions)
    if faults:
        raise data_error(source, faults)
    return data


def load_with_faults(
    source: str, split: str | None = None, dimensions: Sequence[str] | None = None
) -> tuple[DataSet, tuple[Fault, ...]]:
    """The sound records of a data set and the faults of the others. Raises DataError when there is nothing to read."""
    path = Path(source)
    if path.exists() or not HUB_ID.fullmatch(source) or path.suffix in SUFFIXES:
        data_rows, faults = rows(_file(path, split or "train"))
    else:
        data_rows, faults = _hub_rows(source, split or "train"), []
    return _data_set(data_rows, faults, dimensions)


def splits(source: str) -> tuple[str, ...]:
    """The splits among train and test that `source` has; a file has "train" only. Raises DataError as `load` does."""
    path = Path(source)
    if path.is_dir():
        return tuple(s for s in ("train", "test") if _candidates(path, s))
    if path.exists() or not HUB_ID.fullmatch(source) or path.suffix in SUFFIXES:
        return ("train",)
    with _hub(source) as datasets:
        names = datasets.get_dataset_split_names(source)
    return tuple(s for s in ("train", "test") if s in names)


def _data_set(
    data_rows: Iterable[Row], faults: list[Fault], dimensions: Sequence[str] | None
) -> tuple[DataSet, tuple[Fault, ...]]:
    records: list[Record] = []
    places: list[str] = []
    first_form = ""
    for row in data_rows:
        record = parse.record(row)
        if isinstance(record, Fault):
            faults.append(record)
            continue
        kind = parse.form(row.fields)
        first_form = first_form or kind
        if kind != first_form:
            faults.append(
                Fault(row.where, "", f"mixed forms: {kind} after rows in {first_form}; use one form per file")
            )
        elif outside := [d for d in record.mask if dimensions is not None and d not in dimensions]:
            known = ", ".join(dimensions or ())
            faults.append(Fault(row.where, "mask", f"unknown dimension {outside[0]!r}; the training data have {known}"))
        else:
            records.append(record)
            places.append(row.where)
    order = tuple(dimensions) if dimensions is not None else tuple(sorted({d for r in records for d in r.mask}))
    ordered = tuple(replace(r, mask=tuple(d for d in order if d in r.mask)) for r in records)
    return DataSet(order, ordered), (*faults, *clashes(ordered, places, order))


def _file(path: Path, split: str) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; give a .csv, .jsonl or .parquet file, a folder with train.* or a hub id"
        )
    if not path.is_dir():
        raise DataError(f"{path}: neither a regular file nor a folder; give a .csv, .jsonl or .parquet file")
    candidates = _candidates(path, split)
    if len(candidates) == 1:
        return candidates[0]
    names = sorted(p.name for p in path.iterdir())
    inside = excerpt(", ".join(names), 80) if names else "nothing"
    count, advice = ("more than one", "keep one") if candidates else ("no", "rename one")
    raise DataError(
        f"{path}: the folder has {count} file {split}.csv, {split}.jsonl or {split}.parquet; it holds {inside}; "
        f"{advice} or give the file itself"
    )


def _candidates(folder: Path, split: str) -> list[Path]:
    return [p for p in (folder / f"{split}{suffix}" for suffix in SUFFIXES) if p.is_file()]


def _hub_rows(name: str, split: str) -> list[Row]:
    with _hub(name) as datasets:
        table = datasets.load_dataset(name, split=split)
    return [
        Row(f"{name}/{split}:{k}", f"{name}, split {split}, row {k}", dict(fields)) for k, fields in enumerate(table, 1)
    ]


@contextmanager
def _hub(name: str) -> Iterator[ModuleType]:
    import datasets  # takes seconds, which local files need not pay

    try:
        yield datasets
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name}: there is no such file or folder here, and the hub data set could not be loaded "
            f"({type(error).__name__}: {excerpt(str(error), 160)}). Check the name, the split and the network; without "
            f"network, run `hf download {name} --repo-type dataset --local-dir DIR` elsewhere and give a file of DIR"
        ) from error
