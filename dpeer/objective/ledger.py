"""The ledger: one JSON line per optimizer step, and what its tail says about feasibility."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dpeer.json_safe import json_safe
from dpeer.objective.constraints import ConstraintSet, Weights, estimates
from dpeer.objective.dual import DualState
from dpeer.objective.rows import ConstraintRow, DimensionRow
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

    `scalars` go in as they are; the rest is described in `rows`.
    """
    estimate, se = estimates(constraints, summary, state_before)
    bounds, names = constraints.bounds, constraints.names
    entry = {
        "step": step,
        **scalars,
        "dual_digest": state_after.digest(),
        "dimensions": {d: _dimension(i, summary, weights) for i, d in enumerate(constraints.dimensions)},
        "constraints": {
            name: _constraint(c, constraints, summary, state_before, float(bounds[c]), float(estimate[c]), float(se[c]))
            for c, name in enumerate(names)
        },
    }
    return dict(json_safe(entry))


def _dimension(index: int, summary: Summary, weights: Weights) -> DimensionRow:
    return {
        "edges": int(summary.edges[index]),
        "loss": float(summary.loss[index]),
        "loss_se": float(summary.loss_se[index]),
        "margin": float(summary.margin[index]),
        "margin_se": float(summary.margin_se[index]),
        "accuracy": float(summary.accuracy[index]),
        "weight": float(weights.loss[index] + weights.hinge[index]),
    }


def _constraint(
    index: int,
    constraints: ConstraintSet,
    summary: Summary,
    state: DualState,
    bound: float,
    estimate: float,
    se: float,
) -> ConstraintRow:
    return {
        "dimensions": constraints.member_names(index),
        "tolerance": bound,
        "estimate": estimate,
        "se": se,
        "slack": bound - estimate,
        "multiplier": float(state.multipliers[index]),
        "active": bool(state.multipliers[index] > 0),
        "saturated": bool(state.saturated[index]),
        "edges": sum(int(summary.edges[d]) for d in constraints.members[index]),
    }


def infeasible(tail: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Constraints that training cannot meet, judged from the last ledger entries: name -> message.

    A constraint is reported when, in every entry of the tail that has edges for it, its multiplier sits at the cap, and
    its mean violation in the second half of the tail is positive and has not shrunk against the first half by more than
    5 % and two standard errors. Give a tail that is long against the noise; fewer than four such entries prove nothing.
    """
    messages = {}
    for name in tail[-1]["constraints"] if tail else ():
        rows = [r for entry in tail if (r := entry["constraints"][name])["slack"] is not None]
        if len(rows) < 4 or not all(row["saturated"] for row in rows):
            continue
        half = len(rows) // 2
        (before, before_se), (after, after_se) = _violation(rows[:half]), _violation(rows[half:])
        if after > 0 and before - after <= max(SHRINKS * before, 2 * math.hypot(before_se, after_se)):
            last = rows[-1]
            messages[name] = (
                f"{name}: multiplier at its cap {last['multiplier']:g} for {len(rows)} steps, yet the violation does "
                f"not shrink ({before:.3g}, then {after:.3g} above tolerance {last['tolerance']:g}). Loosen "
                "objective.constraint.tolerance for it or for the dimensions that it conflicts with, check its data, "
                "or raise objective.dual.max if no other multiplier is near the cap"
            )
    return messages


def _violation(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = torch.tensor([-row["slack"] for row in rows], dtype=torch.float64)
    errors = torch.tensor([row["se"] or 0.0 for row in rows], dtype=torch.float64)
    return float(values.mean()), float(errors.norm()) / len(rows)
