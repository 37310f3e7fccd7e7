"""Finite-sample bounds on means of bounded values over clusters, by betting (Waudby-Smith & Ramdas, arXiv 2010.09686).

A gambler who doubts that a mean is at least theta stakes on every cluster that its value lies below. If the mean is at
least theta, the expected wealth is at most 1 for any stake fixed beforehand, so that the chance of holding 1 / alpha
is at most alpha (Markov), whatever the distribution and however few the clusters. The wealth is spread over a few
stakes; neither the order of the clusters nor chance plays a part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]

STAKES = np.array([0.6, 1.0, 1.6])
"""Times the stake that would be best if the guessed spread were right."""
SHARES = np.array([0.25, 0.5, 0.25])
"""Share of the wealth on each of these stakes."""
MOST = 0.8
"""Largest share of the wealth that one cluster may cost."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A weighted mean over C independent clusters: the sum of their contributions.

    values [..., C]: contribution of each cluster; low * weights <= values <= high * weights
    weights [..., C]: >= 0, sum 1, known before the values are seen
    spread [...]: guess of the standard deviation of the sum, made without looking at the values; with `goal`, the
        wealth that is hoped for (as a logarithm), it tunes the stakes; neither can break the bound
    """

    values: Array
    weights: Array
    low: float
    high: float
    spread: Array | float
    goal: float

    def mirrored(self) -> Sample:
        """The sample of the negative values: its upper bound is the negative lower bound."""
        return replace(self, values=-self.values, low=-self.high, high=-self.low)


def log_wealth(sample: Sample, theta: float, repeat: float = 1.0) -> Array:
    """[...]: log of the wealth against "the mean is at least theta"; it rises with theta.

    A stake multiplies the wealth by prod_c (1 + stake (theta w_c - u_c)). Where the clusters' means differ (by mask, by
    number of edges) the expected product is still at most 1 if their sum is at least theta, by the inequality of the
    means. `repeat`: as if the sample had come that many times.
    """
    best = math.sqrt(2 * sample.goal / repeat) / np.asarray(sample.spread)[..., None]
    most = MOST / (sample.weights.max(-1) * max(sample.high - theta, 1e-12))
    stakes = np.minimum(best * STAKES, most[..., None])
    gains = (theta * sample.weights - sample.values)[..., None, :]
    by_stake = repeat * np.log1p(stakes[..., None] * gains).sum(-1)
    wealth: Array = np.logaddexp.reduce(by_stake + np.log(SHARES), axis=-1)
    return wealth


def wealth_needed(log_wealths: Array, alpha: float) -> Array:
    """[..., m]: log of the wealth that each of m tests needs so that, with probability 1 - alpha, no true hypothesis of
    them all is refuted, however they depend on each other.

    Closed testing with means of e-values (Vovk & Wang 2021, arXiv 1912.06116): a test counts if in every group of tests
    with it the mean wealth is at least 1 / alpha. From log (m / alpha) among tests that show nothing down to
    log (1 / alpha) among tests that all show something.
    """
    tests = log_wealths.shape[-1]
    wealth = np.exp(np.minimum(log_wealths, math.log(max(1, tests) / alpha)))
    needed = np.empty_like(wealth)
    for c in range(tests):
        least = np.sort(np.delete(wealth, c, axis=-1), axis=-1).cumsum(-1)
        groups = np.arange(2, tests + 1) / alpha - least
        needed[..., c] = np.maximum(groups.max(-1, initial=0.0), 1 / alpha)
    log_needed: Array = np.log(needed)
    return log_needed


def upper_bound(sample: Sample, needed: float) -> float:
    """Smallest theta that a wealth of `needed` (its logarithm) refutes; `high` if there is none."""
    start, end = float(sample.values.sum()), sample.high - 1e-9 * (sample.high - sample.low)
    if start >= end or log_wealth(sample, end) < needed:
        return sample.high
    precision = 1e-7 * (sample.high - sample.low)
    root: float = brentq(lambda theta: float(log_wealth(sample, theta)) - needed, start, end, xtol=precision)
    return root


def repeats_needed(sample: Sample, theta: float, needed: float, most: float) -> float | None:
    """How many times the sample would have to come, at least once, to refute "the mean is at least theta"; None if
    more than `most` times."""

    def excess(repeat: float) -> float:
        return float(log_wealth(sample, theta, repeat)) - needed

    if not float(sample.values.sum()) < theta < sample.high or excess(most) < 0:
        return None
    high = 1.0
    while excess(high) < 0:
        high = min(2 * high, most)
    return high if high == 1 else float(brentq(excess, high / 2, high, rtol=1e-6))


def provable(records: int, bound: float, alpha: float) -> float:
    """Smallest mean of values in [0, bound] that so many records could prove, if all values were 0: about
    bound x log(1 / alpha) / records, whatever the method of proof."""
    if not records:
        return bound
    nothing, shares = np.zeros(records), np.full(records, 1 / records)
    return upper_bound(Sample(nothing, shares, 0.0, bound, 1e-6, -math.log(alpha)), -math.log(alpha))


def room(variance: float, records: float, bound: float, alpha: float = 0.05) -> float:
    """How far below a tolerance a mean of values in [0, bound] must lie so that so many records will probably prove it.

    variance: of one record's value. With stake b the logarithm of the wealth grows by about b d - b^2 variance / 2 per
    record at distance d; one standard error is added for records that are less kind than most. nan without records.
    """
    return float(rooms(np.array([variance]), np.array([float(records)]), bound, alpha)[0])


def rooms(variance: Array, records: Array, bound: float, alpha: float = 0.05) -> Array:
    """`room` of each element."""
    goal, most = math.log(2 / alpha), MOST / bound
    with np.errstate(divide="ignore", invalid="ignore"):
        stake = np.where(variance > 0, np.minimum(np.sqrt(2 * goal / (records * variance)), most), most)
        needed = goal / (records * stake) + stake * variance / 2 + np.sqrt(variance / records)
    result: Array = np.where(records > 0, needed, math.nan)
    return result


def records_for(distance: float, variance: float, bound: float, most: int = 10**9) -> int | None:
    """Fewest records with `room` of at most this distance; None if more than `most`."""
    low, high = 1, 1
    while room(variance, high, bound) > distance:
        if high > most:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if room(variance, middle, bound) > distance else (low, middle)
    return high
