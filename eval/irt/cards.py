"""What is known of each judge, one row per judge: a card."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeer.eval.irt.types import Bools, Floats, Ratings


def judge_cards(
    ratings: Ratings, judges: pd.DataFrame, kappa: pd.DataFrame, drift: pd.DataFrame | None
) -> pd.DataFrame:
    """judge, person, n, and with columns _low and _high:

    severity, alpha: of the fit (there are infit and the like too)
    own_family, own_model: points that it gives to its own more than other judges do to the same responses, less the
        same gap on other models'
    position: points by which it scores higher with the scale listed from the top
    length: points that it scores higher than others do, per sd of log length
    shown_first: of the fit, logits that being shown first adds in a comparison

    and without: kappa_people, kappa_models (mean weighted kappa with people and with other models), moved (logits since
    the earlier fit), tokens (read and written per rating), price (of 1,000 usable ratings, in `currency`), comparisons
    and tie_share. Intervals of effects: mean +- 2 standard errors.

    Descriptive: every judge is compared with the other judges of the same responses, no model is fitted.
    """
    score = np.asarray(ratings.scale, dtype=np.float64)[ratings.category]
    unit = np.unique(ratings.response * len(ratings.criteria) + ratings.criterion, return_inverse=True)[1]
    total, count = np.bincount(unit, score), np.bincount(unit)
    mine = unit * len(ratings.judges) + ratings.judge
    cell = np.unique(mine, return_inverse=True)[1]
    own_total, own_count = np.bincount(cell, score)[cell], np.bincount(cell)[cell]
    others = count[unit] - own_count
    gap = np.where(others > 0, score - (total[unit] - own_total) / np.maximum(others, 1), np.nan)
    length = ratings.response_length[ratings.response]
    rows = []
    for j, name in enumerate(ratings.judges):
        at = ratings.judge == j
        row: dict[str, object] = {"judge": name, "person": name in ratings.people, "n": int(at.sum())}
        row |= _effect("own_family", _difference(gap[at], ratings.own_family[at]))
        row |= _effect("own_model", _difference(gap[at], ratings.own_model[at]))
        row |= _effect("position", _difference(score[at], ratings.reversed[at], cell[at]))
        row |= _effect("length", _slope(gap[at], length[at]))
        row["tokens"] = ratings.tokens.get(name, np.nan)
        row |= {"price": ratings.price.get(name, np.nan), "currency": ratings.currency}
        rows.append(row | _with_others(name, kappa, ratings.people))
    cards = pd.DataFrame(rows)
    judges = judges.rename(columns=lambda name: name.replace("position", "shown_first"))
    of_fit = ("severity", "alpha", "infit", "shown_first", "comparisons", "tie_share")
    fitted = [c for c in judges if c.startswith(of_fit)]
    cards = cards.merge(judges[["judge", *fitted]], on="judge", how="left")
    if drift is not None:
        moved = drift[(drift["kind"] == "judge")].groupby("name")["difference"].mean()
        cards["moved"] = cards["judge"].map(moved)
    return cards


Estimate = tuple[float, float]
"""A mean and its standard error."""


def _effect(name: str, estimate: Estimate) -> dict[str, float]:
    mean, error = estimate
    return {name: mean, f"{name}_low": mean - 2 * error, f"{name}_high": mean + 2 * error}


def _difference(values: Floats, marked: Bools, pair: np.ndarray | None = None) -> Estimate:
    """Mean of marked values minus that of the others; with `pair`, within the pairs that have both."""
    known = np.isfinite(values)
    values, marked = values[known], marked[known]
    if pair is not None:
        frame = pd.DataFrame({"pair": pair[known], "marked": marked, "value": values})
        both = frame.pivot_table(index="pair", columns="marked", values="value", aggfunc="mean").dropna()
        if both.shape[1] < 2 or len(both) < 2:
            return np.nan, np.nan
        gaps = (both[True] - both[False]).to_numpy()
        return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    a, b = values[marked], values[~marked]
    if min(len(a), len(b)) < 2:
        return np.nan, np.nan
    return float(a.mean() - b.mean()), float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


def _slope(values: Floats, x: Floats) -> Estimate:
    """Least-squares slope of values over x."""
    known = np.isfinite(values)
    values, x = values[known], x[known]
    spread = ((x - x.mean()) ** 2).sum() if len(x) > 2 else 0.0
    if spread <= 0:
        return np.nan, np.nan
    slope = float(((x - x.mean()) * values).sum() / spread)
    rest = values - values.mean() - slope * (x - x.mean())
    return slope, float(np.sqrt((rest**2).sum() / (len(x) - 2) / spread))


def _with_others(name: str, kappa: pd.DataFrame, people: tuple[str, ...]) -> dict[str, float]:
    """Mean kappa with people and with models, weighted by shared units."""
    mine = kappa[(kappa["judge"] == name) | (kappa["other"] == name)]
    partner = mine["other"].where(mine["judge"] == name, mine["judge"])
    human = partner.isin(people)
    found = {}
    for key, part in (("people", mine[human]), ("models", mine[~human])):
        part = part[part["kappa"].notna()]
        found[f"kappa_{key}"] = float(np.average(part["kappa"], weights=part["units"])) if len(part) else np.nan
    return found
