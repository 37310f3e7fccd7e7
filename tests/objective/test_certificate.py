"""The certificate: hand-made verdicts, errors from first principles, and its false-claim rate in simulation."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpeer.config import Constraint, Objective
from dpeer.errors import DpeerError
from dpeer.objective.certificate import (
    MIN_RECORDS,
    HeldoutEdges,
    certify,
    heldout_means,
    selection_accuracy,
    wilson,
)
from dpeer.objective.constraints import build_constraints
from dpeer.objective.dual import initial_state
from dpeer.objective.preference import edge_loss
from dpeer.objective.statistics import edge_statistics, summarise

DIMS = ("A", "T", "E", "C")


def heldout(rng, records, mean=1.0, dims=4):
    """Every record has one edge per dimension; margins share a record effect."""
    margins = mean + 0.8 * rng.normal(size=(records, 1)) + rng.normal(size=(records, dims))
    return HeldoutEdges(
        torch.tensor(margins.ravel()), torch.arange(dims).repeat(records), torch.arange(records).repeat_interleave(dims)
    )


def certify_at(edges, tolerance, form="threshold", dims=DIMS, slack=0.0, state=None):
    constraint = Constraint(form=form, tolerance=tolerance, slack=slack)
    return certify(edges, build_constraints(constraint, dims), Objective(constraint=constraint), 0.95, state)


def softplus(x):
    return np.log1p(np.exp(-x))


def test_verdicts():
    edges = heldout(np.random.default_rng(0), 200)
    satisfied, violated, undecided, free = certify_at(edges, {"A": 1.0, "T": 0.1, "E": 0.46, "C": math.inf})
    assert (satisfied.name, satisfied.verdict, satisfied.extra_records) == ("A", "satisfied", None)
    assert (violated.verdict, undecided.verdict, free.verdict) == ("violated", "undecided", "satisfied")
    assert undecided.extra_records > 0
    assert satisfied.records == satisfied.edges == 200
    for v in (satisfied, violated, undecided, free):
        assert v.lower < v.estimate < v.upper
    assert json.loads(json.dumps(free.to_dict(), allow_nan=False))["tolerance"] == "inf"


def test_estimate_and_error_are_clustered_by_record():
    """Ten edges per record that are all equal carry no more information than one."""
    rng = np.random.default_rng(1)
    margins = rng.normal(size=50)
    one = HeldoutEdges(torch.tensor(margins), torch.zeros(50).long(), torch.arange(50))
    ten = HeldoutEdges(torch.tensor(margins.repeat(10)), torch.zeros(500).long(), torch.arange(500) // 10)
    (a,), (b,) = (certify_at(e, 0.5, dims=("A",)) for e in (one, ten))
    losses = softplus(margins)
    assert a.se == pytest.approx(losses.std(ddof=1) / math.sqrt(50)) and b.se == pytest.approx(a.se)
    assert (a.estimate, a.lower, a.upper) == pytest.approx((b.estimate, b.lower, b.upper))
    assert b.edges == 500 and b.records == 50


def test_heldout_means_are_the_statistics_of_a_training_step():
    """The same sandwich errors as the ledger's, which come from sums and not from clusters."""
    rng = np.random.default_rng(5)
    edges = HeldoutEdges(
        torch.tensor(rng.normal(0.3, 1, 90)), torch.arange(90) % 3, torch.tensor(rng.integers(0, 25, 90))
    )
    objective = Objective()
    losses = edge_loss(edges.margins, objective)
    step = summarise(edge_statistics(edges.margins, losses, 0 * losses, edges.dims, edges.records, 4))
    found = heldout_means(edges, objective, DIMS)
    for i, d in enumerate(DIMS[:3]):
        expected = [step.loss[i], step.loss_se[i], step.margin[i], step.margin_se[i], step.accuracy[i]]
        values = [found[d][k] for k in ("loss", "loss_se", "margin", "margin_se", "accuracy")]
        assert values == pytest.approx([float(x) for x in expected])
        assert found[d]["edges"] == 30
        wins = HeldoutEdges((edges.margins > 0).double(), edges.dims, edges.records)
        assert found[d]["accuracy_se"] == pytest.approx(heldout_means(wins, objective, DIMS)[d]["margin_se"])
    assert found["C"] == {"edges": 0, "records": 0} | dict.fromkeys(
        ("loss", "loss_se", "margin", "margin_se", "accuracy", "accuracy_se")
    )
    json.dumps(found, allow_nan=False)


def test_interval_without_skew_is_bonferroni_t():
    """Losses symmetric about their mean: Hall's correction vanishes."""
    x = np.random.default_rng(2).normal(size=40)
    margins = torch.tensor(np.concatenate([x, -x]))
    objective = Objective(loss="hinge", constraint=Constraint(tolerance={"A": 9.0, "T": 9.0, "E": math.inf}))
    edges = HeldoutEdges(margins / 10, torch.zeros(80).long(), torch.arange(80))
    verdict = certify(edges, build_constraints(objective.constraint, DIMS[:3]), objective)[0]
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 79) * margins.numpy().std(ddof=1) / 10 / math.sqrt(80)
    assert (verdict.lower, verdict.upper) == pytest.approx((1 - half, 1 + half))


def test_skew_widens_the_side_of_the_tail():
    edges = heldout(np.random.default_rng(3), 60, mean=2.5, dims=1)
    (v,) = certify_at(edges, 0.5, dims=("A",))
    assert v.upper - v.estimate > 1.2 * (v.estimate - v.lower)


def test_balance_uses_the_covariance_of_paired_dimensions():
    rng = np.random.default_rng(4)
    common = 3 * rng.normal(size=(100, 1))
    margins = common + 0.1 * rng.normal(size=(100, 2))
    edges = HeldoutEdges(torch.tensor(margins.ravel()), torch.arange(2).repeat(100), torch.arange(200) // 2)
    forward, backward = certify_at(edges, 0.2, "balance", DIMS[:2])
    gaps = softplus(margins[:, 0]) - softplus(margins[:, 1])
    assert forward.estimate == pytest.approx(gaps.mean()) and backward.estimate == pytest.approx(-gaps.mean())
    assert forward.se == pytest.approx(gaps.std(ddof=1) / 10)
    assert (forward.verdict, forward.name, forward.dimensions) == ("satisfied", "A over T", ("A", "T"))


def test_margin_form_certifies_the_mean_hinge():
    edges = heldout(np.random.default_rng(5), 150)
    (v, *_) = certify_at(edges, {"A": 0.8, "T": 0.8, "E": 0.8, "C": math.inf}, "margin", slack=0.6)
    margins = edges.margins[edges.dims == 0].numpy()
    assert v.estimate == pytest.approx(np.maximum(0.8 - margins, 0).mean())
    assert v.tolerance == 0.6 and v.verdict == "satisfied"


def test_protect_is_judged_against_the_best_training_loss():
    edges = heldout(np.random.default_rng(6), 150, dims=1)
    objective = Objective(constraint=Constraint(form="protect", tolerance=0.2))
    constraints = build_constraints(objective.constraint, ("A",))
    state = initial_state(constraints, objective)
    state.form["best"][0] = 0.1
    (v,) = certify(edges, constraints, objective, state=state)
    assert v.estimate == pytest.approx(softplus(edges.margins.numpy()).mean() - 0.1)
    assert v.verdict == "violated"
    state.form["best"][0] = math.inf
    assert certify(edges, constraints, objective, state=state)[0].verdict == "undecided"
    with pytest.raises(DpeerError, match="pass the final dual state"):
        certify(edges, constraints, objective)


@pytest.mark.parametrize("records", [0, 1, 2, MIN_RECORDS - 1])
def test_few_records_prove_nothing(records):
    for v in certify_at(heldout(np.random.default_rng(7), records), 50.0):
        assert v.verdict == "undecided" and v.records == records
        assert v.extra_records == (MIN_RECORDS - records if records > 1 else None)
        json.dumps(v.to_dict(), allow_nan=False)


def test_no_spread_proves_nothing():
    edges = HeldoutEdges(torch.zeros(100), torch.zeros(100).long(), torch.arange(100))
    (v,) = certify_at(edges, 5.0, dims=("A",))
    assert (v.verdict, v.extra_records, v.se) == ("undecided", None, 0)


def test_a_hair_from_the_tolerance_is_out_of_reach():
    edges = heldout(np.random.default_rng(11), 100, dims=1)
    tolerance = float(softplus(edges.margins.numpy()).mean()) + 1e-9
    (v,) = certify_at(edges, tolerance, dims=("A",))
    assert (v.verdict, v.extra_records) == ("undecided", None)


def test_extra_records_are_just_enough():
    """Repeating the sample keeps estimate and spread: the promised number decides, clearly fewer do not."""
    rng = np.random.default_rng(8)
    margins = 1 + rng.normal(size=100)
    tolerance = float(softplus(margins).mean() + 0.02)

    def at(records):
        resampled = np.resize(margins, records)
        edges = HeldoutEdges(torch.tensor(resampled), torch.zeros(records).long(), torch.arange(records))
        return certify_at(edges, tolerance, dims=("A",))[0]

    extra = at(100).extra_records
    assert at(100).verdict == "undecided" and extra > 300
    full = 100 * math.ceil((100 + extra) / 100)
    assert at(full).verdict == "satisfied" and at(full - 300).verdict == "undecided"


@pytest.mark.parametrize(("form", "records"), [("threshold", 20), ("threshold", 140), ("balance", 60), ("margin", 60)])
def test_false_claims_stay_below_five_per_cent(form, records):
    """Every true value sits just beyond, or exactly at, its tolerance: any verdict of one kind is false."""
    rng = np.random.default_rng(9)
    repeats = 300
    population = 1 + 0.8 * rng.normal(size=(400_000, 1)) + rng.normal(size=(400_000, 2))
    truth = {
        "threshold": softplus(population).mean(),
        "balance": 0.0,
        "margin": np.maximum(0.5 - population, 0).mean(),
    }[form]
    eps, slack = (0.5, float(truth)) if form == "margin" else (float(truth), 0.0)
    wrong = decided = 0
    for _ in range(repeats):
        verdicts = [v.verdict for v in certify_at(heldout(rng, records), eps, form, slack=slack)]
        wrong += "satisfied" in verdicts
        decided += "satisfied" in verdicts or "violated" in verdicts
    noise = 2.6 * math.sqrt(0.05 * 0.95 / repeats)
    assert wrong / repeats <= 0.05 + noise
    assert decided / repeats <= 0.05 + noise


def test_real_effects_are_found():
    rng = np.random.default_rng(10)
    tolerance = {"A": 0.65, "T": 0.3, "E": 0.65, "C": 0.3}
    verdicts = [v.verdict for _ in range(20) for v in certify_at(heldout(rng, 200), tolerance)]
    assert verdicts.count("satisfied") >= 36 and verdicts.count("violated") >= 36


def test_wilson_matches_scipy():
    for k, n in ((0, 10), (7, 10), (10, 10), (120, 220)):
        rate = wilson([True] * k + [False] * (n - k))
        oracle = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (rate.lower, rate.upper) == pytest.approx((oracle.low, oracle.high))
        assert rate.rate == k / n and rate.n == n


def test_selection_accuracy():
    overall, masks = selection_accuracy(
        [[-1.0, -2.0, -3.0], [-2.0, -1.0], [-1.0, -1.0], [-3.0, -1.0]],
        [0, 0, 0, 1],
        [("A", "E"), ("A", "E"), ("T", "C"), ("T", "C")],
    )
    assert (overall.rate, overall.n) == (0.5, 4)  # a tie is not a win
    assert list(masks) == ["A+E", "T+C"] and masks["A+E"].rate == 0.5 and masks["T+C"].n == 2
    empty, none = selection_accuracy([], [], [])
    assert empty.n == 0 and none == {} and empty.to_dict()["rate"] is None
