"""`dpeer irt models` and `sensitivity` on fits that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.eval.irt.fit import save
from dpeer.eval.irt.robustness import FILE
from dpeer.launcher.cli import app
from tests.eval.irt.made_up import made_up


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    fitted = made_up(models=3, dimensions=1, items=20, s_u=0.6, draws=30, noise=0.05)
    save(fitted, tmp_path / "good")
    save(replace(fitted, draws=fitted.draws | {"theta": -fitted.draws["theta"]}), tmp_path / "flat")
    return tmp_path


def test_models_are_compared_by_their_fits(fits: Path) -> None:
    code, said = run("irt", "models", fits / "good", fits / "flat", "-o", fits / "out")
    assert code == 0 and "predicts best" in said and "predicts worse" in said, said
    rows = json.loads((fits / "out" / "models.json").read_text())
    assert [row["fit"] for row in rows] == ["good", "flat"] and rows[1]["difference"] < -4
    page = (fits / "out" / "models.html").read_text()
    assert "good predicts best" in page and "has not passed its diagnostics" in page


def test_what_cannot_be_compared_is_refused(fits: Path) -> None:
    table = fits / "table.csv"
    table.write_text("model,item,judge,score\n")
    code, said = run("irt", "models", fits / "good", table)
    assert code == 1 and "table.csv is no fit" in said
    code, said = run("irt", "models", fits / "good")
    assert code == 1 and "two or more folders of fits" in said
    save(made_up(models=3, dimensions=1, items=20, s_u=0.6, draws=30, seed=1), fits / "other")
    code, said = run("irt", "models", fits / "good", fits / "other", "-o", fits / "out")
    assert code == 1 and "fits of other ratings" in said


def test_what_was_found_stays_with_the_fit(fits: Path) -> None:
    code, said = run("irt", "sensitivity", fits / "good", "--refits", 0)
    assert code == 0 and "model1 in T: stable" in said and (fits / "good" / "report.html").exists(), said
    assert (fits / "good" / "tables" / "sensitivity.csv").exists() and (fits / "good" / FILE).exists()
    code, said = run("irt", "export", fits / "good", "-o", fits / "tables", "--format", "csv")
    assert code == 0 and "stable" in pd.read_csv(fits / "tables" / "contrasts.csv")
    assert len(pd.read_csv(fits / "tables" / "without_judge.csv")) == 6
    code, said = run("irt", "sensitivity", fits / "good", "--base", "nobody")
    assert code == 1 and "base nobody was not rated" in said


def test_a_table_of_ratings_is_fitted_by_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpeer.eval.irt import fit as module
    from dpeer.eval.irt.simulate import Spec, simulate

    table = tmp_path / "r.parquet"
    simulate(Spec(models=3, items=10, dimensions=1, judges=3), 1)[0].to_parquet(table)
    short = ("--chains", 2, "--warmup", 100, "--draws", 50, "--loo-draws", 100)
    wanted = ("irt", "models", table, "-o", tmp_path / "out", "--model", "rasch", "--model", "graded", *short)
    code, said = run(*wanted)
    assert code == 0 and "rasch" in said and "graded" in said, said

    def never(*given: object, **more: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(module, "fit", never)
    code, said = run(*wanted)
    assert code == 0, said
