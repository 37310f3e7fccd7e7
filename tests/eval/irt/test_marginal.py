"""The likelihood of a unit with its own effects integrated out: against brute force, written from the formula."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.special import expit

from dpeer.eval.irt import link
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.marginal import Units, chosen_draws, log_likelihood
from dpeer.eval.irt.types import Comparisons, Floats, Options, Posterior
from tests.eval.irt.made_up import made_up

GRID, COARSE = np.linspace(-7, 7, 1401), np.linspace(-6, 6, 31)
HALO, V = np.array(0.9), np.array([0.8, 0.5])
CASES = {
    "u": {},
    "u, graded": {"options": Options(model="graded")},
    "u, wide": {"s_u": 2.5},
    "no effect": {"s_u": 0.0},
    "v and u of one response": {"s_v": V},
    "halo": {"s_halo": HALO, "models": 2, "items": 2, "judges": 2},
    "halo, graded": {"s_halo": HALO, "models": 2, "items": 2, "judges": 2, "options": Options(model="graded")},
}


def probability(posterior: Posterior, s: int, n: int, effect: Floats) -> Floats:
    """P of rating n at draw s, where `effect` [...] is added to its location."""
    r = posterior.ratings
    draw = {name: posterior.flat(name)[s] for name in posterior.draws if name != "u"}
    d, j = r.dimension[n], r.judge[n]
    eta = (
        draw["mu"][d]
        + draw["theta"][r.model[n], d]
        - draw["beta"][r.item[n], d]
        - draw["severity"][j, d]
        - draw["delta"][d]
    )
    x = np.exp(draw["log_alpha"][j]) * (eta + np.asarray(effect)[..., None] - draw["tau"][j, d])
    if posterior.options.model == "graded":
        reached = np.concatenate([np.ones((*x.shape[:-1], 1)), expit(x), np.zeros((*x.shape[:-1], 1))], axis=-1)
        return np.asarray(reached[..., r.category[n]] - reached[..., r.category[n] + 1])
    weight = np.exp(np.concatenate([np.zeros((*x.shape[:-1], 1)), x.cumsum(axis=-1)], axis=-1))
    return np.asarray((weight / weight.sum(axis=-1, keepdims=True))[..., r.category[n]])


def brute(posterior: Posterior, s: int, unit: int) -> float:
    """The trapezoid rule over u of each dimension and, outside of it, over a halo of each judge."""
    r, joined = posterior.ratings, "s_halo" in posterior.draws
    grid = COARSE if joined else GRID
    weight = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    members = np.flatnonzero(Units.of(r).of_rating == unit)
    spread = np.hypot(*(posterior.flat(n)[s] if n in posterior.draws else 0 * V for n in ("s_u", "s_v")))
    halo, outer = (posterior.flat("s_halo")[s] * grid, weight) if joined else (np.zeros(1), np.ones(1))
    total = 0.0
    for at in product(range(len(halo)), repeat=len(r.judges) if joined else 1):
        inside = 1.0
        for d in range(2):
            p = np.ones(len(grid))
            for n in members[r.dimension[members] == d]:
                own = halo[at[r.judge[n]]] if joined else 0.0
                p = p * probability(posterior, s, n, spread[d] * grid + own)
            inside *= p @ weight
        total += np.prod(outer[list(at)]) * inside
    return float(np.log(total))


def of_case(case: str, **more: object) -> Posterior:
    given = {
        "models": 3,
        "items": 4,
        "s_u": 0.8,
        "chains": 1,
        "draws": 3,
        "noise": 0.1,
        "log_alpha": np.array([0.4, -0.2, -0.2]),
    }
    given |= CASES[case] | more
    given["log_alpha"] = given["log_alpha"][: given.get("judges", 3)]
    return made_up(**given)


@pytest.mark.parametrize("case", CASES)
def test_the_integral_is_that_of_brute_force(case: str) -> None:
    posterior = of_case(case)
    found = log_likelihood(posterior, *chosen_draws(posterior))
    shown = 1 if "halo" in case else 2
    wanted = [[brute(posterior, s, unit) for s in range(shown)] for unit in range(shown)]
    assert found[:shown, :shown] == pytest.approx(np.array(wanted), abs=0.012 if "halo" in case else 3e-4)


def test_many_ratings_of_a_response_are_integrated_around_their_mode() -> None:
    posterior = of_case("u, wide", repeats=30, items=2)
    found = log_likelihood(posterior, *chosen_draws(posterior))
    assert found[0, 0] == pytest.approx(brute(posterior, 0, 0), abs=1e-3)


def test_without_a_judge_what_is_left_is_integrated() -> None:
    posterior = of_case("u")
    kept = posterior.ratings.judge != 1
    found = log_likelihood(posterior, *chosen_draws(posterior), kept)
    r = posterior.ratings
    names = ("response", "dimension", "criterion", "judge", "category", "reversed", "own_family", "own_model")
    alone = replace(posterior, ratings=replace(r, **{name: getattr(r, name)[kept] for name in names}))
    assert found[1, 2] == pytest.approx(brute(alone, 2, 1), abs=2e-5)
    assert not log_likelihood(posterior, *chosen_draws(posterior), r.judge > 5).any()


def test_several_samples_share_what_a_model_does_on_an_item() -> None:
    posterior = of_case("v and u of one response")
    r = posterior.ratings
    posterior = replace(posterior, ratings=replace(r, response_item=r.response_item // 2))
    r = posterior.ratings
    found = log_likelihood(posterior, *chosen_draws(posterior))
    members = np.flatnonzero(Units.of(r).of_rating == 1)
    assert len(np.unique(r.response[members])) == 2
    weight = np.exp(-(COARSE**2) / 2) / np.exp(-(COARSE**2) / 2).sum()
    u, v = posterior.flat("s_u")[0, :, None] * COARSE, posterior.flat("s_v")[0, :, None] * COARSE
    total = 0.0
    for d in range(2):
        inside = np.ones(len(COARSE))
        for response in np.unique(r.response[members]):
            p = np.ones((len(COARSE), len(COARSE)))
            for n in members[(r.dimension[members] == d) & (r.response[members] == response)]:
                p = p * probability(posterior, 0, n, v[d][:, None] + u[d])
            inside = inside * (p @ weight)
        total += np.log(inside @ weight)
    assert found[1, 0] == pytest.approx(total, abs=0.012)


def test_both_ways_to_integrate_agree() -> None:
    posterior = of_case("u")
    index = chosen_draws(posterior)
    exact = log_likelihood(posterior, *index)
    joined = replace(posterior, draws=posterior.draws | {"s_halo": np.full((1, 3), 1e-6)})
    assert log_likelihood(joined, *index) == pytest.approx(exact, abs=0.012)


def test_comparisons_are_refused() -> None:
    posterior = of_case("u")
    compared = replace(posterior.ratings, comparisons=Comparisons(outcome=np.zeros(1, np.int64)))
    with pytest.raises(IrtError, match="without comparisons"):
        log_likelihood(replace(posterior, ratings=compared), *chosen_draws(posterior))


@pytest.mark.parametrize("graded", [False, True])
def test_derivatives_are_those_of_differences(graded: bool) -> None:
    rng = np.random.default_rng(0)
    used = np.array([[True, True, False, True, True]])
    tau = np.where(used[:, 1:], np.array([-1.0, np.nan, 0.2, 1.1]), np.nan)[None]
    offsets = link.offsets(tau, used, graded)[0].T[:, :, None]  # [K, 1, 1]
    slope = rng.normal(size=(1, 5))
    p = link.probabilities(slope, np.broadcast_to(offsets, (5, 1, 5)), graded)
    assert p.sum(axis=0) == pytest.approx(1.0) and not p[2].any()
    total = 0.0
    for k in (0, 1, 3, 4):
        density = link.LogLikelihood(np.array([k]), np.broadcast_to(offsets, (5, 1, 5)), graded)
        assert density.value(slope) == pytest.approx(np.log(p[k]))
        first, second = density.derivatives(slope)
        h = 1e-4
        up, down = (density.value(slope + step) for step in (h, -h))
        assert first == pytest.approx((up - down) / (2 * h), abs=1e-6)
        assert second == pytest.approx((up - 2 * density.value(slope) + down) / h**2, abs=1e-5)
        total = total + p[k] * first**2
    assert link.information(p, graded) == pytest.approx(total)
