"""Does the model describe the ratings? Infit, outfit and posterior predictive checks, at thinned posterior draws.

Written from the rating formula itself, not from the Stan program: P(k) is proportional to
exp(alpha_j * sum over l <= k of (eta - tau_{j,d,l})), or graded (`irt.link`), with
eta = mu + theta - beta - severity - delta + group (model, group, dimension) + v (model, item, dimension)
      + u (response, dimension) + halo (judge, response) + judge x model + judge x item + favour + covariates.
Mean squares as in Wright & Masters (1982), compared with replicated data as in Gelman, Meng & Stern (1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csr_array

from dpeer.eval.irt.link import information as fisher
from dpeer.eval.irt.link import offsets, probabilities
from dpeer.eval.irt.people import favoured
from dpeer.eval.irt.types import GRADED, THINNED, Bools, Floats, Ints, Posterior, Ratings

NODES = 7
"""Gauss-Hermite nodes that integrate the halo, and a response effect whose draws were not kept."""

LEAST_GAP = 0.1
"""Smallest gap between observed and expected mean score that is worth a word, in score steps."""

_CHUNK = 600_000  # ratings x draws at once: about 150 MB at five categories
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class FitStatistics:
    """infit weighs residuals by information, outfit does not; both are 1 under the model, larger for noise.

    Every p is the share of replications that exceed the observed value, ties counted half: both ends are suspicious.
    """

    judges: pd.DataFrame  # judge, infit, infit_p, outfit, outfit_p
    models: pd.DataFrame  # model, dimension, ...
    items: pd.DataFrame  # item, dimension, ...
    misfit: pd.DataFrame  # judge, model, dimension, observed, expected, expected_low, expected_high, p, z, n, notable
    ppc: pd.DataFrame  # judge, dimension, score, observed, expected, expected_low, expected_high, p
    expected: Floats  # [N] posterior mean of the expected category
    variance: Floats  # [N] and of its variance


def thin(posterior: Posterior, count: int) -> tuple[Ints, Ints]:
    """At most `count` evenly spaced draws: flat indices, and where they stand among those kept of thinned blocks."""
    total = int(np.prod(posterior.draws["theta"].shape[:2]))
    thinned = set(THINNED) & posterior.draws.keys()
    kept = np.asarray(posterior.facts["u_draws"]) if thinned else np.arange(total)
    place = np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(np.int64))
    return kept[place].astype(np.int64), place


def predictor(posterior: Posterior, draws: Ints, place: Ints, without: tuple[str, ...] = ()) -> Floats:
    """eta of every rating [N, B] at B flat draws; without halo, u unless its draws were kept, and effects `without`."""
    r = posterior.ratings

    def last(name: str, chosen: Ints = draws) -> Floats:
        return np.moveaxis(posterior.flat(name)[chosen], 0, -1)

    def effect(name: str, chosen: Ints = draws) -> Floats | None:
        return last(name, chosen) if name in posterior.draws and name not in without else None

    eta = (last("mu")[None] + last("theta"))[r.model, r.dimension]
    eta -= last("beta")[r.item, r.dimension]
    eta -= last("severity")[r.judge, r.dimension]
    if (delta := effect("delta")) is not None:
        eta -= delta[r.criterion]
    for name, chosen, at in (
        ("group", draws, (r.model, r.item_group[r.item] if r.groups else r.item, r.dimension)),
        ("judge_model", draws, (r.judge, r.model)),
        ("judge_item", place, (r.judge, r.item)),
        ("v", place, (r.model, r.item, r.dimension)),
        ("u", place, (r.response, r.dimension)),
    ):
        if (term := effect(name, chosen)) is not None:
            eta += term[at]
    if (favour := effect("favour")) is not None:
        eta += favoured(r, favour, r.judge, r.dimension, r.model)
    if (length := effect("length")) is not None:
        eta += length[r.dimension] * r.response_length[r.response, None]
    for name, where in (("order", r.reversed - 0.5), ("own_family", r.own_family), ("own_model", r.own_model)):
        if (term := effect(name)) is not None:
            eta += where[:, None] * term
    return eta


def used_categories(ratings: Ratings, finite: Bools) -> Bools:
    """Which categories a judge can use in a dimension [J, D, K], of finite thresholds [J, D, K-1].

    Of the categories below the first threshold one is used: the highest that the judge gave, or that anybody gave.
    """
    J, D, K = len(ratings.judges), len(ratings.dimensions), len(ratings.scale)
    given = np.zeros((J, D, K), dtype=bool)
    given[ratings.judge, ratings.dimension, ratings.category] = True
    first = np.where(finite.any(axis=2), finite.argmax(axis=2), K - 1)
    below = np.arange(K) <= first[:, :, None]
    by_judge, by_any = given & below, given.any(axis=0) & below
    candidates = np.where(by_judge.any(axis=2, keepdims=True), by_judge, by_any)
    lowest = K - 1 - candidates[:, :, ::-1].argmax(axis=2)
    used: Bools = np.concatenate([np.zeros((J, D, 1), dtype=bool), finite], axis=2)
    np.put_along_axis(used, lowest[:, :, None], True, axis=2)
    return used


def category_offsets(posterior: Posterior, draws: Ints) -> Floats:
    """alpha * offsets of `irt.link` [J, D, K, B]."""
    tau = posterior.flat("tau")[draws]
    used = used_categories(posterior.ratings, np.isfinite(tau[0]))
    at_one = offsets(tau, used, posterior.options.model == GRADED)
    return np.moveaxis(at_one * discrimination(posterior, draws).T[:, :, None, None], 0, -1)


def item_offsets(posterior: Posterior, place: Ints) -> Floats | None:
    """What an item adds to the cumulative thresholds [Q, D, K, B]; None where it has no thresholds of its own."""
    if "item_step" not in posterior.draws:
        return None
    steps = np.nan_to_num(posterior.flat("item_step")[place])
    cumulative = np.concatenate([np.zeros_like(steps[..., :1]), steps.cumsum(axis=-1)], axis=-1)
    return np.moveaxis(cumulative, 0, -1)


def rating_offsets(posterior: Posterior, draws: Ints, place: Ints, alpha: Floats) -> Floats:
    """Offsets of every rating [K, N, B]; alpha [N, B]."""
    r = posterior.ratings
    offsets = np.moveaxis(category_offsets(posterior, draws)[r.judge, r.dimension], 1, 0)
    if (own := item_offsets(posterior, place)) is not None:
        offsets = offsets + alpha * np.moveaxis(own[r.item, r.dimension], 1, 0)
    return offsets


def discrimination(posterior: Posterior, draws: Ints) -> Floats:
    """alpha [J, B]; one where the model has no discrimination."""
    if "log_alpha" not in posterior.draws:
        return np.ones((len(posterior.ratings.judges), len(draws)))
    return np.exp(posterior.flat("log_alpha")[draws].T)


def _spread(posterior: Posterior, draws: Ints) -> tuple[Floats, Floats]:
    """Sd of the response effect [D, B], if its draws were not kept, and of the halo of a judge on a response [B]."""
    u, halo = np.zeros((len(posterior.ratings.dimensions), len(draws))), np.zeros(len(draws))
    if "s_u" in posterior.draws and "u" not in posterior.draws:
        u = posterior.flat("s_u")[draws].T
    if "s_halo" in posterior.draws:
        halo = posterior.flat("s_halo")[draws]
    return u, halo


def _sample(p: Floats, rng: np.random.Generator) -> Ints:
    """Categories drawn from p [K, ...]."""
    uniform = rng.random(p.shape[1:], dtype=np.float32)
    category = np.zeros(p.shape[1:], dtype=np.int64)
    cumulative = np.zeros(p.shape[1:])
    for k in range(len(p) - 1):
        cumulative += p[k]
        category += uniform > cumulative
    return category


def _fresh(group: Ints, draws: int, rng: np.random.Generator) -> Floats:
    """Standard normal [N, B], the same for the ratings of a group."""
    groups, member = np.unique(group, return_inverse=True)
    return rng.standard_normal((len(groups), draws))[member]


class _Chunk:
    """At B draws: expected score and variance of every rating under the model, and replicated categories [N, B]."""

    def __init__(self, posterior: Posterior, draws: Ints, place: Ints, rng: np.random.Generator) -> None:
        r = posterior.ratings
        eta = predictor(posterior, draws, place)
        alpha = discrimination(posterior, draws)[r.judge]
        offsets = rating_offsets(posterior, draws, place, alpha)
        graded = posterior.options.model == GRADED
        s_u, s_halo = _spread(posterior, draws)
        if not (s_u.any() or s_halo.any()):
            self.p = probabilities(alpha * eta, offsets, graded)
            self.replicated = _sample(self.p, rng)
        else:
            sd = np.hypot(s_u, s_halo)[r.dimension]
            nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
            self.p = np.zeros(offsets.shape)
            for node, weight in zip(nodes, weights / weights.sum(), strict=True):
                self.p += weight * probabilities(alpha * (eta + sd * node), offsets, graded)
            effect = _fresh(r.response * len(r.dimensions) + r.dimension, len(draws), rng) * s_u[r.dimension]
            effect += _fresh(r.response * len(r.judges) + r.judge, len(draws), rng) * s_halo
            self.replicated = _sample(probabilities(alpha * (eta + effect), offsets, graded), rng)
        k = np.arange(len(self.p))
        self.expected: Floats = np.tensordot(k, self.p, axes=1)
        square: Floats = np.tensordot(k**2, self.p, axes=1)
        self.variance: Floats = np.maximum(square - self.expected**2, _LEAST_VARIANCE)


def _above(replicated: Floats, observed: Floats) -> Floats:
    """1 where a replication exceeds the observation, 1/2 where it equals it: few ratings have few possible values."""
    tied = np.isclose(replicated, observed, rtol=1e-9, atol=0)
    return np.where(tied, 0.5, (replicated > observed).astype(np.float64))


class _MeanSquares:
    """Infit and outfit of groups of ratings, summed up over draws."""

    def __init__(self, group: Ints, groups: int) -> None:
        self.sum = _indicator(group, groups)
        self.n = np.bincount(group, minlength=groups)[:, None]
        self.totals = np.zeros((4, groups))
        self.draws = 0

    def add(self, observed: Floats, replicated: Floats, variance: Floats) -> None:
        """Squared residuals and variances [N, B]."""
        with np.errstate(invalid="ignore"):
            information = self.sum @ variance
            infit, infit_new = (self.sum @ square / information for square in (observed, replicated))
            outfit, outfit_new = (self.sum @ (square / variance) / self.n for square in (observed, replicated))
        both = (infit, _above(infit_new, infit), outfit, _above(outfit_new, outfit))
        self.totals += [values.sum(axis=1) for values in both]
        self.draws += variance.shape[1]

    def frame(self, names: dict[str, list[str]]) -> pd.DataFrame:
        """Only groups that have ratings."""
        columns = dict(zip(("infit", "infit_p", "outfit", "outfit_p"), self.totals / self.draws, strict=True))
        return pd.DataFrame({**names, **columns})[self.n[:, 0] > 0].reset_index(drop=True)


def fit_statistics(posterior: Posterior, draws: int = 200, seed: int = 0) -> FitStatistics:
    """All fit statistics, at up to `draws` evenly spaced posterior draws with one replicated data set each."""
    r = posterior.ratings
    M, J, Q, D, K = (len(x) for x in (r.models, r.judges, r.items, r.dimensions, r.scale))
    scale = np.asarray(r.scale, dtype=float)
    judge_dimension, judge_model = r.judge * D + r.dimension, (r.judge * M + r.model) * D + r.dimension
    if not len(r):
        return _nothing()
    squares = [
        _MeanSquares(r.judge, J),
        _MeanSquares(r.model * D + r.dimension, M * D),
        _MeanSquares(r.item * D + r.dimension, Q * D),
    ]
    by_judge_model, by_judge_dimension = _indicator(judge_model, J * M * D), _indicator(judge_dimension, J * D)
    n = np.bincount(judge_model, minlength=J * M * D)
    expected_mean, expected_count = np.zeros(J * M * D), np.zeros((J * D, K))
    new_means, new_counts = [], []
    expected, variance = np.zeros(len(r)), np.zeros(len(r))

    rng = np.random.default_rng(seed)
    index, place = thin(posterior, draws)
    size = max(1, _CHUNK // len(r))
    for start in range(0, len(index), size):
        chosen = slice(start, start + size)
        chunk = _Chunk(posterior, index[chosen], place[chosen], rng)
        expected += chunk.expected.sum(axis=1)
        variance += chunk.variance.sum(axis=1)
        observed = np.square(r.category[:, None] - chunk.expected)
        replicated = np.square(chunk.replicated - chunk.expected)
        for each in squares:
            each.add(observed, replicated, chunk.variance)
        expected_mean += (by_judge_model @ np.tensordot(scale, chunk.p, axes=1)).sum(axis=1)
        expected_count += np.stack([(by_judge_dimension @ p).sum(axis=1) for p in chunk.p], axis=1)
        new_means.append(by_judge_model @ scale[chunk.replicated])
        new_counts.append(_counts(judge_dimension[:, None] * K + chunk.replicated, J * D * K))

    seen = n > 0
    misfit = pd.DataFrame(_grid(judge=r.judges, model=r.models, dimension=r.dimensions))[seen].reset_index(drop=True)
    means = np.concatenate(new_means, axis=1)[seen] / n[seen, None]
    observed_mean = np.bincount(judge_model, scale[r.category], minlength=J * M * D)[seen] / n[seen]
    misfit = misfit.assign(**_check(observed_mean, expected_mean[seen] / len(index) / n[seen], means), n=n[seen])
    misfit["notable"] = _notable(misfit, step=np.ptp(scale) / (K - 1))

    rated = np.repeat(np.bincount(judge_dimension, minlength=J * D) > 0, K)
    ppc = pd.DataFrame(_grid(judge=r.judges, dimension=r.dimensions, score=r.scale))[rated].reset_index(drop=True)
    observed_count = np.bincount(judge_dimension * K + r.category, minlength=J * D * K)[rated]
    counts = np.concatenate(new_counts, axis=1)[rated]
    ppc = ppc.assign(**_check(observed_count, expected_count.ravel()[rated] / len(index), counts)).drop(columns="z")
    return FitStatistics(
        judges=squares[0].frame(_grid(judge=r.judges)),
        models=squares[1].frame(_grid(model=r.models, dimension=r.dimensions)),
        items=squares[2].frame(_grid(item=r.items, dimension=r.dimensions)),
        misfit=misfit,
        ppc=ppc,
        expected=expected / len(index),
        variance=variance / len(index),
    )


def _nothing() -> FitStatistics:
    """Of a fit without ratings."""
    mean_squares = ("infit", "infit_p", "outfit", "outfit_p")
    checked = ("observed", "expected", "expected_low", "expected_high", "p")
    empty = [
        ("judge", *mean_squares),
        ("model", "dimension", *mean_squares),
        ("item", "dimension", *mean_squares),
        ("judge", "model", "dimension", *checked, "z", "n", "notable"),
        ("judge", "dimension", "score", *checked),
    ]
    frames = [pd.DataFrame(columns=list(names)).astype({n: float for n in names if n not in _KEYS}) for names in empty]
    judges, models, items, misfit, ppc = frames
    misfit = misfit.astype({"notable": bool})
    return FitStatistics(judges, models, items, misfit, ppc, expected=np.zeros(0), variance=np.zeros(0))


_KEYS = ("judge", "model", "item", "dimension", "score")


def information(posterior: Posterior, draws: int = 10) -> Floats:
    """Mean over draws [N] of what each rating tells of its response (Fisher): alpha^2 x variance of the score, where
    logits are those of adjacent categories."""
    r = posterior.ratings
    if not len(r):
        return np.zeros(0)
    index, place = thin(posterior, draws)
    chunk = _Chunk(posterior, index, place, np.random.default_rng(0))
    told = fisher(chunk.p, True) if posterior.options.model == GRADED else chunk.variance
    return np.asarray((discrimination(posterior, index)[r.judge] ** 2 * told).mean(axis=1))


def _notable(misfit: pd.DataFrame, step: float) -> Bools:
    """Cells beyond chance among all cells (5 %, Bonferroni), by a gap that is not trivial."""
    critical = stats.norm.isf(0.025 / len(misfit))
    gap = (misfit["observed"] - misfit["expected"]).abs()
    return np.asarray((misfit["z"].abs() > critical) & (gap > LEAST_GAP * step))


def _indicator(group: Ints, groups: int) -> csr_array:
    """[groups, N] with a one where a rating belongs to a group."""
    n = len(group)
    return csr_array((np.ones(n), (group, np.arange(n))), shape=(groups, n))


def _counts(group: Ints, groups: int) -> Floats:
    """How often each group stands in each column: [groups, B] of [N, B]."""
    columns = group.shape[1]
    flat = (group * columns + np.arange(columns)).ravel()
    return np.bincount(flat, minlength=groups * columns).reshape(groups, columns).astype(float)


def _grid(**axes: tuple[str, ...] | tuple[int, ...]) -> dict[str, list[str]]:
    """Columns of the full crossing of the axes, last fastest."""
    index = pd.MultiIndex.from_product(axes.values(), names=list(axes))
    return {name: list(index.get_level_values(name)) for name in axes}


def _check(observed: NDArray[np.generic], expected: Floats, replicated: Floats) -> dict[str, NDArray[np.generic]]:
    """A posterior predictive check of each row: interval and mid-p of the replications [G, S], and z."""
    low, high = np.quantile(replicated, [0.025, 0.975], axis=1)
    actual = np.asarray(observed, dtype=float)
    above, tied = (replicated > actual[:, None]).mean(axis=1), (replicated == actual[:, None]).mean(axis=1)
    sd = np.maximum(replicated.std(axis=1), 1e-9)
    return {
        "observed": observed,
        "expected": expected,
        "expected_low": low,
        "expected_high": high,
        "p": above + tied / 2,
        "z": (actual - expected) / sd,
    }
