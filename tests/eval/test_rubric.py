"""Rubrics: shipped ones are complete, YAML faults are named, and the hash sees content only."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpeer.errors import ConfigError
from dpeer.eval.questions.rubric import SHIPPED, load_rubric

TREE: dict[str, Any] = {
    "name": "tiny",
    "version": 1,
    "role": "You rate.",
    "scale": [1, 2, 3],
    "dimensions": {
        "A": {
            "title": "Candour",
            "description": "Says what is so.",
            "criteria": {
                "stance": {"question": "Does it?", "anchors": {1: "no", 2: "partly", 3: "yes"}},
                "praise": {"question": "Is it earned?"},
            },
        },
        "B": {"title": "Warmth", "criteria": {"tone": {"question": "Is it warm?"}}},
    },
}


def write(folder: Path, tree: object) -> Path:
    path = folder / "rubric.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


def changed(**at: object) -> dict[str, Any]:
    """TREE with values at dotted keys (written with __) replaced, or removed by None."""
    tree = copy.deepcopy(TREE)
    for dotted, value in at.items():
        *keys, last = dotted.split("__")
        inner = tree
        for key in keys:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return tree


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_rubrics_load_by_name_and_are_complete(path: Path) -> None:
    rubric = load_rubric(path.stem)
    assert rubric.name == path.stem
    assert rubric == load_rubric(path)
    assert len(rubric.hash) == 16
    assert pickle.loads(pickle.dumps(rubric)) == rubric, "rubrics travel to engines"
    if not rubric.terse:
        assert all(tuple(c.anchors) == rubric.scale for d in rubric.dimensions.values() for c in d.criteria.values())
        assert rubric.role and all(d.description for d in rubric.dimensions.values())


def test_the_persona_rubric_has_the_four_dimensions() -> None:
    rubric = load_rubric("persona")
    assert set(rubric.dimensions) == {"A", "T", "E", "C"}
    assert rubric.scale == (1, 2, 3, 4, 5)
    texts = [a for d in rubric.dimensions.values() for c in d.criteria.values() for a in c.anchors.values()]
    assert len(set(texts)) == len(texts), "no two scores look alike"


def test_the_content_of_a_rubric(tmp_path: Path) -> None:
    rubric = load_rubric(write(tmp_path, TREE))
    assert (rubric.name, rubric.version, rubric.role, rubric.scale) == ("tiny", 1, "You rate.", (1, 2, 3))
    assert rubric.criterion("A", "stance").anchors == {1: "no", 2: "partly", 3: "yes"}
    assert rubric.criterion("A", "praise").anchors == {}
    assert rubric.dimensions["B"].description == ""
    assert not rubric.terse


def test_hash_ignores_white_space_and_key_order(tmp_path: Path) -> None:
    def shuffled(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        keys = list(tree)
        random.Random(3).shuffle(keys)
        return {k: shuffled(tree[k]) for k in keys}

    plain = load_rubric(write(tmp_path, TREE))
    assert load_rubric(write(tmp_path, shuffled(TREE))).hash == plain.hash
    airy = yaml.safe_dump(TREE).replace("role: You rate.", "role: >\n  You\n    rate.\n\n")
    assert "You\n" in airy
    assert load_rubric(write(tmp_path, airy)).hash == plain.hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": 2},
        {"role": "You judge."},
        {"role": ""},
        {"scale": [1, 2, 3, 4], "dimensions__A__criteria__stance__anchors": {1: "no", 2: "a", 3: "b", 4: "c"}},
        {"terse": True},
        {"dimensions__A__title": "Frankness"},
        {"dimensions__A__description": ""},
        {"dimensions__A__criteria__stance__question": "Does it not?"},
        {"dimensions__A__criteria__stance__anchors": {1: "no", 2: "partly", 3: "Yes"}},
        {"dimensions__A__criteria__stance__anchors": {1: "yes", 2: "partly", 3: "no"}},
        {"dimensions__B": None},
    ],
)
def test_hash_changes_with_content(tmp_path: Path, change: dict[str, Any]) -> None:
    assert load_rubric(write(tmp_path, changed(**change))).hash != load_rubric(write(tmp_path, TREE)).hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": [1, 2, 4]}, ["scale", "[1, 2, 4]", "consecutive"]),
        ({"scale": [3, 2, 1]}, ["scale", "consecutive"]),
        ({"scale": [-1, 0, 1]}, ["scale", "from 0 up"]),
        ({"scale": [True, 2, 3]}, ["scale"]),
        ({"scale": [1]}, ["scale", "1 scores", "2 to 10"]),
        ({"scale": list(range(11))}, ["scale", "11 scores", "2 to 10"]),
        ({"scale": "1-5"}, ["scale", "'1-5'"]),
        ({"version": "1"}, ["version", "'1'", "whole number"]),
        ({"version": True}, ["version"]),
        ({"name": "has space"}, ["name", "'has space'", "letters"]),
        ({"role": 5}, ["role", "5", "text"]),
        ({"terse": "yes"}, ["terse", "true or false"]),
        ({"rolle": "x"}, ["unknown key 'rolle'", "did you mean role"]),
        ({"dimensions": {}}, ["dimensions", "at least one"]),
        ({"dimensions__A__criteria": None}, ["dimensions.A", "criteria is missing"]),
        ({"dimensions__A__criteria__stance__question": " "}, ["dimensions.A.criteria.stance.question", "non-empty"]),
        ({"dimensions__A__criteria__stance__anchors": {1: "a", 3: "b"}}, ["stance.anchors", "1, 3", "1, 2, 3"]),
        ({"dimensions__A__criteria__stance__anchors": {"1": "a", "2": "b", "3": "c"}}, ["anchors"]),
        ({"dimensions__A__criteria__stance__anchors": ["a"]}, ["anchors", "map each score"]),
        ({"dimensions__A__criteria__stance__ancors": {}}, ["unknown key 'ancors'", "did you mean anchors"]),
        ({"dimensions__A": "x"}, ["dimensions.A", "'x'", "title, criteria"]),
        ({"dimensions": {True: {}}}, ["dimensions", "quote it"]),
        ({"role": "a\x07b"}, ["role", "unprintable"]),
    ],
)
def test_faults_name_file_key_and_what_is_allowed(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path, changed(**change))
    with pytest.raises(ConfigError) as fault:
        load_rubric(path)
    for word in [str(path), *words]:
        assert word in str(fault.value)


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'version' is given twice, in lines 2 and 3"):
        load_rubric(write(tmp_path, "name: x\nversion: 1\nversion: 2\n"))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "42"])
def test_files_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"rubric\.yaml"):
        load_rubric(write(tmp_path, text))


def test_a_folder_of_the_same_name_hides_no_rubric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "persona").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_rubric("persona").name == "persona"


def test_unknown_names_and_files() -> None:
    shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    with pytest.raises(ConfigError, match=rf"'persone'.*{shipped}.*did you mean persona\?"):
        load_rubric("persone")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rubric("nowhere/rubric.yaml")


def test_unknown_dimension_and_criterion_list_what_there_is() -> None:
    rubric = load_rubric("persona")
    with pytest.raises(ConfigError, match="no dimension 'Z'; it has A, T, E, C"):
        rubric.criterion("Z", "stance")
    with pytest.raises(ConfigError, match="no criterion 'tone'; it has stance, praise"):
        rubric.criterion("A", "tone")
