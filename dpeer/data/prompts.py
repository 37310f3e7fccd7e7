"""Prompts of a split, to be compared with those of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpeer.data.schema import DataSet, Record
from dpeer.data.split import Keys, hashed, prompt_key


@dataclass(frozen=True)
class Prompts:
    """records: of which only prompt and source are looked at. keys: [N], equal for equal prompts. asked: [N], hashes of
    the prompts' tokens, 0 where there are none; None: they are not known."""

    records: Sequence[Record]
    keys: Keys
    asked: Keys | None = None

    @classmethod
    def of(cls, data: DataSet) -> Prompts:
        return cls(data.records, np.array([hashed(r) for r in data.records], dtype=np.uint64))


def shared(first: Prompts, second: Prompts) -> list[tuple[Record, Record]]:
    """(record of `first`, record of `second`) for every record of the second with a prompt of the first: of the same
    text, or of the same tokens where these are known."""
    ours, theirs = _common(first.keys, second.keys)
    texts = {prompt_key(first.records[i]): i for i in ours}
    found = {k: texts[key] for k in theirs if (key := prompt_key(second.records[k])) in texts}
    if first.asked is not None and second.asked is not None:
        ours, theirs = _common(first.asked, second.asked)
        tokens = {int(first.asked[i]): i for i in ours}
        found = {k: tokens[int(second.asked[k])] for k in theirs} | found
    return [(first.records[i], second.records[k]) for k, i in sorted(found.items())]


def _common(first: Keys, second: Keys) -> tuple[list[int], list[int]]:
    """Where each has the keys that both have; 0 is none."""
    both = np.intersect1d(first, second)
    both = both[both != 0]
    return np.flatnonzero(np.isin(first, both)).tolist(), np.flatnonzero(np.isin(second, both)).tolist()
