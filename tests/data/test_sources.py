"""Sources as people bring them -> records and edges expected by hand, and what could not be attributed, and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from dpeer.config_sources import Map, Source
from dpeer.data.load import load
from dpeer.data.order import edge_counts
from dpeer.errors import DataError
from tests.data.conversation_table import CONVERSATIONS
from tests.data.layouts import pair, saferlhf, write
from tests.data.source_table import ATTRIBUTE, CASES, FROM_ATTRIBUTE, GENERAL, Expected

SOURCES = CASES | CONVERSATIONS


def seen(data: Any) -> list[Expected]:
    """Records as they are expected; every reject fails one dimension."""
    found = []
    for record in data.records:
        messages = tuple(f"{m.role}: {m.content}" for m in record.prompt)
        prompt = record.prompt[0].content if messages == (f"user: {record.prompt[0].content}",) else messages
        golden = record.responses[record.golden].text
        fails = {r.text: "+".join(sorted(r.fails)) for r in record.responses if r.fails}
        found.append((prompt, golden, fails))
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_the_records_expected_by_hand(tmp_path: Path, name: str) -> None:
    case = SOURCES[name]
    write(tmp_path, case.files)
    data = load(str(tmp_path / case.source), map=case.map)
    expected = case.expected
    assert seen(data) == expected
    assert edge_counts(data) == dict(sorted(Counter(d for _, _, rejects in expected for d in rejects.values()).items()))
    assert {r: n for reading in data.reading for r, n, _ in reading.skipped} == case.skipped


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 30


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(ATTRIBUTE), datasets.Dataset.from_list(ATTRIBUTE[:1])
    train.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=train, test=test, validation=test).save_to_disk(str(tmp_path / "some"))
    assert seen(load(str(tmp_path / "one"))) == FROM_ATTRIBUTE
    assert seen(load(str(tmp_path / "some"))) == FROM_ATTRIBUTE
    assert seen(load(str(tmp_path / "some"), "test")) == FROM_ATTRIBUTE[:1]
    assert seen(load(f"{tmp_path / 'some'}@validation")) == FROM_ATTRIBUTE[:1]
    with pytest.raises(DataError, match=r"has no split dev, .* it has 'test, train, validation'. Write .*some@test"):
        load(f"{tmp_path / 'some'}@dev")


def test_own_forms_take_a_column_of_weights_and_no_more(tmp_path: Path) -> None:
    write(tmp_path, {"d.jsonl": [GENERAL | {"w": 2}, GENERAL | {"prompt": "p", "w": None}]})

    def own(**keys: str) -> tuple[Source, ...]:
        return (Source(path=str(tmp_path / "d.jsonl"), map=Map(**keys)),)

    assert [r.weight for r in load(own(weight="w")).records] == [2, 1]
    assert [r.weight for r in load(own()).records] == [1, 1]
    assert [r.weight for r in load(str(tmp_path / "d.jsonl"), map=Map(weight="w")).records] == [2, 1]
    with pytest.raises(DataError, match=r"take weight and tools alone, given constant"):
        load(own(constant="tone", weight="w"))


def test_several_sources_with_maps_and_weights_of_their_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "warm.jsonl": [pair("q", "c", "r"), pair("p", "c", "r", weight=3)],
            "safe.jsonl": [saferlhf("q", "zero", "one", better=0, safer=1)],
        },
    )
    sources = (
        Source(path=str(tmp_path / "warm.jsonl"), weight=0.5, map=Map(preset="preference", constant="warm")),
        Source(path=str(tmp_path / "safe.jsonl")),
    )
    data = load(sources)
    assert data.dimensions == ("helpfulness", "safety", "warm")
    assert [(r.source, r.mask, r.weight) for r in data.records] == [
        ("warm.jsonl:1", ("warm",), 0.5),
        ("warm.jsonl:2", ("warm",), 1.5),
        ("safe.jsonl:1", ("helpfulness",), 1.0),
        ("safe.jsonl:1", ("safety",), 1.0),
    ]
    assert [r.words.partition(":")[0] for r in data.reading] == ["preference", "pku_saferlhf"]
