"""The bundled sample keeps its promises: counts per mask, one reject per active dimension, no cue from length."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations

import pytest

from dpeer.data.load import load
from dpeer.data.order import edges
from dpeer.data.schema import Record

FOLDER = str(files("dpeer.data") / "sample")
MASKS = {frozenset(m) for size in (2, 3, 4) for m in combinations("ATEC", size)}


@pytest.fixture(scope="module")
def records() -> dict[str, tuple[Record, ...]]:
    return {split: load(FOLDER, split).records for split in ("train", "test")}


def test_four_train_and_one_test_record_per_mask(records: dict[str, tuple[Record, ...]]) -> None:
    for split, each in (("train", 4), ("test", 1)):
        assert Counter(frozenset(r.mask) for r in records[split]) == dict.fromkeys(MASKS, each)


def test_each_reject_fails_one_active_dimension(records: dict[str, tuple[Record, ...]]) -> None:
    for record in records["train"] + records["test"]:
        assert [r.fails for r in record.responses].count(frozenset()) == 1
        assert sorted(d for r in record.responses for d in r.fails) == sorted(record.mask)
        assert sorted(e.dimension for e in edges(record)) == sorted(record.mask)


def test_nothing_occurs_twice(records: dict[str, tuple[Record, ...]]) -> None:
    everything = records["train"] + records["test"]
    prompts = [r.prompt for r in everything]
    texts = [y.text for r in everything for y in r.responses]
    assert len(set(prompts)) == len(prompts) and len(set(texts)) == len(texts)


def test_length_is_not_a_cue(records: dict[str, tuple[Record, ...]]) -> None:
    ratios = defaultdict(list)
    for record in records["train"] + records["test"]:
        golden = len(record.responses[record.golden].text)
        for response in record.responses:
            for dimension in response.fails:
                ratios[dimension].append(math.log(len(response.text) / golden))
    for dimension, values in ratios.items():
        assert abs(sum(values) / len(values)) < 0.15, dimension
        assert 0.2 < sum(v > 0 for v in values) / len(values) < 0.8, dimension
