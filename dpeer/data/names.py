"""Dimension names that cannot be told from the names that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

from dpeer.data.faults import Fault
from dpeer.data.schema import Record

MASK, PAIR = "+", " over "
"""What joins the names of a mask (A+T) and of a constraint between two dimensions (A over T)."""


def clashes(records: Sequence[Record], places: Sequence[str], dimensions: Sequence[str]) -> Iterator[Fault]:
    """A fault per clash, at the first row where it shows.

    places: "file, row 3" of each record. A joined name may be neither a dimension's nor that of other names joined.
    """
    joined: dict[str, tuple[str, ...]] = {d: (d,) for d in dimensions}
    for record, place in zip(records, places, strict=True):
        name = MASK.join(record.mask)
        if (other := joined.setdefault(name, record.mask)) != record.mask:
            yield _clash(place, "the mask", record.mask, name, other)
            joined[name] = record.mask  # said once
    if not any(PAIR.strip() in d for d in dimensions):
        return
    first = {d: place for record, place in zip(reversed(records), reversed(places), strict=True) for d in record.mask}
    joined = {d: (d,) for d in dimensions}
    for pair in permutations(dimensions, 2):
        if (other := joined.setdefault(PAIR.join(pair), pair)) != pair:
            place = next((first[d] for d in (*other, *pair) if PAIR.strip() in d and d in first), "")
            yield _clash(place, "a constraint between", pair, PAIR.join(pair), other)


def _clash(place: str, what: str, names: Sequence[str], joined: str, other: Sequence[str]) -> Fault:
    twin = "a dimension" if len(other) == 1 else f"{list(other)} joined"
    return Fault(place, "mask", f"{what} {list(names)} would be called {joined!r}, as {twin} is; rename a dimension")
