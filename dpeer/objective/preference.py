"""Edge losses: how strongly a margin disagrees with one preference edge."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dpeer.config import Objective

IPO_TARGET = 0.5


def edge_loss(margins: Tensor, objective: Objective) -> Tensor:
    """Loss of each preference edge, differentiable in the margins.

    `margins` [E] are m = r(better) - r(worse) in reward units, r = beta * (log pi - log pi_ref). Returns [E]:

    - `sigmoid`: -(1 - s) log sigma(m) - s log sigma(-m), with label smoothing s (DPO; Rafailov et al. 2023)
    - `ipo`: (m - 1/2)^2. Azar et al. (2023) write (h - 1/(2 beta))^2 for h = m / beta; this is that loss times beta^2,
      so the target margin is 1/2 whatever beta is, and losses of different beta share one tolerance
    - `hinge`: [1 - m]+ (SLiC; Zhao et al. 2023)
    """
    match objective.loss:
        case "sigmoid":
            s = objective.label_smoothing
            return -(1 - s) * F.logsigmoid(margins) - s * F.logsigmoid(-margins)
        case "ipo":
            return (margins - IPO_TARGET).square()
        case "hinge":
            return F.relu(1 - margins)


def margin_hinge(margins: Tensor, eps: Tensor) -> Tensor:
    """[eps - m]+ per edge: [E], [E] -> [E], in reward units. An edge with eps = inf is unconstrained: 0."""
    shortfall = F.relu(eps.to(margins) - margins)
    return shortfall.where(eps.isfinite().to(margins.device), 0.0)
