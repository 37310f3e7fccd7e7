"""Have judges and items moved since an earlier fit? If so, they no longer serve as anchors."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from dpeer.errors import ConfigError
from dpeer.eval.irt.people import on_scale
from dpeer.eval.irt.types import Floats, Posterior
from dpeer.eval.irt.variant import differing, variant_of
from dpeer.eval.irt.weaknesses import names_of

KINDS = {"judges": "severity", "items": "beta"}
"""What can be an anchor, and the name of its draws [S, n, D]."""

NOTE = (
    "Drift must be estimated in a free fit: an anchored judge or item cannot move. Differences are relative to the "
    "median of the judges or items that both fits share, because each fit sets its own zero."
)


def drift(before: Posterior, now: Posterior, level: float = 0.05) -> pd.DataFrame:
    """How far the judges and items that two fits share have moved, in logits; see NOTE.

    Columns: kind, name, dimension, before, now, difference, difference_low, difference_high (95 %), drifted (at `level`
    over all elements of a kind, by Bonferroni). Raises ConfigError for fits of different models or an anchored `now`.
    """
    require_same_model(before, now)
    frames = [_drift(kind, before, now, level) for kind in KINDS]
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def require_same_model(before: Posterior, now: Posterior) -> None:
    """ConfigError: the later fit is anchored, or the logits of the two are of different models."""
    if now.options.anchors:
        raise ConfigError(f"the later fit is anchored, so its anchors show no drift. {NOTE} Fit again without anchors.")
    variants = [{n: v for n, v in variant_of(p).items() if n != "people_scale"} for p in (before, now)]
    if others := differing(*variants):
        raise ConfigError(
            f"the fits are of different models ({others}), so their logits are on different scales. Fit both with the "
            "same options and the same version of dpeer."
        )
    scaled = [dict(zip(p.ratings.dimensions, on_scale(p).tolist(), strict=True)) for p in (before, now)]
    if apart := [d for d, on in scaled[0].items() if scaled[1].get(d, on) != on]:
        raise ConfigError(
            f"in {names_of(apart)} one of the fits has abilities on the scale of the people among its judges, and the "
            "other has not, so a difference would mix both. Fit both with --no-people-scale, or with people in both"
        )


def _drift(kind: str, before: Posterior, now: Posterior, level: float) -> pd.DataFrame:
    earlier = set(getattr(before.ratings, kind))
    names = [name for name in getattr(now.ratings, kind) if name in earlier]
    dimensions = [d for d in now.ratings.dimensions if d in before.ratings.dimensions]
    (mean_old, var_old), (mean_now, var_now) = (_moments(p, kind, names, dimensions) for p in (before, now))
    shift = mean_now - mean_old
    rated = np.isfinite(shift)
    zero = np.array(
        [np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in shift.T]
    )
    difference = shift - zero
    sd = np.sqrt(var_old + var_now)
    critical = stats.norm.isf(level / 2 / max(1, rated.sum()))
    frame = pd.DataFrame(
        {
            "kind": kind,
            "name": np.repeat(np.array(names, dtype=object), len(dimensions)),
            "dimension": np.tile(np.array(dimensions, dtype=object), len(names)),
            "before": mean_old.ravel(),
            "now": (mean_now - zero).ravel(),
            "difference": difference.ravel(),
            "difference_low": (difference - 1.96 * sd).ravel(),
            "difference_high": (difference + 1.96 * sd).ravel(),
            "drifted": (np.abs(difference) > critical * sd).ravel(),
        }
    )
    return frame[rated.ravel()].reset_index(drop=True)


def _moments(posterior: Posterior, kind: str, names: list[str], dimensions: list[str]) -> tuple[Floats, Floats]:
    """Posterior mean and variance [n, D] of the named elements."""
    places = {name: i for i, name in enumerate(getattr(posterior.ratings, kind))}
    rows = np.array([places[name] for name in names], dtype=np.int64)
    columns = np.array([posterior.ratings.dimensions.index(d) for d in dimensions], dtype=np.int64)
    draws = posterior.flat(KINDS[kind])[:, rows[:, None], columns]
    if kind == "judges":
        draws = np.where(posterior.ratings.judge_rated[rows[:, None], columns], draws, np.nan)
    return draws.mean(axis=0), draws.var(axis=0)
