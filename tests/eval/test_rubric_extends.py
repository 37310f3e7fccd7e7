"""A rubric that extends another: dimensions come, change and go, and the hash is that of what results."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpeer.errors import ConfigError
from dpeer.eval.questions.rubric import SHIPPED, load_rubric

HUMOUR = {"title": "Humour", "criteria": {"wit": {"question": "Is it funny?"}}}
SHIPPED_HASHES = {"compliance": "954e8659674ae47f", "persona": "53f6c0476e617684", "toyworld": "78bf75da43067225"}


def write(folder: Path, name: str = "mine", **tree: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "version": 1, **tree}, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED_HASHES)
def test_the_hashes_of_shipped_rubrics_stay(name: str) -> None:
    """Ids of ratings depend on them: another hash makes every rating new."""
    assert load_rubric(name).hash == SHIPPED_HASHES[name]


def test_a_fifth_dimension(tmp_path: Path) -> None:
    base, rubric = load_rubric("persona"), load_rubric(write(tmp_path, extends="persona", dimensions={"H": HUMOUR}))
    assert list(rubric.dimensions) == ["A", "T", "E", "C", "H"]
    assert {name: rubric.dimensions[name] for name in "ATEC"} == base.dimensions
    assert (rubric.name, rubric.role, rubric.scale) == ("mine", base.role, base.scale)
    assert rubric.criterion("H", "wit").question == "Is it funny?"


def test_a_dimension_is_replaced_as_a_whole_or_removed(tmp_path: Path) -> None:
    rubric = load_rubric(write(tmp_path, extends="persona", dimensions={"C": HUMOUR, "T": None}))
    assert list(rubric.dimensions) == ["A", "E", "C"]
    assert rubric.dimensions["C"].title == "Humour" and list(rubric.dimensions["C"].criteria) == ["wit"]


def test_the_hash_is_that_of_the_resolved_rubric(tmp_path: Path) -> None:
    child = load_rubric(write(tmp_path, extends="persona", dimensions={"H": HUMOUR, "C": None}))
    whole = yaml.safe_load((SHIPPED / "persona.yaml").read_text())
    whole["dimensions"].pop("C")
    del whole["languages"]  # those of persona say what persona says
    whole |= {"name": "mine", "dimensions": whole["dimensions"] | {"H": HUMOUR}}
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(whole))
    flat = load_rubric(tmp_path / "flat.yaml")
    assert flat == child and flat.hash == child.hash
    base = write(tmp_path, "base", scale=[1, 2, 3], dimensions={"H": HUMOUR})
    before = load_rubric(write(tmp_path, extends="base.yaml")).hash
    base.write_text(base.read_text().replace("funny", "witty"))
    assert load_rubric(tmp_path / "mine.yaml").hash != before, "a change below is a change"


def test_a_chain_of_files_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "first", scale=[1, 2, 3], role="You rate.", dimensions={"H": HUMOUR, "I": HUMOUR})
    write(tmp_path, "second", extends="first.yaml", dimensions={"I": None, "J": HUMOUR})
    path = write(tmp_path, "third", extends="second.yaml", role="You judge.")
    monkeypatch.chdir("/")
    rubric = load_rubric(path)
    assert (list(rubric.dimensions), rubric.role, rubric.name) == (["H", "J"], "You judge.", "third")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"extends": "persone"}, ["mine.yaml: extends", "'persone'", "did you mean persona?"]),
        ({"extends": "nowhere.yaml"}, ["mine.yaml: extends", "there is no file", "nowhere.yaml"]),
        ({"extends": 5}, ["mine.yaml: extends: 5 given"]),
        ({"extend": "persona"}, ["mine.yaml", "unknown key 'extend'", "did you mean extends?"]),
        ({"extends": "mine.yaml"}, ["mine.yaml: extends: goes in a circle (mine.yaml -> mine.yaml)"]),
        ({"extends": "other.yaml"}, ["other.yaml: extends: goes in a circle (mine.yaml -> other.yaml -> mine.yaml)"]),
        ({"extends": "faulty.yaml"}, ["faulty.yaml: scale"]),
        ({"extends": "persona", "version": None}, ["mine.yaml: version"]),
        ({"extends": "persona", "dimensions": []}, ["mine.yaml: dimensions", "map names to dimensions"]),
        ({"extends": "persona", "dimensions": {"Z": None}}, ["dimensions.Z", "persona has no Z; it has A, T, E, C"]),
        ({"extends": "persona", "dimensions": dict.fromkeys("ATEC")}, ["mine.yaml: dimensions", "at least one"]),
        ({"extends": "persona", "dimensions": {"H": {"title": "x"}}}, ["dimensions.H", "criteria is missing"]),
        ({"extends": "persona", "scale": [1, 2]}, ["mine.yaml: dimensions.A.criteria.stance.anchors"]),
    ],
)
def test_faults_name_file_and_key(tmp_path: Path, tree: dict[str, object], words: list[str]) -> None:
    write(tmp_path, "other", extends="mine.yaml")
    write(tmp_path, "faulty", scale=[1], dimensions={"H": HUMOUR})
    with pytest.raises(ConfigError) as fault:
        load_rubric(write(tmp_path, **tree))
    for word in words:
        assert word in str(fault.value)


def test_a_rubric_that_extends_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: persona\nversion: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: required key name is missing"):
        load_rubric(tmp_path / "mine.yaml")
