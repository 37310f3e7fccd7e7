"""Intervals of rates and of differences, against statsmodels-free oracles: published examples, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dpeer.eval.audit.rates import Interval
from dpeer.eval.bench.rates import ALL, difference, differences, mean_of, rate, rates, with_all


def paired(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.repeat([1.0, 1.0, 0.0, 0.0], (both, first, second, none))
    b = np.repeat([1.0, 0.0, 1.0, 0.0], (both, first, second, none))
    return a, b, np.arange(len(a))


def test_newcombes_own_example() -> None:
    """Newcombe (1998, Stat Med 17:2635), table II, method 8 (score intervals, correlation without correction): cells
    36, 12, 2, 0."""
    found = difference(*paired(36, 12, 2, 0), "share")
    assert found.rate == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_equal_answers_have_an_interval_of_some_width() -> None:
    found = difference(*paired(5, 0, 0, 0), "share")
    assert found.rate == 0 and found.low < -0.3 and found.high > 0.3


def test_differences_of_clustered_items_cover_the_truth() -> None:
    """500 repetitions of 40 clusters of 4 items, two correlated models; within two standard errors of 95 %."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 4)
    hits = 0
    for _ in range(500):
        shared = rng.normal(size=(40, 1))
        a = (rng.normal(size=(40, 4)) + shared < 0.6).astype(float).ravel()
        b = (rng.normal(size=(40, 4)) + shared < 0.0).astype(float).ravel()
        found = difference(a, b, clusters, "share")
        hits += found.low <= TRUTH <= found.high
    assert 0.93 <= hits / 500 <= 0.99


TRUTH = 0.5 * (1 + math.erf(0.6 / math.sqrt(2) / math.sqrt(2))) - 0.5  # a sum of two unit normals has sd sqrt(2)


def test_means_have_bootstrap_intervals() -> None:
    values, clusters = np.array([0.0, 1, 2, 3, 4, 5, 6, 7]), np.arange(8)
    found = rate(values, clusters, "mean")
    assert found.rate == 3.5 and found.low == pytest.approx(1.9, abs=0.4) and found.high == pytest.approx(5.1, abs=0.4)
    same = rate(np.full(8, 2.0), clusters, "mean")
    assert (same.rate, same.low, same.high) == (2.0, 2.0, 2.0)
    assert math.isnan(rate(np.ones(3), np.zeros(3, int), "mean").low)


def outcomes(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["judge", "model", "item", "value"])
    return table.assign(benchmark="b", metric="m", sample=0, repeat=0, cluster=table["item"], group="")


def test_judges_count_alike_and_rules_only_where_they_are_alone() -> None:
    table = outcomes(
        [("j", "x", "q1", 1), ("k", "x", "q1", 0), ("r", "x", "q1", 0), ("j", "x", "q2", 1), ("r", "x", "q2", 0)]
    )
    found = rates(with_all(table, ["r"]), {("b", "m"): "share"}).set_index("judge")["rate"]
    assert found.to_dict() == {ALL: 0.75, "j": 1.0, "k": 0.0, "r": 0.0}
    alone = with_all(table[table["judge"] == "r"], ["r"])
    assert rates(alone, {("b", "m"): "share"})["rate"].tolist() == [0.0, 0.0]


def test_an_item_that_a_judge_left_out_says_nothing_of_the_judges_together() -> None:
    """Both judges see the same in both models, j says yes and k no; k declines one of y: no difference."""
    says = [
        (j, m, q, float(j == "j")) for j in "jk" for m in "xy" for q in ("q1", "q2") if (j, m, q) != ("k", "y", "q2")
    ]
    table = with_all(outcomes(says), [], {("b", "y", "q2", 0)})
    assert rates(table, {("b", "m"): "share"}).query("judge == 'all'")["rate"].tolist() == [0.5, 0.5]
    assert differences(table, {("b", "m"): "share"}, "x").query("judge == 'all'")["rate"].tolist() == [0.0]
    assert len(table.query("judge == 'j'")) == 4  # what each judge says stays


def test_differences_are_of_the_items_that_both_answered() -> None:
    table = outcomes([("j", "x", "q1", 1), ("j", "x", "q2", 0), ("j", "y", "q2", 1), ("j", "y", "q3", 1)])
    (found,) = (
        differences(with_all(table, ["r"]), {("b", "m"): "share"}, "x").query("judge == 'all'").to_dict("records")
    )
    assert (found["model"], found["rate"], found["items"]) == ("y", 1.0, 1)


def test_the_mean_of_rates() -> None:
    assert mean_of([Interval(0.2, 0.1, 0.4), Interval(0.4, 0.3, 0.5)]).rate == pytest.approx(0.3)
    assert mean_of([Interval(0.2, 0.1, 0.4)]).high == pytest.approx(0.4)
    assert math.isnan(mean_of([]).rate)
