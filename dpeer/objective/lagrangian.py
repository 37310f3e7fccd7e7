"""The objective as one value: constraints and multipliers in, the loss of a batch out. Nothing is changed in place.

`loss` per micro-batch and rank, whose tables add up; `updated` once per optimizer step, with the summed table. A whole
training loop stands in docs/objective.md.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor

from dpeer.config import Objective
from dpeer.objective.constraints import (
    Weights,
    aims,
    build_constraints,
    certified,
    dimension_weights,
    edge_coefficients,
)
from dpeer.objective.dual import DualState, initial_state, update
from dpeer.objective.ledger import ledger_entry
from dpeer.objective.preference import edge_loss
from dpeer.objective.statistics import edge_statistics, summarise


class Lagrangian:
    """Constraints over `dimensions` with the multipliers of the next step. The training step of dpeer uses the same.

    steps: of the whole run, if known: constraints that conflict are judged over shares of it
    proof: [D] certificate records per dimension; given these, multipliers aim below the tolerance (`dual.aim`)

    ConfigError: an unknown form, controller or option, or tolerances or weights that do not fit the dimensions.
    """

    def __init__(
        self,
        objective: Objective,
        dimensions: Sequence[str],
        state: DualState | None = None,
        steps: int | None = None,
        proof: Tensor | None = None,
    ) -> None:
        self.objective, self.steps, self.proof = objective, steps, proof
        self.constraints = build_constraints(objective.constraint, tuple(dimensions))
        certified(self.constraints, objective)  # refuses those of other dimensions now, not in the first step
        self.state = state if state is not None else initial_state(self.constraints, objective)

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.constraints.dimensions

    @property
    def multipliers(self) -> dict[str, float]:
        """By name of the constraint, for the next step."""
        return dict(zip(self.constraints.names, self.state.multipliers.tolist(), strict=True))

    def at(self, state: DualState) -> Lagrangian:
        """The same constraints with another state, such as a checkpoint's."""
        other = copy(self)
        other.state = state
        return other

    def weights(self, edge_counts: Tensor) -> Weights:
        """Weights of the dimensions in a step whose global batch has these edge counts [D]."""
        return dimension_weights(self.constraints, self.objective, self.state.multipliers, edge_counts)

    def loss(
        self, margins: Tensor, dims: Tensor, records: Tensor, edge_counts: Tensor, weights: Weights | None = None
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's term of the global objective, differentiable in the margins, and its statistics.

        margins: [E] reward units, r(better) - r(worse) with r = beta (log pi - log pi_ref)
        dims: [E] long, the dimension of each edge
        records: [E] long, the record of each edge; no record may span two calls
        edge_counts: [D] of the whole global batch, over all micro-batches and ranks
        weights: `self.weights(edge_counts)`, where they are known already

        The terms of all micro-batches and ranks add up to the objective, without the likelihood of golden responses,
        whose weight is `weights.golden`; so do the tables [F, D] fp64 (`statistics.DIM_FIELDS`), one all-reduce of
        which is all that ranks must share. They stay on the margins' device, and nothing waits for it.
        """
        weights = weights or self.weights(edge_counts)
        dims = dims.to(margins.device)
        losses = edge_loss(margins, self.objective)
        own = self.constraints.edge_values(margins, losses, dims)
        loss_weight, own_weight = edge_coefficients(weights, edge_counts, dims)
        term = (losses * loss_weight + own * own_weight).sum()
        return term, self._table(margins, losses, own, dims, records)

    def statistics(self, margins: Tensor, dims: Tensor, records: Tensor) -> Tensor:
        """The table of edges that are not trained on, such as those of the dual split; shapes as in `loss`."""
        dims = dims.to(margins.device)
        losses = edge_loss(margins, self.objective)
        return self._table(margins, losses, self.constraints.edge_values(margins, losses, dims), dims, records)

    def _table(self, margins: Tensor, losses: Tensor, own: Tensor, dims: Tensor, records: Tensor) -> Tensor:
        return edge_statistics(margins, losses, own, dims, records.to(margins.device), len(self.dimensions))

    def updated(self, table: Tensor) -> Lagrangian:
        """With the multipliers of the next step, from the summed statistics of the records that they follow: those of
        this step's batch, or better of records that the policy does not train on."""
        summary = summarise(table)
        return self.at(update(self.state, self.constraints, self.objective, summary, self.steps, self.proof))

    def ledger_entry(
        self,
        step: int,
        table: Tensor,
        after: Lagrangian,
        scalars: Mapping[str, float] | None = None,
        dual: Tensor | None = None,
    ) -> dict[str, Any]:
        """The ledger's line of a step with these summed statistics, `after` being what `updated` gave; JSON-safe.
        `dual` are the statistics of the dual split, which multipliers follow if `dual.evidence` says so."""
        summary = summarise(table)
        return ledger_entry(
            step,
            summary,
            self.weights(summary.edges),
            self.constraints,
            self.state,
            after.state,
            scalars or {},
            aims(self.constraints, self.objective, self.state, self.proof),
            None if dual is None else summarise(dual),
            self.objective.dual.evidence == "split",
        )

    def __repr__(self) -> str:
        multipliers = ", ".join(f"{name} {value:.3g}" for name, value in self.multipliers.items())
        return f"Lagrangian({self.constraints.form.name}, step {self.state.step}, multipliers: {multipliers})"

    def _repr_html_(self) -> str:
        bounds = self.constraints.bounds.tolist()
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{bound:g}</td><td>{value:.4g}</td></tr>"
            for (name, value), bound in zip(self.multipliers.items(), bounds, strict=True)
        )
        head = "<tr><th>constraint</th><th>tolerance</th><th>multiplier</th></tr>"
        return f"<table><caption>step {self.state.step}</caption>{head}{rows}</table>"
