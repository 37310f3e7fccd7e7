"""The convex problem of the dual-first baseline (benchmarks/dual_first.py) against known optima."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from benchmarks.dual_first import optimal_weights

HALF = np.array([0.5, 0.5])


@pytest.mark.parametrize("level", [0.2, 0.4, 0.6])
def test_two_dimensions_that_exclude_each_other(level: float) -> None:
    """Every edge of the second is one of the first turned round: L_0 = f(w), L_1 = f(-w), so that at L_0 = level the
    weight is -ln(e^level - 1) and the multiplier (e^w - 1) / 2."""
    margins = np.array([[1.0, 1.0, -1.0, -1.0]])
    found = optimal_weights(margins, np.array([0, 0, 1, 1]), HALF, np.array([level, math.inf]))
    w = -math.log(math.expm1(level))
    assert found.weights == pytest.approx([w], abs=1e-4)
    assert found.multipliers == pytest.approx([(math.exp(w) - 1) / 2, 0], abs=1e-4)
    assert found.losses == pytest.approx([level, math.log1p(math.exp(w))], abs=1e-4)
    assert not found.capped


def test_levels_that_hold_anyway_have_no_price() -> None:
    margins = np.random.default_rng(0).normal(0.3, 1.0, (2, 60))
    found = optimal_weights(margins, np.arange(60) % 2, HALF, np.array([0.69, math.inf]))
    assert found.multipliers == pytest.approx([0, 0]) and (found.losses <= 0.69).all()


def test_optimum_agrees_with_a_general_solver() -> None:
    """Three specialists that each serve their own dimension and harm the next, against SLSQP on the primal problem."""
    rng = np.random.default_rng(3)
    dims = np.repeat(np.arange(3), 80)
    direction = np.array([[1.5, -0.7, 0.1], [0.1, 1.2, -0.6], [-0.5, 0.1, 0.8]])
    margins = direction[:, dims] + rng.normal(0, 0.8, (3, 240))
    third = np.full(3, 1 / 3)

    def losses(w: np.ndarray) -> np.ndarray:
        edge = np.log1p(np.exp(-(w @ margins)))
        return np.array([edge[dims == d].mean() for d in range(3)])

    free = optimal_weights(margins, dims, third, np.full(3, math.inf))
    levels = np.array([math.inf, math.inf, free.losses[2] - 0.03])
    found = optimal_weights(margins, dims, third, levels)
    general = minimize(
        lambda w: third @ losses(w),
        np.ones(3),
        bounds=[(0, None)] * 3,
        constraints={"type": "ineq", "fun": lambda w: levels[2] - losses(w)[2]},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert general.success and found.weights == pytest.approx(general.x, abs=1e-3)
    assert found.losses[2] == pytest.approx(levels[2], abs=1e-5)
    slope = 1e-3  # the multiplier is the price of the level
    nearby = optimal_weights(margins, dims, third, levels + np.array([0, 0, slope]))
    assert (third @ found.losses - third @ nearby.losses) / slope == pytest.approx(found.multipliers[2], rel=0.05)


def test_impossible_levels_run_into_the_bound() -> None:
    margins = np.array([[1.0, -1.0]])
    found = optimal_weights(margins, np.array([0, 1]), HALF, np.array([0.3, 0.3]), most=5.0)
    assert found.capped and found.multipliers.max() == pytest.approx(5.0)
