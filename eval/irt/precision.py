"""How precise an evaluation will be, before it is made: the half-width of a difference of two models (a D-study).

The variance of an estimated position comes from what is particular to the responses, from model x item effects and
from the ratings themselves. What the ratings of one response tell about its place is their Fisher information under the
shipped model, with the response's own effect u integrated out: the variance of the score function, which is
E[u | ratings] / s_u^2. So thresholds, ceilings and judges that hardly tell scores apart count as they do in a fit:

  variance of a model's position = (s_v^2 + 1 / (samples * information)) / items
  variance of a difference       = the sum of the two, shrunken by the prior N(0, 2 s_theta^2)

Severities and difficulties cancel where the same judges rate the same items of both models, as in all designs of dpeer.
Generalisability theory (Brennan 2001) calls the shares variance components, and choosing numbers by them a D-study.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.simulate import Spec
from dpeer.eval.irt.types import Floats, Ints, Posterior

Z95 = 1.96
DRAWS = 800
"""Simulated responses per model behind an information; its Monte-Carlo error is about 3 %, of a half-width 1.5 %."""
NODES = 41
"""Of the response effect, over four standard deviations to either side."""


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """What precision in one dimension depends on, in logits; M models, J judges, K scores."""

    dimension: str
    position: Floats
    """[M] mu + theta"""
    s_theta: float
    s_beta: float
    s_u: float
    s_v: float
    """Of model x item effects."""
    severity: Floats
    """[J]"""
    alpha: Floats
    """[J] discrimination"""
    steps: Floats
    """[J, K - 1] thresholds; nan where a judge does not use a score."""
    criteria: int = 1
    """Ratings of a judge per response, dimension and repeat."""


@dataclass(frozen=True, slots=True)
class Design:
    items: int
    judges: int
    """Of each response."""
    samples: int = 1
    """Responses per model and item."""
    repeats: int = 1
    """Ratings of a judge per response and criterion."""

    def __post_init__(self) -> None:
        for name in ("items", "judges", "samples", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; a design needs at least 1")


def components_of(posterior: Posterior) -> list[Components]:
    """Variance components of a pilot fit, one per dimension that was rated, at posterior means.

    Raises IrtError for a fit of comparisons only."""
    r = posterior.ratings

    def mean(name: str) -> Floats:
        return np.asarray(posterior.flat(name).mean(axis=0))

    position = mean("theta") + mean("mu")
    alpha = np.exp(mean("log_alpha")) if "log_alpha" in posterior.draws else np.ones(len(r.judges))
    if not len(r):
        raise IrtError(
            "the pilot holds comparisons only, and designs of ratings need its thresholds and severities; take a fit "
            "of ratings as the pilot"
        )
    found = []
    for d in np.flatnonzero(r.rated):
        name = r.dimensions[d]
        mine = np.flatnonzero(r.judge_rated[:, d])
        found.append(
            Components(
                dimension=name,
                position=position[:, d],
                s_theta=float(mean("s_theta")[d]),
                s_beta=float(np.nanstd(mean("beta")[:, d])),
                s_u=float(mean("s_u")[d]) if "s_u" in posterior.draws else 0.0,
                s_v=float(mean("s_v")[d]) if "s_v" in posterior.draws else 0.0,
                severity=mean("severity")[mine, d],
                alpha=alpha[mine],
                steps=mean("tau")[mine, d],
                criteria=sum(dimension == name for dimension, _ in r.criteria),
            )
        )
    return found


def assumed(spec: Spec) -> Components:
    """Components of a simulation's settings, which are those that people assume without a pilot.

    Positions, severities and discriminations stand at the quantiles of their distributions.
    """

    def quantiles(n: int, sd: float) -> Floats:
        values = sd * stats.norm.ppf((np.arange(n) + 0.5) / n)
        return np.asarray(values * (sd * np.sqrt((n - 1) / n) / values.std() if n > 1 and sd > 0 else 1.0))

    steps = spec.step * (np.arange(spec.categories - 1) - (spec.categories - 2) / 2)
    severity = quantiles(spec.judges, float(np.hypot(spec.s_severity, spec.s_dev)))
    return Components(
        dimension="any",
        position=spec.mu + quantiles(spec.models, spec.s_theta),
        s_theta=spec.s_theta,
        s_beta=spec.s_beta,
        s_u=spec.s_u,
        s_v=float(getattr(spec, "s_v", 0.0)),
        severity=severity,
        alpha=np.exp(np.roll(quantiles(spec.judges, spec.s_alpha), 1)),
        steps=np.tile(steps, (spec.judges, 1)),
        criteria=spec.criteria,
    )


@lru_cache(maxsize=512)
def information(c: Components, judges: int, ratings: int, seed: int = 0) -> Floats:
    """Fisher information [M] that one response's ratings hold about its model's position, u integrated out.

    judges: of a response, chosen anew for each; more than there are stand for further judges of their kind
    ratings: of each judge
    """
    rng = np.random.default_rng(seed)
    sel = _teams(len(c.alpha), judges, rng)  # [n, judges]
    eta = c.position[:, None] - c.s_beta * rng.standard_normal((len(c.position), DRAWS))  # [M, n]
    u = c.s_u * rng.standard_normal(eta.shape)
    node = np.linspace(-4, 4, NODES) * c.s_u
    log = np.broadcast_to(stats.norm.logpdf(np.linspace(-4, 4, NODES)), (*eta.shape, NODES)).copy()
    fixed = np.zeros(eta.shape)
    for j in np.repeat(np.arange(judges), ratings):
        alpha, steps = c.alpha[sel[:, j]], c.steps[sel[:, j]]
        at = eta - c.severity[sel[:, j]]
        logits = _log_odds(at + u, alpha, steps)
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)  # [M, n]
        if c.s_u > 0:
            around = _log_odds(at[..., None] + node, alpha[:, None], steps[:, None])  # [M, n, nodes, K]
            around -= np.logaddexp.reduce(around, axis=-1, keepdims=True)
            log += np.take_along_axis(around, drawn[..., None, None], axis=-1)[..., 0]
        else:
            p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
            score = np.arange(p.shape[-1])
            fixed += alpha**2 * ((p * score**2).sum(axis=-1) - (p * score).sum(axis=-1) ** 2)
    if c.s_u == 0:
        return np.asarray(fixed.mean(axis=1))
    weight = np.exp(log - log.max(axis=-1, keepdims=True))
    expected = (weight * node).sum(axis=-1) / weight.sum(axis=-1)
    return np.asarray((expected**2).mean(axis=1) / c.s_u**4)


def _teams(known: int, judges: int, rng: np.random.Generator) -> Ints:
    """[n, judges] which judges rate a response."""
    if judges >= known:
        return np.tile(np.arange(judges) % known, (DRAWS, 1))
    return np.asarray(rng.permuted(np.tile(np.arange(known), (DRAWS, 1)), axis=1)[:, :judges])


def _log_odds(eta: Floats, alpha: Floats, steps: Floats) -> Floats:
    """Unnormalised log probabilities [..., K]; a score that the judge does not use has none."""
    each = alpha[..., None] * (eta[..., None] - np.nan_to_num(steps))
    total = np.concatenate([np.zeros((*each.shape[:-1], 1)), each.cumsum(axis=-1)], axis=-1)
    unused = np.concatenate([np.zeros((*steps.shape[:-1], 1), bool), np.isnan(steps)], axis=-1)
    return np.asarray(np.where(unused, -np.inf, total))


def difference_sd(c: Components, *parts: Design) -> float:
    """Posterior sd of the difference of two models, in logits: root mean square over pairs.

    `parts` share the models and have items of their own, such as those that all judges rate and the others.
    """
    told = np.zeros(len(c.position))
    for part in parts:
        info = information(c, part.judges, part.repeats * c.criteria)
        told += part.items / (c.s_v**2 + 1 / (part.samples * info))
    return _shrunken(c, 2 * float((1 / told).mean()))


def _shrunken(c: Components, variance: float) -> float:
    prior = 1 / (2 * c.s_theta**2) if c.s_theta > 0 else 0.0
    return float((1 / variance + prior) ** -0.5)


def items_needed(c: Components, design: Design, sd: float, info: Floats) -> int:
    """Items from which the sd of a difference is at most `sd`, all else of the design being equal."""
    prior = 1 / (2 * c.s_theta**2) if c.s_theta > 0 else 0.0
    wanted = 1 / sd**2 - prior
    if wanted <= 0:
        return 1
    each = 2 * float((c.s_v**2 + 1 / (design.samples * info)).mean())
    return max(1, int(np.ceil(each * wanted - 1e-9)))


def reliability(c: Components, sd: float) -> float:
    """Generalisability coefficient: share of the variance of estimated abilities that is not error."""
    error = sd**2 / 2
    return float(c.s_theta**2 / (c.s_theta**2 + error)) if c.s_theta > 0 else 0.0


def power(sd: float, difference: float) -> float:
    """Probability that the 95 % interval of a true difference leaves out zero, on the right side."""
    return float(stats.norm.cdf(difference / sd - Z95))


def right_order(sd: float, difference: float) -> float:
    """Probability that two models which truly differ by this much are put in the right order."""
    return float(stats.norm.cdf(difference / sd))
