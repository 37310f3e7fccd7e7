"""The constraints of a run: from statistics to constraint values, and from multipliers back to weights.

The objective of one optimizer step is sum_d (loss_d L_d + hinge_d H_d) + golden N, where L_d is the mean edge loss and
H_d the mean of the form's own edge value (form `margin`: the hinge) of dimension d over the global batch, and N the
token-mean likelihood loss of golden responses. The weights are primary part + multipliers and the anchor's
`golden_nll`, all divided by their sum. A dimension without edges in the step keeps its share.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dpeer.config import Constraint, Objective
from dpeer.errors import ConfigError
from dpeer.objective.bounds import rooms
from dpeer.objective.controllers import Memory
from dpeer.objective.forms import FORMS, Form
from dpeer.objective.statistics import Summary


class Past(Protocol):
    """What a form needs to know of the past (a DualState)."""

    @property
    def form(self) -> Memory: ...


class Course(Past, Protocol):
    """What the aims need of it as well."""

    @property
    def spread(self) -> Tensor: ...
    @property
    def modest(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ConstraintSet:
    """The constraints of a run; C of them over D dimensions.

    form: what is bounded and how, see `forms`
    dimensions: the D dimension names
    names: C names, the dimension or "i over j" for `balance`
    members: C tuples of dimension indices, (d,) or (i, j) for `balance`
    tolerances: [C] fp64, eps of each constraint; inf means that it is never enforced
    enforce: False measures the constraints and leaves every multiplier at 0
    """

    form: Form
    dimensions: tuple[str, ...]
    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    tolerances: Tensor
    enforce: bool = True

    @property
    def bounds(self) -> Tensor:
        """[C] fp64: what an estimate may not exceed."""
        return self.form.bounds(self.tolerances)

    @property
    def finite(self) -> Tensor:
        """[C] bool: constraints with a finite tolerance."""
        return self.tolerances.isfinite()

    @property
    def edge_tolerance(self) -> Tensor:
        """[D] fp64: the eps that the form's own edge values need per dimension; inf where it has none."""
        if self.form.own_values:
            return self.tolerances
        return torch.full((len(self.dimensions),), math.inf, dtype=torch.float64)

    @cached_property
    def sides(self) -> tuple[tuple[float, Tensor], ...]:
        """(1, [C] dimension that must come down), and (-1, [C] dimension it is compared with) where there is one."""
        width = len(self.members[0]) if self.members else 1
        indices = torch.tensor(self.members, dtype=torch.long).reshape(-1, width).T
        return tuple(zip((1.0, -1.0), indices, strict=False))

    @cached_property
    def bounded(self) -> list[str]:
        """Dimensions that a finite tolerance binds."""
        bound = {d for _, index in self.sides for d in index[self.finite].tolist()}
        return [name for d, name in enumerate(self.dimensions) if d in bound]

    def least(self, values: Tensor) -> Tensor:
        """[C] of values [D]: the smallest among each constraint's members."""
        return torch.stack([values[index] for _, index in self.sides]).amin(0)

    def combined(self, values: Tensor) -> Tensor:
        """[C] of values [D]: each constraint's first member minus its second."""
        return sum_of(values[index] if sign > 0 else -values[index] for sign, index in self.sides)

    def edge_values(self, margins: Tensor, losses: Tensor, dims: Tensor) -> Tensor:
        """[E]: the form's own value of each edge; 0 where it bounds the edge loss."""
        if not self.form.own_values:
            return torch.zeros_like(margins)
        return self.form.edge_values(margins, losses, self.edge_tolerance.to(margins.device, non_blocking=True)[dims])

    def member_names(self, index: int) -> list[str]:
        """Names of the dimensions in one constraint."""
        return [self.dimensions[d] for d in self.members[index]]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of one step, fp64, >= 0. They sum to 1, absent dimensions included.

    loss: [D] weight of the mean edge loss of each dimension
    hinge: [D] weight of the mean of the form's own edge values, such as the margin hinge; 0 where it has none
    golden: weight of the golden responses' likelihood loss
    floored: [D] what multipliers asked for below 0 and did not get, as a share of the same sum (form `balance`)
    """

    loss: Tensor
    hinge: Tensor
    golden: float
    floored: Tensor


def build_constraints(constraint: Constraint, dimensions: tuple[str, ...]) -> ConstraintSet:
    """Constraints over the data's dimensions.

    ConfigError: an unknown form or option, a tolerance for an unknown dimension, or none for a known one.
    """
    form = FORMS[constraint.form](constraint.slack, constraint.options)
    members = form.members(len(dimensions))
    return ConstraintSet(
        form=form,
        dimensions=dimensions,
        names=tuple(" over ".join(dimensions[d] for d in m) for m in members),
        members=members,
        tolerances=_tolerances(constraint.tolerance, dimensions, members),
        enforce=constraint.enforce,
    )


def _tolerances(
    given: float | Mapping[str, float], dimensions: tuple[str, ...], members: tuple[tuple[int, ...], ...]
) -> Tensor:
    """[C] fp64: that of each constraint's first member."""
    if isinstance(given, Mapping):
        check_dimensions("objective.constraint.tolerance", given, dimensions)
        eps = [given[d] for d in dimensions]
    else:
        eps = [given] * len(dimensions)
    return torch.tensor([eps[m[0]] for m in members], dtype=torch.float64)


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


def estimates(constraints: ConstraintSet, summary: Summary, state: Past) -> tuple[Tensor, Tensor]:
    """What each constraint bounds, and its standard error: ([C], [C]) fp64, nan where a dimension has no edges.

    Of two members the standard error is the upper limit se_i + se_j: the covariance of two dimensions that share
    prompts is not in the statistics (the certificate uses it).
    """
    own = constraints.form.own_values
    mean, se = (summary.hinge, summary.hinge_se) if own else (summary.loss, summary.loss_se)
    mean = mean - constraints.form.offsets(state.form, summary)
    return constraints.combined(mean), sum_of(se[index] for _, index in constraints.sides)


def certified(constraints: ConstraintSet, objective: Objective) -> ConstraintSet:
    """The constraints at their certified tolerances. ConfigError: they do not name exactly the data's dimensions."""
    tolerance = objective.certificate.tolerance
    if tolerance is None:
        return constraints
    if isinstance(tolerance, dict):
        check_dimensions("objective.certificate.tolerance", tolerance, constraints.dimensions)
    return replace(constraints, tolerances=_tolerances(tolerance, constraints.dimensions, constraints.members))


def is_observed(constraints: ConstraintSet, summary: Summary) -> Tensor:
    """[C] bool: all its dimensions have edges in this step, its tolerance is finite, and constraints are enforced.
    A constraint that is not observed keeps its multiplier."""
    return (constraints.least(summary.edges) > 0) & constraints.finite & constraints.enforce


def aims(constraints: ConstraintSet, objective: Objective, state: Course, proof: Tensor | None) -> Tensor:
    """[C] fp64: the level that the multipliers hold each estimate to, at most its bound.

    A policy that just meets its tolerance cannot be proven to: the certificate needs room for chance. With
    `dual.aim = certificate` the aim lies below the (certified) bound by the `bounds.room` that `proof` [D] records
    need; at most by half of the bound. A number is the room itself.
    """
    bounds, proven = constraints.bounds, certified(constraints, objective).bounds
    if objective.dual.aim != "certificate":
        return bounds - torch.tensor(objective.dual.aim, dtype=torch.float64).where(~state.modest, 0.0)
    if proof is None or not constraints.enforce:
        return bounds
    most = constraints.form.edge_bound(objective) or objective.certificate.bound
    needed = rooms(state.spread.numpy(), constraints.least(proof.double()).numpy(), most)
    spare = torch.from_numpy(needed).nan_to_num(0.0)
    spare = torch.minimum(spare, proven.abs() / 2).where(proven.isfinite() & ~state.modest, 0.0)
    return torch.minimum(bounds, proven - spare)


def primary_weights(objective: Objective, dimensions: tuple[str, ...], edge_counts: Tensor) -> Tensor:
    """Primary part of the weights: [D] fp64 with sum 1 (`pooled` without any edge: 0), from the edge counts [D] of the
    step. ConfigError: fixed weights that do not name exactly the data's dimensions."""
    counts = edge_counts.double()
    if objective.primary == "pooled":
        weights = counts
    elif objective.primary == "uniform":
        weights = torch.ones_like(counts)
    else:
        check_dimensions("objective.primary", objective.primary, dimensions)
        weights = torch.tensor([objective.primary[d] for d in dimensions], dtype=torch.float64)
    total = weights.sum()
    return weights / total if total > 0 else weights


def dimension_weights(
    constraints: ConstraintSet, objective: Objective, multipliers: Tensor, edge_counts: Tensor
) -> Weights:
    """Weights of one step from the multipliers [C] and the global edge counts [D] of that step.

    Where the form bounds the edge loss, each multiplier adds to (for the second member of a pair: subtracts from) the
    loss weight of its dimension; negative results are floored at 0. Where it bounds an edge value of its own, this is
    the exact Lagrangian: the multiplier weighs the mean of that value itself. Kind `sft` is the likelihood alone.
    """
    zeros = torch.zeros(len(constraints.dimensions), dtype=torch.float64)
    if objective.kind == "sft":
        return Weights(loss=zeros, hinge=zeros, golden=1.0, floored=zeros)
    primary = primary_weights(objective, constraints.dimensions, edge_counts)
    if constraints.form.simplex and constraints.enforce:
        primary = zeros
    pressure = zeros
    for sign, index in constraints.sides:
        pressure = pressure.index_add(0, index, sign * multipliers)
    own = constraints.form.own_values and not constraints.form.proxy
    loss, hinge = (primary, pressure) if own else ((primary + pressure).clamp(min=0), zeros)
    floored = zeros if own else (-primary - pressure).clamp(min=0)
    anchor = torch.tensor(objective.golden_nll, dtype=torch.float64)
    total = loss.sum() + hinge.sum() + anchor
    if total > 0 and (pressure.any() or anchor > 0):  # otherwise the primary weights as they are, bit for bit
        loss, hinge, anchor, floored = loss / total, hinge / total, anchor / total, floored / total
    return Weights(loss=loss, hinge=hinge, golden=float(anchor), floored=floored)


def edge_coefficients(weights: Weights, edge_counts: Tensor, dims: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of single edges in the objective: ([E], [E]) fp64 for edge loss and margin hinge, w_d / n_d.

    `edge_counts` [D] are the global counts of the step, `dims` [E] long the dimension of each edge. A dimension whose
    weight is exactly its share of the edges gets exactly 1 / (number of edges): plain DPO, bit for bit.
    """
    counts = edge_counts.double()
    total = counts.sum()
    per_edge = (weights.loss / counts).where(weights.loss != counts / total, 1 / total)
    on_device = (x.to(dims.device, non_blocking=True) for x in (per_edge, weights.hinge / counts))
    of_loss, of_hinge = (x[dims] for x in on_device)
    return of_loss, of_hinge


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    first, *rest = terms
    for term in rest:
        first = first + term
    return first
