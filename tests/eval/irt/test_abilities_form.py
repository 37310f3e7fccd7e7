"""The form in which abilities are sampled: the same prior, and no division by a covariance that is nearly singular."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import helmert
from scipy.stats import lognorm, multivariate_normal

from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.scales import guessed
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.stan_data import Problem, build
from dpeer.eval.irt.stan_start import starts
from dpeer.eval.irt.types import Floats, Options, Ratings
from tests.eval.irt.stan_at import at_start, gradients
from tests.eval.irt.test_stan_model import log_likelihood

OPTIONS = Options(response_effect=False)


@pytest.fixture(scope="module")
def given() -> tuple[Ratings, Problem]:
    ratings = encode(simulate(Spec(models=4, items=6, dimensions=3, judges=3), 5)[0])
    ability = np.random.default_rng(1).normal(0, 1, (4, 3))
    scales = replace(guessed(ratings), ability=ability - ability.mean(axis=0))
    return ratings, build(ratings, OPTIONS, scales)


def test_the_density_is_that_of_correlated_abilities(given: tuple[Ratings, Problem], tmp_path: Path) -> None:
    """At any place and for any scales: N(0, Sigma) in orthonormal coordinates, times the volume of the change."""
    ratings, problem = given
    rng = np.random.default_rng(2)
    start = starts(problem.blocks, 3, rng)
    lower = np.tril(rng.normal(0, 1, (3, 3)), -1) + np.eye(3)
    start["L_theta"] = (lower / np.linalg.norm(lower, axis=1, keepdims=True)).tolist()
    program, formula = [], []
    for k in range(3):
        s = np.exp(rng.normal(0, 0.7, 3))
        raw = rng.normal(0, 1, 9)
        found = at_start(
            problem, start | {"s_theta": s.tolist(), "theta_raw": raw.tolist()}, OPTIONS, tmp_path / str(k)
        )
        draw = {name: values[0] for name, values in found.items()}
        root = s[:, None] * np.array(start["L_theta"])
        theta, scale = moved(problem, raw, root)
        assert np.allclose(helmert(4).T @ theta, draw["theta"], atol=1e-9)
        assert np.allclose(draw["theta"].sum(axis=0), 0, atol=1e-9)
        volume = 3 * np.linalg.slogdet(scale)[1]
        prior = multivariate_normal(np.zeros(3), root @ root.T).logpdf(theta).sum() + volume
        prior += float((lognorm(0.8).logpdf(s) + np.log(s)).sum())
        program.append(float(draw["lp__"][0]))
        formula.append(log_likelihood(ratings, problem, OPTIONS, draw) + prior)
    assert np.ptp(formula) > 1
    assert np.allclose(np.diff(program), np.diff(formula), atol=1e-5)


def moved(problem: Problem, raw: Floats, root: Floats) -> tuple[Floats, Floats]:
    """Abilities in free coordinates, and the square root A of theta = middle + A raw, by inverses."""
    told, at = np.diag(problem.data["centre_theta"]), np.array(problem.data["centre_theta_at"])
    posterior = np.linalg.inv(np.linalg.inv(root @ root.T) + told)
    scale = root @ np.linalg.inv(np.linalg.cholesky(np.eye(3) + root.T @ told @ root)).T
    assert np.allclose(scale @ scale.T, posterior)
    return raw.reshape(3, 3).T @ scale.T + at @ told @ posterior, scale


def test_dimensions_that_go_along_leave_gradients_finite(given: tuple[Ratings, Problem], tmp_path: Path) -> None:
    """Few models and several dimensions: the posterior reaches correlations of 1 but for rounding."""
    _, problem = given
    near = 1 - 1e-13
    rest = np.sqrt(1 - near**2)
    start = starts(problem.blocks, 3, np.random.default_rng(3))
    start["L_theta"] = [[1, 0, 0], [near, rest, 0], [near, 0.6 * rest, 0.8 * rest]]
    found, _ = gradients(problem, start, tmp_path)
    assert np.isfinite(found).all() and np.abs(found).max() < 1e4
