"""Does the model describe the comparisons? Each pair of models in each dimension against replicated outcomes, all
judges and both orders together.

Written from the formula, not from the Stan program: the weights of {other better, tie, this better} are exp(-x),
exp(tie) and exp(x), with x = alpha scale (worth of this - worth of the other + position (+-1/2) + own_family ...) and
worth = theta + group (model, group, dimension) + v (model, item, dimension) + u + judge x model + length.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeer.eval.irt.comparisons import ties_share
from dpeer.eval.irt.fit_statistics import LEAST_GAP, discrimination, thin
from dpeer.eval.irt.people import favoured
from dpeer.eval.irt.types import Floats, Ints, Posterior

_CHUNK = 1_000_000  # comparisons x draws at once


def outcome_probabilities(posterior: Posterior, draws: Ints, place: Ints) -> Floats:
    """[3, V, B] of {other better, tie, this better} at B flat draws; place: where they stand among kept effects."""
    r, c = posterior.ratings, posterior.ratings.comparisons

    def last(name: str, chosen: Ints = draws) -> Floats:
        return np.moveaxis(posterior.flat(name)[chosen], 0, -1)

    def worth(response: Ints) -> Floats:
        model, item = r.response_model[response], r.response_item[response]
        value = last("theta")[model, c.dimension]
        for name, chosen, at in (
            ("group", draws, (model, r.item_group[item] if r.groups else item, c.dimension)),
            ("judge_model", draws, (c.judge, model)),
            ("v", place, (model, item, c.dimension)),
            ("u", place, (response, c.dimension)),
        ):
            if name in posterior.draws:
                value = value + last(name, chosen)[at]
        if "favour" in posterior.draws:
            value = value + favoured(r, last("favour"), c.judge, c.dimension, model)
        if "length" in posterior.draws:
            value = value + last("length")[c.dimension] * r.response_length[response, None]
        return np.asarray(value)

    x = worth(c.response) - worth(c.other)
    if "position" in posterior.draws:
        x += last("position")[c.judge] * c.place[:, None]
    for name, marks in (("own_family", c.own_family), ("own_model", c.own_model)):
        if name in posterior.draws:
            x += last(name) * marks[:, None]
    x *= discrimination(posterior, draws)[c.judge]
    if "comparison_scale" in posterior.draws:
        x *= last("comparison_scale")
    tie = last("tie")[c.judge] if "tie" in posterior.draws else np.full(x.shape, np.nan)
    logits = np.stack([-x, np.where(np.isnan(tie), -np.inf, tie), x])
    weights = np.exp(logits - logits.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0))


def comparison_table(posterior: Posterior, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """dimension, model, other, n, better, ties, worse, and observed, the mean outcome for `model` (-1 to 1), with the
    expected one and its 95 % posterior predictive interval; notable: it lies outside, by a gap that is not trivial."""
    r, c = posterior.ratings, posterior.ratings.comparisons
    m, (this, other) = len(r.models), (r.response_model[c.response], r.response_model[c.other])
    sign = np.where(this < other, 1, -1)
    first, second = np.minimum(this, other), np.maximum(this, other)
    cells, cell = np.unique((c.dimension * m + first) * m + second, return_inverse=True)
    n = np.bincount(cell)
    score = sign * (c.outcome - 1)
    counts = {
        name: np.bincount(cell[score == value], minlength=len(cells))
        for name, value in (("better", 1), ("ties", 0), ("worse", -1))
    }
    rng, means = np.random.default_rng(seed), []
    index, place = thin(posterior, draws)
    size = max(1, _CHUNK // len(c))
    for start in range(0, len(index), size):
        part = slice(start, start + size)
        p = outcome_probabilities(posterior, index[part], place[part])
        made = (rng.random(p.shape[1:]) > np.cumsum(p, axis=0)[:2]).sum(axis=0) - 1
        means += [np.bincount(cell, column, minlength=len(cells)) / n for column in (sign[:, None] * made).T]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    observed, expected = np.bincount(cell, score) / n, np.mean(means, axis=0)
    return pd.DataFrame(
        {
            "dimension": np.array(r.dimensions, dtype=object)[cells // m**2],
            "model": np.array(r.models, dtype=object)[cells // m % m],
            "other": np.array(r.models, dtype=object)[cells % m],
            "n": n,
            **counts,
            "observed": observed,
            "expected": expected,
            "expected_low": low,
            "expected_high": high,
            "notable": ((observed < low) | (observed > high)) & (np.abs(observed - expected) > LEAST_GAP),
        }
    )


def of_judges(posterior: Posterior) -> dict[str, Floats | Ints]:
    """Columns of the judge table: comparisons, tie_share, and position with its interval (logits that being shown first
    adds; nan where it is not known)."""
    judges = len(posterior.ratings.judges)
    n, ties = ties_share(posterior.ratings.comparisons, judges)
    position = posterior.flat("position") if "position" in posterior.draws else np.full((1, judges), np.nan)
    low, high = np.quantile(position, [0.025, 0.975], axis=0)
    bounds = {"position": position.mean(axis=0), "position_low": low, "position_high": high}
    return {"comparisons": n, "tie_share": ties, **bounds}
