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
from scipy.special import betainc, betaincinv, expit, logit
from scipy.stats import norm, t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
NORMAL = norm.ppf(1 - TAIL)
CHAINS, BURN_IN, DRAWS = 16, 1000, 2000  # many chains: of two equal peaks all would take one by chance at 2^-15
CONVERGED = 1.05
BEHIND = 25.0
"""Log density by which a peak lags that is of no account: what it holds beside the best one is some e^-25."""
FEW = 5
"""Prompts: where hits or misses lie in fewer, their spread says nothing of how far edges of one prompt go together."""


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
    errors: tuple[Interval, ...]


def votes(margins: Floats, tie: float) -> Floats:
    """Margins [E, J] (better minus worse, in points of the scale) to votes; less than `tie` apart is a tie."""
    return np.where(np.abs(margins) < max(tie, 1e-9), np.where(np.isnan(margins), np.nan, 0.0), np.sign(margins))


def side(votes: Floats) -> Floats:
    """[E] the side that more judges take: +1, -1, or 0 where as many take either; nan where no judge has rated.

    Ties do not count: one judge against and two that rate both alike are a side against.
    """
    rated = ~np.isnan(votes)
    return np.where(rated.any(axis=1), np.sign(np.where(rated, votes, 0.0).sum(axis=1)), np.nan)


def contradicted(votes: Floats) -> float:
    """Share of edges on which two judges take opposite sides, among those on which two take any; nan without such."""
    two = (np.abs(np.nan_to_num(votes)).sum(axis=1)) >= 2
    both = (votes == 1).any(axis=1) & (votes == -1).any(axis=1)
    return float(both[two].mean()) if two.any() else math.nan


def with_others(votes: Floats) -> Ints:
    """[J] on how many edges a judge and another one take a side."""
    taken = np.abs(np.nan_to_num(votes)) == 1
    counts: Ints = (taken & (taken.sum(axis=1) >= 2)[:, None]).sum(axis=0)
    return counts


def share(hits: NDArray[np.bool_] | Floats, clusters: Ints) -> Interval:
    """Share of hits [N], each true, false or a share itself, with Wilson's interval at the effective sample size.

    Observations of one cluster [N] may go together, so N is divided by the design effect (Franco, Little, Louis & Slud
    2019), and the quantile is Student's with one degree of freedom less than there are clusters.
    """
    if not len(hits):
        return UNKNOWN
    rate, effective, z = float(hits.mean()), len(hits) / design_effect(hits, clusters), quantile(clusters)
    centre = (rate + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z * math.sqrt(rate * (1 - rate) / effective + z**2 / (4 * effective**2)) / (1 + z**2 / effective)
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def quantile(clusters: Ints) -> float:
    """Of Student's t where a variance is estimated from clusters [N]; the normal one where each has one observation."""
    groups = len(np.unique(clusters))
    return float(NORMAL if groups == len(clusters) else t.ppf(1 - TAIL, max(1, groups - 1)))


def design_effect(hits: NDArray[np.bool_] | Floats, clusters: Ints) -> float:
    """By how much observations [N], 0 to 1, in clusters [N] say less than as many independent ones; at least 1.

    The cluster-robust variance of the mean over that of independent observations. Where hits, or misses, lie in fewer
    than FEW clusters it is at least what it would be if all observations of a cluster were equal, sum n^2 / sum n.
    """
    n, rate = len(hits), float(hits.mean())
    _, place = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(place)
    groups, sums = len(sizes), np.bincount(place, weights=hits)
    rare = min((sums > 0).sum(), (sums < sizes).sum())
    least = float((sizes**2).sum() / n) if rare < FEW else 1.0
    alone = float(hits.var()) / (n - 1) if n > 1 else 0.0
    if alone == 0 or groups == 1:
        return least
    together = float(((sums - rate * sizes) ** 2).sum()) * groups / (groups - 1) / n**2
    return max(least, together / alone)


def truth(votes: Floats, clusters: Ints, seed: int = 0) -> Truth | None:
    """The rate of violations and each judge's chance of error, from how judges agree.

    Latent classes (Dawid & Skene 1979) with one error per judge: whether an edge is violated is hidden; a judge who
    takes a side is wrong with a probability below 1/2 that is the same for violated and sound edges, independently of
    the other judges. Priors: Beta(1/2, 1/2) for the rate, uniform for errors. Gibbs draws; medians with the central
    95 %. Edges of one cluster [E] count by their design effect. Mistakes that all judges share cannot be seen: they
    stay in the rate. None where no two judges take sides on an edge, or the chains have not converged on one answer;
    those at a peak of next to no mass are left out, if they are fewer than half.
    """
    decided = np.nan_to_num(votes)
    if not (np.abs(decided).sum(axis=1) >= 2).any():
        return None
    patterns, counts = np.unique(decided[np.abs(decided).any(axis=1)], axis=0, return_counts=True)
    weight = np.array([independent(votes, clusters)])
    drawn = posterior(patterns, counts[None, :], weight, np.random.default_rng(seed))
    density = log_density(drawn[::10, 0], patterns, weight[0] * counts).mean(axis=0)
    drawn = drawn[:, :, density > density.max() - BEHIND]  # some chains may have stayed at a peak that means nothing
    if drawn.shape[2] <= CHAINS / 2 or spread(drawn).max() > CONVERGED:
        return None
    rate, *errors = (_central(drawn[..., k]) for k in range(drawn.shape[-1]))
    return Truth(rate, tuple(errors))


def independent(votes: Floats, clusters: Ints) -> float:
    """As how many independent edges one edge counts, at most 1: by the design effect of the share of judges against."""
    against, taken = (votes == -1).sum(axis=1), (np.abs(np.nan_to_num(votes)) == 1).sum(axis=1)
    some = taken > 0
    effect = design_effect(against[some] / taken[some], clusters[some])
    return float((NORMAL / quantile(clusters[some])) ** 2 / effect)


def _central(draws: Floats) -> Interval:
    low, middle, high = np.quantile(draws, [TAIL, 0.5, 1 - TAIL]).tolist()
    return Interval(middle, low, high)


def posterior(patterns: Floats, counts: Ints, weight: Floats, rng: np.random.Generator) -> Floats:
    """Draws [DRAWS, B, CHAINS, 1 + J] of the rate and the errors for B tables: counts [B, P] of patterns [P, J].

    An edge counts as `weight` [B] of one, in the sums and in how much they vary from draw to draw. Chains start far
    apart, and while they burn in the weight rises from one edge in all to that (annealing), lest they stay at a peak
    that means little.
    """
    upheld, violated = (patterns == 1).astype(float), (patterns == -1).astype(float)
    counts, weight = counts[:, None, :], weight[:, None, None]
    least = 1 / (weight * counts.sum(axis=-1, keepdims=True)).clip(1)
    at = (len(counts), CHAINS)
    rate, error = rng.uniform(size=at), rng.uniform(0, 0.5, (*at, patterns.shape[1]))
    draws = np.empty((DRAWS, *at, 1 + patterns.shape[1]))
    for step in range(-BURN_IN, DRAWS):
        now = weight * least ** max(0.0, -1 - 2 * step / BURN_IN)
        edges = now * counts  # [B, 1, P]
        odds = expit(logit(rate)[..., None] + logit(error) @ patterns.T)
        hidden = rng.binomial(counts, odds)  # [B, CHAINS, P] edges that are violated in truth
        mean = edges * odds
        hidden = (mean + np.sqrt(now) * (hidden - counts * odds)).clip(0, edges)
        wrong, right = (h @ upheld + (edges - h) @ violated for h in (hidden, edges - hidden))
        found = hidden.sum(axis=-1)
        rate = rng.beta(0.5 + found, 0.5 + (edges - hidden).sum(axis=-1)).clip(1e-9, 1 - 1e-9)
        error = below_half(1 + wrong, 1 + right, rng)
        if step >= 0:
            draws[step, ..., 0], draws[step, ..., 1:] = rate, error
    return draws


def log_density(draws: Floats, patterns: Floats, edges: Floats) -> Floats:
    """Of draws [..., 1 + J] of the rate and the errors, up to a constant; which edges are violated is summed out. edges
    [P]: how many there are, weighted, of each of the patterns [P, J]."""
    odds, error = logit(draws[..., :1]), draws[..., 1:]
    right, wrong = np.log1p(-error), np.log(error)
    upheld, violated = (patterns == 1).astype(float).T, (patterns == -1).astype(float).T
    sound, unsound = right @ upheld + wrong @ violated, wrong @ upheld + right @ violated  # [..., P]
    logs = np.logaddexp(np.log(expit(odds)) + unsound, np.log(expit(-odds)) + sound)
    prior = -0.5 * (np.log(expit(odds)) + np.log(expit(-odds)))[..., 0]
    found: Floats = logs @ edges + prior
    return found


def below_half(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    """Draws of Beta(a, b) cut off at 1/2. Where next to nothing of it lies below: its limit, exponential from 1/2."""
    drawn = rng.beta(a, b)
    above = drawn >= 0.5
    a, b = a[above], b[above]
    mass = betainc(a, b, 0.5)
    inverse = betaincinv(a, b, mass * rng.uniform(size=mass.shape))
    limit = 0.5 - rng.exponential(size=mass.shape) / np.maximum(2 * (a - b), 1)
    drawn[above] = np.where(mass > 1e-200, inverse, limit)
    return drawn.clip(1e-9, 0.5 - 1e-9)


def spread(draws: Floats) -> Floats:
    """Split R-hat (Gelman et al. 2013) of draws [N, B, C, K], [B, K]: how far the halves of chains differ."""
    half = len(draws) // 2
    halves = np.concatenate([draws[:half], draws[half : 2 * half]], axis=2)
    within = halves.var(axis=0, ddof=1).mean(axis=1)
    between = halves.mean(axis=0).var(axis=1, ddof=1)
    ratio: Floats = np.sqrt((half - 1) / half + between / within)
    return ratio
