"""Splits of one set of records: prompts stay whole, and every mask gives its share."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict

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
    so every machine, seed and order of the rows gives the same split.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in data.records:
        groups[prompt_key(record)].append(record)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, records in groups.items():
        strata[max(r.mask for r in records)].append(key)
    taken: set[str] = set()
    for keys in strata.values():
        wanted = part * sum(len(groups[key]) for key in keys)
        got = 0
        for key in sorted(keys, key=lambda k: hashlib.sha256(f"{purpose}\0{k}".encode()).digest()):
            if got + len(groups[key]) / 2 > wanted:
                break
            taken.add(key)
            got += len(groups[key])
    kept: list[Record] = []
    carved: list[Record] = []
    for record in data.records:
        (carved if prompt_key(record) in taken else kept).append(record)
    return DataSet(data.dimensions, tuple(kept), data.reading), DataSet(data.dimensions, tuple(carved))


def prompt_key(record: Record) -> str:
    text = "\0".join(f"{m.role}\1{m.content}" for m in record.prompt)
    return " ".join(unicodedata.normalize("NFC", text).split())
