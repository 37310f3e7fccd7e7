"""Edges against definitions that share no code with the implementation."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from dpeer.data.order import at_least, edges
from dpeer.data.schema import Message, Record, Response

NAMES = ("A", "C", "E", "T")


@st.composite
def records(draw: st.DrawFn) -> Record:
    mask = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1).map(tuple))
    fails = draw(st.lists(st.frozensets(st.sampled_from(mask)), min_size=1, max_size=7))
    responses = tuple(Response(f"text {k}", f) for k, f in enumerate(fails))
    return Record((Message("user", "q"),), mask, responses, "x:1")


def bits(record: Record) -> list[list[int]]:
    """One row per response, one column per active dimension: 1 = failed."""
    return [[int(d in r.fails) for d in record.mask] for r in record.responses]


@given(records())
def test_edges_are_exactly_the_one_dimension_covers(record):
    rows = bits(record)
    expected = set()
    for i, j in product(range(len(rows)), repeat=2):
        steps = [b - a for a, b in zip(rows[i], rows[j], strict=True)]
        if sorted(steps) == [0] * (len(steps) - 1) + [1]:
            expected.add((record.mask[steps.index(1)], i, j))
    found = [(e.dimension, e.better, e.worse) for e in edges(record)]
    assert set(found) == expected
    assert len(found) == len(expected)


@given(records())
def test_at_least_is_a_partial_order(record):
    sets = [r.fails for r in record.responses]
    for a in sets:
        assert at_least(a, a)
    for a, b in product(sets, repeat=2):
        if at_least(a, b) and at_least(b, a):
            assert a == b
    for a, b, c in product(sets, repeat=3):
        if at_least(a, b) and at_least(b, c):
            assert at_least(a, c)


@given(records())
def test_no_edge_between_incomparable_or_equal_responses(record):
    rows = bits(record)
    for edge in edges(record):
        assert all(a <= b for a, b in zip(rows[edge.better], rows[edge.worse], strict=True))
        assert rows[edge.better] != rows[edge.worse]


@given(records())
def test_edges_are_acyclic_and_listed_by_dimension(record):
    found = edges(record)
    assert all(len(record.responses[e.better].fails) < len(record.responses[e.worse].fails) for e in found)
    assert [e.dimension for e in found] == sorted((e.dimension for e in found), key=record.mask.index)


def test_persona_knob_row_gives_one_edge_per_reject():
    fails = [frozenset[str](), frozenset("A"), frozenset("T"), frozenset("AT"), frozenset("ATE")]
    record = Record((Message("user", "q"),), ("T", "A", "E"), tuple(Response(str(f), f) for f in fails), "x:1")
    found = [(e.dimension, e.better, e.worse) for e in edges(record)]
    assert found == [("T", 0, 2), ("T", 1, 3), ("A", 0, 1), ("A", 2, 3), ("E", 3, 4)]
