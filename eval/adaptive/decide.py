"""What is decided at a look: contrasts with the base that differ from zero, that are smaller than what matters, or that
the rest of the design would not decide either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from dpeer.eval.adaptive.choose import Design, Worth, variances
from dpeer.eval.adaptive.looks import boundary
from dpeer.eval.adaptive.quick_fit import QuickFit
from dpeer.eval.irt.types import Bools, Floats

HIGHER, LOWER, EQUIVALENT, HOPELESS, OPEN = "higher", "lower", "equivalent", "hopeless", "open"
TYPICAL = Worth(s_effect=0.2, s_ability=100.0)
"""By which information is counted: nearly the share of the ratings. It is the same at every look, so that time never
goes back and does not depend on what was answered. Where effects spread more, time runs late, and less error is spent
than may be."""
FUTILE = 0.1
"""Probability that the whole design decides a contrast, below which it is given up."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """All contrasts at one time, arrays [D, M]; the base's own entries mean nothing."""

    mean: Floats
    sd: Floats
    time: Floats
    """Information over that of the whole design."""
    limit: Floats
    """Standard errors on both sides of the mean that a decision takes, see `looks`."""
    verdict: NDArray[np.str_]

    @property
    def half_width(self) -> Floats:
        return self.limit * self.sd


def look(fits: Sequence[QuickFit], design: Design, asked: Bools, before: Sequence[Look], contrast: float) -> Look:
    """The next look, given those before. What was decided stays so, with the limit of that look.

    A fit that has not converged decides nothing, and is no look: its contrasts stay at the time of the one before.
    """
    b = design.base
    mean = np.array([f.ability - f.ability[b] for f in fits])
    sd = np.sqrt(np.array([np.diag(f.covariance) + f.covariance[b, b] - 2 * f.covariance[b] for f in fits]))
    time, share = times_of(design, asked), _shares(design, asked, [worth_of(f) for f in fits])
    limit, verdict = np.zeros_like(mean), np.full(mean.shape, OPEN, dtype="U10")
    for at in np.ndindex(mean.shape):
        if at[1] == b:
            continue
        if before and before[-1].verdict[at] not in (OPEN, HOPELESS):
            time[at], limit[at], verdict[at] = (getattr(before[-1], x)[at] for x in ("time", "limit", "verdict"))
            continue
        if not fits[at[0]].converged:
            time[at] = before[-1].time[at] if before else 0.0
        times = [*(float(old.time[at]) for old in before), float(time[at])]
        here, spread, limit[at] = float(mean[at]), float(sd[at]), boundary(times)
        if not fits[at[0]].converged:
            continue
        verdict[at] = judged(here, spread, float(limit[at]), contrast)
        if verdict[at] == OPEN and chance(here, spread, times, contrast, float(share[at])) < FUTILE:
            verdict[at] = HOPELESS
    return Look(mean, sd, time, limit, verdict)


def times_of(design: Design, asked: Bools) -> Floats:
    """[D, M] information about each contrast over that of the whole design; 1 for the base itself."""
    return _shares(design, asked, [TYPICAL] * design.shape[3])


def _shares(design: Design, asked: Bools, worth: list[Worth]) -> Floats:
    """[D, M] variance of each contrast when all is asked over that of now."""
    now = variances(design, design.counts(asked), worth)
    whole = variances(design, design.counts(np.ones_like(asked)), worth)
    return np.asarray(np.minimum(np.divide(whole, now, out=np.ones_like(now), where=now > 0), 1.0))


def worth_of(fit: QuickFit) -> Worth:
    return Worth(fit.s_effect, fit.s_item, fit.s_ability, fit.information)


def judged(mean: float, sd: float, limit: float, contrast: float) -> str:
    """An interval that lies on one side of zero decides; so does one between -contrast and contrast."""
    low, high = mean - limit * sd, mean + limit * sd
    if low > 0 or high < 0:
        return HIGHER if low > 0 else LOWER
    return EQUIVALENT if -contrast < low and high < contrast else OPEN


def chance(mean: float, sd: float, times: Sequence[float], contrast: float, share: float) -> float:
    """Probability that the whole design would decide the contrast, as it stands at the last of the times; share: of its
    variance that the whole design would leave."""
    end = boundary([*times, 1.0]) * sd * np.sqrt(share)  # half width with the whole design
    spread = sd * np.sqrt(max(1.0 - share, 1e-9))
    beyond = norm.sf((end - mean) / spread) + norm.cdf((-end - mean) / spread)
    room = contrast - end
    inside = norm.cdf((room - mean) / spread) - norm.cdf((-room - mean) / spread) if room > 0 else 0.0
    return float(beyond + inside)


def confirmed(
    seen: Look, mean: Floats, sd: Floats, design: Design, asked: Bools, before: Sequence[Look], contrast: float
) -> Look:
    """The look with the means and standard deviations [D, M] of another posterior; what that one does not decide with
    the same limits is open. Where the quick fit had not converged, this is the look."""
    verdict, time, limit = seen.verdict.copy(), seen.time.copy(), seen.limit.copy()
    now = times_of(design, asked)
    for at in zip(*np.nonzero(seen.limit > 0), strict=True):
        if verdict[at] == OPEN:
            time[at], limit[at] = now[at], boundary([*(float(old.time[at]) for old in before), float(now[at])])
        found = judged(mean[at], sd[at], limit[at], contrast)
        if verdict[at] != HOPELESS or found != OPEN:
            verdict[at] = found
    return Look(mean, sd, time, limit, verdict)


def undecided(seen: Look) -> Look:
    """The look with all contrasts open."""
    return replace(seen, verdict=np.where(seen.limit > 0, OPEN, seen.verdict))


def open_contrasts(seen: Look) -> Bools:
    """[D, M] contrasts for which more ratings are wanted."""
    return np.asarray((seen.verdict == OPEN) & (seen.limit > 0))
