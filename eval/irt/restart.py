"""A fit from where an earlier fit of fewer ratings ended: its scales, last draws, metric and step size.

What a fit leaves is kept by name of block, of response and of item, so that responses and items may be added. The
metric is kept as the factor by which adaptation moved it from the guess by counts: the guess follows the new counts.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from dpeer.eval.irt import comparisons
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit_statistics import information
from dpeer.eval.irt.scales import Scales, by_response, helmert
from dpeer.eval.irt.stan_data import Problem
from dpeer.eval.irt.stan_start import metric
from dpeer.eval.irt.types import KEPT_EFFECTS, THINNED, Floats, Ints, Options, Posterior, Ratings

SAME = ("models", "judges", "dimensions", "rated_criteria", "scale", "groups", "comparers", "rated_dimensions")
"""Comparing judges and rated dimensions decide which blocks there are."""
HOW = ("chains", "warmup", "draws", "seed", "threads", "approx")
"""Options that may differ: how the model is sampled, not what it is."""


def left(problem: Problem, ratings: Ratings, last: dict[str, Floats], inverse_metric: Floats) -> dict[str, Floats]:
    """What a later fit starts from: last.BLOCK [chains, n], moved.BLOCK [n], centre_BLOCK and scales.NAME; of response
    effects [R, D] in place of n."""

    def by_name(values: Floats) -> Floats:
        placed = np.full((*values.shape[:-1], len(ratings.response_model), len(ratings.dimensions)), np.nan)
        placed[..., problem.cell_response, problem.cell_dimension] = values
        return placed

    found = {n: np.asarray(v) for n, v in problem.data.items() if n.startswith("centre_")}
    found["centre_u"] = by_name(found["centre_u"])
    found |= {f"scales.{f.name}": np.asarray(getattr(problem.scales, f.name), float) for f in fields(Scales)}
    ends = np.cumsum([len(variances) for _, _, variances in problem.blocks])
    for (name, *_), moved in zip(problem.blocks, np.split(inverse_metric / metric(problem.blocks), ends), strict=False):
        placed = by_name if name == "u_raw" and len(moved) else np.asarray
        found[f"moved.{name}"] = placed(moved)
        found[f"last.{name}"] = placed(last[name]) if name in last else np.empty((len(last["mu"]), 0))
    return found


def earlier(previous: Posterior, ratings: Ratings, options: Options) -> tuple[Scales, dict[str, Any]]:
    """Scales, and how far each block was centred; centre_u [R, D], nan where a response is new.

    Raises IrtError where the earlier fit is of another model, of other models, judges, dimensions or scores, has
    anchors, or was made by a version that left nothing to start from.
    """
    before = previous.ratings
    if not previous.left or "scales.ability" not in previous.left:
        raise IrtError("the earlier fit holds no state to start from (an earlier version made it); fit without it once")
    if previous.options.anchors or options.anchors:
        raise IrtError("a fit with anchors cannot start from an earlier one: leave out --start-from, or the anchors")
    for name in SAME:
        if getattr(before, name) != getattr(ratings, name):
            was, now = (", ".join(map(str, getattr(r, name))) for r in (before, ratings))
            name = name.replace("_", " ")
            raise IrtError(f"the earlier fit has other {name} ({was}) than these ratings ({now}); fit without it")
    model = replace(previous.options, **{name: getattr(options, name) for name in HOW})
    if model != options:
        raise IrtError("the earlier fit has other terms; give the same --model, --with and --response-effect, or none")
    state = previous.left
    old = _places(before, ratings)
    each = information(previous)
    shape = len(ratings.judges), len(ratings.dimensions)
    cell = before.judge * shape[1] + before.dimension
    count = np.bincount(cell, minlength=shape[0] * shape[1])
    typical = np.bincount(cell, each, minlength=len(count)) / np.maximum(count, 1)
    guess = np.where(count, typical, each.mean() if len(each) else 0.0)[ratings.judge * shape[1] + ratings.dimension]
    counts_before, counts = by_response(before, np.ones(len(before))), by_response(ratings, np.ones(len(ratings)))
    known = _of(state["scales.information"] / np.maximum(counts_before, 1), old) * counts
    told = np.where(np.isnan(known) | (known <= 0), by_response(ratings, guess), known)
    kept = {f.name: state[f"scales.{f.name}"] for f in fields(Scales)}
    scales: dict[str, Any] = {n: v if v.ndim else float(v) for n, v in kept.items()}
    centres = {n: v for n, v in state.items() if n.startswith("centre_")}
    own = {"information": told, "compared": comparisons.information(ratings)}
    return Scales(**scales | own), centres | {"centre_u": _of(centres["centre_u"], old)}


def continues(previous: Posterior, ratings: Ratings, options: Options) -> bool:
    """Whether a fit of these ratings may start from an earlier one."""
    try:
        earlier(previous, ratings, options)
    except IrtError:
        return False
    return True


def begin(
    previous: Posterior, ratings: Ratings, problem: Problem, chains: int
) -> tuple[list[dict[str, Any]], Floats, float]:
    """Start values of each chain, the inverse metric, and the step size, for the problem of `earlier`'s scales."""
    state, old = previous.left, _places(previous.ratings, ratings)
    at = (problem.cell_response, problem.cell_dimension)
    values: dict[str, Floats] = {}
    variances = []
    for name, start, guess in problem.blocks:
        last, moved = state[f"last.{name}"], state[f"moved.{name}"]
        if name == "u_raw" and len(guess) and last.ndim == 3:  # else the earlier fit had none
            last, moved = _of(last, old)[..., *at], _of(moved, old)[at]
        elif name == "beta_raw" and previous.ratings.items != ratings.items:
            last, moved = _difficulties(last, previous.ratings, ratings, problem), moved[:0]
        if name == "L_theta":  # columns first in the file; rows of length 1, also after nine digits
            factors = last.reshape(len(last), problem.data["D"], -1).swapaxes(1, 2)
            values[name] = factors / np.linalg.norm(factors, axis=2, keepdims=True)
        elif last.shape[1] == len(start):
            values[name] = np.where(np.isnan(last), start, last)
        else:
            values[name] = np.tile(start, (len(last), 1))
        usual = float(np.exp(np.nanmean(np.log(state[f"moved.{name}"])))) if state[f"moved.{name}"].size else 1.0
        variances.append(guess * (np.where(np.isnan(moved), usual, moved) if len(moved) == len(guess) else usual))
    count = len(next(iter(values.values())))
    inits = [{name: rows[i % count].tolist() for name, rows in values.items()} for i in range(chains)]
    return inits, np.concatenate(variances), float(np.median(previous.sampler["stepsize"][:, -1]))


def joined(before: Posterior, part: Posterior) -> Posterior:
    """One fit of chains and of `part`, which goes on from their last draws. Of thinned blocks as many draws are kept as
    of one run, evenly spaced over both."""
    draws = {n: np.concatenate([before.draws[n], part.draws[n]], axis=1) for n in part.draws}
    sampler = {n: np.concatenate([before.sampler[n], part.sampler[n]], axis=1) for n in part.sampler}
    chains, length = sampler["divergent"].shape
    sizes = [*before.facts.get("parts", [before.length]), part.length]
    facts = before.facts | {"leapfrogs": before.facts["leapfrogs"] + part.facts["leapfrogs"], "parts": sizes}
    if thinned := draws.keys() & set(THINNED):
        rows = [np.reshape(p.facts["u_draws"], (chains, -1))[0] for p in (before, part)]
        places = np.concatenate([rows[0], rows[1] + before.length])
        wanted = np.linspace(0, length - 1, min(len(places), max(1, KEPT_EFFECTS // chains)))
        chosen = np.unique(np.abs(places[:, None] - wanted).argmin(axis=0))
        draws |= {name: draws[name][:, chosen] for name in thinned}
        facts["u_draws"] = (np.arange(chains)[:, None] * length + places[chosen]).ravel().tolist()
    return Posterior(before.ratings, before.options, draws, sampler, facts, part.left)


def _places(before: Ratings, ratings: Ratings) -> Ints:
    """[R] the place of each response in the earlier ratings; -1: new. The k-th response of a model to an item is the
    k-th in both."""

    def keys(r: Ratings) -> list[tuple[str, str, int]]:
        seen: dict[tuple[str, str], int] = {}
        found = []
        for m, q in zip(r.response_model.tolist(), r.response_item.tolist(), strict=True):
            key = r.models[m], r.items[q]
            seen[key] = seen.get(key, -1) + 1
            found.append((*key, seen[key]))
        return found

    place = {key: i for i, key in enumerate(keys(before))}
    return np.array([place.get(key, -1) for key in keys(ratings)], dtype=np.int64)


def _of(values: Floats, old: Ints) -> Floats:
    """Values [..., R, D] by the earlier places of responses; nan where one is new."""
    return np.where((old < 0)[:, None], np.nan, values[..., old, :])


def _difficulties(last: Floats, before: Ratings, ratings: Ratings, problem: Problem) -> Floats:
    """The free values [chains, n] of difficulties where items were added: a new one starts at the mean."""
    was: dict[tuple[int, str], Floats] = {}
    rated = [np.unique(before.item[before.dimension == d]) for d in range(len(before.dimensions))]
    at = 0
    for d, items in enumerate(rated):
        if not len(items):  # comparisons only: one difficulty, which is fixed
            continue
        effects = _sum_zero(last[:, at : at + len(items) - 1])
        at += len(items) - 1
        was |= {(d, before.items[q]): effects[:, i] for i, q in enumerate(items)}
    parts = []
    for d in range(len(ratings.dimensions)):
        names = [ratings.items[q] for q in problem.item[problem.item_dimension == d]]
        effects = np.stack([was.get((d, name), np.zeros(len(last))) for name in names], axis=1)
        parts.append(np.stack([helmert(row) for row in effects]))
    return np.concatenate(parts, axis=1)


def _sum_zero(free: Floats) -> Floats:
    """Stan's function of that name for each row: n - 1 values to n that sum to zero; the inverse of `helmert`."""
    i = np.arange(1, free.shape[1] + 1)
    w = free / np.sqrt(i * (i + 1.0))
    tail = np.cumsum(w[:, ::-1], axis=1)[:, ::-1]
    zero = np.zeros((len(free), 1))
    return np.asarray(np.hstack([tail, zero]) - np.hstack([zero, w * i]))
