"""The sweep file: which cells it makes, under which names, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dpeer.config_io import load_config, resolved
from dpeer.launcher.cli import app
from dpeer.launcher.recipe import recipe_names
from dpeer.launcher.sweep.run import waves, width
from dpeer.launcher.sweep.spec import SWEEPS, Cell, Sweep, load_sweep, resolve

RECIPE = """
name: base
output_dir: out
model: {path: m}
data: {train: t.jsonl}
training: {steps: 10}
cluster: {reference: workers}
"""
GOOD: dict[str, Any] = {
    "name": "s",
    "recipe": "recipe.yaml",
    "grid": {"objective.constraint.tolerance": [0.1, 0.2], "objective.beta": [0.1, 0.5]},
}


@pytest.fixture
def cells(tmp_path: Path) -> Any:
    """cells(key=value, ...) -> the cells of GOOD with these keys changed."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def make(**changes: Any) -> tuple[Cell, ...]:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(GOOD | changes, sort_keys=False))
        return resolve(load_sweep(path), path)

    return make


def test_grid_further_cells_and_seeds_make_one_cell_each(cells: Any) -> None:
    pooled = {"objective.primary": "pooled", "objective.constraint.enforce": False}
    found = cells(cells={"pooled": pooled}, seeds=[3, 4])
    assert [c.index for c in found] == list(range(10))
    assert [c.seed for c in found] == [3] * 5 + [4] * 5
    assert [c.label for c in found][:2] == ["tolerance0.1-beta0.1", "tolerance0.1-beta0.5"]
    for c in found:
        assert c.config.seed == c.seed and c.config.output_dir == Path("out/s")
        assert c.config.cluster.reference == "cache"  # one for all cells, though the recipe says workers
        assert c.name == f"{c.label}-s{c.seed}-{c.id[:8]}" and c.config.run_dir == Path("out/s") / c.name
    assert found[4].values == pooled and found[4].config.objective.primary == "pooled"
    assert len({c.id for c in found}) == 10


def test_a_reference_mode_that_the_sweep_names_stays(cells: Any) -> None:
    assert {c.config.cluster.reference for c in cells(changes={"cluster": {"reference": "colocated"}})} == {"colocated"}
    modes = cells(grid={"cluster.reference": ["workers", "cache"]})
    assert [c.config.cluster.reference for c in modes] == ["workers", "cache"]


def test_ids_depend_on_what_changes_a_result_and_on_nothing_else(cells: Any) -> None:
    ids = [c.id for c in cells()]
    assert [c.id for c in cells(name="other", label="x{tolerance}-{beta}", retries=3)] == ids
    assert [c.id for c in cells(changes={"cluster": {"timeout_s": 9}, "output_dir": "elsewhere"})] == ids
    assert not set(ids) & {c.id for c in cells(changes={"training": {"steps": 11}})}
    more = cells(seeds=[0, 1])
    assert [(c.id, c.index) for c in more[:4]] == [(c.id, c.index) for c in cells()]
    where = cells(grid={"cluster.policy_workers": [1, 2]})  # changes no result, but it is what this sweep varies
    assert len({c.id for c in where}) == 2


def test_a_cell_is_the_run_that_the_recipe_with_its_changes_gives(cells: Any, tmp_path: Path) -> None:
    (cell, *_) = cells(changes={"training": {"steps": 7}})
    expected = load_config(
        tmp_path / "recipe.yaml",
        ["training.steps=7", "objective.constraint.tolerance=0.1", "objective.beta=0.1", "cluster.reference=cache"],
    )
    assert resolved(cell.config) | {"name": 0, "output_dir": 0} == resolved(expected) | {"name": 0, "output_dir": 0}


def test_tolerance_of_one_dimension_and_infinity(cells: Any) -> None:
    found = cells(
        changes={"objective": {"constraint": {"tolerance": {"A": 0.3, "T": 0.3}}}},
        grid={"objective.constraint.tolerance.T": [0.1, float("inf")]},
        label="T{T}",
    )
    assert [c.config.objective.constraint.tolerance for c in found] == [{"A": 0.3, "T": t} for t in (0.1, float("inf"))]
    assert [c.label for c in found] == ["T0.1", "Tinf"]


def test_a_cell_may_take_another_recipe(cells: Any, tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(
        "extends: recipe.yaml\nobjective: {kind: sft}\ntraining: {records_per_step: 4}\n"
    )
    found = cells(grid={}, cells={"plain": {}, "sft": {"recipe": "sft.yaml", "objective.beta": 0.3}})
    assert [c.config.objective.kind for c in found] == ["preference", "sft"]
    assert (found[1].config.training.records_per_step, found[1].config.objective.beta) == (4, 0.3)
    assert {c.config.output_dir for c in found} == {Path("out/s")}
    mixed = cells(grid={"recipe": ["recipe.yaml", "sft.yaml"], "objective.beta": [0.1, 0.2]})
    assert [c.config.objective.kind for c in mixed] == ["preference"] * 2 + ["sft"] * 2


CHAIN = {"b": {"model.path": "cell:a", "objective.beta": 0.2}, "a": {"objective.kind": "sft"}}


def test_a_cell_starts_from_the_export_of_another_of_its_seed(cells: Any) -> None:
    chain = CHAIN | {"c": {"model.reference_path": "cell:a", "model.path": "cell:b"}}
    found = cells(grid={}, cells=chain, seeds=[0, 1])
    assert [c.label for c in found] == ["b", "a", "c"] * 2 and [c.index for c in found] == list(range(6))
    for b, a, c in (found[:3], found[3:]):
        assert b.config.model.path == f"out/s/{a.name}/export" and b.needs == (a.name,) and a.needs == ()
        assert c.config.model.path == f"out/s/{b.name}/export" and set(c.needs) == {a.name, b.name}
        assert c.config.model.reference_path == f"out/s/{a.name}/export"
    one = cells(grid={"objective.beta": [0.3, 0.4]}, cells={"x": {"model.path": "cell:beta0.4"}})
    assert one[2].needs == (one[1].name,)  # a cell of the grid


def test_an_id_follows_the_cell_that_it_starts_from_and_not_its_folder(cells: Any) -> None:
    b, a = cells(grid={}, cells=CHAIN)
    moved = cells(grid={}, cells=CHAIN, changes={"output_dir": "elsewhere"})
    assert (b.id, a.id) == tuple(c.id for c in moved) and moved[0].config.model.path.startswith("elsewhere/")
    other = cells(grid={}, cells=CHAIN | {"a": {"objective.kind": "sft", "training.steps": 9}})
    assert other[1].id != a.id and other[0].id != b.id


def test_cells_that_start_from_others_come_in_later_waves(cells: Any) -> None:
    chain = CHAIN | {"c": {"model.path": "cell:b"}, "wide": {"cluster.policy_workers": 8}}
    found = cells(grid={}, cells=chain, seeds=[0, 1])
    assert [[c.label for c in wave] for wave in waves(found)] == [["wide", "wide"], ["a", "a"], ["b", "b"], ["c", "c"]]
    left = [c for c in found if c.label not in ("a", "wide")]  # finished already
    assert [[c.label for c in wave] for wave in waves(left)] == [["b", "b"], ["c", "c"]]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"sedes": [1]}, ["sedes: unknown key; did you mean seeds?"]),
    "grid key": ({"grid": {"objective.bata": [1]}}, ["cell bata1", "did you mean objective.beta?"]),
    "grid value": ({"grid": {"objective.beta": [0.1, -1]}}, ["cell beta-1", "objective.beta: -1 given"]),
    "changes": ({"changes": {"training": {"step": 1}}}, ["did you mean training.steps?"]),
    "further cell": ({"cells": {"x": {"objective.form": 1}}}, ["cell x", "objective.form: unknown key"]),
    "not a list": ({"grid": {"objective.beta": 0.1}}, ["grid.objective.beta: 0.1 given; must be a list"]),
    "no value": ({"grid": {"objective.beta": []}}, ["grid.objective.beta: no value given"]),
    "seed in the grid": ({"grid": {"seed": [1, 2]}}, ["grid.seed: not here", "`seeds`"]),
    "name in a cell": ({"cells": {"x": {"name": "y"}}}, ["cells.x.name: not here"]),
    "equal values": ({"grid": {"objective.beta": [0.1, 0.1]}}, ["two settings are both called beta0.1"]),
    "label without a key": ({"label": "e{beta}"}, ["two settings are both called e0.1", "every grid key"]),
    "equal cells": ({"cells": {"x": {"objective.beta": 0.1}}, "grid": {"objective.beta": [0.1]}}, ["the same run"]),
    "equal seeds": ({"seeds": [1, 1]}, ["the same run"]),
    "only the address varies": ({"seeds": [0], "cells": {"x": {"cluster.timeout_s": 5}}, "grid": {}}, []),
    "label": ({"label": "e{tolerence}"}, ["{tolerence} names no grid key", "tolerance"]),
    "below a value": ({"grid": {"objective.constraint.tolerance.T": [1]}}, ["tolerance is 0.5", "set it as a whole"]),
    "recipe": ({"recipe": "dmeo"}, ["did you mean 'demo'?"]),
    "recipe of a cell": ({"cells": {"x": {"recipe": "unifrom"}}}, ["cell x", "did you mean 'uniform'?"]),
    "export of no cell": (
        {"cells": {"sft": {"objective.kind": "sft"}, "x": {"model.path": "cell:stf"}}},
        ["cell x: model.path: cell:stf names no cell", "did you mean cell:sft?"],
    ),
    "export of itself": ({"cells": {"x": {"model.path": "cell:x"}}}, ["in a circle (x <- x)"]),
    "exports in a circle": (
        {"cells": {"x": {"model.path": "cell:y"}, "y": {"model.reference_path": "cell:x"}}},
        ["in a circle (", "x <- y"],
    ),
    "export for all cells": ({"changes": {"model": {"path": "cell:x"}}, "cells": {"x": {}}}, ["circle (x <- x)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_faults_are_named_on_one_screen(case: str, tmp_path: Path) -> None:
    changes, fragments = REFUSED[case]
    base = RECIPE + "objective: {constraint: {tolerance: 0.5}}\n"
    (tmp_path / "recipe.yaml").write_text(base)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes, sort_keys=False))
    result = CliRunner().invoke(app, ["sweep", "plan", str(path)])
    assert result.exit_code == (1 if fragments else 0), result.output
    assert "Traceback" not in result.output and len(result.output.splitlines()) <= 20
    for fragment in fragments:
        assert fragment in result.output


def test_plan_lists_the_cells_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(GOOD, sort_keys=False))
    run = CliRunner().invoke
    assert run(app, ["sweep", "plan", str(path), "--count"]).output.strip() == "4"
    assert run(app, ["sweep", "plan", str(path), "--count", "--set", "seeds=[1,2]"]).output.strip() == "8"
    assert run(app, ["sweep", "run", str(path), "--dry-run"]).output == run(app, ["sweep", "plan", str(path)]).output
    monkeypatch.chdir(tmp_path)
    assert "no sweep has begun" in run(app, ["sweep", "status", str(path)]).output
    refused = run(app, ["sweep", "run", str(path), "--cell", "4"])
    assert refused.exit_code == 1 and "no such cell; give a number from 0 to 3" in refused.output


def test_waves_hold_cells_of_equal_placement_the_largest_first(cells: Any) -> None:
    grid = {"cluster.policy_workers": [1, 4], "cluster.reference": ["cache", "workers"]}
    found = [[width(c.config.cluster) for c in wave] for wave in waves(cells(grid=grid, seeds=[0, 1]))]
    assert found == [[5, 5], [4, 4], [2, 2], [1, 1]]


@pytest.mark.parametrize("name", recipe_names(SWEEPS))
def test_shipped_sweeps_resolve(name: str) -> None:
    path = SWEEPS / f"{name}.yaml"
    found = resolve(load_sweep(path), path)
    assert len(found) >= 15 and len({c.id for c in found}) == len(found)
    assert json.dumps([c.values for c in found])


def test_every_field_of_the_sweep_file_is_described() -> None:
    assert [name for name, field in Sweep.model_fields.items() if not field.description] == []
