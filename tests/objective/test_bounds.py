"""The betting bound against exact enumeration: no distribution on few points gets more than its chance."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from dpeer.objective.bounds import Array, Sample, log_wealth, repeats_needed, upper_bound, wealth_needed

SHARE = st.floats(0.01, 0.99)


def sample(values: Any, weights: Any = None, low: float = 0.0, high: float = 1.0, spread: float = 0.05) -> Sample:
    values = np.asarray(values, dtype=float)
    weights = np.full(values.shape, 1 / values.shape[-1]) if weights is None else np.asarray(weights)
    return Sample(weights * values, weights, low, high, spread, math.log(20))


@settings(max_examples=60, deadline=None)
@given(p=SHARE, n=st.integers(1, 300), spread=st.floats(0.001, 1), level=st.sampled_from([0.2, 0.05, 0.01]))
def test_a_true_share_is_refuted_with_its_chance_at_most(p: float, n: int, spread: float, level: float) -> None:
    """Exact: the wealth of every count of successes, weighted by the binomial distribution."""
    counts = np.arange(n + 1)
    values = (np.arange(n) < counts[:, None]).astype(float)
    for s, theta in ((sample(values, spread=spread), p), (sample(values, spread=spread).mirrored(), -p)):
        wealth = log_wealth(replace(s, goal=-math.log(level)), theta)
        chances = stats.binom.pmf(counts, n, p)
        assert chances[wealth >= -math.log(level)].sum() <= level
        assert special.logsumexp(wealth + stats.binom.logpmf(counts, n, p)) <= 1e-9


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_expected_wealth_is_at_most_one_for_unequal_clusters(data: st.DataObject) -> None:
    """Clusters of unequal weight and mean: all outcomes of independent two-point values whose mean is just theta."""
    n = data.draw(st.integers(2, 7))
    weights = np.array(data.draw(st.lists(st.floats(0.05, 1), min_size=n, max_size=n)))
    weights /= weights.sum()
    chance = np.array(data.draw(st.lists(SHARE, min_size=n, max_size=n)))
    low, high = data.draw(st.floats(-3, 0)), data.draw(st.floats(0.5, 3))
    outcomes = np.array(list(product([0, 1], repeat=n)))
    chances = np.where(outcomes, chance, 1 - chance).prod(1)
    values = np.where(outcomes, high, low)
    mean = float((weights * (low + chance * (high - low))).sum())
    s = sample(values, np.broadcast_to(weights, values.shape), low, high, data.draw(st.floats(0.01, 3)))
    assert (chances * np.exp(log_wealth(s, mean))).sum() <= 1 + 1e-9
    assert (chances * np.exp(log_wealth(s.mirrored(), -mean))).sum() <= 1 + 1e-9


def test_the_bound_is_where_the_wealth_suffices() -> None:
    rng = np.random.default_rng(0)
    s = sample(rng.beta(1, 4, size=80), spread=0.02)
    for needed in (math.log(20), math.log(200)):
        upper = upper_bound(s, needed)
        assert s.values.sum() < upper < 1
        assert log_wealth(s, upper + 1e-4) > needed > log_wealth(s, upper - 1e-4)
        lower = -upper_bound(s.mirrored(), needed)
        assert lower < s.values.sum() and log_wealth(s.mirrored(), -(lower - 1e-4)) > needed
    assert upper_bound(sample([0.0]), math.log(20)) >= 0.95  # one cluster: a chance of 0.05 remains
    assert upper_bound(sample([1.0, 1.0]), math.log(20)) == 1.0


def test_wealth_rises_with_theta_and_ignores_order() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.uniform(-1, 2, size=50), rng.dirichlet(np.ones(50))
    s = sample(values, weights, -1, 2, 0.1)
    wealth = [float(log_wealth(s, theta)) for theta in np.linspace(-0.9, 1.99, 80)]
    assert np.all(np.diff(wealth) > 0)
    order = rng.permutation(50)
    assert float(log_wealth(sample(values[order], weights[order], -1, 2, 0.1), 0.7)) == pytest.approx(
        float(log_wealth(s, 0.7))
    )


def test_repeats_are_those_of_a_repeated_sample() -> None:
    rng = np.random.default_rng(2)
    values, needed = rng.beta(2, 5, size=40), math.log(80)
    s = sample(values, spread=0.1)
    theta = float(values.mean()) + 0.03
    repeats = repeats_needed(s, theta, needed, 1e6)
    assert repeats is not None and repeats > 2
    for times, enough in ((math.ceil(repeats), True), (math.floor(repeats), False)):
        tiled = sample(np.tile(values, times), spread=0.1 / math.sqrt(times))
        assert (float(log_wealth(tiled, theta)) >= needed) == enough
    assert repeats_needed(s, theta - 0.04, needed, 1e6) is None  # the mean lies on the other side
    assert repeats_needed(s, theta, needed, 2.0) is None


def closed(wealth: Array, alpha: float) -> list[bool]:
    """Every group of tests, by brute force."""
    tests = range(len(wealth))
    groups = [g for bits in product([0, 1], repeat=len(wealth)) if (g := [c for c in tests if bits[c]])]
    return [all(np.mean(wealth[g]) >= 1 / alpha for g in groups if c in g) for c in tests]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-5, 8), min_size=1, max_size=6))
def test_closed_testing_against_all_groups(log_wealths: list[float]) -> None:
    found = np.array(log_wealths) >= wealth_needed(np.array(log_wealths), 0.05)
    assert found.tolist() == closed(np.exp(log_wealths), 0.05)


def test_what_one_test_needs_depends_on_the_others() -> None:
    alone = wealth_needed(np.array([0.0]), 0.05)
    assert np.exp(alone) == pytest.approx([20])
    assert np.exp(wealth_needed(np.array([0.0, -np.inf, -np.inf]), 0.05))[0] == pytest.approx(60)
    assert np.exp(wealth_needed(np.array([0.0, 9.0, 9.0]), 0.05))[0] == pytest.approx(20)
