"""Leave-one-out: how well a fit predicts the answers of a model to an item that it has not seen, and which of several
fits predicts better.

Left out is a unit of `irt.marginal`: all that judges said of what a model answered to an item. Units are what new
ratings come in, they share no effect of their own, and they are the same for all variants of the model, with and
without halo or model x item. The sum of log predictive densities (elpd) comes from the draws of one fit by Pareto
smoothed importance sampling (Vehtari, Gelman & Gabry 2017; Vehtari et al., JMLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from dpeer.errors import ConfigError
from dpeer.eval.irt.marginal import DRAWS, Units, chosen_draws, log_likelihood
from dpeer.eval.irt.types import Bools, Floats, Posterior, Ratings

GOOD_K = 0.7
"""Pareto shape up to which an importance sampling estimate may be believed."""
CLEAR = 4.0
"""Difference of elpd below which models predict alike, whatever its standard error (Sivula et al. 2020)."""
DOUBTFUL, LEAST_TRUSTED = "not to be relied on", 0.9
_SAME = ("models", "items", "dimensions", "criteria", "judges", "scale")


@dataclass(frozen=True, slots=True, eq=False)
class Loo:
    """Of one fit; a row per unit: model, item, n (ratings), elpd (log predictive density), khat, p (difference to the
    density with the unit in the data: effective parameters)."""

    units: pd.DataFrame
    draws: int

    @property
    def elpd(self) -> float:
        return float(self.units["elpd"].sum())

    @property
    def unreliable(self) -> int:
        """Units whose importance weights may not be believed."""
        return int((~(self.units["khat"] <= GOOD_K)).sum())


def smoothed(log_ratios: Floats, relative: float = 1.0) -> tuple[Floats, Floats]:
    """Normalised log weights [U, S], and Pareto k-hat [U], of log importance ratios [U, S]; `relative`: effective draws
    over draws, of which the length of the tail depends."""
    from arviz_stats.base import array_stats

    varies = np.ptp(log_ratios, axis=-1) > 1e-12  # ArviZ refuses ratios that are all the same
    log_weights, khat = np.zeros(log_ratios.shape), np.full(len(log_ratios), -np.inf)
    if varies.any():
        log_weights[varies], khat[varies] = array_stats.psislw(-log_ratios[varies], r_eff=relative, axis=-1)
    return log_weights - logsumexp(log_weights, axis=-1, keepdims=True), khat


def loo(posterior: Posterior, draws: int = DRAWS) -> Loo:
    """Raises IrtError for a fit that holds comparisons."""
    index, place = chosen_draws(posterior, draws)
    density = log_likelihood(posterior, index, place)
    log_weights, khat = smoothed(-density)
    elpd = logsumexp(log_weights + density, axis=1)
    whole = logsumexp(density, axis=1) - np.log(len(index))
    r, units = posterior.ratings, Units.of(posterior.ratings)
    columns = {
        "model": np.array(r.models, object)[units.model],
        "item": np.array(r.items, object)[units.item],
        "n": np.bincount(units.of_rating, minlength=len(units)),
    }
    return Loo(pd.DataFrame({**columns, "elpd": elpd, "khat": khat, "p": whole - elpd}), len(index))


def comparable(fits: Mapping[str, Ratings]) -> None:
    """Raises ConfigError unless all fits are of the same ratings, name by name and score by score."""
    names = list(fits)
    first = fits[names[0]]
    for name in names[1:]:
        other = fits[name]
        differ = [field for field in _SAME if getattr(other, field) != getattr(first, field)]
        same_rows = len(first) == len(other) and all(
            np.array_equal(getattr(first, field), getattr(other, field))
            for field in ("response", "response_model", "response_item", "dimension", "criterion", "judge", "category")
        )
        if differ or not same_rows:
            why = (
                f"their {', '.join(differ)} are not the same"
                if differ
                else f"{len(first):,} and {len(other):,} ratings differ"
            )
            raise ConfigError(
                f"{names[0]} and {name} are fits of other ratings ({why}), and predictions of other data say nothing "
                "about which model is better; fit both to one table, with the same --dimension, --without and --scale"
            )


def compare_models(
    fits: Mapping[str, Posterior], draws: int = DRAWS, say: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """A row per fit, best first: fit, model, elpd, elpd_se, difference to the best and its se, p_loo, unreliable (units
    with k-hat above 0.7), khat_max, weight (stacking), verdict.

    All fits must be of the same ratings (see `comparable`)."""
    comparable({name: posterior.ratings for name, posterior in fits.items()})
    found: dict[str, Loo] = {}
    for name, posterior in fits.items():
        if say:
            say(name)
        found[name] = loo(posterior, draws)
    pointwise = np.stack([result.units["elpd"].to_numpy() for result in found.values()])
    best = int(pointwise.sum(axis=1).argmax())
    away = pointwise - pointwise[best]
    n = pointwise.shape[1]
    frame = pd.DataFrame(
        {
            "fit": list(found),
            "model": [posterior.options.model for posterior in fits.values()],
            "elpd": pointwise.sum(axis=1),
            "elpd_se": np.sqrt(n) * pointwise.std(axis=1),
            "difference": away.sum(axis=1),
            "difference_se": np.sqrt(n) * away.std(axis=1),
            "p_loo": [float(result.units["p"].sum()) for result in found.values()],
            "units": n,
            "unreliable": [result.unreliable for result in found.values()],
            "khat_max": [float(result.units["khat"].max()) for result in found.values()],
            "weight": stacking(pointwise),
        }
    )
    trusted = np.all([(result.units["khat"] <= GOOD_K).to_numpy() for result in found.values()], axis=0)
    frame["verdict"] = [_verdict(of_one, trusted, f == best) for f, of_one in enumerate(away)]
    return frame.sort_values("elpd", ascending=False, kind="stable", ignore_index=True)


def _verdict(away: Floats, trusted: Bools, best: bool) -> str:
    """In words, of differences to the best fit [U]; doubtful where units that are not `trusted` decide it."""
    said, without = (_words(part) for part in (away, away[trusted]))
    if said != without or trusted.mean() < LEAST_TRUSTED:
        return f"{DOUBTFUL}: k-hat above {GOOD_K} in {(~trusted).sum()} of {len(away)} units"
    return "predicts best" if best else said


def _words(away: Floats) -> str:
    """A difference counts from `CLEAR` on, and from two of its standard errors on."""
    total, error = -away.sum(), np.sqrt(len(away)) * away.std() if len(away) else 0.0
    if total < CLEAR:
        return "predicts as well"
    return "may predict as well" if total < 2 * error else "predicts worse"


def stacking(pointwise: Floats, passes: int = 2000) -> Floats:
    """Weights [F] of the mixture of predictions [F, U] (log densities) that predicts best (Yao et al. 2018), by EM."""
    density = np.exp(pointwise - pointwise.max(axis=0))
    weight = np.full(len(density), 1 / len(density))
    for _ in range(passes):
        weight = weight * (density / (weight @ density)).mean(axis=1)
    return np.asarray(weight)
