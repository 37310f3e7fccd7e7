"""Ratings drawn from the many-facet model with a known truth: the oracle of recovery and coverage studies.

Adjacent-category logits (Masters 1982; many-facet: Linacre 1989; with judge discriminations: Uto & Ueno 2020):

  log P(k) / P(k - 1) = alpha[j] * (mu[d] + theta[m, d] - beta[q, d] - severity[j, d] - delta[c] + v[m, q, d] + u[r, d]
                                    + halo[j, r] + length[d] * z[r] + order * (+-1/2) + own_family + own_model
                                    - tau[j, d, k])

with the sum-to-zero rules of the fitted model, but none of its code: probabilities, category by category. Comparisons
of the same responses (`irt.simulate_pairs`) may stand beside the ratings or in their place. With `link: graded` the
same alpha (location - tau[j, d, k]) is the logit of P(k or above) (Samejima 1969).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeer.eval.irt.linking import linked_design
from dpeer.eval.irt.simulate_pairs import compare
from dpeer.eval.irt.spec import Spec
from dpeer.eval.irt.types import GRADED, Bools, Floats, Ints

__all__ = ["Spec", "simulate"]


def simulate(spec: Spec, seed: int) -> tuple[pd.DataFrame, dict[str, Floats]]:
    """A ratings table (scores 1..K) and its truth, named and shaped like `Posterior.draws` without chains and draws.

    Names sort in the order of the truth's axes. Truth `u` [R, D] is by response, ordered by model, item and sample.
    """
    rng = np.random.default_rng(seed)
    truth = _truth(spec, rng)
    response_model, response_item, response_sample = (
        axis.ravel() for axis in np.indices((spec.models, spec.items, spec.samples))
    )
    log_length = 6.5 + 0.3 * rng.standard_normal(spec.models)[response_model]
    log_length = log_length + 0.5 * rng.standard_normal(len(response_model))
    characters = np.maximum(np.rint(np.exp(log_length)), 1).astype(np.int64)
    z = np.log(characters)
    z = (z - z.mean()) / z.std()

    rated = _rated(spec, seed)[response_model, response_item]
    r, j = np.nonzero(rated)
    r, j, d, c, repeat = _crossed(r, j, spec.dimensions, spec.criteria, spec.repeats)
    m, q = response_model[r], response_item[r]
    judge_family = j % spec.families
    halo = spec.s_halo * rng.standard_normal((spec.judges, len(response_model)))
    down = repeat % 2 == 1
    location = (
        truth["mu"][d]
        + truth["theta"][m, d]
        - truth["beta"][q, d]
        - truth["severity"][j, d]
        - truth["delta"][d * spec.criteria + c]
        + truth["u"][r, d]
        + truth["v"][m, q, d]
        + halo[j, r]
        + spec.length * z[r]
        + spec.order * (down - 0.5)
        + spec.own_family * (m % spec.families == judge_family)
        + spec.own_model * ((m == j) & (j < spec.self_judges))
    )
    draw = _draw_graded if spec.link == GRADED else _draw
    category = draw(location, np.exp(truth["log_alpha"])[j], truth["tau"][j, d], rng)
    parsed = rng.random(len(r)) >= spec.missing

    models = _names("model", spec.models)
    items = _names("item", spec.items)
    dimensions = _names("dimension", spec.dimensions)
    criteria = _names("criterion", spec.criteria)
    families = _names("family", spec.families)
    judges = np.concatenate([models[: spec.self_judges], _names("rater", spec.judges)[spec.self_judges :]])
    responses = np.array(
        [f"{models[a]}/{items[b]}/{s}" for a, b, s in zip(response_model, response_item, response_sample, strict=True)],
        dtype=object,
    )
    table = pd.DataFrame(
        {
            "response_id": responses[r],
            "model": models[m],
            "item": items[q],
            "sample": response_sample[r],
            "dimension": dimensions[d],
            "criterion": criteria[c],
            "judge": judges[j],
            "repeat": repeat,
            "order": np.where(down, "down", "up"),
            "mode": "import",
            "status": np.where(parsed, "ok", "unparsed"),
            "score": pd.array(category + 1, dtype="Int32"),
            "model_family": families[m % spec.families],
            "judge_family": families[judge_family],
            "response_length": characters[r],
        }
    )
    table.loc[~parsed, "score"] = pd.NA
    rating_id = table["response_id"] + ":" + table["judge"] + ":" + table["dimension"] + ":" + table["criterion"]
    table.insert(0, "rating_id", rating_id + ":" + table["repeat"].astype(str))
    if not spec.compared:
        return table, truth
    favour = spec.own_family * (response_model[:, None] % spec.families == np.arange(spec.judges) % spec.families)
    own = (response_model[:, None] == np.arange(spec.judges)) & (np.arange(spec.judges) < spec.self_judges)
    favour = favour + spec.own_model * own
    shown = pd.DataFrame(
        {
            "response_id": responses,
            "model": models[response_model],
            "item": items[response_item],
            "sample": response_sample,
            "model_family": families[response_model % spec.families],
            "response_length": characters,
            "z": z,
            **{f"favour_{k}": column for k, column in enumerate(favour.T)},
        }
    )
    pairs, known = compare(spec, truth, shown, _rated(spec, seed), rng)
    judge, dimension, again = pairs["judge"], pairs["dimension"], pairs["repeat"].astype(str)
    pairs = pairs.assign(
        judge=judges[judge],
        dimension=dimensions[dimension],
        criterion=criteria[0],
        judge_family=families[judge % spec.families],
    )
    keys = [pairs[name] for name in ("other_response_id", "judge", "dimension", "order")]
    pairs["rating_id"] = pairs["response_id"].str.cat([*keys, again], ":")
    kept = [table, pairs] if spec.rated else [pairs]
    return pd.concat(kept, ignore_index=True), truth | known


def _truth(spec: Spec, rng: np.random.Generator) -> dict[str, Floats]:
    m, q, j, d, k = spec.models, spec.items, spec.judges, spec.dimensions, spec.categories
    correlation = np.full((d, d), spec.correlation) + (1 - spec.correlation) * np.eye(d)
    main = spec.s_severity * _centred(rng.standard_normal(j), 0)
    deviation = spec.s_dev * _centred(rng.standard_normal((j, d)), 0, 1) if d > 1 else np.zeros((j, d))
    common = spec.step * (np.arange(k - 1) - (k - 2) / 2)
    truth = {
        "theta": spec.s_theta * _centred(rng.standard_normal((m, d)) @ np.linalg.cholesky(correlation).T, 0),
        "mu": np.full(d, spec.mu),
        "severity": main[:, None] + deviation,
        "severity_judge": main,
        "log_alpha": spec.s_alpha * _centred(rng.standard_normal(j), 0),
        "beta": spec.s_beta * _centred(rng.standard_normal((q, d)), 0),
        "delta": spec.s_delta * _centred(rng.standard_normal((d, spec.criteria)), 1).ravel(),
        "tau": common + spec.s_tau * _centred(rng.standard_normal((j, d, k - 1)), 0, 2),
        "u": spec.s_u * rng.standard_normal((m * q * spec.samples, d)),
        "correlation": correlation,
        "length": np.full(d, spec.length),
    }
    if spec.link == GRADED:
        truth["tau"] = np.sort(truth["tau"], axis=-1)
    truth["v"] = spec.s_v * rng.standard_normal((m, q, d)) if spec.s_v else np.zeros((m, q, d))
    truth["theta_these"] = truth["theta"] + truth["v"].mean(axis=1)
    truth |= {name: np.full(d, getattr(spec, name)) for name in ("s_theta", "s_beta", "s_u", "s_v")}
    scalars = ("s_severity", "s_dev", "s_tau", "s_alpha", "s_halo", "order", "own_family", "own_model")
    return truth | {name: np.asarray(getattr(spec, name), dtype=np.float64) for name in scalars}


def _centred(values: Floats, *axes: int) -> Floats:
    for axis in axes:
        values = values - values.mean(axis=axis, keepdims=True)
    return values


def _rated(spec: Spec, seed: int) -> Bools:
    if spec.linked is None:
        return np.ones((spec.models, spec.items, spec.judges), bool)
    anchors, per_response = spec.linked
    return linked_design(spec.models, spec.items, spec.judges, anchors, per_response, seed)


def _crossed(r: Ints, j: Ints, *sizes: int) -> tuple[Ints, ...]:
    """Every pair (r, j) with every combination of the other facets."""
    inner = [axis.ravel() for axis in np.indices(sizes)]
    each = len(inner[0])
    return np.repeat(r, each), np.repeat(j, each), *(np.tile(axis, len(r)) for axis in inner)


def _draw(location: Floats, alpha: Floats, tau: Floats, rng: np.random.Generator) -> Ints:
    """Categories [N] from locations [N], discriminations [N] and thresholds [N, K - 1]."""
    weights = np.ones((len(location), tau.shape[1] + 1))
    for k in range(tau.shape[1]):
        weights[:, k + 1] = weights[:, k] * np.exp(alpha * (location - tau[:, k]))
    below = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    category: Ints = (rng.random(len(location))[:, None] > below).sum(axis=1)
    return category


def _draw_graded(location: Floats, alpha: Floats, tau: Floats, rng: np.random.Generator) -> Ints:
    """The same of cumulative logits: how many ascending cutpoints lie below location plus logistic noise."""
    noise = rng.logistic(size=len(location))
    category: Ints = (alpha[:, None] * (location[:, None] - tau) + noise[:, None] > 0).sum(axis=1)
    return category


def _names(kind: str, count: int) -> NDArray[np.object_]:
    width = len(str(count - 1))
    return np.array([f"{kind}{i:0{width}d}" for i in range(count)], dtype=object)
