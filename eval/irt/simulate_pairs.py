"""Comparisons drawn from a known truth, of the responses that `irt.simulate` made up.

Adjacent-category logits of {other better, tie, this better} (Agresti 1992), outcome by outcome:

  log P(tie) / P(other) = x + tie, log P(this) / P(tie) = x - tie
  x = alpha[j] * scale * (theta[m, d] + v[m, q, d] + u[r, d] + length z[r] - the other's + position[j] * (+-1/2)
                          + own_family ...)
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from dpeer.eval.irt.spec import Spec
from dpeer.eval.irt.types import Bools, Floats
from dpeer.eval.store.schema import OTHERS, OUTCOMES, PLACES


def compare(
    spec: Spec, truth: dict[str, Floats], responses: pd.DataFrame, rated: Bools, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, Floats]]:
    """Comparisons of every two models' responses of one item and sample, in both orders, as rows of the table of
    ratings, and the truth about the judges: position [J], tie [J], comparison_scale [].

    responses: response_id, model, item, sample, model_family, response_length, z (standardised log length) and own
    [R, J] as `favour_0`, `favour_1`, ..., what each judge adds to its own; ordered by model, item, sample. rated
    [M, Q, J]: who judges what.
    """
    m, q, s, j, d = spec.models, spec.items, spec.samples, spec.judges, spec.dimensions
    position = spec.position + spec.s_position * rng.standard_normal(j)
    tie = np.full(j, spec.tie)
    pairs = np.array(list(combinations(range(m), 2)))
    index = np.indices((len(pairs), q, s, j, d, 2, spec.compared)).reshape(7, -1)
    pair, item, sample, judge, dimension, order, repeat = index[:, rated[pairs[index[0], 0], index[1], index[3]]]
    this, other = ((pairs[pair, side] * q + item) * s + sample for side in (0, 1))
    favour = responses[[f"favour_{k}" for k in range(j)]].to_numpy(float)
    z = responses["z"].to_numpy(float)

    def worth(response: np.ndarray) -> Floats:
        model = response // (q * s)
        ability = truth["theta"][model, dimension] + truth["v"][model, item, dimension]
        ability = ability + truth["u"][response, dimension]
        return np.asarray(ability + spec.length * z[response] + favour[response, judge])

    x = worth(this) - worth(other) + position[judge] * np.where(order == 0, 0.5, -0.5)
    x *= np.exp(truth["log_alpha"])[judge] * spec.comparison_scale
    weights = np.stack([np.exp(-x), np.exp(tie[judge]), np.exp(x)])
    below = np.cumsum(weights / weights.sum(axis=0), axis=0)[:-1]
    outcome = np.asarray(OUTCOMES)[(rng.random(len(x)) > below).sum(axis=0)]
    kept = responses.reset_index(drop=True)
    mine = kept.loc[this, ["response_id", "model", "item", "sample", "model_family", "response_length"]]
    others = kept.loc[other, [name.removeprefix("other_") for name in OTHERS]].set_axis(list(OTHERS), axis=1)
    table = pd.concat([mine.reset_index(drop=True), others.reset_index(drop=True)], axis=1)
    table = table.assign(
        judge=judge,
        dimension=dimension,
        repeat=repeat,
        order=np.asarray(PLACES, dtype=object)[order],
        mode="import",
        status="ok",
        score=pd.array(outcome, dtype="Int32"),
    )
    scale = np.asarray(spec.comparison_scale)
    scalars = {"position_mean": np.asarray(spec.position), "tie_mean": np.asarray(spec.tie)}
    return table, {"position": position, "tie": tie, "comparison_scale": scale, **scalars}
