"""The four constraint forms: from statistics to constraint values, and from multipliers back to weights.

The objective of one optimizer step is sum_d (loss_d L_d + hinge_d H_d), where L_d is the mean edge loss and H_d the
mean margin hinge of dimension d over the global batch, and the weights are primary part + multipliers, divided by their
sum. Only dimensions with edges in the step take part.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, Protocol

import torch
from torch import Tensor

from dpeer.config import Constraint, Objective
from dpeer.errors import ConfigError
from dpeer.objective.statistics import Summary

Form = Literal["threshold", "balance", "margin", "protect"]


class Best(Protocol):
    """What form `protect` needs to know of the past (a DualState)."""

    @property
    def best(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ConstraintSet:
    """The constraints of a run; C of them over D dimensions.

    form: constraint form, see `estimates`
    dimensions: the D dimension names
    names: C names, the dimension or "i over j" for `balance`
    members: C tuples of dimension indices, (d,) or (i, j) for `balance`
    tolerances: [C] fp64, eps of each constraint; inf means that it is never enforced
    slack: allowed mean hinge of form `margin`
    enforce: False measures the constraints and leaves every multiplier at 0
    """

    form: Form
    dimensions: tuple[str, ...]
    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    tolerances: Tensor
    slack: float
    enforce: bool = True

    @property
    def bounds(self) -> Tensor:
        """[C] fp64: what an estimate may not exceed: eps, or the allowed mean hinge for form `margin`."""
        if self.form != "margin":
            return self.tolerances
        return torch.full_like(self.tolerances, self.slack).where(self.finite, math.inf)

    @property
    def finite(self) -> Tensor:
        """[C] bool: constraints with a finite tolerance."""
        return self.tolerances.isfinite()

    @property
    def edge_tolerance(self) -> Tensor:
        """[D] fp64: the eps that `margin_hinge` needs per dimension; inf (no hinge) outside form `margin`."""
        if self.form == "margin":
            return self.tolerances
        return torch.full((len(self.dimensions),), math.inf, dtype=torch.float64)

    @property
    def plus(self) -> Tensor:
        """[C] long: the dimension that must come down."""
        return torch.tensor([m[0] for m in self.members], dtype=torch.long)

    @property
    def minus(self) -> Tensor:
        """[C] long: form `balance` only, the dimension that `plus` is compared with."""
        return torch.tensor([m[1] for m in self.members], dtype=torch.long)

    def member_names(self, index: int) -> list[str]:
        """Names of the dimensions in one constraint."""
        return [self.dimensions[d] for d in self.members[index]]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of one step, fp64, >= 0. They sum to 1, or are all 0 if no dimension with edges has a positive weight.

    loss: [D] weight of the mean edge loss of each dimension
    hinge: [D] weight of the mean margin hinge; 0 unless the form is `margin`
    """

    loss: Tensor
    hinge: Tensor


def build_constraints(constraint: Constraint, dimensions: tuple[str, ...]) -> ConstraintSet:
    """Constraints over the data's dimensions.

    `balance` gives two one-sided constraints per pair, L_i - L_j <= eps_i for each ordered (i, j): the Lagrangian stays
    linear in every L_d, and with one eps per dimension eps_i says how far dimension i may lag behind any other.
    ConfigError: a tolerance for an unknown dimension, or none for a known one.
    """
    if isinstance(constraint.tolerance, Mapping):
        check_dimensions("objective.constraint.tolerance", constraint.tolerance, dimensions)
        eps = [constraint.tolerance[d] for d in dimensions]
    else:
        eps = [constraint.tolerance] * len(dimensions)
    indices = range(len(dimensions))
    members: tuple[tuple[int, ...], ...] = tuple((d,) for d in indices)
    if constraint.form == "balance":
        members = tuple(permutations(indices, 2))
    return ConstraintSet(
        form=constraint.form,
        dimensions=dimensions,
        names=tuple(" over ".join(dimensions[d] for d in m) for m in members),
        members=members,
        tolerances=torch.tensor([eps[m[0]] for m in members], dtype=torch.float64),
        slack=constraint.slack,
        enforce=constraint.enforce,
    )


def check_dimensions(field: str, given: Iterable[str], dimensions: tuple[str, ...]) -> None:
    """ConfigError unless `given` names exactly the data's dimensions."""
    names = list(given)
    known = ", ".join(dimensions)
    for name in names:
        if name not in dimensions:
            nearest = difflib.get_close_matches(name, dimensions, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"{field} names dimension {name!r}, but the data has {known}{hint}")
    missing = [d for d in dimensions if d not in names]
    if missing:
        raise ConfigError(
            f"{field} gives no value for {', '.join(missing)}, but the data has {known}; add "
            + ", ".join(f"{field}.{d}" for d in missing)
        )


def estimates(constraints: ConstraintSet, summary: Summary, state: Best) -> tuple[Tensor, Tensor]:
    """What each constraint bounds, and its standard error: ([C], [C]) fp64, nan where a dimension has no edges.

    - `threshold`: L_d
    - `balance`: L_i - L_j. Its standard error is the upper limit se_i + se_j: the covariance of two dimensions that
      share prompts is not in the statistics (the certificate uses it)
    - `margin`: mean hinge [eps - m]+
    - `protect`: L_d - best_d, best_d being the lowest smoothed L_d before this step; 0 at the first observation
    """
    d = constraints.plus
    match constraints.form:
        case "threshold":
            return summary.loss[d], summary.loss_se[d]
        case "margin":
            return summary.hinge[d], summary.hinge_se[d]
        case "balance":
            j = constraints.minus
            return summary.loss[d] - summary.loss[j], summary.loss_se[d] + summary.loss_se[j]
        case "protect":
            best = state.best.where(state.best.isfinite(), summary.loss)
            return (summary.loss - best)[d], summary.loss_se[d]


def constraint_values(constraints: ConstraintSet, summary: Summary, state: Best) -> tuple[Tensor, Tensor]:
    """g [C] fp64 (satisfied when g <= 0) and observed [C] bool.

    Not observed: a dimension without edges in this step (g is nan), a tolerance of inf (g is -inf), or constraints that
    are only measured (`enforce` is False). A constraint that is not observed keeps its multiplier.
    """
    estimate, _ = estimates(constraints, summary, state)
    has_edges = torch.tensor([all(summary.edges[d] > 0 for d in m) for m in constraints.members], dtype=torch.bool)
    return estimate - constraints.bounds, has_edges & constraints.finite & constraints.enforce


def primary_weights(objective: Objective, dimensions: tuple[str, ...], edge_counts: Tensor) -> Tensor:
    """Primary part of the weights: [D] fp64.

    Sums to 1 over the dimensions with edges in this step (`edge_counts` [D] > 0), 0 elsewhere; all 0 if no dimension
    with edges has a positive weight. ConfigError: fixed weights that do not name exactly the data's dimensions.
    """
    counts = edge_counts.double()
    if objective.primary == "pooled":
        weights = counts
    elif objective.primary == "uniform":
        weights = torch.ones_like(counts)
    else:
        check_dimensions("objective.primary", objective.primary, dimensions)
        weights = torch.tensor([objective.primary[d] for d in dimensions], dtype=torch.float64)
    return _normalised(weights * (counts > 0))


def dimension_weights(
    constraints: ConstraintSet, objective: Objective, multipliers: Tensor, edge_counts: Tensor
) -> Weights:
    """Weights of one step from the multipliers [C] and the global edge counts [D] of that step.

    Forms `threshold`, `balance` and `protect` are linear in L_d: each multiplier adds to (for the second member of a
    `balance` pair: subtracts from) the loss weight of its dimension; negative results are floored at 0. Form `margin`
    is the exact Lagrangian: its multiplier weighs the mean hinge itself. Kind `sft` has no edge terms: all are 0.
    """
    zeros = torch.zeros(len(constraints.dimensions), dtype=torch.float64)
    if objective.kind == "sft":
        return Weights(loss=zeros, hinge=zeros)
    primary = primary_weights(objective, constraints.dimensions, edge_counts)
    pressure = zeros.index_add(0, constraints.plus, multipliers)
    if constraints.form == "balance":
        pressure = pressure.index_add(0, constraints.minus, -multipliers)
    pressure = pressure * (edge_counts > 0)
    if not pressure.any():
        return Weights(loss=primary, hinge=zeros)
    if constraints.form == "margin":
        both = _normalised(torch.stack([primary, pressure]))
        return Weights(loss=both[0], hinge=both[1])
    return Weights(loss=_normalised((primary + pressure).clamp(min=0)), hinge=zeros)


def edge_coefficients(weights: Weights, edge_counts: Tensor, dims: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of single edges in the objective: ([E], [E]) fp64 for edge loss and margin hinge, w_d / n_d.

    `edge_counts` [D] are the global counts of the step, `dims` [E] long the dimension of each edge. A dimension whose
    weight is exactly its share of the edges gets exactly 1 / (number of edges): plain DPO, bit for bit.
    """
    counts = edge_counts.double()
    total = counts.sum()
    per_edge = (weights.loss / counts).where(weights.loss != counts / total, 1 / total)
    return per_edge.to(dims.device)[dims], (weights.hinge / counts).to(dims.device)[dims]


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / total if total > 0 else weights
