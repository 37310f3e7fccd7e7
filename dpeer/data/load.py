"""Data sets from files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from dpeer.config_sources import NONE, OWN, Map, Source, Sources, listed, own_maps
from dpeer.config_sources import paths as paths_of
from dpeer.data import parse
from dpeer.data.conversation import Malformed, conversation
from dpeer.data.faults import Fault, data_error
from dpeer.data.map import Tally, mapped
from dpeer.data.names import clashes
from dpeer.data.places import HUB_ID as HUB_ID
from dpeer.data.places import rows_of
from dpeer.data.places import splits as splits
from dpeer.data.presets import completed, detected, named_beside, needed, said, with_preset
from dpeer.data.read import Row
from dpeer.data.schema import DataSet, Reading, Record
from dpeer.errors import DataError

AS_IT_IS = "one of dpeer's own forms, as it is; data.map is for other columns"


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
    for one, has_own in zip(listed(source, map), own_maps(source), strict=True):
        _read(one, split or "train", every, has_own)
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


def _read(source: Source, split: str, every: _Read, own: bool) -> None:
    """own: the source's map is its own, and not that of all sources."""
    data_rows, faults = rows_of(source.path, split)
    every.faults += faults
    before = len(every.records) + len(every.faults)
    general, reading = _general(source, data_rows, every.faults, own)
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


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the columns of a source mean. map: complete; None for rows in a form of dpeer's own, whose weights and tools
    are in the columns `weight` and `tools`. words: what is to be told of it; empty: nothing. talks: see `talks`."""

    map: Map | None = None
    weight: str = "weight"
    tools: str = "tools"
    words: str = ""
    talks: bool = False

    def general(self, data_rows: Iterable[Row], tally: Tally) -> Iterator[Row | Fault]:
        """Rows in a form of dpeer's own, and the faults of those that cannot be made such."""
        return mapped(data_rows, self.map, tally) if self.map else self._own(data_rows)

    def _own(self, data_rows: Iterable[Row]) -> Iterator[Row]:
        """Rows of dpeer's own forms, with weight and tools from the columns that hold them."""
        columns = {key: name for key, name in (("weight", self.weight), ("tools", self.tools)) if name != key}
        for r in data_rows:
            beside = {key: r.fields.get(name) if name != NONE else None for key, name in columns.items()}
            yield replace(r, fields=r.fields | beside, columns={**r.columns, **columns}) if columns else r


def _general(source: Source, data_rows: list[Row], faults: list[Fault], own: bool) -> tuple[list[Row], Reading | None]:
    """Rows in a form of dpeer's own, and how they were made if they were not."""
    if not data_rows:
        return data_rows, None
    columns = columns_of(data_rows)
    found = meaning(source, columns, data_rows[0].where, own, partial(talks, data_rows[0], columns))
    tally = Tally()
    made = []
    for row in found.general(data_rows, tally):
        if isinstance(row, Fault):
            faults.append(row)
        else:
            made.append(row)
    return made, told(source, found, tally)


def columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row.fields))


def meaning(source: Source, columns: Sequence[str], where: str, own: bool, talks: Callable[[Map], bool]) -> Meaning:
    """Of a source with these columns. where: its first row. own: its map is its own, and not that of all sources.
    talks: whether both sides of its first pair, by that map, are conversations. DataError: it cannot be told."""
    where, given = where.partition(", row")[0], source.map
    if parse.native(columns) and (given is None or _as_it_is(given, columns, where, own)):
        if given is None:
            return Meaning()
        beside = Map() if given.preset or given.shape else given
        words = AS_IT_IS if given.said.keys() - OWN else ""
        return Meaning(weight=beside.weight, tools=beside.tools, words=words)
    if given is None or (given.preset is None and given.shape is None):
        name = detected(columns)
        if name is None and given is None:
            return Meaning()
        given = Map(**((given.said if given else {}) | {"preset": name}))
    talk = talks(given)
    whole = completed(given, columns, where, talk)
    return Meaning(whole, words=said(given, whole), talks=talk)


def told(source: Source, found: Meaning, tally: Tally) -> Reading | None:
    """How a source was read; None where there is nothing to tell."""
    if not found.words:
        return None
    skipped = sorted(((r, n, first) for r, (n, first) in tally.skipped.items()), key=lambda x: -x[1])
    ranked = found.map is not None and found.map.rated != {}
    return Reading(source.path, found.words, tally.pairs, tuple(skipped), ranked)


def _as_it_is(given: Map, columns: Sequence[str], where: str, own: bool) -> bool:
    """Whether rows of dpeer's own forms are read as they are: the map describes no columns, or is one for all sources
    that describes others. DataError: a map of their own that says something of them which they say themselves."""
    if given.preset or given.shape:
        return not own and not set(columns).issuperset(needed(with_preset(given, columns)))
    if missing := [column for column in named_beside(given) if column not in columns]:
        raise DataError(f"{where}: data.map names the column {missing[0]!r}, which is not there")
    if own and (more := given.said.keys() - OWN):
        raise DataError(
            f"{where}: its columns are those of dpeer's own forms, which say it all; of data.map they take weight and "
            f"tools alone, given {', '.join(sorted(more))}. To read other columns, name them (golden, reject)"
        )
    return True


def talks(row: Row, columns: Sequence[str], given: Map) -> bool:
    """Whether both sides of a pair are conversations, which begin with their prompt."""
    whole = with_preset(given, columns)
    if not (whole.golden and whole.reject):
        return False
    try:
        sides = [conversation(row.fields.get(column), whole.turns) for column in (whole.golden, whole.reject)]
    except (parse.Invalid, Malformed):
        return False
    return all(len(side or ()) > 1 for side in sides)
