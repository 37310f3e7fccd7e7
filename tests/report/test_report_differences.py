"""Differences of shares: published intervals, their coverage, and the sentence."""

from __future__ import annotations

import numpy as np
import pytest

from dpeer.report.comparison import wilson
from dpeer.report.differences import Difference, cost_sentence, difference, phi, point_bounds, points


@pytest.mark.parametrize(
    ("a", "b", "lower", "upper"),
    [  # Newcombe 1998, Stat. Med. 17:873, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_independent_shares_have_the_published_interval(a, b, lower, upper):
    found = difference(wilson(a[0] / a[1], a[1]), wilson(b[0] / b[1], b[1]))
    assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=1e-4)


def test_paired_intervals_hold_the_truth_and_are_narrower():
    cells = np.array([0.55, 0.2, 0.05, 0.2])  # both good, only a, only b, neither
    rng, n, truth = np.random.default_rng(1), 100, 0.15
    held, narrower, repetitions = 0, 0, 2000
    for counts in rng.multinomial(n, cells, size=repetitions):
        x = np.repeat([True, True, False, False], counts)
        y = np.repeat([True, False, True, False], counts)
        rates = wilson(x.mean(), n), wilson(y.mean(), n)
        paired, alone = difference(*rates, phi(x, y)), difference(*rates)
        held += paired.lower <= truth <= paired.upper
        narrower += paired.upper - paired.lower < alone.upper - alone.lower
    assert 0.93 < held / repetitions < 0.98 and narrower == repetitions


def test_correlation_of_outcomes():
    x = [True] * 30 + [False] * 20
    opposite = [not v for v in x]
    assert phi(x, opposite) == pytest.approx(-1) and 0.9 < phi(x, x) < 1
    assert phi(x, [True] * 50) == 0


def test_points_are_signed_and_rounded():
    change = Difference(-0.043, -0.11, 0.002)
    assert (points(change), point_bounds(change)) == ("\u22124", "\u221211, 0") and not change.clear
    assert not Difference(0.04, 0.004, 0.08).clear and Difference(0.04, 0.006, 0.08).clear
    unknown = difference(wilson(float("nan"), 10), wilson(0.5, 10))
    assert (points(unknown), point_bounds(unknown), unknown.clear) == ("\u2013", "\u2013", False)


def test_sentence_separates_gains_losses_and_what_is_not_clear():
    changes = {
        "A": Difference(-0.04, -0.07, -0.01),
        "T": Difference(0.23, 0.15, 0.31),
        "E": Difference(0.01, -0.02, 0.04),
        "C": Difference(float("nan"), float("nan"), float("nan")),
    }
    expected = (
        "Against uniform, ours gains 23 points on T (15 to 31); gives up 4 points on A (1 to 7); "
        "no clear difference on E (+1; \u22122, +4)."
    )
    assert cost_sentence("ours", "uniform", changes) == expected
    assert cost_sentence("ours", "uniform", {"E": changes["E"]}).startswith(
        "Against uniform, ours shows no clear difference on E"
    )
    assert cost_sentence("ours", "uniform", {"C": changes["C"]}) == ""
