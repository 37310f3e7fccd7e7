"""Stan's draws under the names and shapes of `Posterior`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpeer.eval.irt.anchors import Anchors
from dpeer.eval.irt.comparisons import gives_ties
from dpeer.eval.irt.people import on_their_scale, setters
from dpeer.eval.irt.stan_data import Problem
from dpeer.eval.irt.stan_terms import item_shares, on_this_mix, uncentred
from dpeer.eval.irt.types import AXES, THINNED, Bools, Floats, Ints, Ratings

SCALARS = (
    *("s_severity", "s_dev", "s_tau", "s_alpha", "s_halo", "s_judge_model", "s_judge_item", "s_item_step"),
    *("order", "own_family", "own_model"),
)
VECTORS = ("mu", "s_theta", "s_beta", "s_u", "s_v", "s_group", "length")
OF_COMPARISONS = ("position_mean", "s_position", "tie_mean", "s_tie", "log_scale")
OF_RATINGS = (
    *("s_severity", "s_dev", "s_tau", "severity", "severity_judge", "s_beta", "mu", "beta", "tau", "tau_average"),
)
"""Draws that hold no more than the prior where nothing was rated."""
WANTED = frozenset(
    {
        *VECTORS,
        *(name for name in SCALARS if not name.startswith("own")),
        *("own_family_effect", "own_model_effect", "theta", "severity", "log_alpha", "beta", "delta", "tau", "kappa"),
        *("correlation", "v_mean", "judge_model", "group", "position", "tie", *OF_COMPARISONS),
    }
)
RAW = frozenset(f"{name}_raw" for name in THINNED)
"""Stan's columns of the blocks that are thinned."""


def named(stan: dict[str, Floats], ratings: Ratings, problem: Problem, anchors: Anchors) -> dict[str, Floats]:
    """Stan's blocks [chains, draws, ...] under the names and shapes of `Posterior`."""
    q, d, k = (len(x) for x in (ratings.items, ratings.dimensions, ratings.scale))
    draws = {name: stan[name] for name in (*VECTORS, "theta", "severity", "log_alpha") if name in stan}
    for name in SCALARS:
        column = f"{name}_effect" if name.startswith("own") else name
        if column in stan:
            draws[name] = stan[column][..., 0]
    draws |= _around_raters(stan, ratings, anchors)
    draws["beta"] = spread(stan["beta"], (problem.item, problem.item_dimension), (q, d))
    if len(ratings.criteria) > d:
        draws["delta"] = stan["delta"][..., np.argsort(problem.criterion)]
    if problem.terms.scaled.any():
        draws["s_favour"] = draws.pop("s_judge_model")
    elif "judge_model" in stan:
        m, j = len(ratings.models), len(ratings.judges)
        pairs = problem.terms.judge_model
        draws["judge_model"] = spread(stan["judge_model"], (pairs // m, pairs % m), (j, m))
    if "group" in stan:  # from (dimension, model) x group
        by_dimension = stan["group"].reshape(*stan["group"].shape[:2], d, -1, problem.terms.groups)
        share, answered = item_shares(ratings)
        draws["theta"], draws["group"] = on_this_mix(stan["theta"], np.moveaxis(by_dimension, 2, -1), share)
    if d > 1:
        draws["correlation"] = stan["correlation"]
        draws["correlation"][..., range(d), range(d)] = 1.0  # not 0.999999999
    draws["tau"], draws["tau_average"] = _thresholds(stan, problem, k, setters(ratings, problem.terms.scaled))
    draws |= _comparisons(stan, ratings, problem)
    moved = ~np.isnan(anchors.mu)
    if moved.any():  # abilities from the origin of the earlier fit, not from the mean of these models
        shift = np.where(moved, draws["mu"] - np.nan_to_num(anchors.mu), 0.0)
        draws["theta"] = draws["theta"] + shift[..., None, :]
        draws["mu"] = draws["mu"] - shift
    if problem.terms.scaled.any():
        draws |= on_their_scale(draws, stan["judge_model"], ratings, problem.terms.scaled)
    draws["severity_judge"] = draws["severity"].mean(axis=-1)
    if "v_mean" in stan:
        draws["theta_these"] = draws["theta"] + stan["v_mean"]
        if "group" in draws:
            draws["theta_these"] += (draws["group"] * answered).sum(axis=-2)
    return _without_prior_only(draws, ratings)


def _around_raters(stan: dict[str, Floats], ratings: Ratings, anchors: Anchors) -> dict[str, Floats]:
    """mu and severity, counted from the mean of those who rate in a dimension; in Stan severities sum to zero over all
    judges, though of those who only compare they are drawn from the prior. Ratings depend on mu - severity alone."""
    severity, mu, rates = stan["severity"], stan["mu"], ratings.judge_rated
    free = np.isnan(anchors.judges).all() and np.isnan(anchors.items).all()
    if not (free and len(ratings) and len(ratings.comparisons)):
        return {"severity": severity, "mu": mu}
    raters = np.where(ratings.rated, rates, rates.any(axis=1, keepdims=True))  # [J, D]
    shift = (severity * raters).sum(axis=-2) / raters.sum(axis=0)
    return {"severity": severity - shift[..., None, :], "mu": mu - shift}


def _comparisons(stan: dict[str, Floats], ratings: Ratings, problem: Problem) -> dict[str, Floats]:
    """What is said of comparisons: preferences for a place and ties [chains, draws, J], and scalars."""
    draws = {name: stan[name][..., 0] for name in OF_COMPARISONS if name in stan}
    draws |= {
        name: spread(stan[name], (problem.comparer,), (len(ratings.judges),))
        for name in ("position", "tie")
        if name in stan
    }
    if "tie" in draws:
        draws["tie"][..., ~gives_ties(ratings)] = np.nan
    if "log_scale" in draws:
        draws["comparison_scale"] = np.exp(draws.pop("log_scale"))
    return draws


def _without_prior_only(draws: dict[str, Floats], ratings: Ratings) -> dict[str, Floats]:
    """Draws about ratings are nan in dimensions that hold comparisons only, and of judges who only compare."""
    if not len(ratings.comparisons):
        return draws
    unrated, rates = ~ratings.rated, ratings.judge_rated
    for name in OF_RATINGS:
        if name in draws and "dimension" in (axes := AXES.get(name, ())):
            at: Any = (..., unrated, *[slice(None)] * (len(axes) - 1 - axes.index("dimension")))
            draws[name] = draws[name].copy()
            draws[name][at] = np.nan
        elif name in draws and unrated.all():
            draws[name] = np.full_like(draws[name], np.nan)
    draws["severity_judge"] = np.where(rates.any(axis=1), draws["severity_judge"], np.nan)
    return draws


def _thresholds(stan: dict[str, Floats], problem: Problem, k: int, setters: Bools) -> tuple[Floats, Floats]:
    """Thresholds of each judge [chains, draws, J, D, K-1] and of the average one [chains, draws, D, K-1].

    Each stands at its upper score and counts from the next lower one in use; nan elsewhere. The average is taken in log
    odds over the judges among `setters` [J, D] that give all scores, so that one who hardly tells scores apart hardly
    counts; where there is none it is the model's common thresholds.
    """
    kappa, tau = stan["kappa"], stan["tau"]  # [..., J, S], [..., S]
    alpha = np.exp(stan["log_alpha"]) if "log_alpha" in stan else np.ones(kappa.shape[:-1])  # [..., J]
    lead, d = kappa.shape[:-1], len(problem.used)
    own, average = np.full((*lead, d, k - 1), np.nan), np.full((*lead[:-1], d, k - 1), np.nan)
    judges = kappa / alpha[..., None]
    at = 0
    for i, used in enumerate(problem.used):
        steps = slice(at, at + len(used) - 1)
        whole = [j for j, judge in enumerate(problem.levels) if setters[j, i] and len(judge[i]) == len(used)]
        if whole:
            weight = alpha[..., whole].sum(axis=-1)[..., None]
            average[..., i, used[1:] - 1] = kappa[..., whole, steps].sum(axis=-2) / weight
        else:
            average[..., i, used[1:] - 1] = tau[..., steps]
        for j, judge in enumerate(problem.levels):
            upper = judge[i][1:]
            own[..., j, i, used[upper] - 1] = judges[..., j, at + upper - 1]
        at = steps.stop
    return own, average


def spread(values: Floats, index: tuple[Ints, ...], shape: tuple[int, ...]) -> Floats:
    """values [chains, draws, n] into [chains, draws, *shape] at `index`; nan elsewhere."""
    stan = np.full((*values.shape[:2], *shape), np.nan)
    at: Any = (slice(None), slice(None), *index)
    stan[at] = values
    return stan


def response_effects(draws: dict[str, Floats], effects: dict[str, Floats], problem: Problem) -> Floats:
    """u [chains, draws, E] of its partly centred form, see `model.stan`."""
    data, d, raw = problem.data, problem.cell_dimension, draws["u_raw"]
    mu = draws["mu"] * np.array(data["rated"])
    ability = np.swapaxes(draws["theta"] + mu[..., None, :], -1, -2).reshape(*raw.shape[:2], -1)
    eta = ability[..., np.array(data["cell_ability"]) - 1] - draws["beta"][..., np.array(data["cell_item"]) - 1]
    if "length" in draws:
        eta += draws["length"][..., d] * np.array(data["cell_length"])
    if "v" in effects:
        triples = problem.terms
        v = effects["v"][..., triples.triple_model, triples.triple_item, triples.triple_dimension]
        eta += v[..., triples.of_cell]
    if "group" in draws:
        by_group = np.swapaxes(draws["group"], -1, -2).reshape(*raw.shape[:2], -1)
        eta += by_group[..., np.array(data["cell_group"]) - 1]
    return uncentred(raw, eta, np.array(data["centre_u"]), draws["s_u"][..., d])
