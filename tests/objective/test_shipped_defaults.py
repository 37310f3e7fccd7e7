"""The shipped controller under AdamW, cosine and small batches, on random problems with known optima (problems.py)."""

import functools

import numpy as np
import pytest
import torch

from dpeer.config import Constraint, Objective
from dpeer.objective import ledger
from dpeer.objective.lagrangian import Lagrangian
from tests.objective.problems import feasible, infeasible, train

COUNT = 4
"""Problems per test; benchmarks/multipliers.py takes 20."""


def lagrangian(problem, steps, **constraint):
    names = [f"d{d}" for d in range(problem.dimensions)]
    tolerance = dict(zip(names, problem.tolerances.tolist(), strict=True))
    objective = Objective(golden_nll=problem.anchor, constraint=Constraint(tolerance=tolerance, **constraint))
    return Lagrangian(objective, names, steps=steps)


def violation(problem, z):
    return float((problem.losses(z) - problem.tolerances).max())


@functools.cache
def ends(steps, batch):
    torch.set_num_threads(1)
    return [(p, *train(p, lagrangian(p, steps), steps, batch)) for p in feasible(COUNT)]


@pytest.mark.parametrize(("steps", "batch", "allowed"), [(125, None, 0.05), (125, 8, 0.06), (300, 8, 0.05)])
def test_feasible_constraints_are_met_and_not_called_infeasible(steps, batch, allowed):
    for problem, z, _, entries in ends(steps, batch):
        assert violation(problem, z) < allowed
        assert ledger.infeasible(entries[-20:]) == {}


def test_multipliers_are_those_of_the_optimum():
    """They are chosen first, and the tolerances made from them; stiff problems settle in 125 steps."""
    errors = []
    for problem, _, final, _ in ends(125, None):
        found = np.array(list(final.multipliers.values()))
        errors.append(np.abs(found - problem.multipliers).max() / (1 + problem.multipliers.max()))
    assert np.median(errors) < 0.15


@pytest.mark.parametrize("batch", [None, 8])
def test_exactly_those_in_conflict_are_named(batch):
    for problem in infeasible(COUNT):
        _, _, entries = train(problem, lagrangian(problem, 125), 125, batch)
        assert list(ledger.infeasible(entries[-20:])) == [f"d{d}" for d in problem.conflict]


def test_an_impossible_pair_does_not_starve_the_others():
    gains = []
    for problem in infeasible(COUNT, independent=True):
        others = [d for d in range(problem.dimensions) if d not in problem.conflict]
        relaxed, _, _ = train(problem, lagrangian(problem, 125), 125)
        uniform, _, _ = train(problem, lagrangian(problem, 125, enforce=False), 125)
        gain, best = (np.log(2) - problem.losses(z)[others] for z in (relaxed, uniform))
        gains += list((gain / best)[best > 0.02])
    assert np.quantile(gains, 0.2) > 0.8


def test_worst_finds_the_tightest_common_tolerance():
    """min over policies of max_d L_d, against SLSQP on the epigraph; no primary weights, no anchor."""
    for problem in feasible(3):
        problem.tolerances, problem.anchor = np.zeros(problem.dimensions), 0.0
        tightest = problem.least_violation(range(problem.dimensions))
        z, final, _ = train(problem, lagrangian(problem, 300, form="worst"), 300)
        assert problem.losses(z).max() < tightest + 0.03
        weights = np.array(list(final.multipliers.values()))
        assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
