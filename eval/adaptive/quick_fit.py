"""A fit in seconds of the many-facet model in one dimension: for choosing what to ask next, not for claims.

The model is that of `irt/model.stan` less what hardly moves a contrast, with one effect for all responses of a model to
an item. The posterior is normal at the mode of its marginal (Tierney & Kadane 1986): effects are integrated out by
quadrature and items by Laplace's approximation, without which all scales would come out too short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from dpeer.eval.irt.types import Floats, Ints

NODES = 11
S_STEP, S_DEVIATION, S_ALPHA, S_DELTA = 2.5, 0.6, 0.4, 1.0
"""Prior sd in logits: of common thresholds, of a judge's deviations from them (severity among these), of log
discriminations and of criteria."""
LOG_SPREAD = (np.log(0.7), 0.7)
"""Prior mean and sd of the log spreads of effects and of items."""
S_ABILITY = 0.8
"""Prior sd of the log spread of abilities, whose prior median is 1, as in `model.stan`."""
PASSES, HALVED, LONGEST = 25, 8, 1.0
"""Steps of Newton's method, halvings of one, and the longest, in any parameter."""
NEAR, CONVERGED = 5.0, 5e-3
"""Gains in log density from which on the spread of abilities is learned, and nothing is left to gain."""
_DIFFERENCE, _LEAST = 1e-5, 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """N ratings in one dimension as index arrays [N], and how many of each there may be."""

    model: Ints
    item: Ints
    judge: Ints
    criterion: Ints
    category: Ints
    sizes: tuple[int, int, int, int]
    """Models, items, judges, criteria."""


@dataclass(frozen=True, slots=True, eq=False)
class QuickFit:
    ability: Floats  # [M]
    covariance: Floats  # [M, M]
    s_effect: float
    """Spread of the effects of a model's responses to an item, in logits."""
    s_item: float
    s_ability: float
    information: float
    """Of one rating about ability, at known effects, in 1 / logits^2."""
    converged: bool


def quick_fit(observed: Observed) -> QuickFit:
    """Abilities [M] with their posterior covariance, and the spreads that say what another rating is worth.

    Ratings of fewer than two categories say nothing yet: the prior, which has not converged.
    """
    if len(np.unique(observed.category)) < 2:
        return _prior(observed.sizes[0])
    marginal, M = _Marginal(observed), observed.sizes[0]
    x = marginal.settled(marginal.start())
    for _ in range(PASSES):
        step, gain, covariance = marginal.newton(x)
        if gain < CONVERGED:
            break
        x = marginal.down(x, step, gain)
        if gain < NEAR:
            marginal.learn(x, covariance)
    s_effect, s_item = np.exp(x[-2:]).tolist()
    spreads = (s_effect, s_item, marginal.s_ability)
    return QuickFit(x[:M], covariance[:M, :M], *spreads, marginal.information(x), gain < CONVERGED)


def _prior(models: int) -> QuickFit:
    spread = float(np.exp(LOG_SPREAD[0]))
    return QuickFit(np.zeros(models), np.eye(models), spread, spread, 1.0, 1.0, False)


class _Marginal:
    """Negative log density of abilities, items over their spread, thresholds, deviations of judges from them, log
    discriminations, criteria and the log spreads of effects and of items, in this order of one vector. The spread of
    abilities follows it as in an EM algorithm (Dempster, Laird & Rubin 1977). Ratings are sorted by cell, a model's
    responses to an item."""

    def __init__(self, observed: Observed) -> None:
        M, Q, J, C = self.sizes = observed.sizes
        cell = observed.model * Q + observed.item
        order = np.argsort(cell, kind="stable")
        facets = (observed.model, observed.item, observed.judge, observed.criterion)
        self.model, self.item, self.judge, self.criterion = (a[order] for a in facets)
        used, self.y = np.unique(observed.category[order], return_inverse=True)
        self.score = (used - used[0]).astype(np.float64)
        self.first = np.flatnonzero(np.diff(cell[order], prepend=-1))
        self.cell = np.repeat(np.arange(len(self.first)), np.diff(self.first, append=len(cell)))
        self.z, weights = np.polynomial.hermite_e.hermegauss(NODES)
        self.log_weight = np.log(weights / weights.sum())
        self.steps = len(used) - 1
        ends = np.cumsum([M, Q, self.steps, J * self.steps, J, C, 1, 1])
        self.blocks = [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        self.items = self.blocks[1]
        self.rest = np.delete(np.arange(ends[-1]), np.arange(M, M + Q))
        self.s_ability = 1.0

    def start(self) -> Floats:
        x = np.zeros(self.blocks[-1].stop)
        x[-2:] = LOG_SPREAD[0]
        return x

    def settled(self, x: Floats) -> Floats:
        """With the items at their mode given everything else."""
        x = x.copy()
        for _ in range(3):
            _, gradient, curvature = self.joint(x)
            x[self.items] -= gradient[self.items] / curvature
        return x

    def value(self, x: Floats) -> float:
        value, _, curvature = self.joint(x)
        return value + 0.5 * float(np.log(curvature).sum())

    def newton(self, x: Floats) -> tuple[Floats, float, Floats]:
        """A step of all but the items [p] at a settled x, what it should gain, and the inverse of the curvature
        [p, p]. Derivatives are differences of exact gradients; items meet each other in no cell."""
        _, gradient, diagonal = self.joint(x)
        columns, volumes = [], []
        for moved in (*self.rest, self.items):
            there = x.copy()
            there[moved] += _DIFFERENCE
            _, other, curvature = self.joint(there)
            columns.append((other - gradient) / _DIFFERENCE)
            volumes.append(np.log(curvature / diagonal) / (2 * _DIFFERENCE))
        hessian, by_item = np.stack(columns[:-1], axis=1), volumes.pop()
        across = hessian[self.items] / diagonal[:, None]
        inner = hessian[self.rest] - hessian[self.items].T @ across
        slope = gradient[self.rest] + np.sum(volumes, axis=1) - across.T @ (by_item + gradient[self.items])
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        inverse = (vectors / np.maximum(np.abs(values), _LEAST)) @ vectors.T
        step = inverse @ slope
        return step, float(slope @ step), inverse

    def down(self, x: Floats, step: Floats, gain: float) -> Floats:
        """The point that a step leads to, halved until it leads down; else the same."""
        before = self.value(x)
        share = min(1.0, LONGEST / np.abs(step).max())
        for _ in range(HALVED):
            there = x.copy()
            there[self.rest] -= share * step
            there = self.settled(there)
            if self.value(there) <= before - 0.05 * share * gain:
                return there
            share /= 2
        return x

    def learn(self, x: Floats, covariance: Floats) -> None:
        """The spread of abilities from what is known of them, and its prior: without one it would fall to zero where
        the models are equal."""
        M = self.sizes[0]
        centred = np.eye(M) - 1 / M
        spread = np.square(centred @ x[:M]).sum() + np.trace(centred @ covariance[:M, :M])

        def slope(log: float) -> float:
            return float(spread * np.exp(-2 * log) - (M - 1) - log / S_ABILITY**2)

        self.s_ability = float(np.exp(brentq(slope, -10.0, 10.0)))

    def information(self, x: Floats) -> float:
        p, _, alpha, weight, _ = self._parts(x)
        mean, square = np.tensordot(self.score, p, 1), np.tensordot(self.score**2, p, 1)
        return float((np.square(alpha) * (weight * (square - mean**2)).sum(axis=1)).mean())

    def joint(self, x: Floats) -> tuple[float, Floats, Floats]:
        """Negative log density, its gradient by Fisher's identity, and its curvature along each item [Q] by Louis's."""
        p, place, alpha, weight, log_likelihood = self._parts(x)
        M, Q, J, C = self.sizes
        mean = np.tensordot(self.score, p, 1)
        residual = alpha[:, None] * (self.score[self.y][:, None] - mean)  # [N, nodes]
        weighted = weight * residual
        by_eta = weighted.sum(axis=1)
        by_alpha = (weighted * place).sum(axis=1)
        given = np.stack([(weight * q).sum(axis=1) for q in p])  # [K, N]
        by_step = np.cumsum(given[:0:-1], axis=0)[::-1] - (self.y > np.arange(self.steps)[:, None])
        deviation = np.stack([np.bincount(self.judge, row, J) for row in by_step], axis=1)
        by_log_alpha = np.bincount(self.judge, by_alpha, J)
        away, precision = x.copy(), self._precision()
        away[-2:] -= LOG_SPREAD[0]
        s_effect, s_item = np.exp(x[-2:])
        by_item = np.bincount(self.item, by_eta, Q)
        gradient = precision * away - np.concatenate(
            [
                np.bincount(self.model, by_eta, M),
                -s_item * by_item,
                deviation.sum(axis=0),
                deviation.ravel(),
                by_log_alpha - by_log_alpha.mean(),
                -np.bincount(self.criterion, by_eta, C),
                [s_effect * (weighted.sum(axis=0) @ self.z), -s_item * (by_item @ x[self.items])],
            ]
        )
        value = 0.5 * away @ (precision * away) - log_likelihood
        spread = np.tensordot(self.score**2, p, 1) - mean**2
        told = np.square(alpha) * (weight * spread).sum(axis=1)
        whole = np.add.reduceat(residual, self.first, axis=0)
        by_cell = weight[self.first]
        doubt = (by_cell * whole**2).sum(axis=1) - np.square((by_cell * whole).sum(axis=1))
        curvature = np.bincount(self.item, told, Q) - np.bincount(self.item[self.first], doubt, Q)
        return float(value), gradient, s_item**2 * np.maximum(curvature, 0.0) + 1

    def _precision(self) -> Floats:
        """Of the prior, per parameter."""
        sds = (self.s_ability, 1.0, S_STEP, S_DEVIATION, S_ALPHA, S_DELTA, LOG_SPREAD[1], LOG_SPREAD[1])
        return np.concatenate([np.full(b.stop - b.start, sd**-2.0) for b, sd in zip(self.blocks, sds, strict=True)])

    def _parts(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats, float]:
        """Probabilities [K, N, nodes], locations [N, nodes], discriminations [N], the nodes' posterior weights
        [N, nodes], and the log-likelihood."""
        ability, item, step, deviation, log_alpha, criterion, s_effect, s_item = (x[b] for b in self.blocks)
        alpha = np.exp(log_alpha - log_alpha.mean())[self.judge]
        eta = ability[self.model] - (np.exp(s_item) * item)[self.item] - criterion[self.criterion]
        place = eta[:, None] + np.exp(s_effect) * self.z
        thresholds = np.cumsum(step + deviation.reshape(-1, self.steps), axis=1)[self.judge]
        slope = alpha[:, None] * place
        p = np.empty((self.steps + 1, *place.shape))
        p[0] = 0.0
        for k in range(self.steps):
            np.subtract(slope * self.score[k + 1], thresholds[:, k, None], out=p[k + 1])
        p -= p.max(axis=0)
        said = np.take_along_axis(p, self.y[None, :, None], axis=0)[0]
        np.exp(p, out=p)
        total = p.sum(axis=0)
        p /= total
        joint = np.add.reduceat(said - np.log(total), self.first, axis=0) + self.log_weight  # [cells, nodes]
        top = joint.max(axis=1, keepdims=True)
        weight = np.exp(joint - top)
        sums = weight.sum(axis=1, keepdims=True)
        return p, place, alpha, (weight / sums)[self.cell], float((top + np.log(sums)).sum())
