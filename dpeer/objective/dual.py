"""The dual state and its controllers: how multipliers follow the constraint values, identically on every rank."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from dpeer.config import Objective
from dpeer.errors import CheckpointError, Diverged
from dpeer.objective import conflict
from dpeer.objective.constraints import ConstraintSet, aims, check_dimensions, estimates, is_observed
from dpeer.objective.controllers import CONTROLLERS, Memory, Reading
from dpeer.objective.statistics import Summary

DIGEST_BITS, MOST_BYTES = 48, 512


@dataclass(frozen=True, eq=False)
class DualState:
    """Everything that the multipliers remember, for C constraints and D dimensions; CPU tensors, never nan.

    step: updates done
    multipliers: [C] fp64, in [0, dual.max], or on the simplex; the ones to use in the next step
    saturated: [C] bool, multiplier at its cap
    modest: [C] bool, the aim was found out of reach: held to the bound itself from then on
    relaxed: [C] bool, judged impossible together with others: its multiplier is dual.relaxed_cost x its violation
    observations: [C] long, updates in which the constraint was observed
    smoothed: [C] fp64, exponential moving average of g, started at the first g
    spread: [C] fp64, moving average of the variance of a record's part in the estimate (`aims`)
    controller, form, conflict: what these remember, by name (`controllers`, `forms`, `conflict`)
    """

    step: int
    multipliers: Tensor
    saturated: Tensor
    modest: Tensor
    relaxed: Tensor
    observations: Tensor
    smoothed: Tensor
    spread: Tensor
    controller: Memory
    form: Memory
    conflict: Memory

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe and exact: floats as hexadecimal strings."""
        return {f.name: _encode(getattr(self, f.name)) for f in fields(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> DualState:
        """Inverse of `to_dict`. CheckpointError: a field is missing, unknown or unreadable."""
        expected, given = {f.name for f in fields(DualState)}, set(data)
        if expected != given:
            raise CheckpointError(
                f"dual state has fields {sorted(given)}, but this version needs {sorted(expected)}; "
                "resume with the dpeer version that wrote the checkpoint, or start a new run"
            )
        try:
            return DualState(**{name: _decode(value) for name, value in data.items()})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"dual state cannot be read ({error}); resume from an older checkpoint") from error

    def digest(self) -> int:
        """Hash of all fields, below 2^48 and so exact in fp64: equal on all ranks, or they have drifted apart."""
        return self._digest

    @cached_property
    def _digest(self) -> int:
        state = hashlib.blake2b(digest_size=DIGEST_BITS // 8)
        for f in fields(self):
            _hash(state, f.name, getattr(self, f.name))
        return int.from_bytes(state.digest(), "big")


def initial_state(constraints: ConstraintSet, objective: Objective) -> DualState:
    """All multipliers at 0, or at the middle of the simplex; nothing observed. ConfigError: an unknown controller or
    option of it, or fixed primary weights that do not fit the dimensions."""
    count = len(constraints.names)
    if isinstance(objective.primary, dict):
        check_dimensions("objective.primary", objective.primary, constraints.dimensions)
    zeros = torch.zeros(count, dtype=torch.float64)
    never = torch.zeros(count, dtype=torch.bool)
    enforced = constraints.form.simplex and constraints.enforce
    multipliers = project(zeros, constraints.finite) if enforced else zeros
    return DualState(
        step=0,
        multipliers=multipliers,
        saturated=never,
        modest=never,
        relaxed=never,
        observations=torch.zeros(count, dtype=torch.long),
        smoothed=zeros,
        spread=zeros,
        controller=CONTROLLERS[objective.dual.controller](objective.dual).memory(multipliers),
        form=constraints.form.memory(len(constraints.dimensions)),
        conflict=conflict.initial(count),
    )


def update(
    state: DualState,
    constraints: ConstraintSet,
    objective: Objective,
    summary: Summary,
    horizon: int | None = None,
    proof: Tensor | None = None,
) -> DualState:
    """One dual step: from the statistics of a global batch to the multipliers of the next one.

    summary: of the records that the multipliers follow
    horizon: steps of the whole run, if known; conflicts are judged over shares of it
    proof: [D] certificate records per dimension, if there will be a certificate: multipliers then aim below the bound

    The controller (`controllers`) says where the multipliers want to go; the result is clipped to [0, max]. It stays
    put inside the dead zone, abs(error) < dead_zone. A constraint that was not observed keeps everything. One that is
    found impossible together with others (`conflict`) is relaxed: its multiplier is the price `dual.relaxed_cost` of
    its violation (resilient constrained learning, Hounie et al. 2023), until the violation has gone. Kind `sft` has no
    constraints to enforce: none is observed. Diverged: the loss of a dimension is not finite.
    """
    dual = objective.dual
    controller = CONTROLLERS[dual.controller](dual)
    estimate, se = estimates(constraints, summary, state)
    observed = is_observed(constraints, summary)
    _check_finite(summary, constraints, state.step + 1)
    if objective.kind == "sft":
        observed = torch.zeros_like(observed)
    aim = aims(constraints, objective, state, proof)
    g = (estimate - aim).where(observed, 0.0)
    if (
        constraints.form.simplex
    ):  # weights are shared out by comparison, so what a batch lacks is read at its last level
        g = g.where(observed | (state.observations == 0), state.smoothed)

    def clip(values: Tensor) -> Tensor:
        return project(values, constraints.finite) if constraints.form.simplex else values.clamp(0, dual.max)

    first = state.observations == 0
    smoothed = _smooth(dual.ema, state.smoothed, g, first)
    reading = Reading(g, smoothed, state.multipliers, first, clip)
    target, memory = controller.step(reading, state.controller)
    moves = observed & (controller.error(reading).abs() >= dual.dead_zone)
    if constraints.form.simplex:
        moves = (moves.any() & constraints.finite).expand_as(moves)
    known = observed | constraints.form.simplex
    multipliers = clip(target.where(known, state.multipliers)).where(moves, state.multipliers)

    judged, modest, relaxed = state.conflict, state.modest, state.relaxed
    if constraints.enforce and not constraints.form.simplex and math.isfinite(dual.relaxed_cost):
        violated = (estimate - constraints.bounds).where(observed, 0.0)
        judged = conflict.follow(judged, violated, se, observed, state.multipliers, horizon)
        room = (constraints.bounds - aim).where(constraints.finite, 0.0)
        judged = conflict.judge(judged, room, constraints.bounds, relaxed, state.step + 1, horizon)
        found = conflict.established(judged, horizon)
        relaxed = (relaxed | (found & (room <= 0))) & (judged["level"] > 0)
        modest = modest | (found & (room > 0))
        judged = {**judged, "held": judged["held"].where(~found, 0.0)}
    price = (dual.relaxed_cost * judged["level"]).clamp(0, dual.max)
    kept = {name: values.where(moves, state.controller[name]) for name, values in memory.items()}
    return DualState(
        step=state.step + 1,
        multipliers=multipliers.where(~relaxed, price),
        saturated=(multipliers >= dual.max) & ~relaxed,
        modest=modest,
        relaxed=relaxed,
        observations=state.observations + observed.long(),
        smoothed=smoothed.where(observed, state.smoothed),
        spread=_spread(constraints, summary, state, se, observed),
        controller={name: values.where(~relaxed, 0.0) for name, values in kept.items()},
        form=constraints.form.remember(state.form, summary, dual.ema),
        conflict=judged,
    )


def project(values: Tensor, members: Tensor) -> Tensor:
    """The nearest point of the simplex over `members` [C] bool, 0 elsewhere (Duchi et al., 2008)."""
    if not members.any():
        return torch.zeros_like(values)
    ordered = values[members].sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(ordered) + 1)
    shift = excess[(ordered > excess).sum() - 1]
    return (values - shift).clamp(min=0).where(members, 0.0)


def _spread(constraints: ConstraintSet, summary: Summary, state: DualState, se: Tensor, observed: Tensor) -> Tensor:
    """Variance of one record's part in each estimate, averaged over about ten steps."""
    variance = se.square() * constraints.least(summary.records)
    known = observed & variance.isfinite()
    return _smooth(0.9, state.spread, variance, state.spread == 0).where(known, state.spread)


def _smooth(memory: float, old: Tensor, new: Tensor, first: Tensor) -> Tensor:
    return (memory * old + (1 - memory) * new).where(~first, new)


def _check_finite(summary: Summary, constraints: ConstraintSet, step: int) -> None:
    bad = (summary.edges > 0) & ~(summary.loss.isfinite() & summary.hinge.isfinite())
    if bad.any():
        names = ", ".join(d for d, b in zip(constraints.dimensions, bad.tolist(), strict=True) if b)
        raise Diverged(
            f"the loss of {names} is not finite in step {step}: training has diverged; "
            "resume from the last checkpoint with a lower training.optimizer.lr or objective.beta"
        )


def _hash(state: hashlib.blake2b, name: str, value: Any) -> None:
    """Add a field by its name, and by type, length and bits; a long one by the fast hash of these."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            _hash(state, f"{name}.{key}", value[key])
        return
    array = np.asarray(value)
    state.update(f"{name} {array.dtype} {array.size} ".encode())
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    state.update(content if len(content) <= MOST_BYTES else xxhash.xxh3_128_digest(content))


def _encode(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {"memory": {name: _encode(inner) for name, inner in value.items()}}
    values = value.tolist()
    if value.is_floating_point():
        values = [x.hex() for x in values]
    return {"dtype": str(value.dtype).removeprefix("torch."), "values": values}


def _decode(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if "memory" in value:
        return {name: _decode(inner) for name, inner in value["memory"].items()}
    dtype: torch.dtype = getattr(torch, value["dtype"])
    values = value["values"]
    return torch.tensor([float.fromhex(x) for x in values] if dtype.is_floating_point else values, dtype=dtype)
