"""How sure a contrast must be at each look, so that looking again and again makes no more false claims than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from dpeer.eval.irt.types import Floats

ALPHA = 0.05
SPENDING = 2.0
"""Power of the information time by which the error is spent (Kim & DeMets 1987): 1 is like Pocock's boundary, 3 like
O'Brien and Fleming's."""
SAME = 1e-3
"""Information times closer than this are one look."""
_GRID, _FAR = 201, 9.0


def boundary(times: Sequence[float], alpha: float = ALPHA) -> float:
    """Two-sided critical value of |estimate| / sd at the last of the looks, in standard errors.

    times: information at each look over that of the whole design, from 0 to 1; a look with no more information than the
    one before has its boundary. The error that may have been made by time t is alpha t^SPENDING (Lan & DeMets 1983),
    whatever the times turn out to be. By numerical integration over the paths that have not crossed yet (Armitage,
    McPherson & Rowe 1969).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_GRID)
    before, spent, limit = 0.0, 0.0, _FAR
    paths, mass = np.zeros(1), np.ones(1)  # where the score process stands, and with what weight
    for time in np.maximum.accumulate(np.clip(times, 0.0, 1.0)):
        if time - before < SAME:
            continue
        step, budget = np.sqrt(time - before), alpha * time**SPENDING - spent
        known = (budget, np.sqrt(time), step, paths, mass)
        limit = _FAR if _excess(_FAR, *known) >= 0 else float(brentq(_excess, 0.0, _FAR, args=known))
        spent, before = spent + budget, time
        edge = limit * np.sqrt(time)
        here = edge * nodes
        density = norm.pdf((here[:, None] - paths) / step) / step
        paths, mass = here, edge * weights * (density @ mass)
    return limit


def _excess(limit: float, budget: float, scale: float, step: float, paths: Floats, mass: Floats) -> float:
    """Probability that a path crosses -limit or limit at this look for the first time, less the budget."""
    edge = limit * scale
    return float(mass @ (norm.sf((edge - paths) / step) + norm.cdf((-edge - paths) / step))) - budget
