"""From votes to rates: by hand, against other sources, and whether intervals cover at the level that they state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeer.eval.audit import rates
from dpeer.eval.audit.rates import (
    Floats,
    below_half,
    contradicted,
    design_effect,
    independent,
    log_density,
    posterior,
    share,
    side,
    spread,
    truth,
    votes,
    with_others,
)

PLANTED = 0.1


def test_votes_and_sides_by_hand() -> None:
    cast = votes(np.array([[1.0, 0.2, -2.0], [0.0, np.nan, -0.25], [np.nan, np.nan, np.nan]]), tie=0.25)
    np.testing.assert_array_equal(cast, [[1, 0, -1], [0, np.nan, -1], [np.nan] * 3])
    np.testing.assert_array_equal(side(cast), [0, -1, np.nan])
    assert contradicted(cast) == 1 and math.isnan(contradicted(cast[1:]))
    np.testing.assert_array_equal(votes(np.array([[0.0, 0.1]]), tie=0), [[0, 1]])
    np.testing.assert_array_equal(side(np.array([[-1.0, 0, 0], [-1, 1, 0]])), [-1, 0])
    np.testing.assert_array_equal(with_others(np.array([[-1.0, 1, 0], [-1, np.nan, 0], [1, 1, -1]])), [2, 2, 1])


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 6))
def test_copies_of_edges_within_a_prompt_say_nothing_new(hits: list[bool], copies: int) -> None:
    """Each observation `copies` times in its cluster: the rate stays, and the interval is no narrower."""
    one = share(np.array(hits), np.arange(len(hits)))
    many = share(np.repeat(hits, copies), np.repeat(np.arange(len(hits)), copies))
    assert many.rate == pytest.approx(one.rate) and many.high - many.low >= one.high - one.low - 1e-9
    assert design_effect(np.repeat(hits, copies), np.repeat(np.arange(len(hits)), copies)) >= copies - 1e-9


def test_wilsons_interval_of_a_known_case() -> None:
    """Newcombe 1998, table I: 15 of 148, Wilson's score method."""
    found = share(np.arange(148) < 15, np.arange(148))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)


def test_without_two_opinions_no_error_can_be_told() -> None:
    assert truth(np.array([[1.0, np.nan], [np.nan, -1.0], [0.0, 1.0]]), np.arange(3)) is None


def test_one_hit_says_no_less_than_none_and_few_prompts_little() -> None:
    """100 prompts of 12; 6 prompts whose observations are all alike."""
    prompts = np.repeat(np.arange(100), 12)
    upper = [share(np.arange(1200) < hits, prompts).high for hits in range(3)]
    assert upper == sorted(upper)
    rng, six, covered = np.random.default_rng(0), np.repeat(np.arange(6), 10), 0
    for _ in range(300):
        found = share(np.repeat(rng.random(6) < 0.5, 10), six)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 0.92 * 300


@pytest.mark.parametrize(("a", "b"), [(2.0, 30.0), (31.0, 28.0), (400.0, 300.0), (2000.0, 30.0)])
def test_draws_below_half_have_the_mean_of_the_cut_beta(a: float, b: float) -> None:
    x = 0.5 - np.geomspace(1e-8, 0.5, 20_001)[:-1]
    density = np.exp((a - 1) * np.log(2 * x) + (b - 1) * np.log(2 - 2 * x))
    density /= density.max()
    mean, scale = (float(np.trapezoid(density * y, x) / np.trapezoid(density, x)) for y in (0.5 - x, (0.5 - x) ** 2))
    drawn = 0.5 - below_half(np.full(4000, a), np.full(4000, b), np.random.default_rng(0))
    assert drawn.min() > 0 and abs(drawn.mean() - mean) < 5 * math.sqrt((scale - mean**2) / 4000)


def test_the_rate_survives_a_judge_that_is_mostly_wrong() -> None:
    rng = np.random.default_rng(3)
    violated = rng.random(2000) < PLANTED
    cast = np.where(violated[:, None] ^ (rng.random((2000, 3)) < [0.05, 0.05, 0.97]), -1.0, 1.0)
    found = truth(cast, np.arange(2000))
    assert found and found.rate.low < violated.mean() < found.rate.high < 0.13
    assert found.errors[2].low > 0.45 and all(0.02 < e.rate < 0.08 for e in found.errors[:2])


def test_a_chain_at_a_peak_that_means_nothing_costs_no_interval() -> None:
    """With seed 0 one of 16 chains stays where all edges are violated and two judges guess; the density by hand."""
    rng = np.random.default_rng(3)
    violated = rng.random(2000) < PLANTED
    cast = np.where(violated[:, None] ^ (rng.random((2000, 3)) < [0.05, 0.05, 0.97]), -1.0, 1.0)
    assert all(truth(cast, np.arange(2000), seed) for seed in range(4))
    equal = np.where(rng.random((400, 1)) < 0.5, [[1.0, -1.0]], [[-1.0, 1.0]])
    assert truth(equal, np.arange(400)) is None, "which of two judges is right cannot be told"
    patterns, edges = np.array([[1.0, -1.0], [0.0, -1.0]]), np.array([3.0, 2.0])
    r, e, f = 0.3, 0.1, 0.2
    of = (r * e * (1 - f) + (1 - r) * (1 - e) * f, r * (1 - f) + (1 - r) * f)
    by_hand = 3 * math.log(of[0]) + 2 * math.log(of[1]) - 0.5 * math.log(r * (1 - r))
    assert log_density(np.array([[r, e, f]]), patterns, edges)[0] == pytest.approx(by_hand)


def test_chains_that_disagree_give_no_interval() -> None:
    draws = np.random.default_rng(0).normal(size=(100, 1, 4, 2))
    draws[:, :, 0, 1] += 1
    assert (spread(draws) > 1.05).tolist() == [[False, True]]
    drifting = np.random.default_rng(0).normal(size=(100, 1, 4, 1)) + np.linspace(0, 4, 100)[:, None, None, None]
    assert spread(drifting) > 1.05


@dataclass
class World:
    """Judges of these errors on edges, so many per prompt, of which some prompts' share their truth."""

    errors: tuple[float, ...]
    prompts: int
    size: int
    ties: float

    def votes(self, rng: np.random.Generator) -> Floats:
        n = self.prompts * self.size
        shared, alike = (np.repeat(rng.random(self.prompts) < p, self.size) for p in (PLANTED, 0.5))
        violated = np.where(alike, shared, rng.random(n) < PLANTED)
        cast = np.where(violated[:, None] ^ (rng.random((n, len(self.errors))) < self.errors), -1.0, 1.0)
        cast[rng.random(cast.shape) < self.ties] = 0
        return cast

    def judged(self) -> float:
        """The rate as judged, on average, of two judges."""
        (e, f), tie = self.errors, self.ties
        right, wrong, one = (1 - e) * (1 - f), e * f, (e + f) / 2
        both, alone = (1 - tie) ** 2, 2 * tie * (1 - tie)
        against = both * (PLANTED * right + (1 - PLANTED) * wrong) + alone * (PLANTED * (1 - 2 * one) + one)
        return against / (both * (right + wrong) + alone)


REPLICATIONS = 200
TWO = World((0.06, 0.14), prompts=120, size=2, ties=0.15)
NOISY = World((0.25, 0.25), prompts=100, size=8, ties=0.0)


@pytest.mark.parametrize("world", [TWO, NOISY], ids=["two", "noisy"])
def test_intervals_cover_at_their_level(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of edges in prompts, half of which share their truth. The corrected interval covers the true rate, where chains
    converge; the interval as judged covers what judges of such errors say on average."""
    monkeypatch.setattr(rates, "CHAINS", 4)
    monkeypatch.setattr(rates, "BURN_IN", 500)
    monkeypatch.setattr(rates, "DRAWS", 1000)
    rng, clusters = np.random.default_rng(5), np.repeat(np.arange(world.prompts), world.size)
    patterns = np.array([p for p in product((-1.0, 0.0, 1.0), repeat=2) if any(p)])
    tables = [world.votes(rng) for _ in range(REPLICATIONS)]
    counts = np.array([[(cast == p).all(axis=1).sum() for p in patterns] for cast in tables])
    drawn = posterior(patterns, counts, np.array([independent(cast, clusters) for cast in tables]), rng)
    converged = (spread(drawn) <= 1.05).all(axis=1)
    low, middle, high = np.quantile(drawn[..., 0], [0.025, 0.5, 0.975], axis=(0, 2))
    sides = [side(cast) for cast in tables]
    raw = [share(s[s != 0] < 0, clusters[s != 0]) for s in sides]
    # 95 % of 200: 190, standard error 3
    assert converged.mean() > 0.8 and ((low <= PLANTED) & (high >= PLANTED))[converged].mean() >= 0.905
    assert sum(r.low <= world.judged() <= r.high for r in raw) >= 181
    assert abs(middle.mean() - PLANTED) < 0.015 < world.judged() - PLANTED, "only the rate as judged is too high"
