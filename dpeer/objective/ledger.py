"""The ledger: one JSON line per optimizer step, and what its tail says about feasibility."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dpeer.json_safe import json_safe
from dpeer.objective.constraints import ConstraintSet, Weights, estimates
from dpeer.objective.dual import DualState
from dpeer.objective.rows import DimensionRow, TogetherRow
from dpeer.objective.statistics import Summary

MOST_ROWS, SHOWN = 64, 16
"""Up to so many constraints a line has a row for each; of more, `shown` chooses those that a person would look at."""
MEANS = ("loss", "loss_se", "margin", "margin_se", "accuracy")
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
    aims: Tensor | None = None,
    dual: Summary | None = None,
    follow_dual: bool = False,
) -> dict[str, Any]:
    """One ledger line, JSON-safe and without wall time: a resumed run writes the same bytes.

    summary: of the training batch; dual: of the step's batch of the dual split, which multipliers follow if
    `follow_dual`; aims: [C], default the bounds. `scalars` go in as they are; the rest is described in `rows`. Of more
    than MOST_ROWS constraints the multipliers of all stand in one string, and rows are there of those that press.
    """
    evidence = dual if dual is not None and follow_dual else summary
    estimate, se = estimates(constraints, evidence, state_before)
    bounds = constraints.bounds
    aims, slack, multipliers = bounds if aims is None else aims, bounds - estimate, state_before.multipliers
    pressed = (multipliers > 0) & ~(estimate + 2 * se.nan_to_num(0.0) < aims)
    which = shown(slack, state_before, state_after)
    columns = {
        "tolerance": bounds,
        "aim": aims,
        "estimate": estimate,
        "se": se,
        "slack": slack,
        "multiplier": multipliers,
        "active": pressed,
        "saturated": state_before.saturated,
        "relaxed": state_after.relaxed,
        "relaxation": state_after.conflict["level"].clamp(min=0).where(state_after.relaxed, 0.0),
    }
    chosen, edges = torch.tensor(which, dtype=torch.long), evidence.edges.long().tolist()
    entry = {
        "step": step,
        **scalars,
        "dual_digest": state_after.digest(),
        "dimensions": dict(zip(constraints.dimensions, _dimensions(summary, weights, dual), strict=True)),
        "constraints": {
            constraints.names[c]: {
                "dimensions": constraints.member_names(c),
                **row,
                "edges": sum(edges[d] for d in constraints.members[c]),
            }
            for c, row in zip(which, _rows({name: x[chosen] for name, x in columns.items()}), strict=True)
        },
    }
    if len(which) < len(constraints.names):
        entry["all_constraints"] = _together(constraints, slack, pressed, state_before, state_after)
    return dict(json_safe(entry))


def shown(slack: Tensor, before: DualState, after: DualState) -> list[int]:
    """Indices, ascending, of the constraints that get a row: all up to MOST_ROWS of them; of more those that are at
    their cap or were relaxed (MOST_ROWS at most), and the SHOWN with the largest multipliers, then the least slack."""
    count = len(slack)
    if count <= MOST_ROWS:
        return list(range(count))
    order = np.lexsort((slack.nan_to_num(math.inf).numpy(), -before.multipliers.numpy()))
    extreme = (before.saturated | after.relaxed).numpy()
    first = [*order[extreme[order]][: MOST_ROWS - SHOWN], *order[:SHOWN]]
    return sorted({int(c) for c in first})


def _together(
    constraints: ConstraintSet, slack: Tensor, pressed: Tensor, before: DualState, after: DualState
) -> TogetherRow:
    values = before.multipliers.numpy().astype("<f4")
    return {
        "constraints": len(constraints.names),
        "violated": int((slack < 0).sum()),
        "active": int(pressed.sum()),
        "saturated": int(before.saturated.sum()),
        "relaxed": int(after.relaxed.sum()),
        "multipliers": b64encode(values.tobytes()).decode() if values.any() else "",
        "bounded": constraints.bounded,
    }


def _dimensions(summary: Summary, weights: Weights, dual: Summary | None) -> list[DimensionRow]:
    own = _rows({**_means(summary), "weight": weights.loss + weights.hinge, "floored": weights.floored})
    if dual is not None:
        own = [row | {"dual": means} for row, means in zip(own, _rows(_means(dual)), strict=True)]
    return cast(list[DimensionRow], own)


def _means(summary: Summary) -> dict[str, Tensor]:
    """Columns of `MeansRow`."""
    edges = summary.edges.long()
    return {"edges": edges} | {name: getattr(summary, name) for name in MEANS}


def _rows(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def infeasible(tail: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Constraints that training cannot meet together, judged from the last ledger entries: name -> message.

    They are those that the run has relaxed (`conflict`), and those whose multiplier sits at its cap in each of at least
    four entries while the mean violation of the second half is positive and not lower than that of the first by more
    than 5 % and two standard errors.
    """
    if not tail:
        return {}
    last = tail[-1]["constraints"]
    relaxed = [name for name, row in last.items() if row.get("relaxed")]
    messages = {}
    for name, row in last.items():
        found = [entry["constraints"].get(name) for entry in tail]
        rows = [r for r in found if r and r["slack"] is not None]
        if not rows:
            continue
        level = sum(r["estimate"] for r in rows) / len(rows)
        if name in relaxed:
            others = ", ".join(other for other in relaxed if other != name)
            messages[name] = (
                f"{name}: cannot be met" + (f" together with {others}" if others else "") + f". It stays at about "
                f"{level:.3g} where {row['tolerance']:.3g} is asked, whatever its weight, so it was relaxed and the "
                "other dimensions keep theirs. Loosen objective.constraint.tolerance for it or for those it conflicts "
                "with, or check its data"
            )
        elif len(rows) >= 4 and all(r and r["saturated"] for r in found) and _stuck(rows):
            messages[name] = (
                f"{name}: multiplier at its cap {row['multiplier']:g} for {len(rows)} steps, yet the estimate stays at "
                f"{level:.3g} where {row['tolerance']:.3g} is asked. Loosen objective.constraint.tolerance, check its "
                "data, or raise objective.dual.max"
            )
        if name in messages and (floored := _floored(row, tail)):
            messages[name] += f". Only un-learning {floored} could hold this pair: its weight stands at 0"
    return messages


def _stuck(rows: Sequence[Mapping[str, Any]]) -> bool:
    half = len(rows) // 2
    (before, before_se), (after, after_se) = _violation(rows[:half]), _violation(rows[half:])
    return after > 0 and before - after <= max(SHRINKS * before, 2 * math.hypot(before_se, after_se))


def _violation(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    mean = sum(-row["slack"] for row in rows) / len(rows)
    return mean, math.hypot(*(row["se"] or 0.0 for row in rows)) / len(rows)


def _floored(row: Mapping[str, Any], tail: Sequence[Mapping[str, Any]]) -> str:
    """The second dimension of a pair, if a negative weight was asked for it all along the tail."""
    other = row["dimensions"][-1]
    always = all(entry["dimensions"][other].get("floored", 0) > 0 for entry in tail)
    return other if len(row["dimensions"]) > 1 and always else ""
