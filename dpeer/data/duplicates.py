"""Prompts that nearly repeat another: the same words up to case, marks and blanks, or most runs of three words.

Linear in the text: of every prompt the few smallest hashes of its runs of words are kept (Broder 1997, bottom-k
sketches), those of the second set are looked up while the first goes by, and candidates are compared.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import defaultdict

import xxhash

from dpeer.data.schema import DataSet, Record
from dpeer.data.split import prompt_key

RUN = 3
"""Words of a run."""
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


def near_duplicates(first: DataSet, second: DataSet) -> list[tuple[Record, Record]]:
    """(record of `first`, record of `second`) for each prompt of `second` that nearly, but not exactly, repeats one."""
    prompts = {prompt_key(r): r for r in second.records}
    whole: dict[str, list[str]] = defaultdict(list)
    sketched: dict[int, list[str]] = defaultdict(list)
    for key in prompts:
        if len(words := _words(key)) > 1:  # the first is the role
            whole[" ".join(words)].append(key)
        for value in _sketch(_runs(key)):
            sketched[value].append(key)
    found: dict[str, Record] = {}
    for key, record in {prompt_key(r): r for r in first.records}.items():
        if key in prompts:
            continue
        for other in _alike(key, whole, sketched):
            found.setdefault(other, record)
    return [(record, prompts[key]) for key, record in found.items()]


def _alike(key: str, whole: dict[str, list[str]], sketched: dict[int, list[str]]) -> list[str]:
    same = whole.get(" ".join(_words(key)), [])
    runs = _runs(key)
    votes: dict[str, int] = defaultdict(int)
    for value in _sketch(runs):
        if len(sketched.get(value, ())) <= COMMON:
            for other in sketched.get(value, ()):
                votes[other] += 1
    similar = [other for other, n in votes.items() if n >= SHARED and _jaccard(runs, _runs(other)) >= ALIKE]
    return [*same, *similar]


def _words(key: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", key).casefold())


def _runs(key: str) -> set[str]:
    words = _words(key)[:MOST_WORDS]
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _sketch(runs: set[str]) -> list[int]:
    return heapq.nsmallest(SKETCH, (xxhash.xxh3_64_intdigest(run.encode()) for run in runs))


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0
