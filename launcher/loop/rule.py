"""From what a round reached to the tolerances of the next one: a pure function, explained in docs/loop.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from dpeer.section import Positive, Section

if TYPE_CHECKING:
    from dpeer.eval.irt.types import Floats

SURE = 0.95
"""Probability from which a dimension counts as met, and as stronger than the weakest."""
SURE_Z = 1.645
Move = Literal["tightened", "relaxed", "kept"]


class Rule(Section):
    tighten: float = Field(0.3, gt=0, lt=1)
    """Share by which the weakest dimension's tolerance falls: of the tolerance, or of the level reached if lower."""
    relax: float = Field(0.15, ge=0, le=1)
    """Share by which the tolerance of a dimension rises that is met and clearly stronger; 0: tolerances only fall."""
    least: Positive = 0.05
    """No tolerance is set below this, in units of the edge loss."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One dimension after a round. tolerance: inf where it was not constrained; level, error: mean edge loss on the
    dual split and its standard error; weakest, stronger: probability that it is the weakest dimension of all, and that
    it is abler than the one that most probably is."""

    tolerance: float
    level: float
    error: float
    weakest: float
    stronger: float

    @property
    def met(self) -> bool:
        """Whether the level is below the tolerance beyond doubt; False where it is unknown."""
        return self.level + SURE_Z * self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Next:
    tolerance: dict[str, float]
    moves: dict[str, Move]

    @property
    def moved(self) -> bool:
        return any(move != "kept" for move in self.moves.values())


def next_tolerances(reached: Mapping[str, Reached], rule: Rule, untrained: float) -> Next:
    """The weakest dimension is tightened, those that are met and clearly stronger are relaxed, the others stay.

    `untrained`: the edge loss of a model that has learned nothing (ln 2 for `sigmoid`), above which a tolerance asks
    nothing and none is therefore set. Tolerances have three decimals.
    """
    worst = max(reached, key=lambda d: reached[d].weakest)
    tolerance: dict[str, float] = {}
    for d, r in reached.items():
        tolerance[d] = r.tolerance
        if d == worst:
            start = min(x for x in (r.tolerance, r.level, untrained) if not math.isnan(x))
            tolerance[d] = max(round(start * (1 - rule.tighten), 3), min(rule.least, r.tolerance))
        elif r.met and r.stronger >= SURE and math.isfinite(r.tolerance):
            tolerance[d] = max(r.tolerance, min(round(r.tolerance * (1 + rule.relax), 3), round(untrained, 3)))
    moves: dict[str, Move] = {
        d: "tightened" if t < reached[d].tolerance else "relaxed" if t > reached[d].tolerance else "kept"
        for d, t in tolerance.items()
    }
    return Next(tolerance, moves)


def weakness(positions: Floats) -> tuple[Floats, Floats]:
    """From draws of one model's abilities [S, D]: P(dimension is the weakest) [D], and P(it is abler than the dimension
    that most probably is the weakest) [D]."""
    lowest = np.bincount(positions.argmin(axis=1), minlength=positions.shape[1]) / len(positions)
    worst = int(lowest.argmax())
    return lowest, (positions > positions[:, [worst]]).mean(axis=0)


def gained(now: Floats, best: Floats) -> bool:
    """Whether the weakest ability of a round, by draws [S, D] of one fit, is above that of an earlier round with
    probability SURE."""
    return bool((now.min(axis=1) > best.min(axis=1)).mean() >= SURE)
