"""Prompts of a split, to be compared with those of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from dpeer.data.schema import DataSet, Record
from dpeer.data.split import prompt_key

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Prompts:
    """records: of which only prompt and source are looked at. keys: [N], equal for equal prompts."""

    records: Sequence[Record]
    keys: Keys

    @classmethod
    def of(cls, data: DataSet) -> Prompts:
        return cls(data.records, np.array([hashed(r) for r in data.records], dtype=np.uint64))


def hashed(record: Record) -> int:
    """XXH3 of the prompt (64 bits)."""
    return int(xxhash.xxh3_64_intdigest(prompt_key(record).encode(errors="surrogatepass")))


def shared(first: Prompts, second: Prompts) -> list[tuple[Record, Record]]:
    """(record of `first`, record of `second`) for every record of the second with a prompt of the first."""
    both = np.intersect1d(first.keys, second.keys)
    ours, theirs = (np.flatnonzero(np.isin(prompts.keys, both)).tolist() for prompts in (first, second))
    seen = {prompt_key(record): record for record in map(first.records.__getitem__, ours)}
    found = ((seen.get(prompt_key(record)), record) for record in map(second.records.__getitem__, theirs))
    return [(other, record) for other, record in found if other is not None]
