"""Constraint values and weights: hand-made cases, properties, and the plain-DPO limit bit for bit."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeer.config import Constraint, Objective
from dpeer.errors import ConfigError
from dpeer.objective.constraints import (
    Weights,
    build_constraints,
    dimension_weights,
    edge_coefficients,
    estimates,
    is_observed,
    primary_weights,
)
from dpeer.objective.preference import edge_loss
from dpeer.objective.statistics import edge_statistics, summarise

DIMS = ("A", "T", "E", "C")
FORMS = ("threshold", "winrate", "worst", "balance", "margin", "protect")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Past:
    best: torch.Tensor

    @property
    def form(self):
        return {"best": self.best}


def constraint_values(constraints, summary, past):
    return estimates(constraints, summary, past)[0] - constraints.bounds, is_observed(constraints, summary)


def summary_of(losses, hinges=None):
    """Two records per dimension, each with the given loss; None: the dimension has no edges."""
    pairs = enumerate(zip(losses, hinges or losses, strict=True))
    rows = [(x, h, d, r) for d, (x, h) in pairs if x is not None for r in (0, 1)]
    loss, hinge, dims, records = (torch.tensor(c) for c in zip(*rows, strict=True))
    return summarise(edge_statistics(-loss.double(), loss.double(), hinge.double(), dims, records, len(losses)))


def test_threshold_values():
    constraints = build_constraints(Constraint(tolerance={"A": 0.5, "T": 0.25, "E": math.inf, "C": 0.1}), DIMS)
    g, observed = constraint_values(constraints, summary_of([0.75, 0.125, 0.5, None]), Past(f64(*[math.inf] * 4)))
    assert constraints.names == DIMS
    assert g[:3].tolist() == [0.25, -0.125, -math.inf]
    assert observed.tolist() == [True, True, False, False]


def test_balance_is_two_one_sided_constraints_per_pair():
    constraints = build_constraints(Constraint(form="balance", tolerance={"A": 0.1, "T": 0.2, "E": math.inf}), DIMS[:3])
    assert constraints.names == ("A over T", "A over E", "T over A", "T over E", "E over A", "E over T")
    g, observed = constraint_values(constraints, summary_of([0.75, 0.25, None]), Past(f64(*[math.inf] * 3)))
    assert g[0].item() == pytest.approx(0.5 - 0.1) and g[2].item() == pytest.approx(-0.5 - 0.2)
    assert observed.tolist() == [True, False, True, False, False, False]


def test_margin_bounds_the_mean_hinge_by_slack():
    constraint = Constraint(form="margin", tolerance={"A": 0.3, "T": math.inf}, slack=0.05)
    constraints = build_constraints(constraint, DIMS[:2])
    g, observed = constraint_values(constraints, summary_of([0.5, 0.5], [0.25, 0.0]), Past(f64(math.inf, math.inf)))
    assert g[0].item() == pytest.approx(0.2) and observed.tolist() == [True, False]
    assert constraints.edge_tolerance.tolist() == [0.3, math.inf]


def test_protect_compares_with_the_best_so_far():
    constraints = build_constraints(Constraint(form="protect", tolerance=0.125), DIMS[:2])
    g, observed = constraint_values(constraints, summary_of([0.75, 0.75]), Past(f64(0.5, math.inf)))
    assert g.tolist() == [0.125, -0.125] and observed.all()


def test_balance_error_is_never_below_the_exact_one():
    constraints = build_constraints(Constraint(form="balance"), DIMS[:2])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, generator=generator, dtype=torch.float64)
    losses = torch.stack([x, -x], 1).flatten()  # perfectly opposed: the worst case
    summary = summarise(edge_statistics(losses, losses, losses, torch.arange(2).repeat(40), torch.arange(80) // 2, 2))
    _, se = estimates(constraints, summary, Past(f64(math.inf, math.inf)))
    exact = (2 * x).std() / math.sqrt(40)
    assert se[0].item() == pytest.approx(exact.item())


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        ({"A": 0.5, "T": 0.5, "E": 0.5, "Cc": 0.5}, r"tolerance names dimension 'Cc', but the data has A, T, E, C"),
        ({"A": 0.5, "T": 0.5, "E": 0.5}, r"gives no value for C.*add objective\.constraint\.tolerance\.C"),
    ],
)
def test_tolerances_must_fit_the_data(tolerance, message):
    with pytest.raises(ConfigError, match=message):
        build_constraints(Constraint(tolerance=tolerance), DIMS)


def test_the_nearest_dimension_is_named():
    with pytest.raises(ConfigError, match="did you mean 'empathy'"):
        build_constraints(Constraint(tolerance={"empaty": 1.0}), ("trust", "empathy"))


def test_primary_weights():
    counts = torch.tensor([6, 0, 3, 1])
    assert primary_weights(Objective(), DIMS, counts).tolist() == pytest.approx([0.25] * 4)  # absent T keeps its share
    assert primary_weights(Objective(primary="pooled"), DIMS, counts).tolist() == pytest.approx([0.6, 0, 0.3, 0.1])
    fixed = Objective(primary={"A": 1.0, "T": 5.0, "E": 0.0, "C": 3.0})
    assert primary_weights(fixed, DIMS, counts).tolist() == pytest.approx([1 / 9, 5 / 9, 0, 3 / 9])
    with pytest.raises(ConfigError, match=r"objective\.primary.*no value for T"):
        primary_weights(Objective(primary={"A": 1.0, "E": 1.0, "C": 1.0}), DIMS, counts)


def test_multipliers_add_to_their_dimension():
    constraints = build_constraints(Constraint(), DIMS[:2])
    weights = dimension_weights(constraints, Objective(), f64(1.0, 0.0), torch.tensor([3, 5]))
    assert weights.loss.tolist() == pytest.approx([0.75, 0.25]) and not weights.hinge.any()


def test_balance_moves_weight_and_floors_at_zero():
    constraints = build_constraints(Constraint(form="balance"), DIMS[:3])
    counts = torch.tensor([1, 1, 1])
    multipliers = f64(0.25, 0, 0, 0, 0, 0)  # A over T
    assert dimension_weights(constraints, Objective(), multipliers, counts).loss.tolist() == pytest.approx(
        [1 / 3 + 0.25, 1 / 3 - 0.25, 1 / 3]
    )
    floored = dimension_weights(constraints, Objective(), 4 * multipliers, counts)
    assert floored.loss.tolist() == pytest.approx([0.8, 0, 0.2])
    assert floored.floored.tolist() == pytest.approx([0, (1 - 1 / 3) / (4 / 3 + 1 / 3), 0])


def test_one_normaliser_over_weights_multipliers_and_anchor():
    """J = (sum (p + lambda) L + a N) / (1 + a + sum lambda)."""
    constraints = build_constraints(Constraint(), DIMS[:2])
    weights = dimension_weights(constraints, Objective(golden_nll=3.0), f64(1.0, 0.0), torch.tensor([3, 5]))
    assert weights.loss.tolist() == pytest.approx([1.5 / 5, 0.5 / 5]) and weights.golden == pytest.approx(3 / 5)


def test_an_absent_dimension_keeps_its_share():
    constraints = build_constraints(Constraint(), DIMS[:2])
    present, absent = (
        dimension_weights(constraints, Objective(), f64(0.0, 2.0), torch.tensor(counts)) for counts in ([3, 5], [3, 0])
    )
    assert torch.equal(present.loss, absent.loss) and present.loss.tolist() == pytest.approx([1 / 6, 5 / 6])


def test_worst_case_weights_are_the_multipliers():
    constraints = build_constraints(Constraint(form="worst"), DIMS[:2])
    weights = dimension_weights(constraints, Objective(primary="pooled"), f64(0.9, 0.1), torch.tensor([3, 5]))
    assert weights.loss.tolist() == pytest.approx([0.9, 0.1])


def test_win_rate_counts_pairs_and_weighs_their_loss():
    constraints = build_constraints(Constraint(form="winrate", tolerance=0.1), DIMS[:2])
    margins, dims = f64(-1.0, 0.0, 2.0, 3.0), torch.tensor([0, 0, 0, 1])
    assert constraints.edge_values(margins, margins, dims).tolist() == [1, 1, 0, 0]
    weights = dimension_weights(constraints, Objective(), f64(1.0, 0.0), torch.tensor([3, 1]))
    assert weights.loss.tolist() == pytest.approx([0.75, 0.25]) and not weights.hinge.any()


def test_margin_multipliers_weigh_the_hinge():
    constraints = build_constraints(Constraint(form="margin"), DIMS[:2])
    weights = dimension_weights(constraints, Objective(), f64(3.0, 0.0), torch.tensor([1, 1]))
    assert weights.loss.tolist() == pytest.approx([0.125, 0.125]) and weights.hinge.tolist() == pytest.approx([0.75, 0])


def test_sft_has_no_edge_terms():
    constraints = build_constraints(Constraint(), DIMS)
    weights = dimension_weights(constraints, Objective(kind="sft"), f64(1, 1, 1, 1), torch.tensor([1, 1, 1, 1]))
    assert not weights.loss.any() and not weights.hinge.any() and weights.golden == 1


@given(st.data())
def test_weights_are_non_negative_and_sum_to_one(data):
    form = data.draw(st.sampled_from(FORMS))
    primary = data.draw(
        st.sampled_from(["uniform", "pooled"]) | st.fixed_dictionaries({d: st.floats(0.01, 10) for d in DIMS})
    )
    constraints = build_constraints(Constraint(form=form), DIMS)
    n = len(constraints.names)
    multipliers = data.draw(st.lists(st.floats(0, 20), min_size=n, max_size=n))
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 500), min_size=4, max_size=4)))
    anchor = data.draw(st.just(0.0) | st.floats(0.01, 10))
    weights = dimension_weights(constraints, Objective(primary=primary, golden_nll=anchor), f64(*multipliers), counts)
    both = torch.stack([weights.loss, weights.hinge])
    assert both.dtype == torch.float64 and (both >= 0).all()
    total = both.sum().item() + weights.golden
    nothing = (primary == "pooled" and not counts.any()) or form == "worst"
    assert total == pytest.approx(1) or (total == 0 and (nothing or form == "balance"))


@given(
    st.lists(st.integers(0, 3000), min_size=4, max_size=4).filter(any),
    st.sampled_from([f for f in FORMS if f != "worst"]),
)
def test_pooled_without_constraints_is_one_coefficient(counts, form):
    constraints = build_constraints(Constraint(form=form, tolerance=math.inf), DIMS)
    counts = torch.tensor(counts)
    multipliers = torch.zeros(len(constraints.names), dtype=torch.float64)
    weights = dimension_weights(constraints, Objective(primary="pooled"), multipliers, counts)
    dims = torch.repeat_interleave(torch.arange(4), counts)
    loss, hinge = edge_coefficients(weights, counts, dims)
    assert (loss == 1 / int(counts.sum())).all() and not hinge.any()


@pytest.mark.parametrize("counts", [(1, 0, 0, 0), (13, 29, 7, 0), (64, 5, 301, 33), (500, 500, 500, 499)])
def test_pooled_without_constraints_is_plain_dpo_bit_for_bit(counts):
    objective = Objective(primary="pooled", constraint=Constraint(tolerance=math.inf))
    constraints = build_constraints(objective.constraint, DIMS)
    dims = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    margins = torch.randn(len(dims), generator=torch.Generator().manual_seed(1))
    weights = dimension_weights(constraints, objective, torch.zeros(4, dtype=torch.float64), torch.tensor(counts))

    ours = margins.clone().requires_grad_()
    coefficients, _ = edge_coefficients(weights, torch.tensor(counts), dims)
    (coefficients.float() * edge_loss(ours, objective)).sum().backward()
    plain = margins.clone().requires_grad_()
    (-torch.nn.functional.logsigmoid(plain)).mean().backward()
    assert torch.equal(ours.grad, plain.grad)

    losses = -torch.nn.functional.logsigmoid(margins)
    assert torch.equal((coefficients.float() * losses).sum(), (losses * (1 / len(dims))).sum())


def test_coefficients_rebuild_the_weighted_means():
    weights = Weights(f64(0.2, 0.1, 0.0), f64(0.0, 0.3, 0.4), 0.0, f64(0, 0, 0))
    counts = torch.tensor([2, 3, 5])
    dims = torch.tensor([2, 0, 1, 1, 2, 2, 0, 1, 2, 2])
    values = torch.randn(10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss, hinge = edge_coefficients(weights, counts, dims)
    means = torch.stack([values[dims == d].mean() for d in range(3)])
    assert (loss * values).sum().item() == pytest.approx((weights.loss * means).sum().item())
    assert (hinge * values).sum().item() == pytest.approx((weights.hinge * means).sum().item())


def test_measured_constraints_are_not_observed():
    """`enforce: false` keeps values and bounds, for ledger and certificate, but moves no multiplier."""
    measured, enforced = (build_constraints(Constraint(tolerance=0.1, enforce=e), DIMS) for e in (False, True))
    summary, past = summary_of([0.7, 0.2, 0.05, 0.3]), Past(torch.full((4,), math.inf, dtype=torch.float64))
    g, observed = constraint_values(measured, summary, past)
    assert torch.equal(g, constraint_values(enforced, summary, past)[0])
    assert not observed.any() and constraint_values(enforced, summary, past)[1].all()
    assert torch.equal(measured.bounds, enforced.bounds)
