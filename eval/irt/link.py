"""From a location to the probabilities of scores: logits of adjacent categories, or cumulative ones (graded).

    adjacent    P(k) is proportional to exp(k slope - offset_k)                 offset_k: alpha * (tau_1 + ... + tau_k)
    graded      P(k or above) = logistic(slope - offset_k), Samejima (1969)     offset_k: alpha * tau_k

with slope = alpha * location. A score that is not used has probability zero: its adjacent offset is infinite, its
graded one that of the next score in use.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit

from dpeer.eval.irt.types import Bools, Floats, Ints


def offsets(tau: Floats, used: Bools, graded: bool) -> Floats:
    """[S, ..., K] at discrimination 1, of thresholds [S, ..., K - 1] and scores in use [..., K]."""
    tau = np.nan_to_num(tau)
    if not graded:
        cumulative: Floats = np.concatenate([np.zeros_like(tau[..., :1]), tau.cumsum(axis=-1)], axis=-1)
        cumulative[:, ~used] = np.inf
        return cumulative
    cut: Floats = np.concatenate([np.zeros_like(tau[..., :1]), tau], axis=-1)
    above: Floats = np.full(cut.shape[:-1], np.inf)
    for k in reversed(range(cut.shape[-1])):
        above = cut[..., k] = np.where(used[..., k], cut[..., k], above)
    cut[:, np.arange(cut.shape[-1]) <= used.argmax(axis=-1)[..., None]] = -np.inf
    return cut


def probabilities(slope: Floats, offsets: Floats, graded: bool = False) -> Floats:
    """Category probabilities [K, ...] of slopes [...] and offsets [K, ...]."""
    if graded:
        reached: Floats = expit(slope - offsets)
        reached[:-1] -= reached[1:].copy()
        return reached
    steps = np.arange(len(offsets)).reshape(-1, *[1] * slope.ndim)
    p: Floats = steps * slope - offsets
    p -= p.max(axis=0)
    np.exp(p, out=p)
    p /= p.sum(axis=0)
    return p


def information(p: Floats, graded: bool = False) -> Floats:
    """Fisher information [...] of a rating about its slope, of category probabilities [K, ...]."""
    if not graded:
        k = np.arange(len(p))
        return np.asarray(np.tensordot(k**2, p, axes=1) - np.tensordot(k, p, axes=1) ** 2)
    reached = np.clip(p[::-1].cumsum(axis=0)[::-1], 0.0, 1.0)
    density = reached * (1 - reached)
    moved = density - np.concatenate([density[1:], np.zeros_like(density[:1])])
    return np.asarray((moved**2 / np.maximum(p, 1e-12)).sum(axis=0))


class LogLikelihood:
    """log P of given categories [N] at slopes [N, B], and its first two derivatives in the slope. Concave in both
    links.

    offsets [K, N, B].
    """

    def __init__(self, category: Ints, offsets: Floats, graded: bool) -> None:
        self.graded = graded
        n = np.arange(len(category))
        self.category = category[:, None].astype(np.float64)
        self.own = offsets[category, n]
        if graded:
            top = np.full((1, *offsets.shape[1:]), np.inf)
            self.next = np.concatenate([offsets[1:], top])[category, n]
            self.within = np.log(-np.expm1(self.own - self.next))
        else:
            self.offsets = offsets
            self.steps = np.arange(len(offsets), dtype=np.float64)

    def value(self, slope: Floats) -> Floats:
        """[N, B]"""
        if self.graded:  # logistic(a) - logistic(b) = logistic(a) logistic(-b) (1 - exp(b - a))
            return np.asarray(log_expit(slope - self.own) + log_expit(self.next - slope) + self.within)
        return self._adjacent(slope)[0]

    def derivatives(self, slope: Floats) -> tuple[Floats, Floats]:
        """First and second [N, B]; the second is not positive."""
        if self.graded:
            below, above = expit(self.own - slope), expit(slope - self.next)
            return below - above, -(below * (1 - below) + above * (1 - above))
        _, weight, total = self._adjacent(slope)
        mean = np.tensordot(self.steps, weight, axes=1) / total
        square = np.tensordot(self.steps**2, weight, axes=1) / total
        return self.category - mean, mean**2 - square

    def _adjacent(self, slope: Floats) -> tuple[Floats, Floats, Floats]:
        weight = self.steps[:, None, None] * slope - self.offsets
        top = weight.max(axis=0)
        weight -= top
        np.exp(weight, out=weight)
        total = weight.sum(axis=0)
        return self.category * slope - self.own - top - np.log(total), weight, total
