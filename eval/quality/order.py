"""How often ratings contradict the partial order: per dimension, and per mask and dimension, with intervals.

A judge's two ratings are compared with each other only, so its severity cancels; see `dpeer.eval.audit.rates`. One
that rates nearly all alike ties, which is no evidence for the order: the share of ties is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeer.eval.audit.rates import UNKNOWN, Interval, share, side, truth, votes
from dpeer.eval.irt.types import Floats, Ints
from dpeer.eval.quality.rated import Rated
from dpeer.report.text import percent

TIE = 0.25
LIMIT = 0.1
WIDEST = 0.5
"""Of an interval that still says something."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Edges of one dimension in records of one mask ("": of all masks).

    upheld, tied, violated, unrated: edges by the side that more verifiers take. rate: violated among violated and
    upheld. corrected: without the verifiers' chance errors, of dimensions only; None where they cannot be told.
    """

    mask: str
    dimension: str
    edges: int
    upheld: int
    tied: int
    violated: int
    unrated: int
    rate: Interval
    corrected: Interval | None

    @property
    def best(self) -> Interval:
        return self.corrected or self.rate


def order(given: Rated, tie: float = TIE, seed: int = 0) -> list[Cell]:
    """Cells of dimensions, then those of masks. Edges: as of any record, golden over reject_D of D, and on to rejects
    that fail one dimension more."""
    better, worse = _edges(given)
    scores = given.scores()
    cast = votes(scores[better] - scores[worse], tie)
    units = given.units.iloc[better]
    records = pd.factorize(units["record"])[0]
    found = []
    for columns in (["dimension"], ["mask", "dimension"]):
        for key, at in units.reset_index(drop=True).groupby(columns, sort=True).indices.items():
            *mask, dimension = key if isinstance(key, tuple) else (key,)
            found.append(_cell("".join(map(str, mask)), str(dimension), cast[at], records[at], seed))
    return found


def _edges(given: Rated) -> tuple[Ints, Ints]:
    """Units, on the edge's dimension, of the better and the worse response of each edge."""
    frame = given.units.assign(row=np.arange(len(given.units)))[~given.known]
    worse = frame[~frame["passes"]]
    less = [
        "+".join(f for f in fails.split("+") if f != d)
        for fails, d in zip(worse["fails"], worse["dimension"], strict=True)
    ]
    keys = ["record", "dimension", "fails"]
    pairs = worse.assign(fails=less).merge(frame[[*keys, "row"]], on=keys, suffixes=("_worse", "_better"))
    return pairs["row_better"].to_numpy(np.int64), pairs["row_worse"].to_numpy(np.int64)


def _cell(mask: str, dimension: str, cast: Floats, records: Ints, seed: int) -> Cell:
    sides = side(cast)
    taken = np.abs(np.nan_to_num(sides)) == 1
    upheld, tied, violated = (int((sides == s).sum()) for s in (1, 0, -1))
    rate = share(sides[taken] < 0, records[taken]) if taken.any() else UNKNOWN
    found = None if mask else truth(cast, records, seed)
    corrected = found.rate if found else None
    return Cell(mask, dimension, len(cast), upheld, tied, violated, int(np.isnan(sides).sum()), rate, corrected)


def named(cells: list[Cell], limit: float = LIMIT) -> Iterator[str]:
    """Cells whose order is violated more often than the limit, in words: first those where that is beyond chance."""
    over = [c for c in cells if not math.isnan(c.best.rate) and c.best.rate > limit]
    for c in sorted(over, key=lambda c: (c.best.low <= limit, -c.best.rate)):
        i, where = c.best, f"{c.dimension} in {c.mask}" if c.mask else c.dimension
        doubt = "" if i.low > limit else ", which may be chance" if i.high - i.low <= WIDEST else ", of too few edges"
        yield (
            f"{where}: the order is violated in {percent(i.rate)} [{100 * i.low:.0f}, {100 * i.high:.0f}] of edges, "
            f"above {percent(limit)}{doubt}"
        )
    for c in cells:
        if c.upheld + c.violated == 0 and not c.mask:
            yield f"{c.dimension}: no verifier takes a side on any of {c.edges} edges ({c.tied} ties)"
