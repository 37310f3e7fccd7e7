"""The ledger: one JSON line per optimizer step, and what its tail says about feasibility."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dpeer.json_safe import json_safe
from dpeer.objective.constraints import ConstraintSet, Weights, estimates
from dpeer.objective.dual import DualState
from dpeer.objective.statistics import Summary

SHRINKS = 0.05
"""A violation counts as shrinking when it falls by this share, beyond twice its standard error."""


def ledger_entry(
    step: int,
    summary: Summary,
    weights: Weights,
    constraints: ConstraintSet,
    state_before: DualState,
    state_after: DualState,
    scalars: Mapping[str, float],
) -> dict[str, Any]:
    """One ledger line, JSON-safe and without wall time: a resumed run writes the same bytes.

    `scalars` go in as they are. Per dimension: edges, mean loss and margin (reward units) with clustered standard
    errors, accuracy, weight (loss + hinge) in this step's objective. Per constraint: dimensions, tolerance (the bound
    on the estimate), estimate, se, slack = tolerance - estimate (negative when violated), the multiplier used in this
    step, active (multiplier > 0), saturated (multiplier at its cap), edges. `dual_digest`: the state afterwards.
    """
    estimate, se = estimates(constraints, summary, state_before)
    edges = summary.edges.long()
    dimensions = {
        d: {
            "edges": int(edges[i]),
            "loss": float(summary.loss[i]),
            "loss_se": float(summary.loss_se[i]),
            "margin": float(summary.margin[i]),
            "margin_se": float(summary.margin_se[i]),
            "accuracy": float(summary.accuracy[i]),
            "weight": float(weights.loss[i] + weights.hinge[i]),
        }
        for i, d in enumerate(constraints.dimensions)
    }
    per_constraint = {
        name: {
            "dimensions": constraints.member_names(c),
            "tolerance": float(constraints.bounds[c]),
            "estimate": float(estimate[c]),
            "se": float(se[c]),
            "slack": float(constraints.bounds[c] - estimate[c]),
            "multiplier": float(state_before.multipliers[c]),
            "active": bool(state_before.multipliers[c] > 0),
            "saturated": bool(state_before.saturated[c]),
            "edges": int(sum(edges[d] for d in constraints.members[c])),
        }
        for c, name in enumerate(constraints.names)
    }
    entry = {
        "step": step,
        **scalars,
        "dual_digest": state_after.digest(),
        "dimensions": dimensions,
        "constraints": per_constraint,
    }
    return dict(json_safe(entry))


def infeasible(tail: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Constraints that training cannot meet, judged from the last ledger entries: name -> message.

    A constraint is reported when, in every entry of the tail that has edges for it, its multiplier sits at the cap, and
    its mean violation in the second half of the tail is positive and has not shrunk against the first half by more than
    5 % and two standard errors. Give a tail that is long against the noise; fewer than four such entries prove nothing.
    """
    found = {}
    for name in tail[-1]["constraints"] if tail else ():
        rows = [r for entry in tail if (r := entry["constraints"][name])["slack"] is not None]
        if len(rows) < 4 or not all(row["saturated"] for row in rows):
            continue
        half = len(rows) // 2
        (before, before_se), (after, after_se) = _violation(rows[:half]), _violation(rows[half:])
        if after > 0 and before - after <= max(SHRINKS * before, 2 * math.hypot(before_se, after_se)):
            last = rows[-1]
            found[name] = (
                f"{name}: multiplier at its cap {last['multiplier']:g} for {len(rows)} steps, yet the violation does "
                f"not shrink ({before:.3g}, then {after:.3g} above tolerance {last['tolerance']:g}). Loosen "
                "objective.constraint.tolerance for it or for the dimensions that it conflicts with, check its data, "
                "or raise objective.dual.max if no other multiplier is near the cap"
            )
    return found


def _violation(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = torch.tensor([-row["slack"] for row in rows], dtype=torch.float64)
    errors = torch.tensor([row["se"] or 0.0 for row in rows], dtype=torch.float64)
    return float(values.mean()), float(errors.norm()) / len(rows)
