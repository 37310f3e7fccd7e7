"""Realised severities: the truth of ratings that an independent generator made comes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dpeer.eval.realised import READINGS, expected_counts, severities
from dpeer.toyworld import world as toyworld

SEVERITY = np.array([[-0.9, -0.5], [0.3, 0.1], [0.6, 0.4]])  # [J, D]; each dimension sums to 0
ALPHA = np.array([1.25, 0.8, 1.0])
THRESHOLDS = np.array([[-1.5, -0.5, 0.5, 1.5], [-1.0, -0.9, 0.6, 1.3], [-2.0, 0.2, 0.3, 1.5]])
LEVELS = np.array([[1.3, 0.2, -1.1], [1.0, -0.4, -1.6]])  # [D, L]


def probabilities(j: int, d: int, level: int) -> NDArray[np.float64]:
    """By the odds of neighbouring scores, one after the other."""
    weights = [1.0]
    for threshold in THRESHOLDS[j]:
        weights.append(weights[-1] * np.exp(ALPHA[j] * (LEVELS[d, level] - SEVERITY[j, d]) - threshold))
    return np.array(weights) / sum(weights)


def made(draw: bool, n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts [J, D, L, K] of n [J, L] ratings: drawn, or as expected."""
    rng = np.random.default_rng(5)
    counts = np.zeros((*SEVERITY.shape, 3, 5))
    for j, d, level in np.ndindex(counts.shape[:3]):
        p = probabilities(j, d, level)
        counts[j, d, level] = rng.multinomial(n[j, level], p) if draw else n[j, level] * p
    return counts


def test_exact_probabilities_give_the_truth_whatever_each_judge_was_shown() -> None:
    shown = np.array([[400, 30, 20], [20, 30, 400], [150, 150, 150]])  # mean scores rank the judges otherwise
    counts = made(False, shown)
    means = counts.sum(axis=(1, 2)) @ np.arange(5) / counts.sum(axis=(1, 2, 3))
    assert means[2] > means[1] and SEVERITY.mean(axis=1)[2] > SEVERITY.mean(axis=1)[1]
    assert severities(counts) == pytest.approx(SEVERITY.mean(axis=1), abs=2e-3)
    assert severities(counts[::-1]) == pytest.approx(SEVERITY.mean(axis=1)[::-1], abs=2e-3)


def test_drawn_ratings_give_the_truth_within_their_error() -> None:
    found = severities(made(True, np.full((3, 3), 4000)))
    assert found == pytest.approx(SEVERITY.mean(axis=1), abs=0.05) and found.sum() == pytest.approx(0)


def test_a_score_that_a_judge_never_gives_is_refused() -> None:
    counts = made(False, np.full((3, 3), 100))
    counts[1, :, :, 2] = 0
    with pytest.raises(ValueError, match=r"judge 1 of 3 never gives score 3 of 5"):
        severities(counts)


def test_counts_are_of_usable_ratings_by_the_oracle_s_reading() -> None:
    golden = toyworld.generate(1, 0).records[0].responses[0].text
    readings = toyworld.oracle(golden)
    responses = pd.DataFrame({"response_id": ["whole", "broken"], "response": [golden, "no clause"]})
    p = [0.1, 0.2, 0.3, 0.3, 0.1]
    rows = [("whole", "x", "A", "ok"), ("broken", "y", "A", "ok"), ("whole", "y", "T", "ok")]
    rows += [("whole", "x", "T", "low_mass"), ("whole", "another", "A", "ok")]
    ratings = pd.DataFrame(rows, columns=["response_id", "judge", "dimension", "status"])
    ratings["logprobs"] = [list(np.log(p) - 0.01 * i) for i in range(len(rows))]  # less than 1 on the scores together
    expected = np.zeros((2, 2, len(READINGS), 5))
    expected[0, 0, READINGS.index(readings["A"])] = p
    expected[1, 0, READINGS.index("none")] = p
    expected[1, 1, READINGS.index(readings["T"])] = p
    assert expected_counts(ratings, responses, ["x", "y"]) == pytest.approx(expected)
