"""How far judges agree, without a model of judging: weighted kappa of pairs and Krippendorff's alpha, with intervals.

Units are what may be rated alike: a response in a dimension on a criterion; of a judge's repeats the first counts.
Intervals are 95 % percentiles of a bootstrap over items, as responses to one prompt go together.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import sparse

from dpeer.eval.irt.types import Floats, Ints, Ratings

BOOTSTRAPS = 500
MOST_PAIRED = 12
"""Judges beyond which pairs are not listed: those with the most ratings are."""


def weighted_kappa(table: Floats, power: float = 2.0) -> Floats:
    """Kappa (Cohen, 1968) of confusion tables [..., K, K] with weights |i - j| ** power; nan without disagreement by
    chance."""
    k = table.shape[-1]
    return kappa_of(table, np.abs(np.subtract.outer(np.arange(k), np.arange(k))) ** power)


def kappa_of(table: Floats, cost: Floats) -> Floats:
    """1 - observed / expected cost of disagreement, for confusion tables [..., K, K] and costs [K, K]."""
    total = table.sum(axis=(-2, -1), keepdims=True)
    chance = table.sum(axis=-1, keepdims=True) * table.sum(axis=-2, keepdims=True)
    observed, expected = (table * cost).sum(axis=(-2, -1)), (chance * cost).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - observed * total[..., 0, 0] / expected)


def krippendorff_alpha(coincidences: Floats) -> Floats:
    """Alpha for ordinal data (Krippendorff, 2011) from coincidence matrices [..., K, K]; nan where nothing varies."""
    n_c = coincidences.sum(axis=-1)
    n = n_c.sum(axis=-1)
    below = np.cumsum(n_c, axis=-1)
    middle = below - n_c / 2  # ranks' midpoints: the sum over g = c..k of n_g, less half of both ends
    cost = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (coincidences * cost).sum(axis=(-2, -1))
    expected = (n_c[..., :, None] * n_c[..., None, :] * cost).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (n - 1) * observed / expected)


def coincidences(counts: Floats, group: Ints) -> Floats:
    """[groups, K, K] pairs of values within units, summed over the units of each group; `counts` [units, K] says how
    often each value was given, and each pair of a unit weighs 1 / (its values - 1)."""
    units, scores = counts.shape
    m = counts.sum(axis=1)
    weighted = counts * np.divide(1.0, m - 1, out=np.zeros(units), where=m > 1)[:, None]
    member = sparse.csr_array((np.ones(units), (group, np.arange(units))))
    own = np.eye(scores)
    pairs = [member @ (weighted[:, [k]] * (counts - own[k])) for k in range(scores)]
    return np.stack(pairs, axis=1)


def agreement(ratings: Ratings, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables: `alpha` (dimension, who, alpha with interval, units), `kappa` (dimension, judge, other, kappa with
    interval, exact, units; `people` counts people among the two), `confusion` (judge, dimension, score, other_score, n:
    how often another judge gave the other score to the same unit)."""
    first = _first(ratings)
    tables: dict[str, list[pd.DataFrame]] = {"alpha": [], "kappa": [], "confusion": []}
    for d, dimension in enumerate(ratings.dimensions):
        rows = first[ratings.dimension[first] == d]
        if len(rows):
            tables["alpha"].append(_alphas(ratings, rows, seed).assign(dimension=dimension))
            kappas, confusion = _pairs(ratings, rows, seed)
            tables["kappa"].append(kappas.assign(dimension=dimension))
            tables["confusion"].append(confusion.assign(dimension=dimension))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items() if parts}


def _first(ratings: Ratings) -> Ints:
    """The first rating of each unit by each judge."""
    unit = ratings.response * len(ratings.criteria) + ratings.criterion
    return np.asarray(np.unique(unit * len(ratings.judges) + ratings.judge, return_index=True)[1])


def _resampled(per_item: Floats, seed: int) -> Floats:
    """[BOOTSTRAPS, ...] sums over items drawn with replacement of per_item [items, ...]."""
    return np.asarray(np.tensordot(_times(len(per_item), seed), per_item, axes=1))


@lru_cache(maxsize=4)
def _times(items: int, seed: int) -> Floats:
    """[BOOTSTRAPS, items] how often each item is drawn."""
    return np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), BOOTSTRAPS).astype(np.float64)


def _bounds(values: Floats) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if len(known) < BOOTSTRAPS // 2:
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _alphas(ratings: Ratings, rows: Ints, seed: int) -> pd.DataFrame:
    """Of all judges, and of people and of models where there are both."""
    human = np.isin(ratings.judges, ratings.people)
    groups = {"all judges": np.ones(len(human), bool)}
    if human.any() and not human.all():
        groups |= {"people": human, "models": ~human}
    K, found = len(ratings.scale), []
    for who, members in groups.items():
        mine = rows[members[ratings.judge[rows]]]
        unit = np.unique(ratings.response[mine] * len(ratings.criteria) + ratings.criterion[mine], return_inverse=True)[
            1
        ]
        if not len(mine):
            continue
        counts = np.zeros((unit.max() + 1, K))
        np.add.at(counts, (unit, ratings.category[mine]), 1)
        shared = int((counts.sum(axis=1) > 1).sum())
        if not shared:
            continue
        item = np.empty(len(counts), dtype=np.int64)
        item[unit] = np.unique(ratings.item[mine], return_inverse=True)[1]
        per_item = coincidences(counts, item)
        low, high = _bounds(krippendorff_alpha(_resampled(per_item, seed)))
        alpha = float(krippendorff_alpha(per_item.sum(axis=0)))
        found.append({"who": who, "alpha": alpha, "alpha_low": low, "alpha_high": high, "units": shared})
    return pd.DataFrame(found, columns=["who", "alpha", "alpha_low", "alpha_high", "units"])


def _pairs(ratings: Ratings, rows: Ints, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Kappa of every two judges that share units, and each judge's confusion with all others."""
    K = len(ratings.scale)
    n = np.bincount(ratings.judge[rows], minlength=len(ratings.judges))
    people = [j for j, name in enumerate(ratings.judges) if name in ratings.people and n[j]]
    busiest = [int(j) for j in np.argsort(-n, kind="stable")[:MOST_PAIRED] if n[j]]
    chosen = sorted({*busiest, *people[:MOST_PAIRED]})
    of = {j: rows[ratings.judge[rows] == j] for j in chosen}
    units = {j: ratings.response[at] * len(ratings.criteria) + ratings.criterion[at] for j, at in of.items()}
    kappas, confused = [], np.zeros((len(ratings.judges), K, K))
    for a, b in combinations(chosen, 2):
        _, left, right = np.intersect1d(units[a], units[b], return_indices=True)
        if not len(left):
            continue
        mine, theirs = of[a][left], of[b][right]
        items, item = np.unique(ratings.item[mine], return_inverse=True)
        per_item = np.zeros((len(items), K, K))
        np.add.at(per_item, (item, ratings.category[mine], ratings.category[theirs]), 1)
        table = per_item.sum(axis=0)
        confused[a], confused[b] = confused[a] + table, confused[b] + table.T
        low, high = _bounds(weighted_kappa(_resampled(per_item, seed)))
        kappas.append(
            {
                "judge": ratings.judges[a],
                "other": ratings.judges[b],
                "people": (ratings.judges[a] in ratings.people) + (ratings.judges[b] in ratings.people),
                "kappa": float(weighted_kappa(table)),
                "kappa_low": low,
                "kappa_high": high,
                "exact": float(np.trace(table) / table.sum()),
                "units": len(left),
            }
        )
    columns = ["judge", "other", "people", "kappa", "kappa_low", "kappa_high", "exact", "units"]
    j, own, other = np.nonzero(confused)
    confusion = pd.DataFrame(
        {
            "judge": np.array(ratings.judges, dtype=object)[j],
            "score": np.array(ratings.scale)[own],
            "other_score": np.array(ratings.scale)[other],
            "n": confused[j, own, other].astype(np.int64),
        }
    )
    return pd.DataFrame(kappas, columns=columns), confusion
