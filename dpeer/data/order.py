"""The compositional partial order of a record's responses, and its one-dimension covers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dpeer.data.schema import DataSet, Record


@dataclass(frozen=True, slots=True)
class Edge:
    """`responses[better]` is preferred to `responses[worse]`, which fails `dimension` in addition."""

    dimension: str
    better: int
    worse: int


def at_least(better: frozenset[str], worse: frozenset[str]) -> bool:
    """y >= y' iff F(y) is a subset of F(y'); neither way round means the two are incomparable."""
    return better <= worse


def edges(record: Record) -> tuple[Edge, ...]:
    """All pairs with F' = F + {d}, labelled d. Pairs that differ in two dimensions are not attributable: no edge."""
    covers = []
    for i, y in enumerate(record.responses):
        for j, other in enumerate(record.responses):
            extra = other.fails - y.fails
            if at_least(y.fails, other.fails) and len(extra) == 1:
                covers.append(Edge(next(iter(extra)), i, j))
    rank = {d: k for k, d in enumerate(record.mask)}
    return tuple(sorted(covers, key=lambda e: (rank[e.dimension], e.better, e.worse)))


def edge_counts(data: DataSet) -> dict[str, int]:
    """Edges per dimension, in the order of the dimensions."""
    counts = Counter(e.dimension for r in data.records for e in edges(r))
    return {d: counts[d] for d in data.dimensions}
