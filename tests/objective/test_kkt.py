"""Toy problems with known KKT points: a softmax policy over three tokens, conflicting dimensions.

The loop below is the training step without a model: margins, weights, loss, gradient step, statistics, dual update. The
oracles are analytic, or scipy's SLSQP on the constrained problem with multipliers from stationarity. The default
controller, whose penalty asks for shorter steps than these, has test_shipped_defaults.py.
"""

import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dpeer.config import Constraint, Dual, Objective
from dpeer.objective.constraints import build_constraints, dimension_weights, edge_coefficients
from dpeer.objective.dual import initial_state, update
from dpeer.objective.ledger import infeasible, ledger_entry
from dpeer.objective.preference import edge_loss, margin_hinge
from dpeer.objective.statistics import edge_statistics, summarise

CONTROLLERS = {
    "ascent": Dual(controller="ascent", eta=0.03, ema=0.5),
    "nu_pi": Dual(controller="nu_pi", eta=0.03, kp=4.0, nu=0.5),
    "pid": Dual(controller="pid", eta=0.03, kp=4.0, kd=1.0),
}
TAIL = 50  # ledger entries kept
CYCLE = [(0, 1), (1, 2), (2, 0)]  # better, worse token of dimensions A, B, C: their margins sum to 0


def train(pairs, objective, steps=600, lr=1.0):
    """Run the loop; returns the final margins [D], the dual state and the tail of the ledger."""
    dimensions = tuple("ABC"[: len(pairs)])
    constraints = build_constraints(objective.constraint, dimensions)
    state = initial_state(constraints, objective)
    better, worse = torch.tensor(pairs).T
    dims, counts = torch.arange(len(pairs)), torch.ones(len(pairs))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ledger = []
    for step in range(1, steps + 1):
        logp = logits.log_softmax(0)
        margins = logp[better] - logp[worse]
        losses, hinges = edge_loss(margins, objective), margin_hinge(margins, constraints.edge_tolerance[dims])
        weights = dimension_weights(constraints, objective, state.multipliers, counts)
        loss_coef, hinge_coef = edge_coefficients(weights, counts, dims)
        (gradient,) = torch.autograd.grad((loss_coef * losses + hinge_coef * hinges).sum(), logits)
        summary = summarise(edge_statistics(margins, losses, hinges, dims, dims, len(pairs)))
        before, state = state, update(state, constraints, objective, summary)
        if step > steps - TAIL:
            ledger.append(ledger_entry(step, summary, weights, constraints, before, state, {}))
        with torch.no_grad():
            logits -= lr * gradient
    return margins.detach().numpy(), state, ledger


def softplus(x):
    return np.log1p(np.exp(-x))


def kkt_multipliers(pairs, primary, constraint_of, n_constraints):
    """Minimise primary . L with constraint_of(margins) <= 0 by SLSQP; multipliers from stationarity."""
    better, worse = np.array(pairs).T

    def margins(z):
        return z[better] - z[worse]

    def objective(z):
        return primary @ softplus(margins(z)) + 1e-9 * z @ z

    found = minimize(
        objective,
        np.zeros(3),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: -constraint_of(margins(z))},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success

    def jacobian(f):
        return np.array([(f(found.x + h) - f(found.x - h)) / 2e-6 for h in 1e-6 * np.eye(3)]).T

    active = np.flatnonzero(constraint_of(margins(found.x)) > -1e-6)
    slopes = jacobian(lambda z: constraint_of(margins(z)))[active]
    solution, *_ = np.linalg.lstsq(slopes.T, -jacobian(objective), rcond=None)
    multipliers = np.zeros(n_constraints)
    multipliers[active] = solution
    return margins(found.x), multipliers


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_two_opposed_dimensions(controller):
    """A wants token 0 over 1, B the reverse. L_A <= 0.5 fixes m = -ln(e^0.5 - 1); then 1/2 + lambda = e^m / 2."""
    constraint = Constraint(tolerance={"A": 0.5, "B": math.inf})
    objective = Objective(constraint=constraint, dual=CONTROLLERS[controller])
    margins, state, ledger = train([(0, 1), (1, 0)], objective)
    m = -math.log(math.expm1(0.5))
    assert margins[0] == pytest.approx(m, abs=1e-4)
    assert state.multipliers.tolist() == pytest.approx([(math.exp(m) - 1) / 2, 0], abs=1e-3)
    assert not infeasible(ledger)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_three_dimensions_in_a_cycle(controller):
    """A and B are bounded, C gives way: two active constraints at once, and fixed primary weights."""
    primary = {"A": 1.0, "B": 2.0, "C": 3.0}
    constraint = Constraint(tolerance={"A": 0.5, "B": 0.6, "C": 10.0})
    objective = Objective(constraint=constraint, primary=primary, dual=CONTROLLERS[controller])
    margins, state, _ = train(CYCLE, objective, steps=700)
    expected = kkt_multipliers(CYCLE, np.array([1, 2, 3]) / 6, lambda m: softplus(m) - np.array([0.5, 0.6, 10]), 3)
    assert (expected[1][:2] > 0.2).all() and expected[1][2] == 0
    np.testing.assert_allclose(margins, expected[0], atol=1e-3)
    np.testing.assert_allclose(state.multipliers, expected[1], atol=5e-3)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_balance_pairs(controller):
    """Fixed weights push A down; no loss may exceed another by more than 0.2."""
    primary = {"A": 6.0, "B": 3.0, "C": 1.0}
    constraint = Constraint(form="balance", tolerance=0.2)
    objective = Objective(constraint=constraint, primary=primary, dual=CONTROLLERS[controller])
    margins, state, ledger = train(CYCLE, objective, steps=700)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]

    def gaps(m):
        return np.array([softplus(m[i]) - softplus(m[j]) - 0.2 for i, j in pairs])

    expected = kkt_multipliers(CYCLE, np.array([0.6, 0.3, 0.1]), gaps, 6)
    names = list(ledger[-1]["constraints"])
    assert names[np.argmax(expected[1])] == "C over A"
    np.testing.assert_allclose(margins, expected[0], atol=1e-3)
    np.testing.assert_allclose(state.multipliers, expected[1], atol=5e-3)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_margin_hinge_form(controller):
    """Mean hinge [0.8 - m]+ <= 0.3 binds at m = 0.5. Stationarity in m: lambda = (sigma(m) - sigma(-m)) / 2."""
    constraint = Constraint(form="margin", tolerance={"A": 0.8, "B": math.inf}, slack=0.3)
    objective = Objective(constraint=constraint, dual=CONTROLLERS[controller])
    margins, state, _ = train([(0, 1), (1, 0)], objective)
    assert margins[0] == pytest.approx(0.5, abs=1e-4)
    assert state.multipliers.tolist() == pytest.approx([math.tanh(0.25) / 2, 0], abs=1e-3)


def test_protect_keeps_what_was_reached():
    """Weights favour B from the start; A reached its best, ln 2, at the start and may give back 0.1 only."""
    objective = Objective(
        constraint=Constraint(form="protect", tolerance={"A": 0.1, "B": math.inf}),
        primary={"A": 0.1, "B": 0.9},
        dual=CONTROLLERS["nu_pi"],
    )
    margins, state, _ = train([(0, 1), (1, 0)], objective)
    free, _, _ = train([(0, 1), (1, 0)], objective.model_copy(update={"constraint": Constraint(tolerance=math.inf)}))
    assert softplus(free[0]) > 2
    assert softplus(margins[0]) == pytest.approx(math.log(2) + 0.1, abs=1e-4)
    assert state.form["best"][0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_infeasible_is_reported_by_name(controller):
    """L_A + L_B >= 2 ln 2 when opposed, so both at 0.5 is impossible; C is met and not named."""
    relaxing = CONTROLLERS[controller].model_copy(update={"max": 5.0, "eta": 1.0})
    constraint, opposed = Constraint(tolerance={"A": 0.5, "B": 0.5, "C": 5.0}), [(0, 1), (1, 0), (1, 2)]
    _, state, ledger = train(opposed, Objective(constraint=constraint, dual=relaxing), steps=200)
    assert state.relaxed.tolist() == [True, True, False]
    assert (state.multipliers <= 0.25 * 0.25).all()  # the price of a violation of 0.19, not 5
    found = infeasible(ledger)
    assert list(found) == ["A", "B"]
    assert re.search(
        r"^A: cannot be met together with B\. It stays at about 0\.[67]\d* where 0\.5 is asked", found["A"]
    )

    stubborn = relaxing.model_copy(update={"relaxed_cost": math.inf})
    _, state, ledger = train(opposed, Objective(constraint=constraint, dual=stubborn), steps=200)
    assert state.multipliers.tolist() == pytest.approx([5, 5, 0])
    found = infeasible(ledger)
    assert list(found) == ["A", "B"]
    assert re.search(r"^A: multiplier at its cap 5 for 50 steps.*stays at 0\.69\d where 0\.5 is asked", found["A"])
