"""Two fits on one scale: the shift and the unit between them, from what they have in common, with the linking error.

Each fit sets its own zero: difficulties sum to zero over its items, severities over its judges. The position
x = mu + theta of a model that stayed the same therefore differs between two fits by the mean difficulty of the items,
by the mean severity of the judges and, where judges have discriminations, by a factor. Models that both fits rated show
all of it at once; without any, items and judges that both share show the two parts (common-element equating: Kolen &
Brennan 2014, chapter 4).

A shared element that moved against the others is found by its distance from their median and left out. Where both fits
share people among their judges, these are what the others are held against: a few ratings by people show a leniency
that all models of a farm took on alike (cf. arXiv 2508.12792, which calibrates judges on few human labels). The others
may still have moved a little, each for itself: normal with a spread tau, as in a random-effects meta-analysis. What
that leaves open about their mean is the linking error (Monseur & Berezner, Journal of Applied Measurement 8, 2007),
and every draw carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.ability import interval
from dpeer.eval.irt.drift import require_same_model
from dpeer.eval.irt.types import Bools, Floats, Posterior, Ratings

MOST_DRAWS = 2000
LEVEL = 0.05
"""Chance that any of the shared elements of a kind is taken for moved though none is (Bonferroni)."""
PRIOR_SPREAD = {"models": 0.2, "items": 0.2, "judges": 0.2, "units": 0.1}
"""Sd of the half-normal prior of tau, in logits; of units in log units."""
FEW_MODELS = 3
"""With fewer shared models none can be seen to have moved: they are taken at their word, tau = 0."""
GRID = np.linspace(0.0, 1.0, 101)
APART = 2.58
"""Standard errors between two ways of linking from which they contradict each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """How far the shared elements of one kind say that a scale has moved; D dimensions, n elements, S draws."""

    kind: str
    names: tuple[str, ...]
    shift: Floats
    """[S, n, D]; nan where one of the fits lacks the element."""
    kept: Bools
    """[n, D]"""
    centre: Floats
    """[S, D] their mean with its linking error; nan where fewer than one, or no majority, is left."""
    spread: float
    """Posterior mean of tau."""

    @property
    def known(self) -> Bools:
        """[D]"""
        return all_known(self.centre)


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """x of the later fit on the earlier one's scale: x / unit + shift."""

    dimensions: tuple[str, ...]
    shift: Floats
    """[S, D] nan where nothing links the dimension."""
    unit: Floats
    """[S]"""
    by_models: Bools
    """[D] by shared models; else by items and judges."""
    pools: tuple[Pool, ...]
    notes: tuple[str, ...]


def all_known(draws: Floats) -> Bools:
    """Cells of draws [S, ...] that no draw leaves open."""
    return np.asarray(np.isfinite(draws).all(axis=0))


def draws_of(posterior: Posterior, name: str, count: int) -> Floats:
    """`count` draws, evenly spaced over all chains: [count, ...]."""
    flat = posterior.flat(name)
    return flat[np.linspace(0, len(flat) - 1, count).round().astype(np.int64)]


def positions(posterior: Posterior, dimensions: Sequence[str], count: int) -> Floats:
    """mu + theta [count, M, D]: where a model stands against average items and judges."""
    at = [posterior.ratings.dimensions.index(d) for d in dimensions]
    return np.asarray(draws_of(posterior, "theta", count) + draws_of(posterior, "mu", count)[:, None])[..., at]


def link(before: Posterior, now: Posterior, same: Sequence[str], seed: int = 0) -> Link:
    """What maps the scale of `now` to that of `before`; `same` names models that are the same in both.

    Raises ConfigError: fits of other models or scores, no dimension in common, or nothing that links the scales.
    """
    require_same_model(before, now)
    if before.ratings.scale != now.ratings.scale:
        spans = [f"{r.scale[0]} to {r.scale[-1]}" for r in (before.ratings, now.ratings)]
        raise ConfigError(f"the fits have the scales {spans[0]} and {spans[1]}; name one with --scale and fit again")
    dimensions = tuple(d for d in before.ratings.dimensions if d in now.ratings.dimensions)
    if not dimensions:
        raise ConfigError(
            f"the fits have no dimension in common ({', '.join(before.ratings.dimensions)}; "
            f"{', '.join(now.ratings.dimensions)})"
        )
    alone = [d for d in dimensions if any(d not in p.ratings.rated_dimensions for p in (before, now))]
    dimensions = tuple(d for d in dimensions if d not in alone)
    if not dimensions:
        raise ConfigError(
            f"the fits have comparisons only in {', '.join(alone)}: their abilities count from the mean of the models "
            "compared, in units of comparisons, which nothing links to another fit. Fit both releases' comparisons as "
            "one table, or let judges rate responses of both"
        )
    rng = np.random.default_rng(seed)
    count = min(MOST_DRAWS, *(p.draws["mu"].shape[0] * p.draws["mu"].shape[1] for p in (before, now)))
    unit, units = _unit(before, now, count, rng)
    pools = tuple(
        _pool(kind, before, now, dimensions, same, unit, count, rng) for kind in ("models", "items", "judges")
    )
    models, items, judges = pools
    apart = np.array([_extremes(before.ratings, d) != _extremes(now.ratings, d) for d in dimensions])
    both = np.where(apart, np.nan, items.centre + judges.centre)
    shift = np.where(models.known, models.centre, both)
    made = Link(dimensions, shift, unit, models.known, (*pools, *units), _notes(dimensions, models, both, pools, alone))
    if not np.isfinite(shift).any():
        raise ConfigError(_unlinked(pools, bool(apart.all())))
    return made


def _unit(before: Posterior, now: Posterior, count: int, rng: np.random.Generator) -> tuple[Floats, tuple[Pool, ...]]:
    """Logits of `now` per logit of `before` [S]: log discriminations sum to zero over the judges of each fit."""
    if "log_alpha" not in before.draws:
        return np.ones(count), ()
    alphas = [draws_of(p, "log_alpha", count) for p in (before, now)]
    names = tuple(j for j in before.ratings.judges if j in now.ratings.judges)
    places = [[p.ratings.judges.index(j) for j in names] for p in (before, now)]
    shift = alphas[0][:, places[0]] - alphas[1][:, places[1]]
    pool = _centred("units", names, shift[..., None], np.zeros(len(names), bool), rng)
    if pool.known[0]:
        return np.exp(pool.centre[:, 0]), (pool,)
    # No judge in common: both sets are drawn from judges at large.
    variance = sum(draws_of(p, "s_alpha", count) ** 2 / len(p.ratings.judges) for p in (before, now))
    return np.exp(rng.standard_normal(count) * np.sqrt(variance)), (pool,)


def _pool(
    kind: str,
    before: Posterior,
    now: Posterior,
    dimensions: tuple[str, ...],
    same: Sequence[str],
    unit: Floats,
    count: int,
    rng: np.random.Generator,
) -> Pool:
    places = [[p.ratings.dimensions.index(d) for d in dimensions] for p in (before, now)]

    def values(posterior: Posterior, at: list[int], names: tuple[str, ...]) -> Floats:
        r = posterior.ratings
        rows = [getattr(r, kind).index(name) for name in names]
        if kind == "models":
            return positions(posterior, dimensions, count)[:, rows]
        if kind == "items":
            return draws_of(posterior, "beta", count)[:, rows][..., at]
        return np.where(r.judge_rated, draws_of(posterior, "severity", count), np.nan)[:, rows][..., at]

    shared = set(getattr(now.ratings, kind)) & (set(same) if kind == "models" else set(getattr(before.ratings, kind)))
    names = tuple(name for name in getattr(before.ratings, kind) if name in shared)
    old, new = values(before, places[0], names), values(now, places[1], names)
    people = set(before.ratings.people) & set(now.ratings.people) if kind == "judges" else set()
    firm = np.array([name in people for name in names], dtype=bool)
    return _centred(kind, names, old - new / unit[:, None, None], firm, rng)


def _centred(kind: str, names: tuple[str, ...], shift: Floats, firm: Bools, rng: np.random.Generator) -> Pool:
    """The mean of the elements [S, n, D] that moved together, with the linking error of their spread.

    `firm` [n] are those against which the others are held: people, where both fits share some.
    """
    there = all_known(shift)
    kept = there & ~_moved(shift, there, firm)
    majority = (kept.sum(axis=0) > there.sum(axis=0) / 2) | (there & firm[:, None]).any(axis=0)
    kept &= majority
    trusted = kind == "models" and len(names) < FEW_MODELS
    weight = np.zeros(len(GRID)) if trusted else _tau_weights(shift, kept, PRIOR_SPREAD[kind])
    weight = np.eye(len(GRID))[0] if trusted else weight
    spread = float(weight @ GRID)
    tau = rng.choice(GRID, len(shift), p=weight)
    centre = np.full((len(shift), shift.shape[2]), np.nan)
    for d in np.flatnonzero(majority):
        mine = shift[:, kept[:, d], d]
        share = 1 / (_variances(mine) + spread**2 + 1e-9)
        share /= share.sum()
        centre[:, d] = mine @ share + tau * np.sqrt((share**2).sum()) * rng.standard_normal(len(shift))
    return Pool(kind, names, shift, kept, centre, spread)


def _moved(shift: Floats, there: Bools, firm: Bools) -> Bools:
    """[n, D] elements too far from the median of those that are not, or of the firm ones, which never are.

    The farthest goes first, and the median is taken anew: what has moved drags it along.
    """
    critical = stats.norm.isf(LEVEL / 2 / max(1, there.sum()))
    moved = np.zeros(there.shape, bool)
    for d in np.flatnonzero(there.any(axis=0)):
        fixed = there[:, d] & firm
        while True:
            stay = fixed if fixed.any() else there[:, d] & ~moved[:, d]
            away = shift[:, :, d] - np.median(shift[:, stay, d], axis=1)[:, None]
            z = np.abs(away.mean(axis=0)) / np.maximum(away.std(axis=0), 1e-9)
            far = np.where(there[:, d] & ~firm & ~moved[:, d], z, 0.0)
            if far.max() <= critical:
                break
            moved[far.argmax(), d] = True
    return moved


def _variances(shift: Floats) -> Floats:
    """Sampling variance of each of n shifts [S, n] around their mean."""
    n = shift.shape[1]
    if n == 1:
        return np.asarray(shift.var(axis=0))
    return np.asarray((shift - shift.mean(axis=1, keepdims=True)).var(axis=0) * n / (n - 1))


def _tau_weights(shift: Floats, kept: Bools, scale: float) -> Floats:
    """Posterior of tau on GRID: half-normal prior, restricted likelihood of the shifts in all dimensions."""
    log = stats.norm.logpdf(GRID, scale=scale)
    for d in range(shift.shape[2]):
        mine = shift[:, kept[:, d], d]
        if mine.shape[1] < 2:
            continue
        mean, variance = mine.mean(axis=0), _variances(mine)[:, None] + GRID**2 + 1e-9
        centre = (mean[:, None] / variance).sum(axis=0) / (1 / variance).sum(axis=0)
        square = ((mean[:, None] - centre) ** 2 / variance).sum(axis=0)
        log = log - (np.log(variance).sum(axis=0) + np.log((1 / variance).sum(axis=0)) + square) / 2
    weight = np.exp(log - log.max())
    return np.asarray(weight / weight.sum())


def _extremes(ratings: Ratings, dimension: str) -> tuple[int, int]:
    """The least and the greatest category given, on which thresholds are centred."""
    given = ratings.category[ratings.dimension == ratings.dimensions.index(dimension)]
    return int(given.min()), int(given.max())


def _notes(
    dimensions: tuple[str, ...], models: Pool, both: Floats, pools: tuple[Pool, ...], alone: list[str]
) -> tuple[str, ...]:
    notes = [f"{name} is left out: one of the fits has comparisons only there, on a scale of its own" for name in alone]
    for d, name in enumerate(dimensions):
        if models.known[d] and np.isfinite(both[:, d]).all():
            gap = both[:, d] - models.centre[:, d]
            if abs(gap.mean()) > APART * gap.std():
                notes.append(
                    f"{name}: shared models say that the zero has moved by {models.centre[:, d].mean():+.2f} logits, "
                    f"shared items and judges by {both[:, d].mean():+.2f}: judges or items have moved together, which "
                    "only shared models show. The models are used."
                )
        elif not models.known[d] and not np.isfinite(both[:, d]).all():
            notes.append(f"{name}: nothing links the two fits here, so it is not compared ({_why(pools, d)}).")
    return tuple(notes)


def _why(pools: tuple[Pool, ...], d: int) -> str:
    return "; ".join(_lack(pool, d) for pool in pools if not pool.known[d]) or "other lowest or highest score in use"


def _lack(pool: Pool, d: int) -> str:
    there = int(all_known(pool.shift)[:, d].sum())
    if not there:
        return f"no {'model that is the same' if pool.kind == 'models' else pool.kind[:-1]} in both"
    return f"the {there} shared {pool.kind} contradict each other, with no majority"


def _unlinked(pools: tuple[Pool, ...], apart: bool) -> str:
    why = "other lowest or highest scores are in use" if apart else _why(pools, 0)
    return (
        f"nothing links the two fits ({why}), so a difference of their abilities would mean nothing. Cheapest repair: "
        "let the judges of the later release rate the responses of one model of the earlier one too, fit again, and "
        "name it with --same; or give both releases prompts and judges in common"
    )


def moved_elements(made: Link, before: Posterior, now: Posterior) -> pd.DataFrame:
    """How far each shared element has moved against those that the link rests on, and whether it is used.

    Columns: kind, name, dimension, difference, difference_low, difference_high (logits, 95 %; positive: stricter judge,
    harder item, abler model), drifted, used (the scales are linked by it).
    """
    frames = []
    for pool in made.pools:
        if pool.kind == "units" or not pool.names:
            continue
        there = all_known(pool.shift)
        share = np.where(pool.kept, 1.0, 0.0) / np.maximum(pool.kept.sum(axis=0), 1)
        share = np.where(pool.kept.any(axis=0), share, there / np.maximum(there.sum(axis=0), 1))
        zero = np.einsum("snd,nd->sd", np.where(there, pool.shift, 0.0), share)
        mean, low, high = interval(zero[:, None] - pool.shift)
        linking = made.by_models if pool.kind == "models" else ~made.by_models
        grid = pd.MultiIndex.from_product([pool.names, made.dimensions], names=["name", "dimension"])
        frame = pd.DataFrame(
            {
                "kind": pool.kind,
                "difference": mean.ravel(),
                "difference_low": low.ravel(),
                "difference_high": high.ravel(),
                "drifted": (there & ~pool.kept).ravel(),
                "used": (pool.kept & linking & all_known(made.shift)).ravel(),
            },
            index=grid,
        ).reset_index()
        frames.append(frame[there.ravel()])
    columns = ["kind", "name", "dimension", "difference", "difference_low", "difference_high", "drifted", "used"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
