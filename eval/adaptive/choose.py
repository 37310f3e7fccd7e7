"""Which ratings to ask next: those that narrow the open contrasts most per rating, foretold by a normal approximation.

A cell is what a model answered to an item, in one dimension. Its n ratings say as much about ability less difficulty as
a normal observation of variance s_effect^2 + 1 / (n information); items are integrated out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpeer.eval.irt.types import Bools, Floats, Ints

PASSES = 8
"""Parts of a batch between which gains are computed anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """The ratings that may be asked for, in U units: all questions to a judge about a response on one dimension."""

    model: Ints  # [U]
    item: Ints  # [U]
    sample: Ints  # [U] number of the response among those of its model to the item
    judge: Ints  # [U]
    dimension: Ints  # [U]
    size: Ints  # [U] ratings
    shape: tuple[int, int, int, int]
    """Models, items, judges, dimensions."""
    base: int

    @property
    def cell(self) -> Ints:
        """[U] index into dimension x model x item."""
        M, Q, _, _ = self.shape
        return np.asarray((self.dimension * M + self.model) * Q + self.item)

    def counts(self, asked: Bools) -> Floats:
        """Ratings per cell [D, M, Q]."""
        M, Q, _, D = self.shape
        n = np.bincount(self.cell, np.where(asked, self.size, 0), D * M * Q)
        return np.asarray(n, np.float64).reshape(D, M, Q)


FINER = 4
"""Towards the end a batch is what is left to ask over this, but no less than the usual one over this: the last rounds
shall not ask for much more than it takes."""
LEAST_ITEMS = 8
"""Of the first batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """What is known of a dimension: spreads of effects, items and abilities, and what a rating says."""

    s_effect: float = 0.8
    s_item: float = 0.8
    s_ability: float = 1.0
    information: float = 0.9


def turns(design: Design, seed: int) -> Ints:
    """[U] whose turn it is within its cell: new responses before second judges, judges in an order that moves on from
    item to item, so that they share the ratings of every model and every batch evenly."""
    J = design.shape[2]
    judge = np.random.default_rng(seed).permutation(J)[design.judge]
    rank = (judge + _places(design, seed)[design.item] + design.sample) % J
    order = np.lexsort((design.sample, rank, design.cell))
    cell = design.cell[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    turn = np.empty(len(cell), np.int64)
    turn[order] = np.arange(len(cell)) - np.repeat(first, np.diff(first, append=len(cell)))
    return turn


def _places(design: Design, seed: int) -> Ints:
    """[Q] of the items in a random order: neighbours begin with other judges, so that every stretch is balanced."""
    return np.argsort(np.random.default_rng(seed).permutation(design.shape[1]))


def opening(design: Design, ratings: int, seed: int) -> Bools:
    """[U] the first batch: items in random order with all judges and models, about so many ratings, LEAST_ITEMS at
    least, so that severities and the spread of responses are known early."""
    place = _places(design, seed)[design.item]
    total = np.cumsum(np.bincount(place, design.size, design.shape[1]))
    return np.asarray(place < max(LEAST_ITEMS, int(np.searchsorted(total, ratings)) + 1))


def variances(design: Design, counts: Floats, worth: list[Worth]) -> Floats:
    """[D, M] of the contrasts with the base, foretold for so many ratings per cell [D, M, Q]; 0 for the base itself."""
    found = [_covariance(_weights(n, w), w) for n, w in zip(counts, worth, strict=True)]
    b = design.base
    return np.array([c.diagonal() + c[b, b] - 2 * c[b] for c in found])


def _weights(n: Floats, worth: Worth) -> Floats:
    """Precision of a cell with n ratings."""
    return np.asarray(n / (n * worth.s_effect**2 + 1 / worth.information))


def _covariance(weights: Floats, worth: Worth) -> Floats:
    """Of abilities [M, M], from the precisions of cells [M, Q]."""
    shared = weights / np.sqrt(weights.sum(axis=0) + worth.s_item**-2)
    precision = np.diag(weights.sum(axis=1) + worth.s_ability**-2) - shared @ shared.T
    return np.linalg.inv(precision)


def next_batch(design: Design, asked: Bools, open_: Bools, worth: list[Worth], ratings: int, seed: int) -> Bools:
    """[U] units to ask now, about `ratings` ratings; fewer towards the end, none where no more would help.

    open_: [D, M] contrasts that are not decided; models without one are left out, except for the base. Greedy: the gain
    is what the sum of the open contrasts' variances falls by, to first order, per rating. An item that is new is opened
    with all models that are in; elsewhere each model may get one rating more.
    """
    turn = turns(design, seed)
    chosen = np.zeros(len(turn), bool)
    wanted = open_.copy()
    wanted[:, design.base] = open_.any(axis=1)
    waiting = ~asked & wanted[design.dimension, design.model]
    place = _places(design, seed)[design.item]
    ratings = max(min(ratings, int(design.size[waiting].sum()) // FINER), ratings // FINER, 1)
    while ratings > 0 and (waiting & ~chosen).any():
        left = np.flatnonzero(waiting & ~chosen)
        left = left[np.lexsort((turn[left], design.cell[left]))]
        head = left[np.diff(design.cell[left], prepend=-1) > 0]  # next unit of each cell
        gain = _gains(design, design.counts(asked | chosen), open_, worth, head)
        quota = max(1, ratings // PASSES)
        order = np.lexsort((place[head], -np.round(gain / gain.max(initial=1e-300), 9)))
        taken = order[np.cumsum(design.size[head[order]]) - design.size[head[order]] < quota]
        chosen[head[taken]] = True
        ratings -= int(design.size[head[taken]].sum())
    return chosen


def _gains(design: Design, counts: Floats, open_: Bools, worth: list[Worth], head: Ints) -> Floats:
    """[len(head)] by how much a unit narrows the open contrasts of its dimension per rating; units that would open an
    item share what they gain together."""
    gains = np.zeros(len(head))
    for d, known in enumerate(worth):
        here = np.flatnonzero(design.dimension[head] == d)
        if not len(here):
            continue
        unit = head[here]
        model, item = design.model[unit], design.item[unit]
        weights = _weights(counts[d], known)
        covariance = _covariance(weights, known)
        contrasts = covariance[open_[d]] - covariance[design.base]  # [c, M]
        more = np.zeros_like(weights)
        more[model, item] = _weights(counts[d][model, item] + design.size[unit], known) - weights[model, item]
        new = counts[d].sum(axis=0) == 0

        def narrowed(w: Floats, contrasts: Floats = contrasts, known: Worth = known) -> Floats:
            """[..., Q] what items with these precisions [..., M, Q] take from the variances."""
            total = w.sum(axis=-2) + known.s_item**-2
            square = np.einsum("...mq,cm->...q", w, contrasts**2)
            return np.asarray(square - (np.einsum("...mq,cm->...cq", w, contrasts) ** 2).sum(axis=-2) / total)

        before = narrowed(weights)
        ratings = np.bincount(item, design.size[unit], design.shape[1])
        together = (narrowed(weights + more) - before) / np.maximum(ratings, 1)
        one = np.stack([narrowed(weights + more * (np.arange(len(more)) == m)[:, None]) for m in range(len(more))])
        alone = (one - before)[model, item] / design.size[unit]
        gains[here] = np.where(new[item], together[item], alone)
    return gains
