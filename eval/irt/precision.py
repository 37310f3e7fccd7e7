"""How precise an evaluation will be, before it is made: the half-width of a difference of two models (a D-study).

What the ratings of a response tell is the Fisher information of the shipped model in one dimension, with the response's
own effect u integrated out: about the place of its model, and about all else that is estimated with it: severities,
discriminations, thresholds, and the spread of u, which decides how long a logit is. It is the mean product of the score
functions of simulated responses, so thresholds, ceilings and judges who hardly tell scores apart count as they do in a
fit. Model x item effects and item difficulties are eliminated as random effects. Over all items, with the priors of the
model, that gives the posterior covariance of the models' positions.

Severities, difficulties and judge x item effects cancel where the same judges rate the same items of both models, as in
all designs of dpeer. Judge x model effects do not: they stay with the mean of the judges, however many the items.

The prior of abilities narrows the posterior, but draws the estimate to zero as much: it is no evidence of a difference.
What is said of a true difference d therefore rests on the sd without it (`unshrunken`).
Generalisability theory (Brennan 2001) calls the shares variance components, and choosing numbers by them a D-study.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.simulate import Spec
from dpeer.eval.irt.types import GRADED, Floats, Ints, Posterior

Z95 = 1.96
DRAWS = 800
"""Simulated responses per model behind an information; its Monte-Carlo error is some 3 %, of a half-width 1.5 %."""
NODES = 25
"""Of the response effect, over four standard deviations to either side."""
HALO_NODES = 5
"""Of a judge's halo on a response (Gauss-Hermite)."""
NEVER = 10**7
"""Items from which on nobody looks for more."""
FIRM = 1e4
"""Precision with which a block sums to zero."""


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
    s_severity: float = 0.5
    s_alpha: float = 0.35
    """Of log discriminations; 0: they are all 1."""
    s_tau: float = 0.25
    """Of judges' deviations from the common thresholds, in log odds."""
    criteria: int = 1
    """Ratings of a judge per response, dimension and repeat."""
    s_judge_model: float = 0.0
    s_halo: float = 0.0
    """Of what a judge adds to all its ratings of a response."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What the ratings of one response of each of M models tell, on average, about P parameters (see `_blocks`)."""

    all: Floats
    """[M, P, P] mean product of the scores."""
    cross: Floats
    """[M, P] the same with the score of the response's own place."""
    place: Floats
    """[M] information about that place alone."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rated:
    """A judge's ratings of each simulated response: by whom [n], and sums over them at the nodes of u.

    Over: 1 where a score reaches k, less the probability of that, with the judge's halo integrated out.
    """

    judge: Ints
    alpha: Floats
    """[n]"""
    over: Floats
    """[M, n, nodes, K - 1]"""
    rest: Floats
    """[M, n, nodes] scores less their means"""
    stretch: Floats
    """[M, n, nodes] over times distance from the threshold"""


def components_of(posterior: Posterior) -> list[Components]:
    """Variance components of a pilot fit, one per dimension that was rated, at posterior means.

    Raises IrtError for a fit of comparisons only, or one of graded responses."""
    r = posterior.ratings

    def mean(name: str, absent: float = 0.0) -> Floats:
        return np.asarray(posterior.flat(name).mean(axis=0) if name in posterior.draws else absent)

    position = mean("theta") + mean("mu")
    if not len(r):
        raise IrtError(
            "the pilot holds comparisons only, and designs of ratings need its thresholds and severities; take a fit "
            "of ratings as the pilot"
        )
    if posterior.options.model == GRADED:
        raise IrtError(
            "the pilot is a fit with --model graded, and designs are forecast for logits of adjacent categories; fit "
            "the same ratings with --model gmfrm as the pilot"
        )
    alpha = np.exp(np.broadcast_to(mean("log_alpha"), len(r.judges)))
    found = []
    for d in np.flatnonzero(r.rated):
        name = r.dimensions[d]
        mine = np.flatnonzero(r.judge_rated[:, d])
        of_dimension = {s: float(np.broadcast_to(mean(s), len(r.dimensions))[d]) for s in ("s_theta", "s_u", "s_v")}
        found.append(
            Components(
                dimension=name,
                position=position[:, d],
                **of_dimension,
                s_beta=float(np.nanstd(mean("beta")[:, d])),
                severity=mean("severity")[mine, d],
                alpha=alpha[mine],
                steps=mean("tau")[mine, d],
                s_severity=max(0.1, float(np.hypot(mean("s_severity"), mean("s_dev")))),
                s_alpha=float(mean("s_alpha")),
                s_tau=max(0.1, float(mean("s_tau"))),
                criteria=sum(dimension == name for dimension, _ in r.criteria),
                s_judge_model=float(mean("s_judge_model")),
                s_halo=float(mean("s_halo")),
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
    s_severity = float(np.hypot(spec.s_severity, spec.s_dev))
    return Components(
        dimension="any",
        position=spec.mu + quantiles(spec.models, spec.s_theta),
        s_theta=spec.s_theta,
        s_beta=spec.s_beta,
        s_u=spec.s_u,
        s_v=spec.s_v,
        severity=quantiles(spec.judges, s_severity),
        alpha=np.exp(np.roll(quantiles(spec.judges, spec.s_alpha), 1)),
        steps=np.tile(steps, (spec.judges, 1)),
        s_severity=max(0.1, s_severity),
        s_alpha=spec.s_alpha,
        s_tau=max(0.1, spec.s_tau),
        criteria=spec.criteria,
        s_halo=spec.s_halo,
    )


@lru_cache(maxsize=256)
def told(c: Components, judges: int, ratings: int, pool: int, seed: int = 0) -> Told:
    """From simulated responses, each rated by `judges` of `pool` judges, `ratings` times by each.

    Judges beyond those that are known are taken to be of their kind.
    """
    rng = np.random.default_rng(seed)
    kind = np.arange(pool) % len(c.alpha)
    team = rng.permuted(np.tile(np.arange(pool), (DRAWS, 1)), axis=1)[:, :judges]  # [n, judges]
    place = c.position[:, None] - c.s_beta * rng.standard_normal((len(c.position), DRAWS))  # [M, n]
    u = c.s_u * rng.standard_normal(place.shape)
    z = np.linspace(-4, 4, NODES) if c.s_u > 0 else np.zeros(1)
    log = np.broadcast_to(stats.norm.logpdf(z), (*place.shape, len(z))).copy()
    halo, share = np.polynomial.hermite_e.hermegauss(HALO_NODES if c.s_halo > 0 else 1)
    seen = []
    for j in range(judges):
        who = kind[team[:, j]]
        alpha, steps, at = c.alpha[who], c.steps[who], place - c.severity[who]
        own = c.s_halo * rng.standard_normal(place.shape) if c.s_halo > 0 else 0.0
        logits = _log_odds(at + u + own, alpha, steps)
        scores = [(logits + rng.gumbel(size=logits.shape)).argmax(axis=-1) for _ in range(ratings)]
        eta = at[..., None, None] + c.s_u * z[:, None] + c.s_halo * halo  # [M, n, nodes, halo nodes]
        around = _log_odds(eta, alpha[:, None, None], steps[:, None, None])
        around -= np.logaddexp.reduce(around, axis=-1, keepdims=True)
        joint = np.log(share / share.sum()) + sum(
            np.take_along_axis(around, score[..., None, None, None], axis=-1)[..., 0] for score in scores
        )
        each = np.logaddexp.reduce(joint, axis=-1)
        log += each
        seen.append(_rated(team[:, j], alpha, steps, scores, eta, np.exp(around), np.exp(joint - each[..., None])))
    weight = np.exp(log - log.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    score, place_score = _scores(c, pool, weight, z, seen)
    return Told(
        np.einsum("mni,mnj->mij", score, score) / DRAWS,
        np.einsum("mni,mn->mi", score, place_score) / DRAWS,
        np.asarray((place_score**2).mean(axis=1)),
    )


def _rated(
    judge: Ints, alpha: Floats, steps: Floats, scores: list[Ints], eta: Floats, chance: Floats, halo: Floats
) -> _Rated:
    """eta, halo (its posterior): [M, n, nodes, halo nodes]; chance: [..., K]."""
    reached = sum(score[..., None] >= np.arange(1, chance.shape[-1]) for score in scores)  # [M, n, K - 1]
    passed = np.flip(np.flip(chance, -1).cumsum(axis=-1), -1)[..., 1:]
    over = np.asarray(reached)[..., None, None, :] - len(scores) * passed
    rest = np.einsum("mnuh,mnuhk->mnu", halo, over)
    over = np.where(np.isnan(steps)[:, None, None], 0.0, over)
    at = np.einsum("mnuh,mnuhk->mnuk", halo, over)
    stretch = np.einsum("mnuh,mnuh,mnuhk->mnu", halo, eta, over) - np.einsum("mnuk,nk->mnu", at, np.nan_to_num(steps))
    return _Rated(judge, alpha, at, rest, stretch)


def _log_odds(eta: Floats, alpha: Floats, steps: Floats) -> Floats:
    """Unnormalised log probabilities [..., K]; a score that the judge does not use has none."""
    each = alpha[..., None] * (eta[..., None] - np.nan_to_num(steps))
    total = np.concatenate([np.zeros((*each.shape[:-1], 1)), each.cumsum(axis=-1)], axis=-1)
    unused = np.concatenate([np.zeros((*steps.shape[:-1], 1), bool), np.isnan(steps)], axis=-1)
    return np.asarray(np.where(unused, -np.inf, total))


def _blocks(c: Components, pool: int) -> list[slice]:
    """Of the parameters: positions, log s_u, severities, log discriminations, thresholds, deviations per judge."""
    steps = c.steps.shape[1]
    ends = np.cumsum([0, len(c.position), 1, pool, pool, steps, pool * steps]).tolist()
    return [slice(a, b) for a, b in pairwise(ends)]


def _scores(c: Components, pool: int, weight: Floats, z: Floats, seen: list[_Rated]) -> tuple[Floats, Floats]:
    """Scores of all parameters [M, n, P], and of the response's place [M, n]: means over u given the ratings.

    weight: posterior of u on the nodes s_u * z, [M, n, nodes]
    """
    positions, spread, severity, log_alpha, common, deviation = _blocks(c, pool)
    models, n = weight.shape[:2]
    scores, own, rows = np.zeros((models, n, deviation.stop)), np.zeros((models, n)), np.arange(n)
    for r in seen:
        above = np.einsum("mnu,mnuk->mnk", weight, r.over)
        rest = np.einsum("mnu,mnu->mn", weight, r.rest)
        own += r.alpha * rest
        scores[:, rows, severity.start + r.judge] -= r.alpha * rest
        scores[:, rows, log_alpha.start + r.judge] += r.alpha * np.einsum("mnu,mnu->mn", weight, r.stretch)
        scores[..., common] -= r.alpha[:, None] * above
        for k in range(above.shape[-1]):
            scores[:, rows, deviation.start + r.judge * above.shape[-1] + k] -= above[..., k]
    for m in range(models):
        scores[m, :, positions.start + m] = own[m]
    if c.s_u > 0:
        scores[..., spread.start] = np.einsum("mnu,u->mn", weight, z**2) - 1
    return scores, own


def information(c: Components, judges: int, ratings: int, seed: int = 0) -> Floats:
    """Fisher information [M] that one response's ratings hold about its model's place, all else being known."""
    return told(c, judges, ratings, max(judges, len(c.alpha)), seed).place


def _per_item(c: Components, design: Design, pool: int) -> Floats:
    """Information [P, P] in one item, with model x item effects and its difficulty eliminated.

    Judge x model effects [M, J], where there are any, come after the parameters of `_blocks`.
    """
    t = told(c, design.judges, design.repeats * c.criteria, pool)
    each, cross, place = (design.samples * x for x in (t.all, t.cross, t.place))
    if c.s_judge_model > 0:
        within = _judge_model(c, pool)
        each, cross = within @ each @ within.swapaxes(1, 2), np.einsum("mqp,mp->mq", within, cross)
    left = 1 / (1 + c.s_v**2 * place)  # [M]
    each = each - np.einsum("mi,mj,m->mij", cross, cross, c.s_v**2 * left)
    shared, common = (cross * left[:, None]).sum(axis=0), float((place * left).sum())
    return np.asarray(each.sum(axis=0) - np.outer(shared, shared) * c.s_beta**2 / (1 + c.s_beta**2 * common))


def _judge_model(c: Components, pool: int) -> Floats:
    """[M, P + M J, P] adds the scores of judge x model effects: a severity reversed, of one model alone."""
    severity, deviation = _blocks(c, pool)[2], _blocks(c, pool)[-1]
    models, p = len(c.position), deviation.stop
    within = np.zeros((models, p + models * pool, p))
    within[:, :p] = np.eye(p)
    for m in range(models):
        within[m, p + m * pool : p + (m + 1) * pool, severity] = -np.eye(pool)
    return within


def _prior(c: Components, pool: int) -> Floats:
    """Precision [P, P] of the priors in `model.stan`, at the components' scales, and what sums to zero."""
    positions, spread, severity, log_alpha, common, deviation = _blocks(c, pool)
    models = len(c.position)
    size = deviation.stop + (models * pool if c.s_judge_model > 0 else 0)
    precision = np.zeros((size, size))
    if c.s_judge_model > 0:
        effects = slice(deviation.stop, size)
        precision[effects, effects] = np.eye(models * pool) / c.s_judge_model**2
    precision[positions, positions] = 1 / (25 * models**2)  # of mu
    if c.s_theta > 0:
        precision[positions, positions] += (np.eye(models) - 1 / models) / c.s_theta**2
    heavy = c.s_u**2 / 4  # s_u ~ student_t(4), seen on the log scale
    precision[spread, spread] = 10 * heavy / (1 + heavy) ** 2 if c.s_u > 0 else 1.0
    steps = c.steps.shape[1]
    own = [slice(deviation.start + j * steps, deviation.start + (j + 1) * steps) for j in range(pool)]
    scales = [(severity, c.s_severity), (log_alpha, max(c.s_alpha, 1e-3)), (common, 2.5), *((b, c.s_tau) for b in own)]
    for block, sd in scales:
        precision[block, block] = np.eye(block.stop - block.start) / sd**2 + FIRM
    return precision


def _sd(c: Components, precision: Floats) -> float:
    """Root mean square over pairs of models of the sd of their difference."""
    covariance = np.linalg.inv(precision)[: len(c.position), : len(c.position)]
    apart = len(c.position) * np.trace(covariance) - covariance.sum()
    return float(np.sqrt(2 * apart / (len(c.position) * (len(c.position) - 1))))


def difference_sd(c: Components, *parts: Design) -> float:
    """Posterior sd of the difference of two models, in logits: root mean square over pairs.

    `parts` share the models and have items of their own, such as those that all judges rate and the others.
    """
    pool = max(len(c.alpha), *(part.judges for part in parts))
    total = np.sum([part.items * _per_item(c, part, pool) for part in parts], axis=0)
    return _sd(c, total + _prior(c, pool))


def items_needed(c: Components, design: Design, sd: float, most: int = NEVER) -> int:
    """Items from which the sd of a difference is at most `sd`, all else of the design being equal; at most `most`."""
    pool = max(len(c.alpha), design.judges)
    each, prior = _per_item(c, design, pool), _prior(c, pool)
    low, high = 0, 1
    while high < most and _sd(c, high * each + prior) > sd:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _sd(c, middle * each + prior) > sd else (low, middle)
    return min(high, most)


def reliability(c: Components, sd: float) -> float:
    """Generalisability coefficient: share of the variance of unshrunken abilities that is not error."""
    return unshrunken(sd, c.s_theta)[1] if c.s_theta > 0 else 0.0


def unshrunken(sd: float, s_theta: float) -> tuple[float, float]:
    """(se, w) of a difference with posterior sd `sd`: its sd without the prior of abilities, and its weight against it.

    The posterior mean is w times the unshrunken estimate, sd^2 = w se^2, w = 2 s_theta^2 / (2 s_theta^2 + se^2).
    s_theta: 0 where there is no such prior
    """
    weight = max(1 - sd**2 / (2 * s_theta**2), 1e-12) if s_theta > 0 else 1.0
    return float(sd / np.sqrt(weight)), float(weight)


def power(sd: float, difference: float, s_theta: float) -> float:
    """Probability that the 95 % interval of a true difference leaves out zero, on the right side."""
    se, weight = unshrunken(sd, s_theta)
    return float(stats.norm.cdf(difference / se - Z95 / np.sqrt(weight)))


def right_order(sd: float, difference: float, s_theta: float) -> float:
    """Probability that two models which truly differ by this much are put in the right order."""
    return float(stats.norm.cdf(difference / unshrunken(sd, s_theta)[0]))
