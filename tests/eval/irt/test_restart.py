"""A fit of more ratings starts where the earlier one ended, finds the same, and refuses what it cannot start from."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import helmert

from dpeer.eval.irt.diagnostics import mixing
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit import fit, load, save
from dpeer.eval.irt.restart import begin, earlier, joined
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import build
from dpeer.eval.irt.types import Floats, Options, Posterior

made_up = runpy.run_path(str(Path(__file__).with_name("made_up.py")))["made_up"]
TABLE, _ = simulate(Spec(models=4, items=14, dimensions=2, judges=3), 3)
LAST = sorted(TABLE["item"].unique())[-2:]
OLD = TABLE[~TABLE["item"].isin(LAST)].iloc[5:]  # two items and five ratings come later
OPTIONS = Options(chains=2, warmup=150, draws=100)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Posterior:
    folder = tmp_path_factory.mktemp("fit")
    save(fit(encode(OLD), OPTIONS), folder)
    return load(folder)


def test_chains_start_at_the_last_draws(before: Posterior) -> None:
    ratings = encode(TABLE)
    scales, centres = earlier(before, ratings, OPTIONS)
    problem = build(ratings, OPTIONS, scales, centres)
    starts, inverse_metric, step = begin(before, ratings, problem, 3)
    assert len(inverse_metric) == sum(len(v) for _, _, v in problem.blocks) and (inverse_metric > 0).all()
    assert step in before.sampler["stepsize"][:, -1] or step == np.mean(before.sampler["stepsize"][:, -1])
    for chain, start in zip((0, 1, 0), starts, strict=True):
        last = {name: draws[chain, -1] for name, draws in before.draws.items()}
        s_theta, s_beta, s_u = (np.array(start[name]) for name in ("s_theta", "s_beta", "s_u"))
        root = np.diag(s_theta) @ np.array(start["L_theta"])
        free = np.reshape(start["theta_raw"], (2, 3)).T
        told, at = (np.array(problem.data[name]) for name in ("centre_theta", "centre_theta_at"))
        covariance = np.linalg.inv(np.linalg.inv(root @ root.T) + np.diag(told))
        factor = np.linalg.cholesky(np.eye(2) + root.T @ np.diag(told) @ root)
        theta = helmert(4).T @ (free @ np.linalg.inv(factor) @ root.T + at @ np.diag(told) @ covariance)
        assert np.allclose(theta, last["theta"], atol=1e-6)
        centre = np.array(problem.data["centre_beta"])
        beta = helmert(14).T @ np.reshape(start["beta_raw"], (2, 13)).T * s_beta ** (1 - centre)
        assert np.allclose(beta[:12], last["beta"], atol=1e-6) and np.allclose(beta[12:], 0, atol=1e-6)
        place = (theta + start["mu"])[ratings.response_model] - beta[ratings.response_item]  # [R, D]
        at = problem.cell_response, problem.cell_dimension
        c = np.array(problem.data["centre_u"])
        u = np.full(place.shape, np.nan)
        u[at] = s_u[at[1]] ** (1 - c) * (np.array(start["u_raw"]) - c * place[at])
        rated = ~np.isnan(last["u"])
        assert np.allclose(u[ratings.response_item < 12][rated], last["u"][rated], atol=1e-5)


def test_effects_that_the_earlier_fit_lacked_start_as_in_a_fresh_one(before: Posterior) -> None:
    none = {"last.u_raw": np.empty((2, 0)), "moved.u_raw": np.empty(0)}
    ratings = encode(TABLE)
    problem = build(ratings, OPTIONS, *earlier(before, ratings, OPTIONS))
    starts, inverse_metric, _ = begin(replace(before, left=before.left | none), ratings, problem, 2)
    fresh = {name: start for name, start, _ in problem.blocks}
    assert len(fresh["u_raw"]) > 0 and np.array_equal(starts[1]["u_raw"], fresh["u_raw"])
    assert np.isfinite(inverse_metric).all() and len(inverse_metric) == sum(len(v) for _, _, v in problem.blocks)


@pytest.mark.parametrize("names", [("u", "v", "item_step"), ("v", "judge_item"), ()])
def test_kept_effects_of_joined_runs_stand_with_their_draws(names: tuple[str, ...]) -> None:
    """Every value names its draw: what is kept of an effect must name the draw that `u_draws` says."""
    sizes, keeps, parts = (250, 600, 40), (100, 100, 40), []
    for k, (size, keep) in enumerate(zip(sizes, keeps, strict=True)):
        p = made_up(items=2, draws=size, chains=2)
        mark = np.arange(2)[:, None] * 1000.0 + sum(sizes[:k]) + np.arange(size)
        kept = np.unique(np.linspace(0, size - 1, keep).round().astype(int))
        facts = {"leapfrogs": 1, "u_draws": (np.arange(2)[:, None] * size + kept).ravel().tolist()}
        draws = {"mu": mark[..., None]} | dict.fromkeys(names, mark[:, kept, None, None])
        parts.append(replace(p, draws=draws, facts=facts, options=Options(chains=2, draws=size)))
    whole = reduce(joined, parts)
    assert whole.draws["mu"].shape[1] == whole.length == sum(sizes) and whole.options == parts[0].options
    assert whole.facts["parts"] == [*sizes]
    for name in names:
        chains, kept = whole.draws[name].shape[:2]
        assert chains == 2 and 95 <= kept <= 100  # one of 8.9, of those that each run kept
        assert np.diff(whole.facts["u_draws"][:kept]).max() < 20
        assert np.array_equal(whole.flat(name)[:, 0, 0], whole.flat("mu")[whole.facts["u_draws"], 0]), name


def test_a_fit_from_an_earlier_one_finds_what_a_fresh_one_finds(before: Posterior) -> None:
    ratings = encode(TABLE)
    most = replace(OPTIONS, draws=2000)  # the fit ends as soon as it passes the gate
    warm, fresh = fit(ratings, most, start=before), fit(ratings, replace(OPTIONS, draws=400, seed=2))
    assert warm.facts["started_from_earlier"] and not fresh.facts["started_from_earlier"]
    each = [p.facts["leapfrogs"] / p.length for p in (warm, fresh)]
    assert each[0] < each[1] * 1.5  # the metric is as good
    rhat, ess = mixing(warm)
    assert rhat < 1.01 and ess > 400 and warm.length < 2000 and warm.options == most
    for name in ("theta", "severity", "beta", "mu"):
        a, b = warm.flat(name), fresh.flat(name)
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 0.5 * b.std(axis=0)).all(), name
        assert 0.8 < np.median(a.std(axis=0) / b.std(axis=0)) < 1.25, name
    assert warm.draws["u"].shape[1] == fresh.draws["u"].shape[1]
    draws = warm.length
    assert warm.draws["theta"].shape[1] == draws and np.max(warm.facts["u_draws"]) == 2 * draws - 1


def other_judge(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(judge=table["judge"].replace({sorted(table["judge"].unique())[0]: "new"}))


@pytest.mark.parametrize(
    ("change", "options", "state", "why"),
    [
        (other_judge, OPTIONS, True, "other judges"),
        (lambda table: table, replace(OPTIONS, model="rasch"), True, "other terms"),
        (lambda table: table, replace(OPTIONS, anchors={"items": {}}), True, "anchors"),
        (lambda table: table, OPTIONS, False, "no state"),
    ],
)
def test_what_it_cannot_start_from_is_refused(
    before: Posterior, change: Callable[[pd.DataFrame], pd.DataFrame], options: Options, state: bool, why: str
) -> None:
    start = before if state else replace(before, left=dict[str, Floats]())
    with pytest.raises(IrtError, match=why):
        earlier(start, encode(change(TABLE)), options)


def test_chains_that_diverge_are_run_afresh(before: Posterior) -> None:
    far = before.left | {"last.s_theta": np.full((2, 2), 1e-3), "moved.u_raw": before.left["moved.u_raw"] * 1e4}
    said: set[str] = set()
    found = fit(encode(OLD), OPTIONS, lambda what, done: said.add(what), start=replace(before, left=far))
    assert "sampling from the earlier fit" in said and not any("more draws" in what for what in said)
    assert not found.facts["started_from_earlier"] and found.facts["pilot_leapfrogs"]


def test_chains_that_the_gate_would_stop_are_run_afresh(before: Posterior) -> None:
    """200 draws hardly hold 400 effective ones of every parameter."""
    said: set[str] = set()
    found = fit(encode(OLD), replace(OPTIONS, warmup=100), lambda what, done: said.add(what), start=before)
    assert "sampling from the earlier fit, more draws" in said and not found.facts["started_from_earlier"]
