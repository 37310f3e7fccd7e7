"""Cells: responses in a dimension, of which ratings and comparisons speak; and the items whose difficulty they meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpeer.eval.irt.types import Ints, Ratings


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Response x dimension pairs that were rated or compared, E of them sorted by dimension, and the B item x dimension
    pairs that were rated. Of others the difficulty cancels: such a cell has the first item of its dimension."""

    dimension: Ints  # [E]
    response: Ints  # [E]
    of_rating: Ints  # [N]
    of_comparison: Ints  # [2, V] of this and of the other response
    items: Ints  # [B] dimension * Q + item
    item: Ints  # [E] position in items

    @staticmethod
    def of(ratings: Ratings) -> Cells:
        r, q, c = len(ratings.response_model), len(ratings.items), ratings.comparisons
        shown = (ratings.dimension * r + ratings.response, c.dimension * r + c.response, c.dimension * r + c.other)
        cells, of_row = np.unique(np.concatenate(shown), return_inverse=True)
        of_rating, of_comparison = of_row[: len(ratings)], of_row[len(ratings) :].reshape(2, -1)
        dimension, response = cells // r, cells % r
        asked = dimension * q + ratings.response_item[response]
        kept = np.zeros(len(cells), dtype=bool)
        kept[of_rating] = True
        kept[np.searchsorted(dimension, np.flatnonzero(~ratings.rated))] = True
        items = np.unique(asked[kept])
        first = np.searchsorted(items, dimension * q)
        item = np.minimum(np.searchsorted(items, asked), len(items) - 1)
        return Cells(dimension, response, of_rating, of_comparison, items, np.where(items[item] == asked, item, first))
