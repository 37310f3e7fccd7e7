"""Splits of one set of records: prompts stay whole, and every mask gives its share."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dpeer.data.schema import DataSet, Record
from dpeer.errors import ConfigError

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
LARGEST = 50.0


def share(text: str | None) -> float | None:
    """0.1 for "10%"; None for anything that is not a share. ConfigError: a share of nothing, or of more than half."""
    match = SHARE.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    percent = float(match[1])
    if not 0 < percent <= LARGEST:
        raise ConfigError(f"a share of the training records must be above 0% and at most {LARGEST:g}%, given {text}")
    return percent / 100


def carve(data: DataSet, part: float, purpose: str) -> tuple[DataSet, DataSet]:
    """(what is left, what is carved): about `part` of the records of every mask.

    Records with the same prompt go together. Which prompts are taken follows from their text and from `purpose` alone,
    so every machine, seed and order of the rows gives the same split. Where no mask has enough records to give one,
    they give their share together.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in data.records:
        groups[prompt_key(record)].append(record)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, records in groups.items():
        strata[max(r.mask for r in records)].append(key)
    sizes = {key: len(records) for key, records in groups.items()}
    ranks = {key: min(_rank(r, purpose) for r in records) for key, records in groups.items()}
    taken = {key for keys in strata.values() for key in _first(sorted(keys, key=ranks.__getitem__), sizes, part)}
    taken = taken or set(_first(sorted(groups, key=ranks.__getitem__), sizes, part))
    kept: list[Record] = []
    carved: list[Record] = []
    for record in data.records:
        (carved if prompt_key(record) in taken else kept).append(record)
    return DataSet(data.dimensions, tuple(kept), data.reading), DataSet(data.dimensions, tuple(carved))


def _first(keys: Sequence[str], sizes: Mapping[str, int], part: float) -> Iterator[str]:
    """The first groups, as many as come closest to a share of their records."""
    wanted, got = part * sum(sizes[key] for key in keys), 0
    for key in keys:
        if got + sizes[key] / 2 > wanted:
            return
        yield key
        got += sizes[key]


def _rank(record: Record, purpose: str) -> bytes:
    """Fixed for ever: another one would move records between the splits of runs that have begun."""
    text = "\0".join(f"{m.role}\1{m.content}" for m in record.prompt)
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(f"{purpose}\0{text}".encode()).digest()


def prompt_key(record: Record) -> str:
    """The prompt's text, equal for prompts that differ in blanks or in Unicode's form only."""
    turns = ((m.role, unicodedata.normalize("NFC", m.content).split()) for m in record.prompt)
    return "\0".join(f"{role}\1{' '.join(words)}" for role, words in turns)
