"""Anchors: judges and items whose place on the scale is taken from an earlier fit, fixed or as a tight prior."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpeer.errors import ConfigError
from dpeer.eval.irt.types import Floats, Options, Posterior, Ratings
from dpeer.eval.irt.variant import differing, variant, variant_of


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """(mean, sd) per element, nan where it is free."""

    judges: Floats  # [J, D, 2] severity
    items: Floats  # [Q, D, 2] difficulty
    log_alpha: Floats  # [J, 2]
    mu: Floats  # [D] of the earlier fit; nan where the two fits have no common origin
    notes: tuple[str, ...] = ()
    """Dimensions without a common origin, and why."""


def anchors_from(
    posterior: Posterior, judges: Iterable[str] = (), items: Iterable[str] = (), sd: float | None = None
) -> dict[str, Any]:
    """Anchors for `Options.anchors` from an earlier fit; plain JSON.

    sd: None takes the earlier posterior sd of each element, 0 fixes it. Raises ConfigError for names it does not have.
    """
    ratings, dimensions = posterior.ratings, posterior.ratings.dimensions
    judges, items = tuple(judges), tuple(items)
    if not len(ratings):
        raise ConfigError(
            "anchors: the earlier fit holds comparisons only, in which difficulties and severities cancel; take "
            "anchors from a fit of ratings"
        )
    for kind, asked, known in (("judge", judges, ratings.judges), ("item", items, ratings.items)):
        if unknown := sorted(set(asked) - set(known)):
            raise ConfigError(f"anchors: the earlier fit has no {kind} {unknown[0]}; it has {', '.join(known[:20])}")

    def pair(draws: Floats) -> list[float]:
        return [float(draws.mean()), float(draws.std()) if sd is None else sd]

    severity, beta = posterior.flat("severity"), posterior.flat("beta")
    level = posterior.flat("mu").mean(axis=0).tolist()  # nan where there are comparisons only
    spec: dict[str, Any] = {
        **variant_of(posterior),
        "scale": list(ratings.scale),
        "scores": {d: _extremes(ratings, k) for k, d in enumerate(dimensions)},
        "mu": {d: mu for d, mu in zip(dimensions, level, strict=True) if np.isfinite(mu)},
        "judges": {
            j: {
                d: pair(severity[:, ratings.judges.index(j), k])
                for k, d in enumerate(dimensions)
                if ratings.judge_rated[ratings.judges.index(j), k]
            }
            for j in judges
        },
        "items": {},
        "log_alpha": {},
    }
    for name in items:
        draws = beta[:, ratings.items.index(name)]
        spec["items"][name] = {d: pair(draws[:, k]) for k, d in enumerate(dimensions) if not np.isnan(draws[0, k])}
    if "log_alpha" in posterior.draws:
        alpha = posterior.flat("log_alpha")
        spec["log_alpha"] = {j: pair(alpha[:, ratings.judges.index(j)]) for j in judges}
    return spec


def check_anchors(
    ratings: Ratings, options: Options, alpha: bool, response_effect: bool, model_item: bool = False
) -> Anchors:
    """`options.anchors` as arrays over the elements of `ratings`; all nan without.

    alpha, response_effect, model_item: whether the fit to these ratings has these terms.

    Abilities count from where difficulties and severities do. A dimension has the origin of the earlier fit only if
    some of its items and some of its judges are anchored and its lowest and highest score are those of then, on which
    the thresholds are centred. Raises ConfigError: fits of different models or scales, or anchors that link nothing.
    """
    j, q, d = len(ratings.judges), len(ratings.items), len(ratings.dimensions)
    fixed = Anchors(np.full((j, d, 2), np.nan), np.full((q, d, 2), np.nan), np.full((j, 2), np.nan), np.full(d, np.nan))
    anchors = options.anchors
    if not anchors:
        return fixed
    if others := differing(anchors, variant(options, alpha, response_effect, model_item)):
        raise ConfigError(
            f"anchors: the earlier fit and this one are of different models ({others}); their logits are not on one "
            "scale, so fit both in the same way"
            + (" (--no-people-scale, which anchors always have)" if anchors.get("people_scale") else "")
        )
    if tuple(anchors.get("scale", ratings.scale)) != ratings.scale:
        then, here = (" to ".join(str(s[i]) for i in (0, -1)) for s in (anchors["scale"], ratings.scale))
        raise ConfigError(
            f"anchors: the earlier fit has the scale {then}, this one {here}; name the common one with --scale, or "
            "leave the anchors out"
        )
    for kind, names, into in (("judges", ratings.judges, fixed.judges), ("items", ratings.items, fixed.items)):
        at = {name: i for i, name in enumerate(names)}
        for name, values in anchors.get(kind, {}).items():
            for dimension, value in values.items():
                if name in at and dimension in ratings.dimensions:
                    into[at[name], ratings.dimensions.index(dimension)] = _pair(kind, name, value)
    for name, value in anchors.get("log_alpha", {}).items():
        if alpha and name in ratings.judges:
            fixed.log_alpha[ratings.judges.index(name)] = _pair("log_alpha", name, value)
    for dimension, value in anchors.get("mu", {}).items():
        if dimension in ratings.dimensions:
            fixed.mu[ratings.dimensions.index(dimension)] = float(value)
    if np.isnan(fixed.judges).all() and np.isnan(fixed.items).all():
        raise ConfigError(
            "anchors: none of the anchored judges and items occurs in these ratings, so nothing is linked"
        )
    return _with_origins(fixed, ratings, anchors)


def _with_origins(fixed: Anchors, ratings: Ratings, anchors: dict[str, Any]) -> Anchors:
    judged = np.asarray(~np.isnan(fixed.judges[..., 0]).all(axis=0))  # [D]
    asked = np.asarray(~np.isnan(fixed.items[..., 0]).all(axis=0))
    notes = []
    for d, name in enumerate(ratings.dimensions):
        if judged.any() and not judged[d]:
            raise ConfigError(
                f"anchors: judges are anchored in {ratings.dimensions[int(judged.argmax())]} but none in {name}, whose "
                "origin would be loose; fit the dimensions apart (--dimension)"
            )
        then, now = anchors.get("scores", {}).get(name), _extremes(ratings, d)
        why = [
            f"none of its {kind} is anchored" for kind, there in (("judges", judged), ("items", asked)) if not there[d]
        ]
        if then is not None and then != now:
            why.append(f"its scores run from {now[0]} to {now[1]}, then from {then[0]} to {then[1]}")
        if why and not np.isnan(fixed.mu[d]):
            fixed.mu[d] = np.nan
            notes.append(
                f"{name}: {' and '.join(why)}, so abilities are not on the origin of the earlier fit; they sum to zero "
                "over these models"
            )
    return replace(fixed, notes=tuple(notes))


def _extremes(ratings: Ratings, dimension: int) -> list[int]:
    """The least and the greatest score given."""
    given = ratings.category[ratings.dimension == dimension]
    return [int(ratings.scale[given.min()]), int(ratings.scale[given.max()])] if len(given) else []


def _pair(kind: str, name: str, value: Any) -> tuple[float, float]:
    mean, sd = (float(v) for v in value)
    if not (np.isfinite(mean) and np.isfinite(sd) and sd >= 0):
        raise ConfigError(f"anchors: {kind} {name} has mean {mean}, sd {sd}; both must be finite, sd at least 0")
    return mean, sd
