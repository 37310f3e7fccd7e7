"""Designs and quick fits of adaptive judging, made up."""

from __future__ import annotations

import numpy as np

from dpeer.eval.adaptive.choose import Design
from dpeer.eval.adaptive.quick_fit import QuickFit


def crossed(models: int, items: int, judges: int, dimensions: int = 1, samples: int = 1) -> Design:
    m, q, s, j, d = (a.ravel() for a in np.indices((models, items, samples, judges, dimensions)))
    return Design(m, q, s, j, d, np.ones(len(m), np.int64), (models, items, judges, dimensions), 0)


def fitted(*contrasts: float, sd: float) -> QuickFit:
    M = 1 + len(contrasts)
    covariance = np.eye(M) * sd**2 / 2
    return QuickFit(np.array([0.0, *contrasts]), covariance, 0.8, 0.8, 1.0, 0.9, True)
