"""How sure a contrast must be at each look, so that looking again and again makes no more false claims than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

ALPHA = 0.05
SPENDING = 1.5
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

        def crossing(z: float, step: float = step, time: float = time) -> float:
            edge = z * np.sqrt(time)
            beyond = norm.sf((edge - paths) / step) + norm.cdf((-edge - paths) / step)
            return float(mass @ beyond)

        limit = _FAR if crossing(_FAR) >= budget else float(brentq(lambda z: crossing(z) - budget, 0.0, _FAR))
        spent, before = spent + budget, time
        edge = limit * np.sqrt(time)
        here = edge * nodes
        density = norm.pdf((here[:, None] - paths) / step) / step
        paths, mass = here, edge * weights * (density @ mass)
    return limit
