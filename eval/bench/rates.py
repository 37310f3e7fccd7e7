"""From what items say to rates with intervals, and to differences of two models on the same items. Pure functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence, Set

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

from dpeer.eval.audit.rates import CONFIDENCE, UNKNOWN, Interval, share

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 5000
ALL = "all"
"""Stands for the judges together: an item counts as the mean of what they say of it."""
ITEM = ["item", "sample"]
OF = ["benchmark", "metric", "judge", "model"]


def rate(values: Floats, clusters: Ints, unit: str) -> Interval:
    """Mean of values [N] in clusters [N] with its 95 % interval: Wilson's at the effective number of items for a share,
    the cluster bootstrap for another mean."""
    return share(values, clusters) if unit == "share" else _bootstrapped(values, clusters)


def difference(mine: Floats, base: Floats, clusters: Ints, unit: str) -> Interval:
    """Mean of `mine` less that of `base` [N], of the same items in clusters [N], with its 95 % interval.

    Shares: the ends of both Wilson intervals are put together with the correlation of the two (Newcombe 1998, method
    10; Zou & Donner 2008), which needs no difference to be there and stays within -1 to 1. Other means: the cluster
    bootstrap of the differences.
    """
    if unit != "share":
        return _bootstrapped(mine - base, clusters)
    if not len(mine):
        return UNKNOWN
    a, b = share(mine, clusters), share(base, clusters)
    together = _correlation(mine, base, clusters)

    def half(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 + y**2 - 2 * together * x * y))

    middle = a.rate - b.rate
    low, high = half(a.rate - a.low, b.high - b.rate), half(a.high - a.rate, b.rate - b.low)
    return Interval(middle, max(-1.0, middle - low), min(1.0, middle + high))


def _correlation(mine: Floats, base: Floats, clusters: Ints) -> float:
    """Of the two means over clusters; 0 where one does not vary."""
    sums, sizes = _sums(np.stack([mine, base]), clusters)
    residuals = sums - np.array([[mine.mean()], [base.mean()]]) * sizes
    scale = np.sqrt((residuals**2).sum(axis=1))
    return float((residuals[0] * residuals[1]).sum() / scale.prod()) if (scale > 0).all() else 0.0


def _sums(values: Floats, clusters: Ints) -> tuple[Floats, Floats]:
    """Sums [K, C] of values [K, N] over C clusters, and the sizes [C] of these."""
    _, place = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(place, weights=v) for v in values]), np.bincount(place).astype(float)


def _bootstrapped(values: Floats, clusters: Ints) -> Interval:
    """BCa where it is defined, else percentiles; nan for the ends where there are not two clusters."""
    if not len(values):
        return UNKNOWN
    mean = float(values.mean())
    (sums,), sizes = _sums(values[None], clusters)
    if len(sizes) < 2:
        return Interval(mean, math.nan, math.nan)

    def statistic(s: Floats, n: Floats, axis: int = -1) -> Floats:
        ratio: Floats = s.sum(axis=axis) / n.sum(axis=axis)
        return ratio

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of equal values, for which BCa has no answer
            found = bootstrap(
                (sums, sizes), statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, method=method,
                confidence_level=CONFIDENCE, rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
        if not math.isnan(found.low):
            break
    return Interval(mean, float(found.low), float(found.high))


def with_all(
    outcomes: pd.DataFrame, rules: Sequence[str], incomplete: Set[tuple[str, str, str, int]] = frozenset()
) -> pd.DataFrame:
    """Outcomes with rows of the judge ALL: per item the mean over judges, without `rules` where there are others, and
    without the `incomplete` ones (benchmark, model, item, sample), which a judge left out: the judges who are left may
    be the lenient ones, and an item without one of them moves every rate and difference.

    Columns: benchmark, metric, judge, model, item, sample, cluster, group, value. Of repeats of one judge the mean.
    """
    keys = ["benchmark", "metric", "model", *ITEM, "cluster", "group"]
    per_judge = outcomes.groupby([*keys, "judge"], sort=False, as_index=False)["value"].mean()
    ruled = per_judge["judge"].isin(rules)
    judged = per_judge[~ruled]
    alone = ~per_judge["benchmark"].isin(judged["benchmark"])
    of = zip(judged["benchmark"], judged["model"], judged["item"], judged["sample"], strict=True)
    whole = np.array([key not in incomplete for key in of], dtype=bool)
    several = pd.concat([judged[whole], per_judge[ruled & alone]])
    pooled = several.groupby(keys, sort=False, as_index=False)["value"].mean().assign(judge=ALL)
    return pd.concat([pooled, per_judge], ignore_index=True)[[*OF, *ITEM, "cluster", "group", "value"]]


def rates(outcomes: pd.DataFrame, units: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """A row per benchmark, metric, judge and model: rate, low, high, items, clusters. `units`: (benchmark, metric) ->
    share or mean."""
    rows = []
    for of, group in outcomes.groupby(OF, sort=False):
        clusters = group["cluster"].factorize()[0]
        found = rate(group["value"].to_numpy(float), clusters, units[of[0], of[1]])
        counts = {"items": group["item"].nunique(), "clusters": int(clusters.max()) + 1}
        rows.append(dict(zip(OF, of, strict=True)) | _columns(found) | counts)
    return pd.DataFrame(rows, columns=[*OF, "rate", "low", "high", "items", "clusters"])


def differences(outcomes: pd.DataFrame, units: Mapping[tuple[str, str], str], base: str) -> pd.DataFrame:
    """A row per benchmark, metric, judge and model but the base: its rate less the base's on the items that both have,
    with low, high and the number of these. Samples of an item count as their mean."""
    rows = []
    for of, group in outcomes.groupby(OF[:-1], sort=False):
        wide = group.pivot_table(index=["cluster", "item"], columns="model", values="value", aggfunc="mean", sort=False)
        for model in wide.columns if base in wide else ():
            if model == base:
                continue
            both = wide[[model, base]].dropna()
            clusters = both.index.get_level_values("cluster").factorize()[0]
            found = difference(
                both[model].to_numpy(float), both[base].to_numpy(float), clusters, units[of[0], of[1]]
            )  # fmt: skip
            rows.append(dict(zip(OF, (*of, model), strict=True)) | _columns(found) | {"items": len(both)})
    return pd.DataFrame(rows, columns=[*OF, "rate", "low", "high", "items"])


def _columns(found: Interval) -> dict[str, float]:
    return {"rate": found.rate, "low": found.low, "high": found.high}


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent shares with their intervals put together (Zou & Donner 2008)."""
    if not intervals:
        return UNKNOWN
    n = len(intervals)
    middle = sum(i.rate for i in intervals) / n
    low = math.sqrt(sum((i.rate - i.low) ** 2 for i in intervals)) / n
    high = math.sqrt(sum((i.high - i.rate) ** 2 for i in intervals)) / n
    return Interval(middle, max(0.0, middle - low), min(1.0, middle + high))
