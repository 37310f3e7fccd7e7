"""A recipe's sources on their way into splits: maps, several sources with weights, shares by prompt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpeer.config import Config
from dpeer.config_io import load_config, resolved_yaml
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ConfigError, DataError
from dpeer.training.prepare import Prepared, split_records
from tests.data.layouts import pair, saferlhf, ultrafeedback, write


def recipe(folder: Path, data: dict[str, Any], *overrides: str) -> Config:
    tree = {"name": "r", "model": {"path": "m"}, "training": {"steps": 1, "records_per_step": 4}, "data": data}
    (folder / "r.yaml").write_text(yaml.safe_dump(tree))
    return load_config(folder / "r.yaml", overrides)


@pytest.mark.parametrize(
    ("rows", "dimensions"),
    [
        ([pair(f"q {k % 60}", f"c {k}", f"r {k}", attribute="AE"[k % 2]) for k in range(120)], ("A", "E")),
        ([saferlhf(f"q {k}", "zero", "one", k % 2, k % 3 % 2) for k in range(60)], ("helpfulness", "safety")),
        ([ultrafeedback(f"q {k}", ("a", "5555"), ("b", "4555"), ("c", "4455")) for k in range(60)], None),
    ],
    ids=["pairs", "labels", "ratings"],
)
def test_shares_of_any_source_keep_prompts_whole(tmp_path: Path, rows: Any, dimensions: tuple[str, ...] | None) -> None:
    write(tmp_path, {"d.jsonl": rows})
    config = recipe(tmp_path, {"train": str(tmp_path / "d.jsonl"), "heldout": "5%", "dual": "10%"})
    parts = split_records(config)
    prompts = {name: {r.prompt for r in part.records} for name, part in parts.items()}
    assert sum(len(p) for p in prompts.values()) == 60, "no prompt in two splits, none lost"
    assert 1 <= len(prompts["heldout"]) <= 5 and 3 <= len(prompts["dual"]) <= 9
    assert dimensions in (None, parts["train"].dimensions)


def test_a_recipe_with_several_sources(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "warm/train.jsonl": [pair(f"q {k}", "c", "r") for k in range(8)],
            "warm/test.jsonl": [pair("t", "c", "r")],
            "safe/train.jsonl": [saferlhf("p", "a", "b", 0, 0)],
            "safe/test.jsonl": [saferlhf("u", "a", "b", 0, 0)],
        },
    )
    sources = [
        {"path": str(tmp_path / "warm"), "map": {"preset": "preference", "constant": "warm"}, "weight": 3},
        {"path": str(tmp_path / "safe"), "map": "pku_saferlhf"},
    ]
    config = recipe(tmp_path, {"train": sources, "dual": "none"}, "objective.dual.evidence=batch")
    parts = split_records(config)
    assert {n: len(p.records) for n, p in parts.items()} == {"train": 10, "heldout": 3}, "both have a test split"
    assert Counter(r.weight for r in parts["train"].records) == {3.0: 8, 1.0: 2}
    (tmp_path / "again.yaml").write_text(resolved_yaml(config))
    again = load_config(tmp_path / "again.yaml")
    assert again == config and split_records(again) == parts, "a manifest says the same as the recipe"


def test_a_preset_by_name_and_a_heldout_file_in_the_same_columns(tmp_path: Path) -> None:
    rows = [{"ask": f"q {k}", "good": "c", "bad": "r", "kind": "A"} for k in range(3)]
    write(tmp_path, {"train.jsonl": rows[:2], "held.jsonl": rows[2:]})
    columns = {"prompt": "ask", "golden": "good", "reject": "bad", "dimension": "kind"}
    data = {"train": str(tmp_path / "train.jsonl"), "heldout": str(tmp_path / "held.jsonl"), "dual": "none"}
    config = recipe(tmp_path, data | {"map": columns}, "objective.dual.evidence=batch")
    assert {n: len(p.records) for n, p in split_records(config).items()} == {"train": 2, "heldout": 1}
    assert recipe(tmp_path, data, "data.map=helpsteer2", "objective.dual.evidence=batch").data.map is not None
    with pytest.raises(DataError, match=r"'prompt'.*'ask, good, bad, kind'"):
        split_records(recipe(tmp_path, data, "data.map=helpsteer2", "objective.dual.evidence=batch"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"train": []}, "data.train"),
        ({"train": [{"path": "a", "weight": 0}]}, "data.train.0.weight: 0 given; must be greater than 0"),
        ({"train": [{"pth": "a"}]}, "data.train.0.pth: unknown key; did you mean data.train.0.path?"),
        ({"train": [{"path": "a", "map": {"golden": "x"}}]}, "the map does not say what its columns are"),
        ({"train": "a", "map": {"golden": "x", "reject": "y", "tie": 2}}, "tie (2) must be below gap (1)"),
        ({"train": "a", "map": "ultrafedback"}, "did you mean 'ultrafeedback'?"),
        ({"train": [{"path": "b", "map": "x"}]}, "data.train.0.map: 'x' given; must be 'preference', 'hh_rlhf'"),
        ({"train": "a", "map": {"goldn": "x"}}, "data.map.goldn: unknown key; did you mean data.map.golden?"),
    ],
)
def test_a_faulty_recipe_is_told_by_key(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe(tmp_path, data)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 12


def test_heavy_records_are_drawn_more_often_in_training_and_count_once_as_evidence(tmp_path: Path) -> None:
    trees = tuple(TokenTree(k, (1,), ((2,), (3,)), ((0, 0, 1),), 0, ("A",)) for k in range(4))
    data = TokenizedSet(("A",), trees, 0, 0)
    config = recipe(tmp_path, {"train": "a"})
    weighted = Prepared(data, data, None, {}, (5.0, 1.0, 1.0, 1.0))
    drawn = Counter(t.index for step in range(200) for t in weighted.train_batch(config, step))
    assert drawn[0] / 800 == pytest.approx(5 / 8, abs=0.02)
    assert Counter(t.index for step in range(200) for t in weighted.dual_batch(config, step)) == dict.fromkeys(
        range(4), 200
    )
    plain, equal = Prepared(data, None, None, {}), Prepared(data, None, None, {}, None)
    assert [plain.train_batch(config, s) for s in range(9)] == [equal.train_batch(config, s) for s in range(9)]
