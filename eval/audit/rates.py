"""From votes on edges to rates with intervals. Pure functions.

A vote [E, J] of judge j on edge e is +1 (rates the better response higher), -1 (rates the worse one higher: the order
is violated), 0 (a tie) or nan (no usable rating). A vote compares two ratings of one judge, so its severity cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95
CHAINS, BURN_IN, DRAWS = 128, 50, 75


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with the ends of its 95 % interval; nan where nothing is known."""

    rate: float
    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Truth(NamedTuple):
    """What is left of a rate of violations when the judges' chance errors are taken out; errors [J] per judge."""

    rate: Interval
    errors: tuple[float, ...]


def votes(margins: Floats, tie: float) -> Floats:
    """Margins [E, J] (better minus worse, in points of the scale) to votes; less than `tie` apart is a tie."""
    return np.where(np.abs(margins) < max(tie, 1e-9), np.where(np.isnan(margins), np.nan, 0.0), np.sign(margins))


def majority(votes: Floats) -> Floats:
    """[E] the side that more judges take: +1, -1, or 0 where as many take either; nan where no judge has rated."""
    rated = ~np.isnan(votes)
    return np.where(rated.any(axis=1), np.sign(np.where(rated, votes, 0.0).sum(axis=1)), np.nan)


def contradicted(votes: Floats) -> float:
    """Share of edges on which two judges take opposite sides, among those on which two take any; nan without such."""
    two = (np.abs(np.nan_to_num(votes)).sum(axis=1)) >= 2
    both = (votes == 1).any(axis=1) & (votes == -1).any(axis=1)
    return float(both[two].mean()) if two.any() else math.nan


def share(hits: NDArray[np.bool_], clusters: Ints) -> Interval:
    """Share of hits [N] with Wilson's interval at the effective sample size.

    Observations of one cluster [N] may go together, so N is divided by the design effect: the cluster-robust variance
    of the share over that of independent observations (Franco, Little, Louis & Slud 2019), and never below 1. Where all
    are alike and no variance shows, each cluster counts as if its observations were equal: (sum n)^2 / sum n^2.
    """
    if not len(hits):
        return UNKNOWN
    rate, effective = float(hits.mean()), len(hits) / design_effect(hits, clusters)
    z = norm.ppf(0.5 + CONFIDENCE / 2)
    centre = (rate + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z * math.sqrt(rate * (1 - rate) / effective + z**2 / (4 * effective**2)) / (1 + z**2 / effective)
    return Interval(rate, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def design_effect(hits: NDArray[np.bool_], clusters: Ints) -> float:
    """By how much observations [N] in clusters [N] say less than as many independent ones; at least 1."""
    n, rate = len(hits), float(hits.mean())
    _, place = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(place)
    groups = len(sizes)
    if rate in (0.0, 1.0) or groups == 1:
        return float((sizes**2).sum() / n)
    excess = np.bincount(place, weights=hits - rate)
    variance = float((excess**2).sum()) * groups / (groups - 1) / n**2
    return max(1.0, variance / (rate * (1 - rate) / (n - 1)))


def truth(votes: Floats, clusters: Ints, seed: int = 0) -> Truth | None:
    """The rate of violations and each judge's chance of error, from how judges agree; None where no two take sides.

    Latent classes (Dawid & Skene 1979) with one error per judge: whether an edge is violated is hidden; a judge who
    takes a side is wrong with a probability below 1/2 that is the same for violated and sound edges, independently of
    the other judges. Priors: Beta(1/2, 1/2) for the rate, uniform for errors. Gibbs draws; the rate is their median
    with the central 95 %. Edges of one cluster [E] count by their design effect. Mistakes that all judges share cannot
    be seen: they stay in the rate.
    """
    decided = np.nan_to_num(votes)
    if not (np.abs(decided).sum(axis=1) >= 2).any():
        return None
    side = majority(votes)
    taken = np.abs(np.nan_to_num(side)) == 1
    effect = design_effect(side[taken] < 0, clusters[taken]) if taken.any() else 1.0
    rates, errors = _draws(decided, 1 / effect, np.random.default_rng(seed))
    tail = (1 - CONFIDENCE) / 2
    low, middle, high = np.quantile(rates, [tail, 0.5, 1 - tail])
    return Truth(Interval(float(middle), float(low), float(high)), tuple(np.median(errors, axis=0).tolist()))


def _draws(decided: Floats, weight: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Posterior draws of the rate [N] and of the judges' errors [N, J]; an edge counts as `weight` of one."""
    patterns, counts = np.unique(decided[np.abs(decided).any(axis=1)], axis=0, return_counts=True)
    total, judges = counts.sum(), decided.shape[1]
    upheld, violated = (patterns == 1).astype(float), (patterns == -1).astype(float)
    cast = counts @ (upheld + violated)
    rate, error = np.full(CHAINS, 0.1), np.full((CHAINS, judges), 0.1)
    kept: list[tuple[Floats, Floats]] = []
    for step in range(BURN_IN + DRAWS):
        odds = logit(rate)[:, None] + logit(error) @ patterns.T
        hidden = rng.binomial(counts, expit(odds))  # [chains, patterns] edges that are violated in truth
        wrong = hidden @ upheld + (counts - hidden) @ violated
        found = hidden.sum(axis=1)
        rate = rng.beta(0.5 + weight * found, 0.5 + weight * (total - found)).clip(1e-9, 1 - 1e-9)
        proposed = rng.beta(1 + weight * wrong, 1 + weight * (cast - wrong)).clip(1e-9)
        error = np.where(proposed < 0.5, proposed, error)  # a Metropolis step for a distribution cut off at 1/2
        if step >= BURN_IN:
            kept.append((rate, error))
    return np.concatenate([r for r, _ in kept]), np.concatenate([e for _, e in kept])
