"""People beside models as judges: abilities without what the models' ratings have in common against the people's.

A leniency that all models share, or a taste for some model, leaves no trace in their own ratings; a few ratings by
people show it (few labels as a bridge: arXiv 2508.12792). Each kind of judge, models and people, adds an effect of its
own to each model in a dimension, normal with one estimated spread. Ability is what it is for the people; what their few
ratings leave open stays in its interval. Which responses people rate may depend on the models' ratings of them.
"""

from __future__ import annotations

import numpy as np

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.types import Bools, Floats, Ints, Options, Posterior, Ratings

LEAST = 20
"""Ratings and comparisons by people in a dimension, of two models at least, from which on it is on their scale."""


def is_person(ratings: Ratings) -> Bools:
    """[J]"""
    return np.isin(ratings.judges, ratings.people)


def judged(ratings: Ratings) -> tuple[Ints, Ints, Ints, Ints]:
    """Judge, dimension, response and model of each rating, then of both sides of each comparison."""
    c = ratings.comparisons
    judge, dimension = (
        np.concatenate([a, b, b]) for a, b in ((ratings.judge, c.judge), (ratings.dimension, c.dimension))
    )
    response = np.concatenate([ratings.response, c.response, c.other])
    return judge, dimension, response, ratings.response_model[response]


def judgements(ratings: Ratings) -> Ints:
    """[D] ratings and comparisons by people; a comparison is one, though it bears on two models."""
    person, d = is_person(ratings), len(ratings.dimensions)
    rows = (ratings, ratings.comparisons)
    return np.asarray(sum(np.bincount(r.dimension[person[r.judge]], minlength=d) for r in rows))


def by_people(ratings: Ratings) -> Ints:
    """[M, D] ratings of a model by people, and comparisons with it."""
    judge, dimension, _, model = judged(ratings)
    m, d = len(ratings.models), len(ratings.dimensions)
    own = is_person(ratings)[judge]
    return np.bincount((model * d + dimension)[own], minlength=m * d).reshape(m, d)


def scaled(ratings: Ratings, options: Options) -> Bools:
    """[D] dimensions in which abilities are on the people's scale.

    Raises IrtError where that is asked for and cannot be had."""
    judge, dimension, _, _ = judged(ratings)
    d, wanted = len(ratings.dimensions), options.people_scale
    others = np.bincount(dimension[~is_person(ratings)[judge]], minlength=d) > 0
    counts = by_people(ratings)
    least = 1 if wanted else LEAST
    there = others & (judgements(ratings) >= least) & ((counts > 0).sum(axis=0) > 1)
    if wanted is False:
        return np.zeros(d, bool)
    why = unfit(ratings, options)
    if wanted and not there.any():
        raise IrtError(
            "the people's scale cannot be had: in no dimension did people rate two models, and models judge beside "
            "them; name the people with --human, or leave --people-scale out"
        )
    if wanted and why:
        raise IrtError(f"the people's scale cannot be had {why}; leave one of the two out")
    return np.zeros(d, bool) if why else there


def unfit(ratings: Ratings, options: Options) -> str:
    """With which option the people's scale does not go; empty where with all."""
    if options.anchors:
        return "with anchors, whose judges set the scale"
    if options.judge_model:
        return (
            "beside judge-model, which gives each judge tastes of its own instead of those that models have in common"
        )
    if options.halo and len(ratings.dimensions) > 1:
        return "beside halo, which is common to the dimensions of a response, while tastes are each dimension's own"
    return ""


def taste_of(ratings: Ratings, where: Bools, judge: Ints, dimension: Ints, model: Ints) -> Ints:
    """Key of what a judge's kind adds to a model: kind, dimension, model; all are one kind where there is no scale."""
    kind = is_person(ratings)[judge] & where[dimension]
    d, m = len(ratings.dimensions), len(ratings.models)
    return np.asarray((kind * d + dimension) * m + model, dtype=np.int64)


def tastes(ratings: Ratings, where: Bools) -> Ints:
    """[X] all keys, those of models that people never rated included: of these the prior is drawn."""
    n = len(ratings.models)
    own = (len(where) + np.flatnonzero(where))[:, None] * n + np.arange(n)
    return np.concatenate([np.arange(len(where) * n), own.ravel()])


def on_their_scale(draws: dict[str, Floats], effects: Floats, ratings: Ratings, where: Bools) -> dict[str, Floats]:
    """theta, mu and severity as the people see them, and favour [.., M, D]: what judges that are models add to a model
    beyond that, zero in sum over models (nan in dimensions without that scale); from `effects` [.., X] of `tastes`.

    What a kind adds to all models alike is its severity; severities count from the people's mean."""
    m, d = len(ratings.models), len(ratings.dimensions)
    shared = np.swapaxes(effects[..., : m * d].reshape(*effects.shape[:-1], d, m), -1, -2)  # [.., M, D]
    own = shared.copy()
    own[..., where] = np.swapaxes(effects[..., m * d :].reshape(*effects.shape[:-1], -1, m), -1, -2)
    level, level_own = shared.mean(axis=-2), own.mean(axis=-2)  # [.., D]
    person = is_person(ratings)
    severity = draws["severity"] - np.where(person[:, None], level_own[..., None, :], level[..., None, :])
    counted = ratings.judge_rated & person[:, None] & where
    centre = np.where(
        counted.any(axis=0), (severity * counted).sum(axis=-2) / np.maximum(counted.sum(axis=0), 1), -level
    )
    favour = shared - own - (level - level_own)[..., None, :]
    return {
        "theta": draws["theta"] + own - level_own[..., None, :],
        "mu": draws["mu"] - centre,
        "severity": severity - centre[..., None, :],
        "favour": np.where(where, favour, np.nan),
    }


def setters(ratings: Ratings, where: Bools) -> Bools:
    """[J, D] judges whose average a fair average is: people where abilities are on their scale, elsewhere all."""
    person = is_person(ratings)[:, None] & ratings.judge_rated
    return np.asarray(np.where(where & person.any(axis=0), person, True))


def favoured(ratings: Ratings, favour: Floats, judge: Ints, dimension: Ints, model: Ints) -> Floats:
    """[N, B] what judges that are models add, of favour [M, D, B]; 0 for people."""
    return np.nan_to_num(favour)[model, dimension] * ~is_person(ratings)[judge, None]


def on_scale(posterior: Posterior) -> Bools:
    """[D] dimensions of a fit in which abilities are on the people's scale."""
    if "favour" not in posterior.draws:
        return np.zeros(len(posterior.ratings.dimensions), bool)
    return np.asarray(~np.isnan(posterior.flat("favour")[0]).all(axis=0))


def people_discrimination(posterior: Posterior, draws: Ints) -> Floats:
    """[S, D] geometric mean over the people who rate where abilities are on their scale, elsewhere 1."""
    r, flat = posterior.ratings, np.ones((len(draws), len(posterior.ratings.dimensions)))
    if "favour" not in posterior.draws or "log_alpha" not in posterior.draws:
        return flat
    person = is_person(r)[:, None] & r.judge_rated & on_scale(posterior)
    mean = posterior.flat("log_alpha")[draws] @ (person / np.maximum(person.sum(axis=0), 1))
    return np.asarray(np.exp(mean))


def leniency(posterior: Posterior) -> Floats:
    """[S, D] logits by which judges that are models give higher scores than people do, over all models alike: the mean
    severity of the people less that of the others; nan where one of the two did not rate."""
    r = posterior.ratings
    means = []
    for kind in (is_person(r), ~is_person(r)):
        rates = r.judge_rated & kind[:, None]
        there = np.where(rates.any(axis=0), 1.0, np.nan)
        severity = np.where(rates, posterior.flat("severity"), 0.0)
        means.append(there * severity.sum(axis=1) / np.maximum(rates.sum(axis=0), 1))
    return np.asarray(means[0] - means[1])
