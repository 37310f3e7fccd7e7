"""The default controller step by step, the simplex, and how far below a tolerance the multipliers aim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeer.config import Constraint, Dual, Objective
from dpeer.objective.bounds import Sample, log_wealth, room
from dpeer.objective.constraints import aims, build_constraints
from dpeer.objective.dual import initial_state, project
from tests.objective.test_dual import objective_with, run


def test_pi_by_hand():
    path = [(0.6, 0.4), (0.9, 0.4), (1.1, 0.4), (0.3, 0.4)]
    seen, state = run(objective_with(kp=2.0, ki=0.5, ema=0.5, max=1.0), path)
    # g = 0.1, 0.4, 0.6, -0.2; g_hat = 0.1, 0.25, 0.425, 0.1125. I moves by a quarter of clip(I + 2 g) - I:
    # 0 -> 0.05 -> 0.25 (0.85 reached) -> 0.4375 (1 reached, not 1.45) -> 0.3375 (0.0375 reached)
    assert [s[0] for s in seen] == pytest.approx([0.25, 0.75, 1.0, 0.5625])
    assert state.controller["integral"].tolist() == pytest.approx([0.3375, 0.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_the_nearest_point_of_the_simplex(values):
    """Against the conditions of the optimum: one h for all that are above 0, and nothing below 0."""
    x = torch.tensor(values, dtype=torch.float64)
    found = project(x, torch.ones(len(x), dtype=torch.bool))
    assert float(found.sum()) == pytest.approx(1) and (found >= 0).all()
    shift = (x - found)[found > 0]
    assert shift.numpy() == pytest.approx(float(shift[0])) and (x[found == 0] <= shift[0] + 1e-9).all()


def test_only_members_share_the_simplex():
    found = project(torch.tensor([0.4, 9.0, 0.2], dtype=torch.float64), torch.tensor([True, False, True]))
    assert found.tolist() == pytest.approx([0.6, 0.0, 0.4])


@pytest.mark.parametrize("records", [100, 400])
def test_a_mean_that_keeps_the_room_is_mostly_proven(records):
    """Values of the variance that was told, so far below the tolerance: the certificate's own wealth decides."""
    rng, tolerance, sd = np.random.default_rng(0), 0.65, 0.2
    mean = tolerance - room(sd**2, records, 6.0)
    weights = np.full(records, 1 / records)
    values = rng.normal(mean, sd, (200, records)).clip(0, 6) / records
    goal, spread = -math.log(0.05), math.sqrt(tolerance / records)  # spread as `certify` guesses it
    samples = (Sample(v, weights, 0.0, 6.0, spread, goal) for v in values)
    proven = np.mean([float(log_wealth(sample, tolerance)) >= goal for sample in samples])
    assert proven > 0.7 and room(sd**2, 4 * records, 6.0) < room(sd**2, records, 6.0)


def test_aims_lie_below_the_tolerance_by_the_room_and_by_half_at_most():
    constraints = build_constraints(Constraint(tolerance={"A": 0.5, "T": 0.3}), ("A", "T"))
    objective = Objective(constraint=Constraint(tolerance={"A": 0.5, "T": 0.3}), dual=Dual(aim="certificate"))
    state = initial_state(constraints, objective)
    found = aims(constraints, objective, state, torch.tensor([1000.0, 5.0]))
    assert found.tolist() == pytest.approx([0.5 - room(0.0, 1000, 6.0), 0.15])
    assert aims(constraints, objective, state, None).tolist() == [0.5, 0.3]
    by_number = Objective(constraint=objective.constraint, dual=Dual(aim=0.1))
    assert aims(constraints, by_number, state, None).tolist() == pytest.approx([0.4, 0.2])
