"""Splits of one set of records: prompts stay whole, and every mask gives its share."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpeer.data.schema import DataSet, Record
from dpeer.errors import ConfigError

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
LARGEST = 50.0
Order = npt.NDArray[np.uint64]


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
    ranks = {mask: i for i, mask in enumerate(sorted({r.mask for r in data.records}))}
    order = [order_key(record, purpose) for record in data.records]
    chosen = carved(order_array(order), np.array([ranks[r.mask] for r in data.records], dtype=np.int64), part)
    parts = ([r for r, c in zip(data.records, chosen, strict=True) if c == wanted] for wanted in (False, True))
    left, taken = map(tuple, parts)
    return DataSet(data.dimensions, left, data.reading), DataSet(data.dimensions, taken)


def carved(order: Order, masks: npt.NDArray[np.int64], part: float) -> npt.NDArray[np.bool_]:
    """[N]: which records are carved. order: of each record's prompt, the same for the same prompt. masks: each
    record's mask as its rank among all masks, by name; a prompt belongs to the last of its records' masks."""
    by_prompt = np.lexsort((order[:, 1], order[:, 0]))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(order[by_prompt], axis=0) != 0).any(axis=1)
    group = np.cumsum(new) - 1  # of the sorted records; groups are in their prompts' order
    sizes = np.bincount(group)
    strata = np.maximum.reduceat(masks[by_prompt], np.flatnonzero(new)) if len(order) else masks
    taken = np.zeros(len(sizes), dtype=bool)
    for stratum in np.unique(strata):
        mine = np.flatnonzero(strata == stratum)
        before = np.cumsum(sizes[mine]) - sizes[mine]
        full = before + sizes[mine] / 2 > part * int(sizes[mine].sum())
        taken[mine[: int(full.argmax()) if full.any() else len(mine)]] = True
    chosen = np.zeros(len(order), dtype=bool)
    chosen[by_prompt] = taken[group]
    return chosen


def order_key(record: Record, purpose: str) -> bytes:
    """16 bytes by which prompts are sorted for a purpose; the same for the same prompt."""
    return hashlib.sha256(f"{purpose}\0{prompt_key(record)}".encode()).digest()[:16]


def order_array(keys: Sequence[bytes]) -> Order:
    """[N, 2], which sorts as the keys do."""
    return np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def prompt_key(record: Record) -> str:
    """The prompt's text, equal for prompts that differ in blanks or in Unicode's form only."""
    turns = ((m.role, unicodedata.normalize("NFC", m.content).split()) for m in record.prompt)
    return "\0".join(f"{role}\1{' '.join(words)}" for role, words in turns)
