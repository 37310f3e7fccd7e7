"""Splits of one set of records: prompts stay whole, and every mask gives its share."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from dpeer.data.schema import DataSet, Message, Record
from dpeer.errors import ConfigError

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
LARGEST = 50.0
Order = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.uint64]


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
    ranks = {mask: i for i, mask in enumerate(sorted({r.mask for r in data.records}))}
    masks = np.array([ranks[r.mask] for r in data.records], dtype=np.int64)
    order = order_array([order_key(r, purpose) for r in data.records])
    keys = np.array([hashed(r) for r in data.records], dtype=np.uint64)
    chosen = carved(order, keys, masks, part)
    parts = ([r for r, c in zip(data.records, chosen, strict=True) if c == wanted] for wanted in (False, True))
    left, taken = map(tuple, parts)
    return DataSet(data.dimensions, left, data.reading), DataSet(data.dimensions, taken)


def carved(order: Order, keys: Keys, masks: npt.NDArray[np.int64], part: float) -> npt.NDArray[np.bool_]:
    """[N]: which records are carved.

    order: `order_key` of each record's prompt. keys: equal for the same prompt, whose records stand where the first of
    them does; prompts of the same order follow their keys. masks: each record's mask as its rank among all masks, by
    name; a prompt belongs to the last of its records' masks.
    """
    ordered = np.lexsort((keys, order[:, 1], order[:, 0]))
    _, first, prompt = np.unique(keys[ordered], return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[prompt]  # of each record's prompt among the prompts in their order
    sizes = np.bincount(place)
    strata = np.full(len(sizes), -1)
    np.maximum.at(strata, place, masks[ordered])
    taken = np.zeros(len(sizes), dtype=bool)
    for mask in np.unique(strata):
        mine = np.flatnonzero(strata == mask)
        taken[mine[: _closest(sizes[mine], part)]] = True
    if not taken.any():
        taken[: _closest(sizes, part)] = True
    chosen = np.zeros(len(order), dtype=bool)
    chosen[ordered] = taken[place]
    return chosen


def united(keys: Keys, asked: Keys) -> Keys:
    """[N]: equal for records that equal keys or equal hashes of tokens link, over others too. A hash of 0 is none."""
    group = np.unique(keys, return_inverse=True)[1]
    alike = np.unique(asked, return_inverse=True)[1]
    alike[asked == 0] = len(asked) + np.flatnonzero(asked == 0)
    while True:
        linked = _least(_least(group, alike), group)
        if (linked == group).all():
            return group.astype(np.uint64)
        group = linked


def _least(values: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[N]: the least value in each one's group."""
    least = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, groups, values)
    return least[groups]


def _closest(sizes: npt.NDArray[np.int64], part: float) -> int:
    """How many of the first groups come closest to a share of the records of all."""
    full = np.cumsum(sizes) - sizes / 2 > part * int(sizes.sum())
    return int(full.argmax()) if full.any() else len(sizes)


def order_key(record: Record, purpose: str) -> bytes:
    """16 bytes by which prompts are sorted for a purpose. Fixed for ever: another one would move records between the
    splits of runs that have begun."""
    text = "\0".join(f"{m.role}\1{m.content}" for m in record.prompt)
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(f"{purpose}\0{text}".encode()).digest()[:16]


def order_array(keys: Sequence[bytes]) -> Order:
    """[N, 2], which sorts as the keys do."""
    return np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def prompt_key(record: Record) -> str:
    """The prompt's text, equal for prompts that differ in blanks or in Unicode's form only. Names and calls beside the
    text, and tools, are one more word; ids of calls and the thoughts of earlier turns, which most templates leave out,
    make no other prompt."""
    turns = ((m.role, unicodedata.normalize("NFC", m.content).split()) for m in record.prompt)
    beside = "\0".join((*map(_beside, record.prompt), record.tools))
    more = (
        [f"beside\1{hashlib.sha256(beside.encode(errors='surrogatepass')).hexdigest()}"] if beside.strip("\0") else []
    )
    return "\0".join([*(f"{role}\1{' '.join(words)}" for role, words in turns), *more])


def _beside(message: Message) -> str:
    if not message.extra:
        return ""
    kept = {name: value for name, value in message.more.items() if name not in ("reasoning", "tool_call_id")}
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [{name: value for name, value in call.items() if name != "id"} for call in calls]
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def hashed(record: Record) -> int:
    """XXH3 of the prompt (64 bits)."""
    return int(xxhash.xxh3_64_intdigest(prompt_key(record).encode(errors="surrogatepass")))
