"""Texts of a data set that nearly repeat each other, within and between splits, by MinHash (Broder 1997).

What counts as nearly the same is what `dpeer.data.duplicates` says of prompts: the same words up to case, marks and
blanks, or 70 % of the runs of three words. Of every text the least of HASHES hash functions over its runs are kept;
texts that agree in all ROWS of some band are candidates (locality-sensitive hashing, Indyk & Motwani 1998), and are
compared exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpeer.data.duplicates import ALIKE, jaccard, runs, words
from dpeer.data.schema import DataSet
from dpeer.data.split import prompt_key

HASHES, ROWS = 64, 4
"""A pair at a similarity of 0.7 shares a band with probability 0.988, one of 0.3 with 0.12."""
AGREE = 0.5
"""Share of hashes that candidates agree in before they are compared exactly."""
KEEPS = ("test", "heldout", "dual", "train")
"""What is looked at last stays whole."""


@dataclass(frozen=True, slots=True)
class Text:
    """`owner`: texts of one owner (responses of one record) are not compared with each other. `source`: "file:row"."""

    split: str
    owner: str
    source: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`copy` nearly repeats `first`, which stands in a split that keeps it, or before it. `alike`: how much of their
    runs of words they share (Jaccard)."""

    first: Text
    copy: Text
    alike: float


def prompts_of(splits: Mapping[str, DataSet]) -> list[Text]:
    """Each distinct prompt of each split."""
    return list(
        {
            (split, key): Text(split, key, r.source, tuple(words(key)[1:]))
            for split, data in splits.items()
            for r in reversed(data.records)
            for key in [prompt_key(r)]
        }.values()
    )[::-1]


def responses_of(splits: Mapping[str, DataSet]) -> list[Text]:
    """Each response; those of one prompt are meant to resemble each other, and are not compared."""
    return [
        Text(split, prompt_key(r), r.source, tuple(words(answer.text)))
        for split, data in splits.items()
        for r in data.records
        for answer in r.responses
    ]


def repeats(texts: Sequence[Text], keeps: Sequence[str] = KEEPS) -> list[Repeat]:
    """Near repeats, each text once: beside the first that it repeats.

    keeps: splits in the order in which they keep a text that several have, others last. Prompts that are the same in
    two splits are refused elsewhere (`dpeer.data.facts`); here they are repeats too.
    """
    rank = {name: k for k, name in enumerate(keeps)}
    ordered = sorted(texts, key=lambda t: rank.get(t.split, len(rank)))
    found: dict[int, tuple[int, float]] = {}
    whole: dict[tuple[str, ...], int] = {}
    for i, text in enumerate(ordered):
        j = whole.setdefault(text.words, i) if text.words else i
        if _apart(text, ordered[j]):
            found[i] = (j, 1.0)
    hashed = [runs(t.words) for t in ordered]
    for i, j in _candidates(hashed):
        if _apart(ordered[i], ordered[j]) and j < found.get(i, (len(ordered), 0.0))[0]:
            alike = jaccard(hashed[i], hashed[j])
            if alike >= ALIKE:
                found[i] = (j, alike)
    return [Repeat(ordered[j], ordered[i], alike) for i, (j, alike) in sorted(found.items())]


def _apart(one: Text, other: Text) -> bool:
    return (one.split, one.owner) != (other.split, other.owner)


def _candidates(hashed: Sequence[set[int]]) -> list[tuple[int, int]]:
    """(later, earlier) texts that share a band and agree in enough hashes; each is held against the first of its
    bucket and against the one before it, so that their number grows with the texts and not with its square."""
    some = np.flatnonzero([len(h) > 0 for h in hashed])
    if len(some) < 2:
        return []
    signs = _signatures([hashed[i] for i in some])
    pairs = []
    for band in range(0, HASHES, ROWS):
        key = np.ascontiguousarray(signs[:, band : band + ROWS]).view(f"V{4 * ROWS}").ravel()
        _, bucket = np.unique(key, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        begins = np.diff(bucket[order], prepend=-1) > 0
        head = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        later = np.flatnonzero(~begins)
        pairs += [np.stack([order[later], order[e]], axis=1) for e in (head[later], later - 1)]
    unique = np.unique(np.concatenate(pairs), axis=0)
    agree = (signs[unique[:, 0]] == signs[unique[:, 1]]).mean(axis=1) >= AGREE
    return [(int(some[i]), int(some[j])) for i, j in unique[agree]]


def _signatures(hashed: Sequence[set[int]]) -> npt.NDArray[np.uint32]:
    """[N, HASHES] the least of each hash function over a text's runs, by multiplication modulo 2^64."""
    flat = np.concatenate([np.fromiter(h, np.uint64, len(h)) for h in hashed])
    starts = np.concatenate([[0], np.cumsum([len(h) for h in hashed])[:-1]])
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, HASHES, dtype=np.uint64)
    signs = np.empty((len(hashed), HASHES), np.uint32)
    for h in range(HASHES):
        mixed = (flat * factors[h] + shifts[h]) >> np.uint64(32)
        signs[:, h] = np.minimum.reduceat(mixed.astype(np.uint32), starts)
    return signs


def counted(found: Sequence[Repeat]) -> pd.DataFrame:
    """kept (split), repeated (split), texts: how many of the second nearly repeat one of the first."""
    rows = Counter((r.first.split, r.copy.split) for r in found)
    return pd.DataFrame([(*k, n) for k, n in rows.items()], columns=["kept", "repeated", "texts"])
