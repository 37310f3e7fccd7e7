"""The one door: the same refusals and the same numbers from Python, from `fit`, and from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.errors import ConfigError, DpeerError
from dpeer.eval.irt import Options, estimate
from dpeer.eval.irt.design import DisconnectedDesign
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit, load
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Posterior
from dpeer.launcher.cli import app

SMALL = Options(chains=2, warmup=100, draws=60)


@pytest.fixture(scope="module")
def islands() -> pd.DataFrame:
    """Two models with items and judges of their own, and two others with others."""
    first, second = (simulate(Spec(models=2, items=6, dimensions=1, judges=2), seed)[0] for seed in (1, 2))
    for name in ("model", "item", "judge", "response_id"):
        second[name] = "other " + second[name].astype(str)
    return pd.concat([first, second], ignore_index=True)[["model", "item", "judge", "dimension", "score"]]


def test_unlinked_islands_are_refused_everywhere_alike(islands: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DisconnectedDesign) as by_estimate:
        estimate(islands)
    with pytest.raises(DisconnectedDesign) as by_fit:
        fit(encode(islands), Options())
    islands.to_csv(tmp_path / "ratings.csv", index=False)
    by_command = CliRunner().invoke(app, ["irt", "fit", str(tmp_path / "ratings.csv"), "-o", str(tmp_path / "fit")])
    assert by_command.exit_code == 1 and not (tmp_path / "fit").exists()
    assert str(by_estimate.value) == str(by_fit.value)
    assert str(by_fit.value) in " ".join(by_command.output.split("error: ")[1].splitlines())


def test_an_unchecked_fit_makes_no_claim(islands: pd.DataFrame) -> None:
    result = estimate(islands, options=SMALL, unchecked=True)
    assert not result.gate["green"] and any("design was not checked" in r for r in result.gate["reasons"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


def test_command_line_and_python_give_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    table, _ = simulate(Spec(models=3, items=8, dimensions=2, judges=3), 4)
    warnings: list[str] = []
    result = estimate(table, base="model2", options=SMALL, folder=folder, warn=warnings.append)
    table.to_parquet(tmp_path / "ratings.parquet")
    options = f"--base model2 --chains {SMALL.chains} --warmup {SMALL.warmup} --draws {SMALL.draws}".split()
    command = ["irt", "fit", str(tmp_path / "ratings.parquet"), "-o", str(tmp_path / "fit"), *options]
    assert CliRunner().invoke(app, command).exit_code == 0
    theirs = pd.read_json(tmp_path / "fit" / "tables" / "ability.json")
    assert np.allclose(theirs["ability"], result.abilities["ability"], atol=1e-9)
    assert len(result.abilities) == 6 and len(result.contrasts) == 4 and "model2" not in set(result.contrasts["model"])
    assert load(folder).facts["design_warnings"] == warnings == result.facts["design_warnings"]
    text = repr(result)
    assert text.startswith("Result(144 ratings, base model2, ") and "\n" not in text
    assert repr(result.posterior).startswith("Posterior(gmfrm, 2 chains x 60 draws of Ratings(144 ratings: 3 models")


def test_names_of_users_cannot_write_html() -> None:
    table, _ = simulate(Spec(models=2, items=6, dimensions=1, judges=2), 4)
    table["model"] = table["model"].replace({"model1": "<b>x</b>"})
    page = estimate(table, options=SMALL)._repr_html_()
    assert "&lt;b&gt;x" in page and "<b>x" not in page


def test_an_unknown_base_is_refused_before_anything_is_sampled() -> None:
    table, _ = simulate(Spec(models=2, items=6, dimensions=1, judges=2), 4)
    with pytest.raises(ConfigError, match="base nobody has no usable rating; choose one of model0, model1"):
        estimate(table, base="nobody")


def test_arviz_reads_the_draws_by_name(posterior: Posterior) -> None:
    pytest.importorskip("xarray_einstats", reason="needs the extra arviz")
    from arviz_stats import rhat

    from dpeer.eval.irt.diagnostics import diagnostics
    from dpeer.eval.irt.tables import tabulate

    data = tabulate(posterior).to_inference_data()
    theta = data["posterior"]["theta"]
    assert theta.dims == ("chain", "draw", "model", "dimension")
    one = theta.sel(model="model2", dimension=posterior.ratings.dimensions[0])
    assert np.array_equal(one, posterior.draws["theta"][:, :, 2, 0])
    ours = diagnostics(posterior).set_index("parameter")["rhat"]
    theirs = rhat(data, var_names=["theta"])["theta"]
    for model in posterior.ratings.models:
        for dimension in posterior.ratings.dimensions:
            value = float(theirs.sel(model=model, dimension=dimension))
            assert value == pytest.approx(ours[f"theta[{model}, {dimension}]"], abs=1e-6)
    assert data["sample_stats"]["diverging"].shape == posterior.sampler["divergent"].shape
    assert len(data["observed_data"]["score"]) == len(posterior.ratings)


def test_a_result_without_draws_says_so(posterior: Posterior) -> None:
    from dataclasses import replace

    from dpeer.eval.irt.tables import tabulate

    with pytest.raises(DpeerError, match="tables without draws"):
        replace(tabulate(posterior), posterior=None).to_inference_data()
