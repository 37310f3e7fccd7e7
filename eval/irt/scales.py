"""How large effects are and how much a rating tells: guessed at first, then measured by a short pilot chain.

They decide how far each block of `model.stan` is centred and where its metric starts. The posterior does not depend on
them, the time to reach it does: the best centring of a block follows from the ratio of its spread to its precision
(Papaspiliopoulos et al. 2007), and both differ by an order of magnitude between data sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dpeer.eval.irt import comparisons
from dpeer.eval.irt.fit_statistics import information
from dpeer.eval.irt.types import Floats, Posterior, Ratings

SPREAD = 0.7
"""First guess of the spread of abilities, difficulties and response effects, in logits."""
LEAST = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Standard deviations of effects in logits, and the information of one rating about its response."""

    theta: Floats  # [D]
    beta: Floats  # [D]
    u: Floats  # [D]
    information: Floats  # [R, D] what its ratings tell of each response: inverse variance
    compared: Floats  # [R, D] what its comparisons tell
    ability: Floats  # [M, D] where abilities are about
    severity: float = 0.5
    dev: float = 0.25
    tau: float = 0.25
    alpha: float = 0.35
    judge_model: float = 0.25
    judge_item: float = 0.25
    v: Floats = field(default_factory=lambda: np.zeros(0))  # [D]


def by_response(ratings: Ratings, each: Floats) -> Floats:
    """Sums [R, D] of a figure of each rating [N]."""
    shape = (len(ratings.response_model), len(ratings.dimensions))
    cell = ratings.response * shape[1] + ratings.dimension
    sums: Floats = np.bincount(cell, each, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    return sums


def guessed(ratings: Ratings) -> Scales:
    d = len(ratings.dimensions)
    spread = np.full(d, SPREAD)
    categories = (ratings.category[ratings.dimension == i] for i in range(d))
    variance = np.array([np.var(given) if len(given) else 0.0 for given in categories])
    each = np.clip(0.5 * variance, 0.1, 2.0)[ratings.dimension]
    return Scales(
        theta=spread,
        beta=spread,
        u=spread,
        information=by_response(ratings, each),
        compared=comparisons.information(ratings),
        ability=np.zeros((len(ratings.models), d)),
        v=spread,
    )


def measured(pilot: Posterior, before: Scales) -> Scales:
    """Means over the pilot's draws; what the model lacks, or nothing was rated for, stays as it was."""

    def mean(name: str, otherwise: Floats | float) -> Floats:
        spread = pilot.flat(f"s_{name}").mean(axis=0) if f"s_{name}" in pilot.draws else np.asarray(otherwise)
        return np.asarray(np.maximum(np.where(np.isnan(spread), otherwise, spread), LEAST), dtype=np.float64)

    taste = "favour" if "s_favour" in pilot.draws else "judge_model"
    return Scales(
        theta=mean("theta", before.theta),
        beta=mean("beta", before.beta),
        u=mean("u", before.u),
        v=mean("v", before.v),
        information=by_response(pilot.ratings, information(pilot)),
        compared=before.compared,
        ability=pilot.flat("theta").mean(axis=0),
        **{
            name: float(mean(name, getattr(before, name))) for name in ("severity", "dev", "tau", "alpha", "judge_item")
        },
        judge_model=float(mean(taste, before.judge_model)),
    )


def helmert(x: Floats) -> Floats:
    """The free values that Stan's `sum_zero` turns into x - mean(x)."""
    i = np.arange(1, len(x))
    return np.asarray((np.cumsum(x)[:-1] - i * x[1:]) / np.sqrt(i * (i + 1)))
