"""The dual state and its controllers: how multipliers follow the constraint values, identically on every rank."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dpeer.config import Dual, Objective
from dpeer.errors import CheckpointError, DpeerError
from dpeer.objective.constraints import ConstraintSet, check_dimensions, constraint_values
from dpeer.objective.controllers import CONTROLLERS, Reading
from dpeer.objective.statistics import Summary

DIGEST_BITS = 48


@dataclass(frozen=True, eq=False)
class DualState:
    """Everything that the multipliers remember, for C constraints and D dimensions; CPU tensors, never nan.

    step: updates done
    multipliers: [C] fp64, in [0, dual.max]; the ones to use in the next step
    saturated: [C] bool, multiplier at its cap
    observations: [C] long, updates in which the constraint was observed
    smoothed: [C] fp64, exponential moving average of g, started at the first g
    xi: [C] fp64, nu_pi's smoothed error, started at 0
    previous: [C] fp64, g of the last observation (pid)
    integral: [C] fp64, pid's integral term in units of the multiplier, in [0, dual.max]
    smoothed_loss: [D] fp64, exponential moving average of L_d, started at the first L_d
    best: [D] fp64, lowest smoothed_loss so far; inf before the first observation
    """

    step: int
    multipliers: Tensor
    saturated: Tensor
    observations: Tensor
    smoothed: Tensor
    xi: Tensor
    previous: Tensor
    integral: Tensor
    smoothed_loss: Tensor
    best: Tensor

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
            tensors = {name: _decode(value) for name, value in data.items() if name != "step"}
            return DualState(step=int(data["step"]), **tensors)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"dual state cannot be read ({error}); resume from an older checkpoint") from error

    def digest(self) -> int:
        """Hash of all fields, below 2^48 and so exact in fp64: equal on all ranks, or they have drifted apart."""
        content = json.dumps(self.to_dict(), sort_keys=True).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=DIGEST_BITS // 8).digest(), "big")


def initial_state(constraints: ConstraintSet, objective: Objective) -> DualState:
    """All multipliers at 0, nothing observed. ConfigError: an unknown controller or option of it, or fixed primary
    weights that do not fit the dimensions."""
    CONTROLLERS[objective.dual.controller](objective.dual)
    n_constraints, n_dims = len(constraints.names), len(constraints.dimensions)
    if isinstance(objective.primary, dict):
        check_dimensions("objective.primary", objective.primary, constraints.dimensions)
    zeros = torch.zeros(n_constraints, dtype=torch.float64)
    return DualState(
        step=0,
        multipliers=zeros,
        saturated=torch.zeros(n_constraints, dtype=torch.bool),
        observations=torch.zeros(n_constraints, dtype=torch.long),
        smoothed=zeros,
        xi=zeros,
        previous=zeros,
        integral=zeros,
        smoothed_loss=torch.zeros(n_dims, dtype=torch.float64),
        best=torch.full((n_dims,), torch.inf, dtype=torch.float64),
    )


def update(state: DualState, constraints: ConstraintSet, objective: Objective, summary: Summary) -> DualState:
    """One dual step: from the statistics of a global batch to the multipliers of the next one.

    The controller (`controllers`) says where the multipliers want to go; the result is clipped to [0, max]. It stays
    put inside the dead zone, abs(error) < dead_zone. A constraint that was not observed keeps everything. Kind `sft`
    has no constraints to enforce: none is observed. DpeerError: the loss of a dimension is not finite.
    """
    dual = objective.dual
    controller = CONTROLLERS[dual.controller](dual)
    g, observed = constraint_values(constraints, summary, state)
    _check_finite(summary, constraints, state.step + 1)
    if objective.kind == "sft":
        observed = torch.zeros_like(observed)

    smoothed = _smooth(dual, state.smoothed, g, state.observations == 0)
    xi = dual.nu * state.xi + (1 - dual.nu) * g
    integral = (state.integral + dual.eta * dual.ki * g).clamp(0, dual.max)
    rise = (g - state.previous).clamp(min=0).where(state.observations > 0, 0.0)

    reading = Reading(g, smoothed, xi, state.xi, integral, rise, state.multipliers)
    moves = observed & (controller.error(reading).abs() >= dual.dead_zone)
    target = controller.target(reading)
    multipliers = target.clamp(0, dual.max).where(moves, state.multipliers)

    has_edges = summary.edges > 0
    smoothed_loss = _smooth(dual, state.smoothed_loss, summary.loss, state.best.isinf())
    return DualState(
        step=state.step + 1,
        multipliers=multipliers,
        saturated=multipliers >= dual.max,
        observations=state.observations + observed.long(),
        smoothed=smoothed.where(observed, state.smoothed),
        xi=xi.where(observed, state.xi),
        previous=g.where(observed, state.previous),
        integral=integral.where(moves, state.integral),
        smoothed_loss=smoothed_loss.where(has_edges, state.smoothed_loss),
        best=torch.minimum(state.best, smoothed_loss).where(has_edges, state.best),
    )


def _smooth(dual: Dual, old: Tensor, new: Tensor, first: Tensor) -> Tensor:
    return (dual.ema * old + (1 - dual.ema) * new).where(~first, new)


def _check_finite(summary: Summary, constraints: ConstraintSet, step: int) -> None:
    bad = (summary.edges > 0) & ~(summary.loss.isfinite() & summary.hinge.isfinite())
    if bad.any():
        names = ", ".join(d for d, b in zip(constraints.dimensions, bad.tolist(), strict=True) if b)
        raise DpeerError(
            f"the loss of {names} is not finite in step {step}: training has diverged; "
            "resume from the last checkpoint with a lower training.optimizer.lr or objective.beta"
        )


def _encode(value: int | Tensor) -> Any:
    if isinstance(value, int):
        return value
    values = value.tolist()
    if value.is_floating_point():
        values = [x.hex() for x in values]
    return {"dtype": str(value.dtype).removeprefix("torch."), "values": values}


def _decode(value: dict[str, Any]) -> Tensor:
    dtype: torch.dtype = getattr(torch, value["dtype"])
    values = value["values"]
    return torch.tensor([float.fromhex(x) for x in values] if dtype.is_floating_point else values, dtype=dtype)
