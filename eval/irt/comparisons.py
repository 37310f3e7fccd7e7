"""Comparisons of two responses beside ratings of one: whom they link, what they identify, and their Stan data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsmr

from dpeer.eval.irt.categories import SURELY
from dpeer.eval.irt.types import Bools, Comparisons, Floats, Ints, Ratings

ALIASED = 1e-8
"""Share of a covariate's squares that must be left unexplained by abilities."""
OF_A_COMPARISON = 0.5
"""First guess of what a comparison tells of a response, the other one given: inverse variance in logits."""
SPREADS = {"position": 0.25, "tie": 0.35}
"""First guess of the spread of judges' preference for a place, and of their readiness to call a tie."""


# A table's rows


def sides(
    frame: pd.DataFrame, text: Mapping[str, pd.Series], compared: Bools
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """The responses of all rows, then the other ones of comparisons: N + 2 V rows, and their names."""
    swapped = {**text} | {name: text[f"other_{name}"] for name in ("model", "response_id")}
    shown = frame
    if compared.any():
        there = [name for name in ("response_id", "sample", "response_length") if name in frame]
        others = frame[compared].reindex(columns=[f"other_{name}" for name in there]).set_axis(there, axis=1)
        shown = pd.concat([frame[there].astype(object), others.astype(object)])
        if "sample" in shown:  # a column with gaps holds floats
            numbers = [int(x) if isinstance(x, float) and x.is_integer() else x for x in shown["sample"]]
            shown["sample"] = pd.Series(numbers, shown.index, dtype=object)
    return shown, {
        name: pd.concat([text[name], swapped[name][compared]]) for name in ("model", "item", "response_id", "mode")
    }


def first_of_unrated(dimension: Ints, criterion: pd.Series, compared: Bools) -> Bools:
    """A comparison of each dimension without ratings, whose criterion stands for those that nobody rated on: the first
    by name, whatever the order of the rows."""
    first = np.zeros(len(dimension), dtype=bool)
    for d in np.setdiff1d(dimension, dimension[~compared]):
        rows = np.flatnonzero(dimension == d)
        first[rows[np.argmin(pd.factorize(criterion.iloc[rows], sort=True)[0])]] = True
    return first


# What they identify


def linked(ratings: Ratings, dimension: int) -> Ints:
    """[M] label of the group of models that comparisons in a dimension link."""
    this, other = _models(ratings)
    rows = ratings.comparisons.dimension == dimension
    m = len(ratings.models)
    graph = sparse.csr_array((np.ones(rows.sum()), (this[rows], other[rows])), shape=(m, m))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def unexplained(ratings: Ratings, columns: Floats) -> Floats:
    """[p] squares of covariates [V, p] of comparisons that are left when differences of abilities explain them."""
    c, m = ratings.comparisons, len(ratings.models)
    this, other = (c.dimension * m + model for model in _models(ratings))
    rows = np.tile(np.arange(len(c)), 2)
    values = np.repeat([1.0, -1.0], len(c))
    design = sparse.csr_array(
        (values, (rows, np.concatenate([this, other]))), shape=(len(c), m * len(ratings.dimensions))
    )
    left = [values - design @ lsmr(design, values, atol=1e-12, btol=1e-12, conlim=0)[0] for values in columns.T]
    return np.array([float(rest @ rest) for rest in left])


def position_known(ratings: Ratings) -> bool:
    """Whether a preference for a place can be told from ability: not where a model always stood at the same place."""
    place = ratings.comparisons.place
    return bool(place.any()) and bool(unexplained(ratings, place[:, None])[0] > ALIASED * float(place @ place))


def gives_ties(ratings: Ratings) -> Bools:
    """[J] judges whose comparisons can end in a tie: not one that never gave any though SURELY many were expected."""
    c, j = ratings.comparisons, len(ratings.judges)
    tied = c.outcome == 1
    n, own = np.bincount(c.judge, minlength=j), np.bincount(c.judge[tied], minlength=j)
    share = (tied.sum() - own) / np.maximum(len(c) - n, 1)
    return np.asarray((own > 0) | ((share * n < SURELY) & bool(tied.any()) & (n > 0)))


def replicated(ratings: Ratings) -> bool:
    """Whether ratings and comparisons say more of single responses than there are of them: an effect of the response
    can then be told from noise. Every rating fixes a response in a dimension, a comparison a difference of two."""
    c, r = ratings.comparisons, len(ratings.response_model)
    rated, this, other = (
        d * r + response
        for d, response in (
            (ratings.dimension, ratings.response),
            (c.dimension, c.response),
            (c.dimension, c.other),
        )
    )
    cells, at = np.unique(np.concatenate([rated, this, other]), return_inverse=True)
    fixed, this, other = np.split(at, [len(rated), len(rated) + len(this)])
    ground = len(cells)  # all rated cells are linked to it
    ends = np.concatenate([fixed, this]), np.concatenate([np.full(len(fixed), ground), other])
    graph = sparse.csr_array((np.ones(len(ends[0])), ends), shape=(ground + 1, ground + 1))
    rank = ground + 1 - connected_components(graph, directed=False)[0]
    return bool(len(ratings) + len(c) > rank)


def _models(ratings: Ratings) -> tuple[Ints, Ints]:
    c = ratings.comparisons
    return ratings.response_model[c.response], ratings.response_model[c.other]


# To Stan


def information(ratings: Ratings) -> Floats:
    """[R, D] what comparisons tell of each response, roughly."""
    shape = (len(ratings.response_model), len(ratings.dimensions))
    c = ratings.comparisons
    cell = np.concatenate([c.response, c.other]) * shape[1] + np.tile(c.dimension, 2)
    return np.asarray(OF_A_COMPARISON * np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape))


def stan_comparisons(ratings: Ratings, cell_of: Ints, tastes: tuple[Ints, ...]) -> tuple[dict[str, Any], Ints]:
    """The data of `model.stan` about comparisons, and the judges that compare.

    cell_of: [2, V] cells of this and the other response; tastes: of this and of the other one's model, places
    among the effects of judges on models; empty without.
    """
    c = ratings.comparisons
    may_tie = gives_ties(ratings)
    order = np.argsort(~may_tie[c.judge], kind="stable")
    judges = np.unique(c.judge)
    this, other = cell_of[0][order] + 1, cell_of[1][order] + 1
    return {
        "rated": ratings.rated.astype(float),
        "comparisons": len(c),
        "ties": int(may_tie[c.judge].sum()),
        "comparers": len(judges),
        "comparer": judges + 1,
        "compared_by": np.searchsorted(judges, c.judge[order]) + 1,
        "cell_this": this,
        "cell_other": other,
        "judge_model_this": tastes[0][order[: len(tastes[0])]],
        "judge_model_other": tastes[1][order[: len(tastes[1])]],
        "outcome": c.outcome[order] - 1.0,
        "place": c.place[order],
        "compared_family": c.own_family[order].astype(float),
        "compared_model": c.own_model[order].astype(float),
        "use_position": len(c) > 0 and position_known(ratings),
    }, judges


def notes_of(ratings: Ratings) -> Sequence[str]:
    """What is said of comparisons whose place or ties cannot be modelled."""
    c = ratings.comparisons
    if not len(c):
        return ()
    notes = []
    if not position_known(ratings):
        notes.append(
            "comparisons: a preference for a place cannot be told from ability (of two models one always stood at the "
            "same place, or the place is not known), and is part of the abilities. Ask every pair in both orders"
        )
    may_tie, compares = gives_ties(ratings), np.bincount(c.judge, minlength=len(ratings.judges)) > 0
    never = [name for name, on in zip(ratings.judges, compares & ~may_tie, strict=True) if on]
    if may_tie.any() and never:
        notes.append(f"no tie is possible in comparisons by those who never gave one: {', '.join(never[:6])}")
    return notes


def ties_share(comparisons: Comparisons, judges: int) -> tuple[Ints, Floats]:
    """[J] comparisons of each judge, and the share of ties among them (nan without any)."""
    n = np.bincount(comparisons.judge, minlength=judges)
    tied = np.bincount(comparisons.judge[comparisons.outcome == 1], minlength=judges)
    return n, np.where(n > 0, tied / np.maximum(n, 1), np.nan)
