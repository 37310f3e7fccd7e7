"""Ratings to edges against an oracle that looks at every pair by the definition; and what `convert` writes."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dpeer.config_sources import Map
from dpeer.data.conversation import conversation
from dpeer.data.load import load
from dpeer.data.map import Tally, mapped
from dpeer.data.order import edges
from dpeer.data.parse import record
from dpeer.data.read import Row
from dpeer.data.schema import Record
from dpeer.errors import DataError
from dpeer.launcher.cli import app
from tests.data.layouts import assistant, helpsteer2, helpsteer3, jsonl, pair, saferlhf, ultrafeedback, user, write

NAMES = ("warm", "true", "brief")
Table = list[tuple[int, str, tuple[int | None, ...]]]
"""Per row: prompt, response, ratings in tenths."""


def oracle(table: Table, gap: Fraction, tie: Fraction) -> Counter[tuple[int, str, str, str]]:
    """(prompt, dimension, better, worse) of every ordered pair of responses to one prompt, by the definition."""
    found: Counter[tuple[int, str, str, str]] = Counter()
    for (prompt, a, ratings), (other, b, theirs) in permutations(table, 2):
        if prompt != other or a.strip() == b.strip() or None in (*ratings, *theirs):
            continue
        by = [Fraction(x or 0, 10) - Fraction(y or 0, 10) for x, y in zip(ratings, theirs, strict=True)]
        for d, name in enumerate(NAMES):
            if by[d] >= gap and all(abs(x) <= tie for k, x in enumerate(by) if k != d):
                found[prompt, name, a, b] += 1
    return found


def found(rows: list[Row], given: Map, tally: Tally) -> Counter[tuple[int, str, str, str]]:
    edges_found: Counter[tuple[int, str, str, str]] = Counter()
    for row in mapped(rows, given, tally):
        assert isinstance(row, Row)
        parsed = record(row)
        assert isinstance(parsed, Record), parsed
        prompt = int(parsed.prompt[-1].content.removeprefix("q"))
        for e in edges(parsed):
            better, worse = parsed.responses[e.better].text, parsed.responses[e.worse].text
            edges_found[prompt, e.dimension, better, worse] += 1
    return edges_found


tables = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from("abcdef"),
        st.tuples(*[st.one_of(st.integers(0, 30), st.sampled_from([None, 10, 20]))] * 3),
    ),
    max_size=12,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 25), st.integers(0, 24))
def test_ratings_give_the_edges_of_the_definition(table: Table, gap: int, tie: int) -> None:
    tie = min(tie, gap - 1)
    expected = oracle(table, Fraction(gap, 10), Fraction(tie, 10))
    settings_ = {"ratings": NAMES, "gap": gap / 10, "tie": tie / 10}
    marks = [{n: None if x is None else x / 10 for n, x in zip(NAMES, r, strict=True)} for _, _, r in table]

    rows = [
        Row(f"d:{k}", f"d, row {k}", {"prompt": f"q{p}", "response": t, **m})
        for k, ((p, t, _), m) in enumerate(zip(table, marks, strict=True), 1)
    ]
    tally = Tally()
    assert found(rows, Map(prompt="prompt", response="response", **settings_), tally) == expected
    per_prompt = Counter(p for p, _, _ in table)
    alone = sum(n == 1 for n in per_prompt.values())
    assert tally.pairs == alone + sum(n * (n - 1) // 2 for n in per_prompt.values())
    assert tally.pairs == expected.total() + sum(n for n, _ in tally.skipped.values())

    lists = [
        Row(
            "d:1",
            "d, row 1",
            {"p": f"q{p}", "all": [{"t": t, **m} for (q, t, _), m in zip(table, marks, strict=True) if q == p]},
        )
        for p in per_prompt
    ]
    given_lists = Map(prompt="p", completions="all", response="t", **settings_)
    assert found(lists, given_lists, Tally()) == expected, "a list of completions says the same as rows of one each"


LAYOUTS: list[list[dict[str, Any]]] = [
    [pair("q", "c", "r", attribute="warm", weight=1.5), pair([user("p")], "c", "r", attribute=["true"])],
    [{"chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")], "system": "s"}],
    [ultrafeedback("q", ("a", "5555"), ("b", "5554"))],
    [helpsteer2("q", "a", "44444"), helpsteer2("q", "b", "34444")],
    [helpsteer3([user("q")], "a", "b", 2), saferlhf("q", "a", "b", 0, 1)],
    [saferlhf("q", "a", "b", 0, 1)],
]
odd = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.just("[{")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "Rating"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, inner in inside for spot in spots(inner, (*path, key)))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.data())
def test_a_damaged_file_is_read_or_refused_on_one_screen(tmp_path: Path, rows: Any, data: st.DataObject) -> None:
    rows = json.loads(json.dumps(rows))
    for _ in range(data.draw(st.integers(1, 3))):
        spot = data.draw(st.sampled_from([s for s in spots(rows) if len(s) > 1]))
        holder = rows
        for key in spot[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[spot[-1]] = data.draw(odd)
        else:
            del holder[spot[-1]]
    write(tmp_path, {"d.jsonl": rows})
    try:
        assert load(str(tmp_path / "d.jsonl")).records
    except DataError as error:
        assert len(str(error).splitlines()) <= 12


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from([None, "human", "extra_id"]))
def test_a_text_is_a_conversation_or_stays_a_text(text: str, turns: str | None) -> None:
    messages = conversation(text, turns)
    assert messages is None or all({"role", "content"} <= m.keys() for m in messages)
    assert conversation([user(text)]) == [user(text)], "messages are kept as they are"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([pair("q", "c", "r", attribute="warm", weight=2), pair("[1] q", "c", "c", attribute="warm")], "1 of 2"),
        ([pair([user('[{"role": "user", "content": "x"}]')], "c", "r")], "preference: prompt from prompt"),
        ([ultrafeedback("q", ("a", "5555"), ("b", "5554"), ("c", "1111"))], "2 several ratings differ at once"),
        ([helpsteer2("q", "a", "44444"), helpsteer2("q", "b", "34444")], "complexity, verbosity equal"),
        ([saferlhf("q", "a", "b", 0, 1)], "edges: helpfulness 1, safety 1"),
    ],
)
def test_what_is_converted_loads_as_the_same_records(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    write(tmp_path, {"d.jsonl": jsonl(rows)})
    source, output = str(tmp_path / "d.jsonl"), tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["data", "convert", source, "-o", str(output)])
    assert result.exit_code == 0 and said in result.output, result.output
    before, after = load(source), load(str(output))
    assert after.sha256 == before.sha256
    assert [r.weight for r in after.records] == [r.weight for r in before.records]
    assert all("responses" in json.loads(line) for line in output.read_text().splitlines())

    kept = output.read_bytes()
    result = CliRunner().invoke(app, ["data", "convert", source, "-o", str(output)])
    assert (result.exit_code, output.read_bytes()) == (1, kept) and "not overwritten" in result.output
    result = CliRunner().invoke(app, ["data", "convert", source, "-o", str(tmp_path / "out.csv")])
    assert result.exit_code == 1 and "ends in .jsonl" in result.output
