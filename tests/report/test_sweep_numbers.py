"""What a sweep says in numbers, against closed forms, scipy and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dpeer.config import Constraint, Dual, Objective
from dpeer.objective.constraints import build_constraints, dimension_weights, edge_coefficients
from dpeer.objective.dual import initial_state, update
from dpeer.objective.ledger import ledger_entry
from dpeer.objective.preference import edge_loss
from dpeer.objective.statistics import edge_statistics, summarise
from dpeer.report.run import Run, Step
from dpeer.report.sweep import Setting, SweepCell
from dpeer.report.sweep_numbers import late, mean_and_worst, over_seeds, pareto_front, prices, worst

ANCHOR = 0.3
EPS = 0.01


@cache
def toy_run(
    eps: float, anchor: float, steps: int = 400, lr: float = 1.0, present: float = 1.0, form: Any = "threshold"
) -> Run:
    """Two opposed dimensions over one margin m: A wants it high and is bounded, B and the anchor want it low.

    The training step without a model. `present`: share of the steps in which A has an edge.
    """
    constraint = Constraint(form=form, tolerance={"A": eps, "B": math.inf})
    objective = Objective(constraint=constraint, golden_nll=anchor, dual=Dual(controller="ascent", eta=0.2 * lr))
    constraints = build_constraints(constraint, ("A", "B"))
    state, m, ledger = initial_state(constraints, objective), torch.zeros((), dtype=torch.float64), []
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        m.requires_grad_()
        dims = torch.tensor([0, 1] if rng.random() < present else [1])
        margins = torch.stack([m, -m])[dims]
        counts = torch.bincount(dims, minlength=2)
        losses, nll = edge_loss(margins, objective), torch.nn.functional.softplus(m)
        weights = dimension_weights(constraints, objective, state.multipliers, counts)
        coefficients, _ = edge_coefficients(weights, counts, dims)
        (gradient,) = torch.autograd.grad((coefficients * losses).sum() + weights.golden * nll, m)
        summary = summarise(edge_statistics(margins, losses, 0 * losses, dims, dims, 2))
        before, state = state, update(state, constraints, objective, summary)
        entry = ledger_entry(step, summary, weights, constraints, before, state, {"golden_nll": float(nll.detach())})
        ledger.append(Step.model_validate(entry))
        m = (m - lr * gradient).detach()
    manifest = {"method": 2, "config": {"objective": objective.model_dump(mode="json")}}
    return Run(Path(), manifest, tuple(ledger), (), None, ())


def multiplier(eps: float, anchor: float) -> float:
    """Stationarity in m of (1/2 + l) L_A + L_B / 2 + anchor N at L_A = eps, with N = softplus(m) = L_B:
    (1/2 + l) s(-m) = (1/2 + anchor) s(m), and s(m) / s(-m) = e^m."""
    return (0.5 + anchor) / math.expm1(eps) - 0.5


def sweep(runs: dict[float, Run]) -> dict[str, list[Setting]]:
    settings = [Setting(f"{x:g}", x, "", (SweepCell(0, "c", "c", 0, {}, run),)) for x, run in runs.items()]
    return {"": settings}


@pytest.mark.parametrize("anchor", [0.0, ANCHOR])
def test_shadow_price_of_a_convex_problem_with_a_known_multiplier(anchor: float) -> None:
    runs = {eps: toy_run(eps, anchor) for eps in (0.5, 0.5 + EPS, 0.5 + 2 * EPS)}
    for eps, run in runs.items():
        found = late(run)
        assert found is not None
        assert found.multipliers.tolist() == pytest.approx([multiplier(eps, anchor), 0], rel=2e-3)
        assert found.loss[0] == pytest.approx(eps, rel=1e-3)
        assert found.primary.tolist() == pytest.approx([0.5, 0.5])
        assert found.anchor == pytest.approx(anchor)
    for price in prices(sweep(runs)):
        middle = (price.left.x + price.right.x) / 2
        assert price.active and price.agrees is None  # one seed: nothing to judge by
        assert price.implied.mean == pytest.approx(multiplier(middle, anchor), rel=5e-3)
        assert price.measured.mean == pytest.approx(multiplier(middle, anchor), rel=5e-3)


def test_price_without_anchor_is_the_slope_of_the_optimal_value() -> None:
    """f*(eps) = (eps + softplus(m)) / 2 at m = -ln(e^eps - 1); its derivative by eps is minus the multiplier."""

    def value(eps: float) -> float:
        return (eps - math.log1p(-math.exp(-eps))) / 2

    exact = (value(0.4) - value(0.5)) / 0.1
    (price,) = prices(sweep({eps: toy_run(eps, 0.0) for eps in (0.4, 0.5)}))
    assert price.measured.mean == pytest.approx(exact, rel=3e-3)
    assert price.implied.mean == pytest.approx((multiplier(0.4, 0) + multiplier(0.5, 0)) / 2, rel=3e-3)
    assert price.total[0].mean > price.measured.mean > price.total[1].mean


def test_dimension_that_is_absent_in_some_steps() -> None:
    """Half of the steps lack A, so that the mean gradient weighs A at half of p + l; both prices still agree."""
    runs = {eps: toy_run(eps, ANCHOR, steps=1000, lr=0.2, present=0.5) for eps in (1.2, 1.3)}
    found = late(runs[1.2])
    assert found is not None
    assert found.primary.tolist() == pytest.approx([0.25, 0.5], abs=0.03)
    (price,) = prices(sweep(runs))
    assert price.active and price.implied.mean > 0.05
    assert price.measured.mean == pytest.approx(price.implied.mean, rel=0.1)


def test_inactive_constraints_and_other_forms_have_no_price() -> None:
    (price,) = prices(sweep({eps: toy_run(eps, 0.0, steps=200) for eps in (1.0, 1.5)}))
    assert not price.active and price.agrees is None
    assert late(toy_run(0.1, 0.0, steps=5, form="protect")) is None
    unenforced = toy_run(0.5, 0.0, steps=6)
    unenforced.manifest["config"]["objective"]["constraint"]["enforce"] = False
    assert late(unenforced) is None


def test_verdict_follows_the_band_over_seeds() -> None:
    runs = {eps: toy_run(eps, 0.0) for eps in (0.5, 0.5 + EPS)}

    def seeds(wrong: float) -> Any:
        """Three seeds with jitter in the final loss of B, and a systematic error in it at the right end."""
        found = []
        for x, run in runs.items():
            cells = []
            for seed, jitter in enumerate((-1e-4, 0.0, 2e-4)):
                shift = (jitter + wrong) * (x > 0.5)
                ledger = tuple(
                    s.model_copy(
                        update={
                            "dimensions": s.dimensions
                            | {"B": s.dimensions["B"].model_copy(update={"loss": s.dimensions["B"].loss + shift})}
                        }
                    )
                    for s in run.ledger
                )
                cells.append(SweepCell(seed, "c", "c", seed, {}, replace(run, ledger=ledger)))
            found.append(Setting(f"{x}", x, "", tuple(cells)))
        return prices({"": found})[0]

    assert seeds(0.0).agrees is True
    assert seeds(0.003).agrees is False


def test_spread_is_a_t_interval() -> None:
    values = [0.3, 0.7, 0.4, 0.35]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = over_seeds([*values, math.nan])
    assert (found.mean, found.lower, found.upper, found.n) == pytest.approx((np.mean(values), low, high, 4))
    assert math.isnan(over_seeds([0.3]).lower) and math.isnan(over_seeds([]).mean)


def test_pareto_front_by_brute_force() -> None:
    points = [tuple(p) for p in np.random.default_rng(2).integers(0, 8, size=(60, 2)).astype(float).tolist()]
    expected = [
        i
        for i, p in enumerate(points)
        if all(q == p or q[0] > p[0] or q[1] > p[1] for q in points)
    ]  # fmt: skip
    assert pareto_front(points) == expected
    assert 1 < len(expected) < 30


def test_what_was_not_measured_is_neither_on_the_front_nor_the_worst() -> None:
    assert pareto_front([(math.nan, 0.1), (0.3, 0.5), (0.2, math.nan)]) == [1]
    for losses in ({"A": math.nan, "T": 0.6}, {"A": 0.6, "T": math.nan}, {}):
        cell = SimpleNamespace(heldout=lambda what, losses=losses: losses)
        assert math.isnan(worst(cell))


def test_settings_are_compared_over_the_seeds_that_all_have() -> None:
    def cell(seed: int, loss: float) -> SimpleNamespace:
        return SimpleNamespace(seed=seed, heldout=lambda what: {"A": loss, "T": 2 * loss})

    whole = SimpleNamespace(cells=[cell(0, 0.1), cell(1, 0.5)])
    partial = SimpleNamespace(cells=[cell(1, 0.4)])
    assert mean_and_worst([whole, partial]) == [pytest.approx((0.75, 1.0)), pytest.approx((0.6, 0.8))]
