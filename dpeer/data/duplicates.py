"""Prompts that nearly repeat another: the same words up to case, marks and blanks, or most runs of three words.

Linear in the text: of every prompt the few smallest hashes of its runs of words are kept (Broder 1997, bottom-k
sketches), those of the second set are looked up while the first goes by, and candidates are compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import xxhash

from dpeer.data.prompts import Prompts
from dpeer.data.schema import DataSet, Record
from dpeer.data.split import prompt_key

SKETCH = 6
SHARED = 2
"""Hashes of a sketch that two prompts share before they are compared."""
ALIKE = 0.7
"""Jaccard similarity of their runs from which on two prompts nearly repeat each other."""
COMMON = 20
"""A hash that so many prompts have is boilerplate, and finds nothing."""
MOST_WORDS = 400

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
"""A word, or a character of scripts that write none."""


MASK = (1 << 32) - 1


class Index:
    """Prompts of one set, to be found by prompts that nearly repeat them."""

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        """Keys of prompts, as `split.prompt_key` writes them."""
        self.whole: dict[str, list[str]] = defaultdict(list)
        self.sketched: dict[int, list[str]] = defaultdict(list)
        self.keys = set[str]()
        for key in set(prompts):
            self.add(key)

    def add(self, key: str) -> None:
        if key in self.keys:
            return
        self.keys.add(key)
        if len(told := words(key)) > 1:  # the first is the role
            self.whole[" ".join(told)].append(key)
        for value in _sketch(runs(told)):
            self.sketched[value].append(key)

    def alike(self, key: str) -> set[str]:
        """Those that `key` nearly, but not exactly, repeats."""
        told = words(key)
        mine = runs(told)
        votes: dict[str, int] = defaultdict(int)
        for value in _sketch(mine):
            found = self.sketched.get(value, ())
            for other in found if len(found) <= COMMON else ():
                votes[other] += 1
        similar = {k for k, n in votes.items() if n >= SHARED and jaccard(mine, runs(words(k))) >= ALIKE}
        return similar.union(self.whole.get(" ".join(told), ())) - {key}


def near_duplicates(first: DataSet | Prompts, *others: DataSet | Prompts) -> list[list[tuple[Record, Record]]]:
    """For each of the other sets: (record of `first`, record of the other) for each prompt of the other that nearly,
    but not exactly, repeats one. `first` is read once, record by record."""
    prompts = [{prompt_key(r): r for r in other.records} for other in others]
    index = Index(key for keys in prompts for key in keys)
    found: list[dict[str, Record]] = [{} for _ in others]
    last = ""
    for record in first.records:
        key = prompt_key(record)
        if key == last or key in index.keys:
            continue
        last = key
        for other in index.alike(key):
            for keys, pairs in zip(prompts, found, strict=True):
                if other in keys:
                    pairs.setdefault(other, record)
    return [[(r, keys[key]) for key, r in pairs.items()] for keys, pairs in zip(prompts, found, strict=True)]


def words(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:MOST_WORDS]


@lru_cache(1 << 17)
def _hash(word: str) -> int:
    return int(xxhash.xxh32_intdigest(word.encode()))


def runs(words: Sequence[str]) -> set[int]:
    """Hashes of the runs of words, each as random as those of its words."""
    ids = [_hash(word) for word in words]
    return {(3 * x + 5 * y + 7 * z) & MASK for x, y, z in zip(ids, ids[1:], ids[2:], strict=False)}


def _sketch(runs: set[int]) -> list[int]:
    return sorted(runs)[:SKETCH]


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0
