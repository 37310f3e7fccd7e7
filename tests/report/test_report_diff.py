"""`dpeer diff`: every cause is named, and the first step that shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpeer.errors import DpeerError
from dpeer.launcher.cli import app
from dpeer.report.diff import diff_runs, largest


@pytest.fixture
def pair(make_run: Callable[..., Path]) -> tuple[Path, Path]:
    """A run and its copy."""
    a = make_run("a", steps=20)
    return a, Path(shutil.copytree(a, a.with_name("b")))


def test_equal_runs_are_equal(pair: tuple[Path, Path]) -> None:
    found = diff_runs(*pair)
    assert found.same and found.differences == [] and found.ledger is None and found.steps == (20, 20)
    result = CliRunner().invoke(app, ["diff", *map(str, pair), "--exit-code"])
    assert result.exit_code == 0 and "equal (20 and 20 steps)" in result.output


def test_every_cause_is_named(pair: tuple[Path, Path], amend: Any) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["config"]["name"] = "other"
        manifest["config"]["objective"]["beta"] = 0.1
        manifest["config"]["cluster"]["policy_workers"] = 4
        manifest["data"]["train"]["sha256"] = "ef" * 32
        manifest["reference"]["hash"] = "33" * 32
        manifest["versions"]["torch"] = "2.14.0"
        manifest["git"] = "fedcba"
        return manifest

    amend(pair[1] / "manifest.json", change)
    found = diff_runs(*pair)
    assert [(d.part, d.key, d.matters) for d in found.differences] == [
        ("config", "name", False),
        ("config", "objective.beta", True),
        ("config", "cluster.policy_workers", False),
        ("data", "data.train.sha256", True),
        ("model and reference", "reference.hash", True),
        ("code and versions", "git", True),
        ("code and versions", "versions.torch", True),
    ]
    assert (found.differences[1].a, found.differences[1].b) == (0.5, 0.1)
    assert not found.same
    result = CliRunner().invoke(app, ["diff", *map(str, pair), "--exit-code"])
    assert result.exit_code == 1 and "objective.beta" in result.output
    read = json.loads(CliRunner().invoke(app, ["diff", *map(str, pair), "--json"]).output)
    assert len(read["differences"]) == 7 and read["ledger"] is None and not read["same"]


def test_another_name_or_placement_alone_is_the_same_run(pair: tuple[Path, Path], amend: Any) -> None:
    amend(pair[1] / "manifest.json", lambda m: m | {"config": m["config"] | {"name": "other", "output_dir": "x"}})
    assert diff_runs(*pair).same


@pytest.mark.parametrize(("keep", "same"), [("last", True), ("best", False)])
def test_schedule_of_checkpoints_matters_where_they_are_judged(
    pair: tuple[Path, Path], amend: Any, keep: str, same: bool
) -> None:
    for folder, every in zip(pair, (10, 20), strict=True):
        training = {"steps": 20, "keep": keep, "checkpoint_every": every}
        amend(folder / "manifest.json", lambda m, t=training: m | {"config": m["config"] | {"training": t}})
    assert diff_runs(*pair).same is same


def test_first_step_that_differs_and_first_step_that_the_policy_computes_otherwise(
    pair: tuple[Path, Path], amend: Any
) -> None:
    def change(line: dict[str, Any]) -> dict[str, Any]:
        if line["step"] >= 5:
            line["constraints"]["A"]["tolerance"] = 0.2
        if line["step"] >= 9:
            line["dimensions"]["A"]["loss"] *= 1.5
            line["golden_nll"] *= 1.01
        return line

    amend(pair[1] / "ledger.jsonl", change)
    found = diff_runs(*pair)
    assert found.ledger and found.policy
    assert (found.ledger.step, found.ledger.fields) == (5, [("constraints.A.tolerance", 0.4, 0.2)])
    assert found.policy.step == 9
    assert {f[0] for f in found.policy.fields} == {"dimensions.A.loss", "golden_nll"}
    assert largest(found.policy)[0] == "dimensions.A.loss"
    output = CliRunner().invoke(app, ["diff", *map(str, pair)]).output
    assert "first difference, in step 5" in output and "first differs in step 9" in output.replace("\n", " ")


def test_shorter_ledger_and_a_half_written_line(pair: tuple[Path, Path]) -> None:
    ledger = pair[1] / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:12]) + lines[12][:40])
    found = diff_runs(*pair)
    assert found.steps == (20, 12) and found.ledger is None and not found.same


def test_what_is_no_run_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DpeerError, match=r"nowhere/manifest\.json: not there"):
        diff_runs(pair[0], tmp_path / "nowhere")
    (pair[1] / "manifest.json").write_text("{")
    with pytest.raises(DpeerError, match="damaged"):
        diff_runs(*pair)
