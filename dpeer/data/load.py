"""Data sets from files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dpeer.config_sources import Map, Source, Sources, listed
from dpeer.config_sources import paths as paths_of
from dpeer.data import parse
from dpeer.data.faults import Fault, data_error
from dpeer.data.map import Tally, mapped
from dpeer.data.names import clashes
from dpeer.data.places import HUB_ID as HUB_ID
from dpeer.data.places import rows_of
from dpeer.data.places import splits as splits
from dpeer.data.presets import completed, detected, said
from dpeer.data.read import Row
from dpeer.data.schema import DataSet, Reading, Record
from dpeer.errors import DataError


def load(
    source: Sources, split: str | None = None, dimensions: Sequence[str] | None = None, map: Map | None = None
) -> DataSet:
    """Load a data set and check every row.

    source: PATH, PATH:SUBSET, PATH@SPLIT or PATH:SUBSET@SPLIT, PATH being a file, a folder or a hub id "owner/name"; or
    several, each with a weight and a map.
    split: which split of a folder or hub id, default "train"; a file is one split and ignores it, and so does a source
    with @SPLIT.
    dimensions: dimensions and their order, for held-out data of a known training set; default: the names in the masks,
    sorted. Every record's mask follows this order.
    map: what the columns mean; default: told from the columns, where they leave no doubt.

    Raises DataError that names file, row, column and an excerpt of up to a screen of faults.
    """
    data, faults = load_with_faults(source, split, dimensions, map)
    if faults:
        raise data_error(", ".join(paths_of(source)), faults)
    return data


def load_with_faults(
    source: Sources, split: str | None = None, dimensions: Sequence[str] | None = None, map: Map | None = None
) -> tuple[DataSet, tuple[Fault, ...]]:
    """The sound records of a data set and the faults of the others. Raises DataError when there is nothing to read."""
    every = _Read()
    for one in listed(source, map):
        _read(one, split or "train", every)
    records = []
    places = []
    for record, where in zip(every.records, every.places, strict=True):
        if outside := [d for d in record.mask if dimensions is not None and d not in dimensions]:
            known = ", ".join(dimensions or ())
            message = f"unknown dimension {outside[0]!r}; the training data have {known}"
            every.faults.append(Fault(where, "mask", message))
        else:
            records.append(record)
            places.append(where)
    order = tuple(dimensions) if dimensions is not None else tuple(sorted({d for r in records for d in r.mask}))
    ordered = tuple(replace(r, mask=tuple(d for d in order if d in r.mask)) for r in records)
    return DataSet(order, ordered, tuple(every.reading)), (*every.faults, *clashes(ordered, places, order))


@dataclass
class _Read:
    """What has been read so far, over all sources."""

    records: list[Record] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    reading: list[Reading] = field(default_factory=list)


def _read(source: Source, split: str, every: _Read) -> None:
    data_rows, faults = rows_of(source.path, split)
    every.faults += faults
    before = len(every.records) + len(every.faults)
    general, reading = _general(source, data_rows, every.faults)
    first_form = ""
    for row in general:
        record = parse.record(row)
        if isinstance(record, Fault):
            every.faults.append(record)
            continue
        kind = parse.form(row.fields)
        first_form = first_form or kind
        if kind != first_form:
            message = f"mixed forms: {kind} after rows in {first_form}; use one form per file"
            every.faults.append(Fault(row.where, "", message))
        else:
            every.records.append(replace(record, weight=record.weight * source.weight))
            every.places.append(row.where)
    if reading is not None:
        every.reading.append(reading)
        if len(every.records) + len(every.faults) == before:
            raise DataError("\n".join([*reading.lines(), f"{source.path}: no record is left"]))


def _general(source: Source, data_rows: list[Row], faults: list[Fault]) -> tuple[Iterable[Row], Reading | None]:
    """Rows in a form of dpeer's own, and how they were made if they were not."""
    found = meaning(source, columns_of(data_rows), data_rows[0].where) if data_rows else None
    if found is None:
        return data_rows, None
    tally = Tally()
    made = []
    for row in mapped(data_rows, found[0], tally):
        if isinstance(row, Fault):
            faults.append(row)
        else:
            made.append(row)
    return made, told(source, found[1], tally)


def columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row.fields))


def meaning(source: Source, columns: Sequence[str], where: str) -> tuple[Map, str] | None:
    """The complete map of a source with these columns, and in words what it takes them for; None for a form of dpeer's
    own. where: its first row. DataError: it cannot be told."""
    given = source.map
    if given is None or (given.preset is None and given.shape is None):
        name = None if parse.native(columns) else detected(columns)
        if name is None and given is None:
            return None
        given = Map(**((given.said if given else {}) | {"preset": name}))
    whole = completed(given, columns, where.partition(", row")[0])
    return whole, said(given, whole)


def told(source: Source, words: str, tally: Tally) -> Reading:
    """How a source was read, whose columns `words` tells."""
    skipped = sorted(((r, n, first) for r, (n, first) in tally.skipped.items()), key=lambda x: -x[1])
    return Reading(source.path, words, tally.pairs, tuple(skipped))
