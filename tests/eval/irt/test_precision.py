"""Precision foretold: information against sums over all rating patterns, designs against their goals, and fits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from typer.testing import CliRunner

from dpeer.errors import ConfigError
from dpeer.eval.irt.dstudy import Costs, Goal, candidates, variances
from dpeer.eval.irt.fit import save
from dpeer.eval.irt.precision import (
    Z95,
    Components,
    Design,
    assumed,
    components_of,
    difference_sd,
    information,
    items_needed,
    power,
    right_order,
    unshrunken,
)
from dpeer.eval.irt.simulate import Spec
from dpeer.eval.irt.types import Posterior
from dpeer.launcher.cli import app
from dpeer.launcher.commands.eval_plan import parts_of
from tests.eval.irt.conftest import SMALL


def components(position: float = 0.3, s_u: float = 0.8, steps: tuple[float, ...] = (-0.7, 0.9)) -> Components:
    """Two judges and one place: no item difficulty, so that patterns can be summed."""
    return Components(
        dimension="T",
        position=np.array([position]),
        s_theta=0.0,
        s_beta=0.0,
        s_u=s_u,
        s_v=0.0,
        severity=np.array([-0.4, 0.5]),
        alpha=np.array([0.8, 1.5]),
        steps=np.tile(steps, (2, 1)),
    )


def chance(c: Components, judge: int, score: int, eta: float) -> float:
    weights = [1.0]
    for step in c.steps[judge]:
        weights.append(weights[-1] * float(np.exp(c.alpha[judge] * (eta - c.severity[judge] - step))))
    return weights[score] / sum(weights)


def pattern_information(c: Components) -> float:
    """Sum over all patterns of (dP/d eta)^2 / P, P by adaptive integration over u."""

    def likelihood(pattern: tuple[int, ...], eta: float) -> float:
        def inner(u: float) -> float:
            return float(np.prod([chance(c, j, k, eta + u) for j, k in enumerate(pattern)])) * stats.norm.pdf(
                u, 0, c.s_u
            )

        return float(integrate.quad(inner, -6 * c.s_u, 6 * c.s_u)[0])

    total, eta, h = 0.0, float(c.position[0]), 1e-3
    for pattern in product(range(c.steps.shape[1] + 1), repeat=2):
        slope = (likelihood(pattern, eta + h) - likelihood(pattern, eta - h)) / (2 * h)
        total += slope**2 / likelihood(pattern, eta)
    return total


def informed(c: Components, judges: int, ratings: int) -> float:
    """Over several seeds, as information is itself simulated."""
    return float(np.mean([information(c, judges, ratings, seed)[0] for seed in range(12)]))


@pytest.mark.parametrize(("position", "s_u"), [(0.3, 0.8), (2.0, 0.5)])
def test_information_is_that_of_all_patterns(position: float, s_u: float) -> None:
    c = components(position, s_u)
    assert informed(c, 2, 1) == pytest.approx(pattern_information(c), rel=0.04)


def test_without_a_response_effect_ratings_add_up() -> None:
    c = components(s_u=0.0)
    expected = 0.0
    for judge in range(2):
        p = [chance(c, judge, k, 0.3) for k in range(3)]
        mean = sum(k * x for k, x in enumerate(p))
        expected += c.alpha[judge] ** 2 * sum(x * (k - mean) ** 2 for k, x in enumerate(p))
    assert informed(c, 2, 1) == pytest.approx(expected, rel=0.04)
    assert informed(c, 2, 3) == pytest.approx(3 * expected, rel=0.04)


def test_a_score_that_a_judge_never_gives_is_left_out() -> None:
    c = components(s_u=0.0)
    without = replace(c, steps=np.array([[np.nan, 0.2], [np.nan, 0.2]]))
    for judge in range(2):
        odds = np.exp(c.alpha[judge] * (2 * (0.3 - c.severity[judge]) - 0.2))  # from 0 straight to 2
        p = odds / (1 + odds)
        one = replace(without, alpha=c.alpha[[judge]], severity=c.severity[[judge]], steps=without.steps[[judge]])
        assert informed(one, 1, 1) == pytest.approx(c.alpha[judge] ** 2 * 4 * p * (1 - p), rel=0.04)


def test_many_ratings_leave_the_spread_of_responses_and_of_model_by_item() -> None:
    c = replace(assumed(Spec(models=2, s_u=0.7, judges=4)), s_theta=0.0, s_v=0.5)
    endless = difference_sd(c, Design(items=50, judges=16, samples=2, repeats=3))
    floor = np.sqrt(2 * (0.5**2 + 0.7**2 / 2) / 50)
    assert floor < endless < 1.08 * floor


def test_items_needed_are_just_enough_and_parts_add_up() -> None:
    c = assumed(Spec(judges=3))
    for design in (Design(1, 2), Design(1, 3, samples=2, repeats=2)):
        n = items_needed(c, design, 0.2)
        assert difference_sd(c, replace(design, items=n)) <= 0.2 < difference_sd(c, replace(design, items=n - 1))
    whole = difference_sd(c, Design(30, 2))
    assert difference_sd(c, Design(10, 2), Design(20, 2)) == pytest.approx(whole)


def test_the_forecast_is_near_the_intervals_of_a_fit(posterior: Posterior) -> None:
    theta = posterior.flat("theta")
    pairs = [theta[:, a] - theta[:, b] for a, b in combinations(range(theta.shape[1]), 2)]
    low, high = np.quantile(pairs, [0.025, 0.975], axis=1)
    real = np.sqrt(np.mean(((high - low) / 2) ** 2))
    design = Design(SMALL.items, SMALL.judges)
    for source in ([assumed(SMALL)], components_of(posterior)):
        told = Z95 * np.sqrt(np.mean([difference_sd(c, design) ** 2 for c in source]))
        assert told == pytest.approx(real, rel=0.25)  # one draw of the truth; benchmarks/plan_accuracy.py has twenty


def test_goals_are_what_they_say_and_contradictions_are_refused() -> None:
    assert Goal(half_width=0.4).sd() == pytest.approx(0.4 / 1.96)
    for s in (0.0, 0.15, 1.0):
        sd = Goal(difference=0.5, power=0.8).sd(s)
        assert power(sd, 0.5, s) == pytest.approx(0.8) and sd < Goal(difference=0.5, order=0.9).sd(s)
        assert right_order(Goal(difference=0.5, order=0.9).sd(s), 0.5, s) == pytest.approx(0.9)
    for goal, shown in (
        (Goal(), "--half-width"),
        (Goal(power=0.8), "need --difference"),
        (Goal(difference=0.3), "needs --power"),
    ):
        with pytest.raises(ConfigError, match=shown):
            goal.sd()


@pytest.mark.parametrize(("s_theta", "se"), [(0.1, 0.12), (0.3, 0.33), (1.0, 0.25), (0.3, 2.0)])
def test_power_and_order_are_those_of_shrunken_estimates_of_a_true_difference(s_theta: float, se: float) -> None:
    """Two models with normal errors and a normal prior of their abilities, by simulation."""
    rng, difference = np.random.default_rng(1), 0.5
    seen = difference + se * rng.standard_normal(200_000)
    precision = 1 / se**2 + 1 / (2 * s_theta**2)
    mean, sd = seen / se**2 / precision, precision**-0.5
    for told, real in (
        (power(sd, difference, s_theta), (mean - 1.96 * sd > 0).mean()),
        (right_order(sd, difference, s_theta), (mean > 0).mean()),
    ):
        assert told == pytest.approx(real, abs=0.004)


def test_a_narrow_prior_is_no_evidence_of_a_difference() -> None:
    narrow = [assumed(Spec(s_theta=0.1, judges=3))]
    one = difference_sd(narrow[0], Design(1, 3))
    assert power(one, 0.5, 0.1) < 1e-60 and right_order(one, 0.5, 0.1) < 0.75
    goal = Goal(difference=0.5, power=0.8)
    found = candidates(narrow, goal, Costs(), judges=[3]).iloc[0]
    wide = candidates([assumed(Spec(s_theta=1.0, judges=3))], goal, Costs(), judges=[3]).iloc[0]
    assert found["items"] > wide["items"] > 20 and found["power"] >= 0.8
    assert found["reliability"] < 0.95
    with pytest.raises(ConfigError, match=r"within ±0\.28 before anything is rated"):
        candidates(narrow, Goal(half_width=0.3), Costs(), judges=[3])


def test_judge_by_model_effects_are_lowered_by_judges_alone() -> None:
    s = 0.4
    for judges in (3, 6):
        c = replace(assumed(Spec(judges=judges, s_theta=3.0)), s_judge_model=s)
        endless = difference_sd(c, Design(10**6, judges))
        assert unshrunken(endless, 3.0)[0] == pytest.approx(np.sqrt(2 * s**2 / judges), rel=0.01)
    plain, few = replace(c, s_judge_model=0.0), Design(40, 6)
    added = unshrunken(difference_sd(c, few), 3.0)[0] ** 2 - unshrunken(difference_sd(plain, few), 3.0)[0] ** 2
    assert added == pytest.approx(2 * s**2 / 6, rel=0.1)
    with pytest.raises(ConfigError, match="no number of items"):
        candidates([c], Goal(half_width=0.3), Costs(), judges=[5, 6])


def test_a_halo_is_noise_of_each_judge_on_each_response() -> None:
    c = replace(components(), s_halo=0.7)
    x, w = np.polynomial.hermite_e.hermegauss(21)
    w = w / w.sum()
    nodes = list(zip(x, w, strict=True))

    def likelihood(pattern: tuple[int, ...], eta: float) -> float:
        given = np.ones(len(x))
        for j, k in enumerate(pattern):
            given *= [sum(b * chance(c, j, k, eta + c.s_u * u + c.s_halo * h) for h, b in nodes) for u in x]
        return float(w @ given)

    expected, h = 0.0, 1e-3
    for pattern in product(range(3), repeat=2):
        slope = (likelihood(pattern, 0.3 + h) - likelihood(pattern, 0.3 - h)) / (2 * h)
        expected += slope**2 / likelihood(pattern, 0.3)
    assert informed(c, 2, 1) == pytest.approx(expected, rel=0.04) and expected < 0.9 * pattern_information(components())
    assert informed(c, 2, 25) < 1 / (c.s_u**2 + c.s_halo**2 / 2) * 1.05  # repeats of a judge share its halo


def test_a_pilot_hands_on_judge_by_model_effects_and_halo(posterior: Posterior) -> None:
    more = {"s_judge_model": np.full((4, 5), 0.3), "s_halo": np.full((4, 5), 0.6)}
    for c in components_of(replace(posterior, draws=posterior.draws | more)):
        assert (c.s_judge_model, c.s_halo) == (pytest.approx(0.3), pytest.approx(0.6))
    assert {(c.s_judge_model, c.s_halo) for c in components_of(posterior)} == {(0.0, 0.0)}


def test_designs_meet_the_goal_cheapest_first() -> None:
    c = [assumed(Spec(models=3, judges=3)), replace(assumed(Spec(models=3, judges=3, s_u=1.2)), dimension="hard")]
    goal, costs = Goal(half_width=0.5), Costs(rating=0.01, response=0.2, seconds=2)
    found = candidates(c, goal, costs, judges=(2, 3, 6), repeats=(1, 2))
    assert len(found) == 6 and (found["half_width"] <= 0.5).all() and found["price"].is_monotonic_increasing
    assert set(found["dimension"]) == {"hard"}
    assert (found["responses"] == 3 * found["items"]).all()
    assert (found["ratings"] == found["responses"] * found["judges"] * found["repeats"] * 2).all()
    assert found["price"].to_numpy() == pytest.approx((found["ratings"] * 0.01 + found["responses"] * 0.2).to_numpy())
    assert found["hours"].to_numpy() == pytest.approx((found["ratings"] * 2 / 3600).to_numpy())
    dear = candidates(c, goal, Costs(rating=0.01, response=5.0), judges=(2, 3, 6))
    assert dear["judges"].iloc[0] == 6  # where responses are dear, more judges rate each
    with pytest.raises(ConfigError, match="no design with at most 3 items"):
        candidates(c, goal, costs, judges=(2, 3), most_items=3)


def test_components_are_those_assumed() -> None:
    spec = Spec(models=5, judges=4, s_u=0.6, s_beta=0.9, s_theta=1.1, s_severity=0.4, s_dev=0.3)
    table = variances([assumed(spec)]).set_index("component")
    assert table["share"].sum() == pytest.approx(1)
    expected = {"models": 1.1, "items": 0.9, "judges": 0.5, "response": 0.6, "model x item": 0.0}
    assert {name: table.loc[name, "sd"] for name in expected} == pytest.approx(expected)


def test_planned_rows_are_read_as_a_design() -> None:
    made = []
    for model, item, sample, dimension in product("ab", range(5), range(2), "TA"):
        for judge in ("x", "y", "z")[: 3 if item < 2 else 2]:
            made += [(model, item, f"{model}{item}{sample}", dimension, judge, repeat) for repeat in range(2)]
    rows = pd.DataFrame(made, columns=["model", "item", "response_id", "dimension", "judge", "repeat"])
    assert parts_of(rows) == [Design(3, 2, 2, 2), Design(2, 3, 2, 2)]


def test_the_command_plans_from_assumptions_and_from_a_pilot(posterior: Posterior, tmp_path: Path) -> None:
    given = ["eval", "plan", "-o", str(tmp_path / "plan"), "--judges", "3", "--samples", "1", "--repeats", "1"]
    result = CliRunner().invoke(app, [*given, "--half-width", "0.5", "--set", "models=3"])
    assert result.exit_code == 0 and "cheapest first" in result.output, result.output
    designs = json.loads((tmp_path / "plan" / "designs.json").read_text())
    assert [d["judges"] for d in designs] == [2, 3] and designs[0]["ratings"] <= designs[1]["ratings"]
    assert (tmp_path / "plan" / "precision.svg").read_text().count("judges") >= 2
    save(posterior, tmp_path / "fit")
    result = CliRunner().invoke(
        app, [*given[:2], str(tmp_path / "fit"), *given[2:], "--difference", "0.5", "--power", "0.9"]
    )
    assert result.exit_code == 0 and "0.9" in result.output, result.output
    for wrong, shown in (([], "say what is wanted"), (["--half-width", "0.5", "--items", "2"], "at most 2 items")):
        result = CliRunner().invoke(app, [*given, *wrong])
        assert result.exit_code == 1 and shown in " ".join(result.output.split())
