"""The identification check of a million ratings: what it costs in calls and bytes."""

from __future__ import annotations

import sys
import tracemalloc
from types import FrameType

import numpy as np

from dpeer.eval.irt.design import check
from dpeer.eval.irt.types import Options, Ratings


def many(items: int, n: int) -> Ratings:
    models, judges, dimensions = 20, 5, 4
    rng = np.random.default_rng(0)
    pair = np.arange(models * items)
    return Ratings(
        models=tuple(f"m{i}" for i in range(models)),
        items=tuple(f"q{i}" for i in range(items)),
        judges=tuple(f"j{i}" for i in range(judges)),
        dimensions=tuple(f"d{i}" for i in range(dimensions)),
        criteria=tuple((f"d{i}", "c") for i in range(dimensions)),
        scale=(1, 2, 3, 4, 5),
        response_model=pair // items,
        response_item=pair % items,
        response_length=rng.standard_normal(len(pair)),
        response=rng.integers(0, len(pair), n),
        dimension=np.arange(n) % dimensions,
        criterion=np.arange(n) % dimensions,
        judge=rng.integers(0, judges, n),
        category=rng.integers(0, 5, n),
        reversed=rng.random(n) < 0.5,
        own_family=rng.random(n) < 0.2,
        own_model=rng.random(n) < 0.05,
    )


def test_a_million_ratings_take_array_operations_only_and_memory_in_proportion() -> None:
    """No work per rating in Python, no dense matrix: benchmarks/identification.py shows the seconds."""
    options = Options(length=True, order=True, self_family=True, self_model=True, halo=True)
    calls, bytes_each = [], []
    for size in (100_000, 1_000_000):
        ratings = many(size // 200, size)
        seen = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal seen
            seen += event == "call"

        sys.setprofile(count)
        try:
            report = check(ratings, options)
        finally:
            sys.setprofile(None)
        tracemalloc.start()
        try:
            check(ratings, options)
            bytes_each.append(tracemalloc.get_traced_memory()[1] / size)
        finally:
            tracemalloc.stop()
        calls.append(seen)
        assert set(report.rank.values()) == {20 + 5 + 1 - 3}
    assert calls[1] < 1.1 * calls[0] < 50_000
    assert max(bytes_each) < 200
