"""How much a rating says for or against passing, judge by judge: two latent classes, seen through each one's severity.

Whether a response passes a dimension is hidden (Dawid & Skene 1979). Judge j gives category k to a response of class c
(+1/2 passes, -1/2 fails) with

    log P(k) / P(k-1) = gap_{j,d} c - severity_{j,d} - step_{j,k},

the adjacent-category model of `irt/model.stan` with two locations instead of a continuum (located latent classes,
Formann 1992). So k speaks for passing in proportion to gap: a lenient judge's high scores, which it gives to failing
responses too, say little. What responses claim to fail tells which class is which, and how often such claims are wrong
is estimated; where some are beyond doubt (checks that people wrote), a data set that is bad throughout shows too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import expit, log_softmax, logit

from dpeer.eval.irt.types import Bools, Floats, Ints

S_STEP, S_SEVERITY, S_GAP, S_DEVIATION = 2.5, 0.6, 3.0, 1.0
"""Prior sd in logits: of steps, of a judge's severity on a dimension, of its gap, and of that on a dimension."""
RIGHT, SURE = 0.9, 10.0
"""Prior of the share of claims that are right, and as how many claims it counts."""
PASSES, NEAR = 300, 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """`evidence` [U]: log odds of passing that ratings give, at even odds before them; 0 where there are none.
    `passing` [U]: the probability of passing with the share of right claims of its group. `right` [G]: that share.
    `mark` [J, D]: the score, counted in categories from 0, that says neither; a judge is more lenient the higher its
    mark. `gap` [J, D]: log odds per category. `together`: how far judges' errors on a response go together, 0 to 1; its
    ratings count as so many fewer."""

    evidence: Floats
    passing: Floats
    right: Floats
    mark: Floats
    gap: Floats
    together: float
    converged: bool


def detect(
    scores: Floats,
    dimension: Ints,
    passes: Bools,
    known: Bools,
    group: Ints,
    categories: int,
    sizes: tuple[int, int],
) -> Detection:
    """Fit by an EM algorithm.

    scores: [U, J] categories 0 to K - 1 of units, a response on a dimension each; between two whole numbers both count
        in part; nan: not rated, or a judge that is left out
    dimension, passes, known, group: [U] of each unit: its dimension, what is claimed, whether that is beyond doubt, and
        a number of those whose claims are right alike
    sizes: numbers of dimensions and of groups
    """
    D, G = sizes
    J, there, sure = scores.shape[1], ~np.isnan(scores), passes.astype(float)
    given = _given(scores, there, dimension, D, categories)
    design = _design(D, categories)
    x = np.zeros((J, design.shape[-1]))
    x[:, categories - 1 + D] = 1.0
    right, claimed = np.full(G, RIGHT), np.where(passes, 1.0, -1.0)
    posterior = np.where(known, sure, np.where(passes, RIGHT, 1 - RIGHT))
    more, together, converged = np.maximum(there.sum(axis=1), 1) - 1, 0.0, False
    for _ in range(PASSES):
        counts = (given.T @ np.stack([1 - posterior, posterior], axis=1)).reshape(J, D, categories, 2)
        x = np.stack([_stepped(design, counts[j].swapaxes(1, 2), x[j]) for j in range(J)])
        logp = log_softmax(np.einsum("dckp,jp->jdck", design, x), axis=-1)
        odds = logp[:, :, 1] - logp[:, :, 0]  # [J, D, K]
        together = _together(posterior, scores, there, dimension, np.exp(logp))
        evidence = given @ odds.ravel() / (1 + more * together)
        before, posterior = posterior, np.where(known, sure, expit(evidence + claimed * logit(right)[group]))
        agreed = np.where(passes, posterior, 1 - posterior)
        right = (RIGHT * SURE + np.bincount(group, agreed * ~known, G)) / (SURE + np.bincount(group, ~known, G))
        if converged := bool(np.abs(posterior - before).max(initial=0.0) < NEAR):
            break
    gap = x[:, [categories - 1 + D]] + x[:, categories + D :]
    mark = -odds[:, :, 0] / np.maximum(gap, 1e-6)
    return Detection(evidence, posterior, right, mark, gap, together, converged)


def _given(scores: Floats, there: Bools, dimension: Ints, D: int, K: int) -> sparse.csr_array:
    """[U, J x D x K] how often each category was given; a value between two counts as a part of both."""
    unit, judge = np.nonzero(there)
    value = scores[unit, judge]
    low = np.minimum(value.astype(np.int64), K - 2)
    column = (judge * D + dimension[unit]) * K + low
    parts = np.concatenate([1 - (value - low), value - low])
    at = (np.tile(unit, 2), np.concatenate([column, column + 1]))
    return sparse.csr_array((parts, at), shape=(len(scores), scores.shape[1] * D * K))


def _design(D: int, K: int) -> Floats:
    """[D, 2, K, P] of steps, severities, the gap and its deviations; the exponent is linear in these."""
    P = K - 1 + D + 1 + D
    design = np.zeros((D, 2, K, P))
    k = np.arange(K)
    for d in range(D):
        for c, side in enumerate((-0.5, 0.5)):
            design[d, c, :, : K - 1] = -1.0 * (k[:, None] > np.arange(K - 1))
            design[d, c, :, K - 1 + d] = -k
            design[d, c, :, K - 1 + D] = design[d, c, :, K + D + d] = side * k
    return design


def _stepped(design: Floats, counts: Floats, x: Floats) -> Floats:
    """A judge's parameters [P] after a step of Newton's method on the penalised log-likelihood of counts [D, 2, K],
    which is concave."""
    D, K = design.shape[0], design.shape[2]
    precision, total = (
        np.repeat([S_STEP, S_SEVERITY, S_GAP, S_DEVIATION], [K - 1, D, 1, D]) ** -2.0,
        counts.sum(axis=-1),
    )
    p = np.exp(log_softmax(design @ x, axis=-1))
    mean = np.einsum("dck,dckp->dcp", p, design)
    gradient = np.einsum("dck,dckp->p", counts - total[..., None] * p, design) - precision * x
    weighted = (total[..., None] * p)[..., None] * design
    hessian = np.tensordot(weighted, design, axes=([0, 1, 2], [0, 1, 2])) - np.tensordot(
        total[..., None] * mean, mean, axes=([0, 1], [0, 1])
    )
    step = np.linalg.solve(hessian + np.diag(precision), gradient)
    x = x + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
    gap = x[K - 1 + D]
    x[K - 1 + D + 1 :] = np.maximum(x[K - 1 + D + 1 :], -gap)  # a higher score never speaks against passing
    return x


def _together(posterior: Floats, scores: Floats, there: Bools, dimension: Ints, p: Floats) -> float:
    """Mean correlation of judges' deviations from what their class leads to expect; p: [J, D, 2, K]."""
    if scores.shape[1] < 2:
        return 0.0
    k = np.arange(p.shape[-1])
    mean, square = p @ k, p @ k**2
    spread = np.sqrt(np.maximum(square - mean**2, 1e-2))
    weight = np.stack([1 - posterior, posterior])  # [2, U]
    z = (scores.T[:, :, None] - mean[:, dimension]) / spread[:, dimension]  # [J, U, 2]
    z = np.where(there.T[:, :, None], z, 0.0)
    pairs = (z.sum(axis=0) ** 2 - (z**2).sum(axis=0)) / 2
    n = there.sum(axis=1)
    both = float((n * (n - 1) / 2).sum())
    return float(np.clip((weight.T * pairs).sum() / both, 0.0, 1.0)) if both else 0.0
