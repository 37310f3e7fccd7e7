"""Which constraints cannot be met together, judged while they are trained.

The policy descends sum (primary + lambda) L. If constraints with multipliers lambda could be met together, their
weighted violation V = sum lambda g / sum lambda would fall to 0 or below (complementary slackness). If they cannot, V
is bounded away from 0 by the dual function of the feasibility problem, whatever the policy does (a Farkas certificate).
So: V well above 0 and no longer falling, over a window in which the multipliers have the larger say. Multipliers are
averaged over the window too, because the latest ones are largest where the noise is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

HORIZON = 200
"""Steps of a run whose length is not known."""
START, SETTLED, WINDOW, HOLD = 0.3, 0.5, 0.15, 0.15
"""Shares of the run: before the first judgement; until a violation must be large to count; in a moving average; for
which the judgement must stand."""
FALLING = 0.15
"""V still falls when its average over the window is lower by this share than the average of these averages."""
VIOLATED_FIRST, VIOLATED = 0.36, 0.12
"""V below this is no conflict, as a share of the tolerance or of VIOLATED_LEAST if that is larger: from the first to
the second between START and SETTLED."""
VIOLATED_LEAST = 0.1
MEMBER, SHARE = 0.15, 0.04
"""A member of the set is violated by at least this part of V, and holds at least this share of the multipliers."""


def initial(constraints: int) -> dict[str, Tensor]:
    """[C] each. level: moving average of g; before: the moving average of it; variance: of `level`; weight: moving
    average of the multiplier; seen: observations; held: steps in a row in which it was in conflict."""
    zeros = torch.zeros(constraints, dtype=torch.float64)
    return dict.fromkeys(("level", "before", "variance", "weight", "seen", "held"), zeros)


def follow(
    memory: Mapping[str, Tensor],
    violation: Tensor,
    se: Tensor,
    observed: Tensor,
    multipliers: Tensor,
    horizon: int | None,
) -> dict[str, Tensor]:
    """The averages after a step with these violations of the bounds and multipliers, [C] each; `se` may be nan."""
    slow = 1 / max(4.0, WINDOW * (horizon or HORIZON))
    seen = memory["seen"] + observed.double()
    gain = (1 / seen.clamp(min=1)).clamp(min=slow)  # a plain mean until the window is full
    level = memory["level"] + gain * (violation - memory["level"])
    before = memory["before"] + gain * (level - memory["before"])
    noise = se.where(se.isfinite(), violation.abs()).square()
    variance = (1 - gain).square() * memory["variance"] + gain.square() * noise
    return {
        "level": level.where(observed, memory["level"]),
        "before": before.where(observed, memory["before"]),
        "variance": variance.where(observed, memory["variance"]),
        "weight": memory["weight"] + slow * (multipliers - memory["weight"]),
        "seen": seen,
        "held": memory["held"],
    }


def judge(
    memory: Mapping[str, Tensor], room: Tensor, bounds: Tensor, relaxed: Tensor, step: int, horizon: int | None
) -> dict[str, Tensor]:
    """The memory with `held` counted on for this step (counted from 1); `room` is how far below the bounds [C] the
    multipliers aim."""
    now = torch.zeros_like(relaxed)
    if step >= START * (horizon or HORIZON):
        done = (step / (horizon or HORIZON) - START) / (SETTLED - START)
        least = VIOLATED_FIRST + (VIOLATED - VIOLATED_FIRST) * min(1.0, done)
        now = in_conflict(memory, room, bounds, relaxed, least)
    return {**memory, "held": (memory["held"] + 1).where(now, 0.0)}


def in_conflict(
    memory: Mapping[str, Tensor], room: Tensor, bounds: Tensor, relaxed: Tensor, least: float = VIOLATED
) -> Tensor:
    """[C] bool: members of a set whose weighted violation stays above `least`, a share of the tolerance. Relaxed ones
    are known already."""
    weight = memory["weight"].where(~relaxed, 0.0)
    total = float(weight.sum())
    if total <= 1:  # the primary weights have the larger say
        return torch.zeros_like(relaxed)
    share, level = weight / total, memory["level"] + room
    violation = float((share * level).sum())
    fallen = float((share * (memory["before"] + room)).sum()) - violation
    error = math.sqrt(float((share.square() * memory["variance"]).sum()))
    scale = bounds.where(bounds.isfinite(), 0.0).abs().clamp(min=VIOLATED_LEAST)
    if not (violation >= max(least * float((share * scale).sum()), 3 * error) and fallen <= FALLING * violation):
        return torch.zeros_like(relaxed)
    member = (1.5 * memory["variance"].sqrt()).clamp(min=MEMBER * violation)
    return (share >= SHARE) & (level > member) & ~relaxed


def established(memory: Mapping[str, Tensor], horizon: int | None) -> Tensor:
    """[C] bool: in conflict for long enough to act upon."""
    return memory["held"] >= max(1.0, HOLD * (horizon or HORIZON))
