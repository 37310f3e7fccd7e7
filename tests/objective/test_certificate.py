"""The certificate: hand-made verdicts, what is certified, corrections, and its false-claim rate in simulation."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from dpeer.config import Certificate, Constraint, Objective
from dpeer.errors import ConfigError, DpeerError
from dpeer.objective.certificate import certify, certify_masks, win_rates
from dpeer.objective.constraints import build_constraints
from dpeer.objective.dual import initial_state
from dpeer.objective.forms import FORMS, Form
from dpeer.objective.heldout import HeldoutEdges, heldout_means, selection_accuracy, wilson
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


def test_the_mean_beside_it_is_a_t_interval_with_effective_clusters():
    """One prompt has 30 of 59 edges: two clusters' worth of evidence, not thirty."""
    rng = np.random.default_rng(2)
    records = np.concatenate([np.zeros(30, int), np.arange(1, 30)])
    margins = rng.normal(size=59)
    edges = HeldoutEdges(torch.tensor(margins), torch.zeros(59).long(), torch.tensor(records))
    (v,) = certify_at(edges, 0.9, dims=("A",))
    losses, n = softplus(margins), np.bincount(records)
    influence = (np.bincount(records, losses) - losses.mean() * n) / 59
    effective = n.sum() ** 2 / (n**2).sum()
    se = math.sqrt(30 / 29 * (influence**2).sum())
    half = stats.t.ppf(1 - 0.05 / 2, effective - 1) * se
    assert v.mean.effective_records == pytest.approx(effective) and effective < 4
    assert (v.mean.se, v.mean.skewness) == pytest.approx((se, stats.skew(influence)))
    assert (v.mean.lower, v.mean.upper) == pytest.approx((losses.mean() - half, losses.mean() + half))
    assert (v.mean.lowest_margin, v.mean.highest_value) == pytest.approx((margins.min(), losses.max()))


def test_what_is_certified_counts_each_edge_up_to_the_bound():
    """One pair of 200 is lost by a margin of 1000: the mean is hopeless, the clipped mean is not."""
    margins = torch.full((200,), 3.0, dtype=torch.float64)
    margins[7] = -1000
    edges = HeldoutEdges(margins, torch.zeros(200).long(), torch.arange(200))
    constraint = Constraint(tolerance=0.5)
    for bound in (2.0, 4.0):
        objective = Objective(constraint=constraint, certificate=Certificate(bound=bound))
        (v,) = certify(edges, build_constraints(constraint, ("A",)), objective)
        assert v.estimate == pytest.approx((199 * softplus(3) + bound) / 200) and v.verdict == "satisfied"
        assert v.mean.estimate == pytest.approx((199 * softplus(3) + 1000) / 200)
        assert v.mean.clipped == 1 / 200 and v.mean.highest_value == 1000


def test_a_tolerance_that_the_bound_cannot_exceed_proves_nothing():
    edges = heldout(np.random.default_rng(3), 300)
    for form in ("threshold", "balance"):
        assert {(v.verdict, v.extra_records) for v in certify_at(edges, 6.0, form)} == {("undecided", None)}


def test_the_certified_tolerance_is_a_field_of_its_own():
    edges = heldout(np.random.default_rng(0), 200)
    constraint = Constraint(tolerance=0.1)
    wide = {"A": 0.8, "T": 0.8, "E": 0.1, "C": math.inf}
    objective = Objective(constraint=constraint, certificate=Certificate(tolerance=wide))
    constraints = build_constraints(constraint, DIMS)
    verdicts = certify(edges, constraints, objective)
    assert [v.verdict for v in verdicts] == ["satisfied", "satisfied", "violated", "satisfied"]
    assert [v.tolerance for v in verdicts] == list(wide.values())
    misspelt = Objective(constraint=constraint, certificate=Certificate(tolerance={"A": 0.8}))
    with pytest.raises(ConfigError, match=r"objective\.certificate\.tolerance gives no value for T, E, C"):
        certify(edges, constraints, misspelt)


@pytest.fixture
def lost():
    """A form of this test's own, which others must not find."""

    class Lost(Form):
        name = "lost_for_test"
        meaning = "lost edges are rare"
        certifiable = own_values = True

        def edge_values(self, margins, losses, tolerances):
            return (margins <= 0).double()

        def edge_bound(self, objective):
            return 1.0

    yield Lost.name
    del FORMS._entries[Lost.name]


def test_a_form_that_bounds_its_values_itself(lost):
    """And win rates: both are shares, so exact binomial bounds say how sharp they can be."""
    edges = heldout(np.random.default_rng(4), 300, dims=1)
    (v,) = certify_at(edges, 0.35, lost, ("A",))
    (win,) = win_rates(edges, ("A",)).values()
    lost = int((edges.margins <= 0).sum())
    assert v.estimate == pytest.approx(lost / 300) and v.verdict == "satisfied" and v.mean.clipped == 0
    assert win.rate == pytest.approx(1 - lost / 300) and (win.edges, win.records) == (300, 300)
    exact = stats.binomtest(lost, 300, alternative="less").proportion_ci(0.95, "exact").high
    assert exact < 1 - win.lower < exact + 0.03
    assert exact < v.upper < exact + 0.03


def test_verdicts_per_mask():
    rng = np.random.default_rng(12)
    good, bad = rng.normal(2.5, 0.5, size=(120, 2)), rng.normal(-0.5, 0.5, size=(120, 2))
    margins = torch.tensor(np.concatenate([good, bad]).ravel())
    dims = torch.tensor([0, 1] * 120 + [0, 2] * 120)
    masks = torch.arange(2).repeat_interleave(240)
    edges = HeldoutEdges(margins, dims, torch.arange(240).repeat_interleave(2), masks, ("A+T", "A+E"))
    constraint = Constraint(tolerance={"A": 0.4, "T": 0.4, "E": 0.4, "C": math.inf})
    constraints, objective = build_constraints(constraint, DIMS), Objective(constraint=constraint)
    found = certify_masks(edges, constraints, objective)
    told = {(mask, v.name): v.verdict for mask, verdicts in found.items() for v in verdicts}
    assert told == {
        ("A+T", "A"): "satisfied",
        ("A+T", "T"): "satisfied",
        ("A+E", "A"): "violated",
        ("A+E", "E"): "violated",
    }
    assert found["A+T"][0].records == 120
    alone = edges.select(masks == 0)
    assert found["A+T"][0].upper > certify(alone, constraints, objective)[0].upper  # more claims are made at once
    assert certify_masks(alone, constraints, objective) == {}


def test_a_choice_among_cells_costs_confidence():
    edges = heldout(np.random.default_rng(13), 200)
    constraint = Constraint(tolerance=0.6)
    constraints, objective = build_constraints(constraint, DIMS), Objective(constraint=constraint)
    chosen = certify(edges, constraints, objective, choices=5)
    assert chosen == certify(edges, constraints, objective, confidence=0.99)
    assert chosen[0].upper > certify(edges, constraints, objective)[0].upper


def test_balance_uses_the_covariance_of_paired_dimensions():
    rng = np.random.default_rng(4)
    common = 3 * rng.normal(size=(400, 1))
    margins = common + 0.1 * rng.normal(size=(400, 2))
    edges = HeldoutEdges(torch.tensor(margins.ravel()), torch.arange(2).repeat(400), torch.arange(800) // 2)
    forward, backward = certify_at(edges, 0.2, "balance", DIMS[:2])
    gaps = np.minimum(softplus(margins[:, 0]), 6) - np.minimum(softplus(margins[:, 1]), 6)
    assert forward.estimate == pytest.approx(gaps.mean()) and backward.estimate == pytest.approx(-gaps.mean())
    assert forward.se == pytest.approx(gaps.std(ddof=1) / 20)
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


@pytest.mark.parametrize("records", [0, 1, 2, 8])
def test_few_records_prove_nothing(records):
    for v in certify_at(heldout(np.random.default_rng(7), records), 0.7):
        assert v.verdict == "undecided" and v.records == records
        json.dumps(v.to_dict(), allow_nan=False)


def test_equal_values_are_evidence_against_all_but_rare_ones():
    """30 equal losses of ln 2: a share of losses at the bound, 6, that stays unseen with chance 0.05 remains."""
    edges = HeldoutEdges(torch.zeros(30), torch.zeros(30).long(), torch.arange(30))
    (v,) = certify_at(edges, 0.9, dims=("A",))
    hidden = 1 - 0.05 ** (1 / 30)
    assert v.upper > math.log(2) + hidden * (6 - math.log(2)) and v.verdict == "undecided"
    assert v.extra_records > 0 and v.se == v.mean.skewness == 0


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
    repeats = 100 if form == "balance" else 300
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


def prompts_lost(rng, records):
    """One prompt in twenty is lost by 4 in every dimension."""
    lost = rng.random((records, 1)) < 0.05
    return np.where(lost, -4.0, 2.5) + np.zeros((records, 4))


def heavy_tails(rng, records):
    """Student's t with 2 degrees of freedom about 1: no variance."""
    return 1 + rng.standard_t(2, size=(records, 4))


def mean_loss(dist):
    pieces = ((-np.inf, -20), (-20, 0), (0, 20), (20, np.inf))
    return sum(integrate.quad(lambda m: np.logaddexp(0, -m) * dist.pdf(m), a, b)[0] for a, b in pieces)


@pytest.mark.parametrize(
    ("margins_of", "truth"),
    [(prompts_lost, 0.05 * softplus(-4) + 0.95 * softplus(2.5)), (heavy_tails, mean_loss(stats.t(2, 1)))],
)
@pytest.mark.parametrize("records", [20, 60, 140])
def test_rare_and_huge_losses_deceive_no_more_than_promised(margins_of, truth, records):
    """Where a t interval calls a tolerance at the truth satisfied in 10 to 60 % of certificates."""
    rng, repeats, wrong = np.random.default_rng(14), 120, 0
    for _ in range(repeats):
        margins = torch.tensor(margins_of(rng, records).ravel())
        edges = HeldoutEdges(margins, torch.arange(4).repeat(records), torch.arange(4 * records) // 4)
        wrong += "satisfied" in [v.verdict for v in certify_at(edges, float(truth))]
    assert wrong / repeats <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats)


def test_real_effects_are_found():
    rng = np.random.default_rng(10)
    tolerance = {"A": 0.65, "T": 0.3, "E": 0.65, "C": 0.3}
    verdicts = [v.verdict for _ in range(20) for v in certify_at(heldout(rng, 400), tolerance)]
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
