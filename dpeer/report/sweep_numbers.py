"""What a sweep says in numbers: spreads over seeds, paired differences, the Pareto front, shadow prices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from dpeer.report.run import NAN, Run, Step
from dpeer.report.sweep import Setting, SweepCell
from dpeer.report.text import constraint_form

LATE = 0.25
"""Share of the steps at the end of a run whose averages stand for where it arrived."""
ACTIVE = 0.05
"""Late multipliers that sum to less than this count as none."""


@dataclass(frozen=True)
class Spread:
    """Mean over n seeds with its 95 % t interval; nan bounds for fewer than two seeds."""

    mean: float
    lower: float
    upper: float
    n: int


def over_seeds(values: Sequence[float]) -> Spread:
    known = [v for v in values if math.isfinite(v)]
    n = len(known)
    if n == 0:
        return Spread(NAN, NAN, NAN, 0)
    mean = float(np.mean(known))
    if n == 1:
        return Spread(mean, NAN, NAN, 1)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(known, ddof=1)) / math.sqrt(n)
    return Spread(mean, mean - half, mean + half, n)


def worst(cell: SweepCell) -> float:
    """Highest held-out loss over the dimensions; nan when one of them was not measured."""
    return float(np.max(list(cell.heldout("loss").values()) or [NAN]))


def average(cell: SweepCell) -> float:
    """Held-out loss, averaged over the dimensions."""
    losses = list(cell.heldout("loss").values())
    return float(np.mean(losses)) if losses else NAN


def reference_setting(settings: Sequence[Setting]) -> Setting:
    """What the others are compared with: equal weights without multipliers if that is among them, else any run without
    multipliers, else the setting that comes last on the axis."""

    def rank(setting: Setting) -> tuple[bool, bool, float]:
        run = setting.cells[0].run
        return run.lagrangian, run.get("config.objective.primary") != "uniform", -np.nan_to_num(setting.x)

    return min(settings, key=rank)


def paired(setting: Setting, reference: Setting) -> Spread:
    """Worst held-out loss of a setting minus the reference's, in pairs of equal seed: the same batches in both."""
    theirs = {c.seed: worst(c) for c in reference.cells}
    return over_seeds([worst(c) - theirs[c.seed] for c in setting.cells if c.seed in theirs])


def mean_and_worst(settings: Sequence[Setting]) -> list[tuple[float, float]]:
    """Average and worst held-out loss of each setting, means over the seeds that all settings have (paired)."""
    common = set.intersection(*({c.seed for c in s.cells} for s in settings))

    def mean(setting: Setting, loss: Callable[[SweepCell], float]) -> float:
        return over_seeds([loss(c) for c in setting.cells if c.seed in common or not common]).mean

    return [(mean(s, average), mean(s, worst)) for s in settings]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: lower is better in both, equal ones all stay, nan is left out."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    return [i for i, p in enumerate(points) if np.isfinite(p).all() and not any(beats(q, p) for q in points)]


ONE_NORMALISER = 2
"""Since this version of the method (`prepare.METHOD`) the anchor is inside the normaliser."""


@dataclass(frozen=True)
class Late:
    """Where a run of form `threshold` arrived: averages over the last quarter of its steps, D dimensions.

    loss [D]: mean edge loss; primary [D], multipliers [D]: parts of the dimensions' weights, in units in which the
    primary part sums to 1; anchor: weight of the golden likelihood in these units; nll: golden nats per token
    """

    loss: np.ndarray
    primary: np.ndarray
    multipliers: np.ndarray
    anchor: float
    nll: float


def late(run: Run) -> Late | None:
    """None unless the run enforced constraints on the losses themselves (form `threshold`), and for runs of versions
    that had the anchor a outside the normaliser.

    A step weighs dimension d by w = (p + lambda) / S with S = 1 + a + sum of lambda, and the anchor by a / S. The mean
    of w over the steps is the weight of d's mean gradient, so p / S and lambda / S are averaged (0 in steps without
    edges of d), and both are divided by the mean of 1 / S.
    """
    form = constraint_form(run)
    if not run.lagrangian or not form.bounds_loss or form.simplex or run.get("method", 1) < ONE_NORMALISER:
        return None
    anchor = float(run.get("config.objective.golden_nll", 0.0))
    tail = run.ledger[-max(1, round(LATE * len(run.ledger))) :]
    dimensions = run.dimensions

    def table(value: str) -> np.ndarray:
        return np.array([[_of(step, d, value) for d in dimensions] for step in tail], dtype=np.float64)

    edges = np.nan_to_num(table("edges"))
    losses = np.nan_to_num(table("loss")) * edges
    pressure = np.nan_to_num(table("multiplier"))
    scale = 1 + anchor + pressure.sum(1, keepdims=True)
    primary = (np.nan_to_num(table("weight")) - pressure / scale) * (edges > 0)
    inverse = float((1 / scale).mean())
    return Late(
        loss=np.divide(losses.sum(0), edges.sum(0), out=np.full(len(dimensions), NAN), where=edges.sum(0) > 0),
        primary=primary.mean(0) / inverse,
        multipliers=(pressure / scale * (edges > 0)).mean(0) / inverse,
        anchor=anchor,
        nll=float(np.mean([step.golden_nll for step in tail])),
    )


def _of(step: Step, dimension: str, value: str) -> float:
    if value == "multiplier":
        return step.constraints[dimension].multiplier if dimension in step.constraints else 0.0
    return float(getattr(step.dimensions[dimension], value)) if dimension in step.dimensions else NAN


def slopes(a: Late, b: Late) -> tuple[float, float]:
    """How the optimum's objective falls from run a to run b: (measured, implied by multipliers); both may be scaled.

    Along a path of stationary points sum_d (p_d + lambda_d) dL_d + anchor dNLL = 0, whatever the path is. So
    -(sum_d p_d dL_d + anchor dNLL) = sum_d lambda_d dL_d, here with the mean of both ends for p, lambda and the anchor.
    """
    change = b.loss - a.loss
    known = np.isfinite(change)
    change = np.where(known, change, 0.0)
    measured = -((a.primary + b.primary) / 2 @ change + (a.anchor + b.anchor) / 2 * (b.nll - a.nll))
    return float(measured), float((a.multipliers + b.multipliers) / 2 @ change)


@dataclass(frozen=True)
class Price:
    """Two neighbouring tolerances. All are per unit of tolerance: the measured fall of the optimal objective, what the
    multipliers say, and their difference in pairs of equal seed; total: sum of the multipliers at either end."""

    series: str
    left: Setting
    right: Setting
    measured: Spread
    implied: Spread
    gap: Spread
    total: tuple[Spread, Spread]
    active: bool

    @property
    def given_away(self) -> float:
        """Turns "per unit of tolerance" into "per unit of loss that the active constraints give away", the unit of the
        multipliers: the two differ where a loss has not reached its tolerance. 1 where nothing is active."""
        between = (self.total[0].mean + self.total[1].mean) / 2
        return between / self.implied.mean if self.active and self.implied.mean > 0 else 1.0

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is within its 95 % band; None if that cannot be said or no constraint is active."""
        if not self.active or math.isnan(self.gap.lower):
            return None
        return self.gap.lower <= 0 <= self.gap.upper


def prices(lines: dict[str, list[Setting]]) -> list[Price]:
    """Multipliers against finite differences, for every two neighbours on the axis of a series."""
    prices = []
    for series, settings in lines.items():
        for left, right in itertools.pairwise(settings):
            ends = [{c.seed: v for c in s.cells if (v := late(c.run))} for s in (left, right)]
            seeds = sorted(ends[0].keys() & ends[1].keys())
            if not seeds:
                continue
            step = right.x - left.x
            both = np.array([slopes(ends[0][s], ends[1][s]) for s in seeds]) / step
            totals = [[float(end[s].multipliers.sum()) for s in seeds] for end in ends]
            prices.append(
                Price(
                    series=series,
                    left=left,
                    right=right,
                    measured=over_seeds(both[:, 0].tolist()),
                    implied=over_seeds(both[:, 1].tolist()),
                    gap=over_seeds((both[:, 1] - both[:, 0]).tolist()),
                    total=(over_seeds(totals[0]), over_seeds(totals[1])),
                    active=min(map(min, totals)) > ACTIVE,
                )
            )
    return prices
