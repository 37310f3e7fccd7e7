"""Which categories the likelihood of a rating is about: those in use in its dimension, by its judge."""

from __future__ import annotations

import numpy as np

from dpeer.eval.irt.types import Ints, Ratings

SURELY = 10.0
"""A category that a judge never gave, though so many such ratings would be expected from the other judges, is none of
that judge's: its threshold would run off to infinity and take the common spread of thresholds with it."""


def used_by_dimension(ratings: Ratings) -> tuple[Ints, ...]:
    """Categories that anybody gave, ascending, per dimension."""
    return tuple(np.unique(ratings.category[ratings.dimension == i]) for i in range(len(ratings.dimensions)))


def used_by_judge(ratings: Ratings, used: tuple[Ints, ...]) -> tuple[tuple[Ints, ...], ...]:
    """[J][D] positions in `used[d]` of the categories that judge j gives; all of them in doubt (see SURELY)."""
    shape = (len(ratings.judges), len(ratings.dimensions), len(ratings.scale))
    counts = np.zeros(shape)
    np.add.at(counts, (ratings.judge, ratings.dimension, ratings.category), 1)
    others = counts.sum(axis=0) - counts
    share = others / np.maximum(others.sum(axis=2, keepdims=True), 1)
    never = (counts == 0) & (share * counts.sum(axis=2, keepdims=True) >= SURELY)
    never &= ((counts > 0).sum(axis=2) > 1)[..., None]  # a constant judge keeps the scale: its severity says it all
    return tuple(
        tuple(np.flatnonzero(~never[j, d, used[d]]) for d in range(len(ratings.dimensions)))
        for j in range(len(ratings.judges))
    )
