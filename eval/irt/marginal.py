"""How likely the answers of a model to an item are at each posterior draw, with the effects that are theirs alone
integrated out: the likelihood that leave-one-out needs (Merkle, Furr & Rabe-Hesketh, Psychometrika 84, 2019).

A unit is what a model answered to an item: all of its samples, dimensions, judges and repeats. Its own effects are u
(response x dimension), v (model x item x dimension) and halo (judge x response); everything else is shared with other
units. At known shared parameters units are independent, and so are dimensions, unless a halo joins them.

One effect per cell of a response and a dimension (u; v adds to its variance where there is one response) is integrated
by adaptive Gauss-Hermite quadrature (Liu & Pierce, Biometrika 81, 1994), several by importance sampling around the mode
with antithetic normal points. The integrand is log-concave, so that Newton's method finds the mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, qmc

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.fit_statistics import discrimination, predictor, rating_offsets
from dpeer.eval.irt.link import LogLikelihood
from dpeer.eval.irt.types import GRADED, Bools, Floats, Ints, Posterior, Ratings

NODES, NEWTON, LONGEST = 9, 5, 3.0
"""Quadrature nodes, steps towards the mode, and the longest step, in standard deviations of the effect."""
POINTS, WIDER = 128, 1.1
"""Points of importance sampling, and by how much their spread exceeds that of the normal at the mode."""
DRAWS = 1000
"""Posterior draws at which likelihoods are computed, evenly spaced, unless more are asked for."""
OWN = ("u", "v")
_CHUNK = 400_000  # ratings x draws at once
_SHARED = ("judge_item", "item_step")


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """U answered pairs of model and item."""

    model: Ints  # [U]
    item: Ints  # [U]
    of_rating: Ints  # [N]

    @staticmethod
    def of(ratings: Ratings) -> Units:
        q = len(ratings.items)
        pair, of_rating = np.unique(ratings.model * q + ratings.item, return_inverse=True)
        return Units(pair // q, pair % q, of_rating)

    def __len__(self) -> int:
        return len(self.model)


def chosen_draws(posterior: Posterior, most: int = DRAWS) -> tuple[Ints, Ints]:
    """At most `most` evenly spaced flat draws, and their places among those at which thinned blocks were kept.

    Effects of judge x item and thresholds of items are kept for some draws only, which are the ones then.
    """
    total = int(np.prod(posterior.draws["theta"].shape[:2]))
    shared = any(name in posterior.draws for name in _SHARED)
    kept = np.asarray(posterior.facts["u_draws"]) if shared else np.arange(total)
    place = np.unique(np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(np.int64))
    return kept[place].astype(np.int64), place if shared else np.zeros(len(place), np.int64)


def check_marginal(posterior: Posterior) -> None:
    """Raises IrtError where responses are joined by comparisons, so that leaving one out leaves out none of its own."""
    if len(posterior.ratings.comparisons):
        raise IrtError(
            "leave-one-out needs answers that are independent given the model, and a comparison is about two of them: "
            "fit the ratings alone, without comparisons"
        )


def log_likelihood(posterior: Posterior, draws: Ints, place: Ints, kept: Bools | None = None) -> Floats:
    """log p [U, S] of the ratings `kept` [N] of each unit (all, without it) at S flat draws; 0 where none is kept.

    draws, place: see `chosen_draws`. Raises IrtError for a fit that holds comparisons.
    """
    check_marginal(posterior)
    r = posterior.ratings
    rows = np.arange(len(r)) if kept is None else np.flatnonzero(kept)
    if not len(rows):
        return np.zeros((len(Units.of(r)), len(draws)))
    effects = _Effects(posterior, rows)
    size = max(1, _CHUNK // (len(rows) * (1 if effects.single else 2)))
    parts = [
        _Chunk(posterior, draws[s : s + size], place[s : s + size], effects).log_likelihood()
        for s in range(0, len(draws), size)
    ]
    return np.concatenate(parts, axis=1)


class _Effects:
    """Which effects of its own each rating has: of the cell, of the triple, of the judge on the response."""

    def __init__(self, posterior: Posterior, rows: Ints) -> None:
        r = posterior.ratings
        d = len(r.dimensions)
        units = Units.of(r)
        self.has_u, self.has_v, self.has_halo = (n in posterior.draws for n in ("s_u", "s_v", "s_halo"))
        cell = r.response * d + r.dimension
        triple = units.of_rating * d + r.dimension
        several = len(np.unique(cell)) > len(np.unique(triple))
        self.single = not self.has_halo and not (self.has_u and self.has_v and several)
        if self.single:  # one effect per cell, or per triple where there is no u
            key = triple if self.has_v and not self.has_u else cell
            order = np.lexsort((key[rows], units.of_rating[rows]))
            self.rows = rows[order]
            keys = key[self.rows]
            self.first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
            self.of_row = np.cumsum(np.r_[True, keys[1:] != keys[:-1]]) - 1
            self.dimension = r.dimension[self.rows][self.first]
            self.unit = units.of_rating[self.rows][self.first]
        else:
            self.rows = rows[np.argsort(units.of_rating[rows], kind="stable")]
            self.unit = units.of_rating[self.rows]
            keys = [cell] * self.has_u + [triple] * self.has_v
            keys += [r.judge * len(r.response_model) + r.response] * self.has_halo
            self.local = [_local(self.unit, key[self.rows]) for key in keys]
        self.units = len(units)


def _local(unit: Ints, key: Ints) -> Ints:
    """[N] number of a key within its unit; units are contiguous."""
    pairs, of_row = np.unique(np.stack([unit, key]), axis=1, return_inverse=True)
    first = np.searchsorted(pairs[0], pairs[0])
    return np.asarray((np.arange(pairs.shape[1]) - first)[of_row.ravel()])


class _Chunk:
    """The integral of every unit at B draws."""

    def __init__(self, posterior: Posterior, draws: Ints, place: Ints, effects: _Effects) -> None:
        r, rows = posterior.ratings, effects.rows
        eta = predictor(posterior, draws, place, without=OWN)[rows]
        self.alpha = discrimination(posterior, draws)[r.judge]
        offsets = rating_offsets(posterior, draws, place, self.alpha)[:, rows]
        self.alpha, self.effects, self.draws = self.alpha[rows], effects, len(draws)
        self.slope = self.alpha * eta
        self.rating = LogLikelihood(r.category[rows], offsets, posterior.options.model == GRADED)

        def scale(name: str) -> Floats:
            return posterior.flat(name)[draws].T

        self.s_u = scale("s_u") if effects.has_u else None
        self.s_v = scale("s_v") if effects.has_v else None
        self.s_halo = scale("s_halo") if effects.has_halo else None
        self.dimension = r.dimension[rows]

    def log_likelihood(self) -> Floats:
        """[U, B]"""
        return self._by_quadrature() if self.effects.single else self._by_sampling()

    def _by_quadrature(self) -> Floats:
        e = self.effects
        variance = np.zeros((e.dimension.max() + 1, self.draws))
        for own in (self.s_u, self.s_v):
            variance += 0.0 if own is None else own[: len(variance)] ** 2
        if variance.any():
            each = self._integrals(np.sqrt(variance)[e.dimension])
        else:
            each = np.add.reduceat(self.rating.value(self.slope), e.first, axis=0)
        total = np.zeros((e.units, self.draws))
        starts = np.flatnonzero(np.r_[True, e.unit[1:] != e.unit[:-1]])
        total[e.unit[starts]] = np.add.reduceat(each, starts, axis=0)
        return total

    def _integrals(self, sd: Floats) -> Floats:
        """log of the integral of each cell [E, B] over z ~ normal(0, 1), which moves its ratings by sd z."""
        e = self.effects
        moved = self.alpha * sd[e.of_row]
        z = np.zeros(sd.shape)
        for _ in range(NEWTON):
            first, second = self.rating.derivatives(self.slope + moved * z[e.of_row])
            gradient = np.add.reduceat(moved * first, e.first, axis=0) - z
            curvature = 1 - np.add.reduceat(moved**2 * second, e.first, axis=0)
            z += np.clip(gradient / curvature, -LONGEST, LONGEST)
        width = 1 / np.sqrt(curvature)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        terms = np.empty((NODES, *z.shape))
        for i, (node, weight) in enumerate(zip(nodes, weights / np.sqrt(2 * np.pi), strict=True)):
            at = z + width * node
            terms[i] = np.add.reduceat(self.rating.value(self.slope + moved * at[e.of_row]), e.first, axis=0)
            terms[i] += np.log(weight) + (node**2 - at**2) / 2
        return np.asarray(logsumexp(terms, axis=0) + np.log(width))

    def _by_sampling(self) -> Floats:
        """All effects of a unit together: z ~ normal(0, I), of which each rating has one of every kind."""
        e = self.effects
        present, unit = np.unique(e.unit, return_inverse=True)
        starts = np.searchsorted(unit, np.arange(len(present)))
        scales = [s for s in (self.s_u, self.s_v, self.s_halo) if s is not None]
        sds = [s[self.dimension] if s.ndim == 2 else np.broadcast_to(s, self.slope.shape) for s in scales]
        kinds = [int(local.max()) + 1 for local in e.local]
        at = [local + before for local, before in zip(e.local, np.cumsum([0, *kinds]), strict=False)]
        moved = [self.alpha * sd for sd in sds]
        n = sum(kinds)
        z = np.zeros((len(present), n, self.draws))

        def slope(z: Floats) -> Floats:
            return np.asarray(self.slope + sum(m * z[unit, a] for m, a in zip(moved, at, strict=True)))

        for _ in range(NEWTON):
            first, second = self.rating.derivatives(slope(z))
            gradient, curvature = -z, np.zeros((len(present), n, n, self.draws))
            curvature[:, np.arange(n), np.arange(n)] = 1
            for m, a in zip(moved, at, strict=True):
                np.add.at(gradient, (unit, a), m * first)
                for other, b in zip(moved, at, strict=True):
                    np.add.at(curvature, (unit, a, b), -m * other * second)
            hessian = np.moveaxis(curvature, -1, 1)
            step = np.linalg.solve(hessian, np.moveaxis(gradient, -1, 1)[..., None])[..., 0]
            z = z + np.moveaxis(np.clip(step, -LONGEST, LONGEST), 1, -1)
        root = WIDER * np.swapaxes(np.linalg.inv(np.linalg.cholesky(hessian)), -1, -2)  # of the inverse: [., B, n, n]
        log_volume = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
        terms = np.empty((POINTS, len(present), self.draws))
        points = _points(n)
        for i, point in enumerate(points):
            here = z + np.moveaxis(root @ point, 1, -1)
            terms[i] = np.add.reduceat(self.rating.value(slope(here)), starts, axis=0)
            terms[i] += ((point**2).sum() - (here**2).sum(axis=1)) / 2
        square = (points**2).sum(axis=1)
        normal = logsumexp(square * (1 - WIDER**2) / 2) + n * np.log(
            WIDER
        )  # of a normal integrand, that is log(POINTS)
        total = np.zeros((e.units, self.draws))
        total[present] = logsumexp(terms, axis=0) - normal + log_volume
        return total


def _points(n: int) -> Floats:
    """[POINTS, n] standard normal: scrambled Sobol points and their mirror images; the same at every call."""
    half = qmc.Sobol(n, seed=0).random(POINTS // 2)
    points = norm.ppf(np.clip(half, 1e-6, 1 - 1e-6))
    return np.concatenate([points, -points])
