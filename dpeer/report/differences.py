"""What one arm gives up or gains against another, as a difference of shares with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpeer.report.run import Rate
from dpeer.report.text import MINUS, UNKNOWN, listing


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two shares, in [-1, 1], with its 95 % interval; all nan where a share is unknown."""

    value: float
    lower: float
    upper: float

    @property
    def clear(self) -> bool:
        """True if the interval leaves out 0 even in whole points, as it is printed."""
        return self.lower > 0.005 or self.upper < -0.005


def difference(a: Rate, b: Rate, correlation: float = 0.0) -> Difference:
    """a - b from their Wilson intervals, by Newcombe's hybrid score method.

    `correlation`: phi of the two outcomes over the same prompts (Newcombe 1998, Stat. Med. 17:2635, method 10), 0 for
    independent samples (Stat. Med. 17:873, method 10).
    """
    value = a.rate - b.rate
    down = a.rate - a.lower, b.upper - b.rate
    up = a.upper - a.rate, b.rate - b.lower

    def length(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2 * correlation * x * y + y**2))

    return Difference(value, value - length(*down), value + length(*up))


def phi(x: Sequence[bool], y: Sequence[bool]) -> float:
    """Correlation of two outcomes over the same prompts, in [-1, 1]; 0 where one never varies.

    A positive one is made smaller by Newcombe's continuity correction, which widens the interval.
    """
    a, b = np.asarray(x, dtype=bool), np.asarray(y, dtype=bool)
    counts = [float(np.sum(v)) for v in (a, ~a, b, ~b)]
    if not all(counts):
        return 0.0
    cross = float(np.sum(a & b) * np.sum(~a & ~b) - np.sum(a & ~b) * np.sum(~a & b))
    return (max(cross - len(a) / 2, 0.0) if cross > 0 else cross) / math.sqrt(math.prod(counts))


def points(difference: Difference) -> str:
    """E.g. "+23", in percentage points."""
    return UNKNOWN if math.isnan(difference.value) else _signed(difference.value)


def point_bounds(difference: Difference) -> str:
    """E.g. "+15, +31"."""
    if math.isnan(difference.lower):
        return UNKNOWN
    return f"{_signed(difference.lower)}, {_signed(difference.upper)}"


def _signed(share: float) -> str:
    rounded = round(100 * share)
    return f"{rounded:+d}".replace("-", MINUS) if rounded else "0"


def cost_sentence(name: str, baseline: str, changes: Mapping[str, Difference]) -> str:
    """E.g. "Against uniform, Lagrangian gains 23 points on T (15 to 31); no clear difference on E (+4; 0, +8)."."""
    known = {what: d for what, d in changes.items() if not math.isnan(d.lower)}
    gains = [_amount(what, d.value, d.lower, d.upper) for what, d in known.items() if d.clear and d.value > 0]
    losses = [_amount(what, -d.value, -d.upper, -d.lower) for what, d in known.items() if d.clear and d.value < 0]
    unclear = [f"{what} ({points(d)}; {point_bounds(d)})" for what, d in known.items() if not d.clear]
    parts = [f"{verb} {listing(found)}" for verb, found in (("gains", gains), ("gives up", losses)) if found]
    parts += [f"{'shows ' * (not parts)}no clear difference on {listing(unclear)}"] if unclear else []
    return f"Against {baseline}, {name} {'; '.join(parts)}." if parts else ""


def _amount(what: str, value: float, low: float, high: float) -> str:
    return f"{100 * value:.0f} points on {what} ({100 * low:.0f} to {100 * high:.0f})"
