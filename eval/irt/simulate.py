"""Ratings drawn from the many-facet model with a known truth: the oracle of recovery and coverage studies.

Adjacent-category logits (Masters 1982; many-facet: Linacre 1989; with judge discriminations: Uto & Ueno 2020):

  log P(k) / P(k - 1) = alpha[j] * (mu[d] + theta[m, d] - beta[q, d] - severity[j, d] - delta[c] + u[r, d] + halo[j, r]
                                    + length[d] * z[r] + order * (+-1/2) + own_family + own_model - tau[j, d, k])

with the sum-to-zero rules of the fitted model, but none of its code: probabilities, category by category. Comparisons
of the same responses (`irt.simulate_pairs`) may stand beside the ratings or in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpeer.errors import ConfigError
from dpeer.eval.irt.linking import linked_design
from dpeer.eval.irt.simulate_pairs import compare
from dpeer.eval.irt.types import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Spec:
    """A design and the truth behind it. Spreads and effects are in logits; 0 switches a term off."""

    models: int = 8
    items: int = 60
    dimensions: int = 4
    judges: int = 3
    categories: int = 5
    samples: int = 1
    """Responses per model and item."""
    repeats: int = 1
    """Ratings per judge, response and criterion; every second one lists the scale from the top."""
    criteria: int = 1
    """Per dimension."""
    families: int = 4
    """Model m is of family m modulo this number; so is judge j."""
    self_judges: int = 0
    """So many judges are models under test: judge j is model j."""
    linked: tuple[int, int] | None = None
    """Anchor items and judges per response of a linked design; None: every judge rates everything."""
    missing: float = 0.0
    """Share of ratings that did not parse."""
    rated: bool = True
    """Whether responses are rated; without, there are comparisons only."""
    compared: int = 0
    """How often each judge compares every two models' responses to an item, each time in both orders."""
    position: float = 0.0
    """What being shown first adds in a comparison, mean over judges."""
    s_position: float = 0.0
    """Spread of that over judges."""
    tie: float = 0.0
    """Log odds of a tie between equals, over either of them winning."""
    comparison_scale: float = 1.0
    """Logits of a comparison per logit of a rating."""
    mu: float = 0.0
    s_theta: float = 1.0
    correlation: float = 0.3
    """Of abilities between any two dimensions."""
    s_beta: float = 0.8
    s_u: float = 0.8
    s_severity: float = 0.6
    s_dev: float = 0.2
    s_alpha: float = 0.25
    """Of log discrimination; 0 is the many-facet Rasch model."""
    s_delta: float = 0.3
    s_tau: float = 0.2
    """Of a judge's deviations from the common thresholds."""
    step: float = 1.0
    """Distance of neighbouring thresholds."""
    s_halo: float = 0.0
    length: float = 0.0
    """Per standard deviation of log response length."""
    order: float = 0.0
    own_family: float = 0.0
    own_model: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("models", "items", "dimensions", "judges", "samples", "repeats", "criteria", "families")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; must be at least 1")
        if not 2 <= self.categories <= 10:
            raise ConfigError(f"categories: {self.categories}; must be from 2 to 10")
        if not 0 <= self.self_judges <= min(self.judges, self.models):
            raise ConfigError(f"self_judges: {self.self_judges}; must be from 0 to the number of judges and of models")
        if not 0 <= self.missing < 1:
            raise ConfigError(f"missing: {self.missing}; must be from 0 to less than 1")
        spreads = ("theta", "beta", "u", "severity", "dev", "alpha", "delta", "tau", "halo", "position")
        for name in (f"s_{spread}" for spread in spreads):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}; a standard deviation is not negative")
        if not -1 / max(self.dimensions - 1, 1) < self.correlation < 1:
            raise ConfigError(f"correlation: {self.correlation}; not possible between {self.dimensions} dimensions")


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
        + halo[j, r]
        + spec.length * z[r]
        + spec.order * (down - 0.5)
        + spec.own_family * (m % spec.families == judge_family)
        + spec.own_model * ((m == j) & (j < spec.self_judges))
    )
    category = _draw(location, np.exp(truth["log_alpha"])[j], truth["tau"][j, d], rng)
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
    truth |= {name: np.full(d, getattr(spec, name)) for name in ("s_theta", "s_beta", "s_u")}
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


def _names(kind: str, count: int) -> NDArray[np.object_]:
    width = len(str(count - 1))
    return np.array([f"{kind}{i:0{width}d}" for i in range(count)], dtype=object)
