"""What the ranks tell each other once per step: one fp64 vector, one all-reduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpeer.errors import ClusterError
from dpeer.objective.statistics import DIM_FIELDS
from dpeer.training.world import World, sum_over_ranks

SCALARS = (
    "objective",
    "golden_logp_sum",
    "golden_count",
    "golden_tokens",
    "rejected_logp_sum",
    "rejected_count",
    "identity_gap",
    "response_tokens",
    "forward_tokens",
    "packs",
    "dual_tokens",
    "dual_records",
    "dual_selected",
    "router_aux_loss",
)


@dataclass
class StepTotals:
    """Additive statistics of a step: `table` [F, D] per dimension of the training batch, `dual` [F, D] of the dual
    split's, `scalars` [len(SCALARS)]; all fp64."""

    table: Tensor
    dual: Tensor
    scalars: Tensor

    @classmethod
    def zeros(cls, dimensions: int, device: torch.device | str = "cpu") -> StepTotals:
        """On the ranks' device, where they are gathered without a wait; `exchange` brings the sums to the host."""
        table = torch.zeros(len(DIM_FIELDS), dimensions, dtype=torch.float64, device=device)
        return cls(table, table.clone(), torch.zeros(len(SCALARS), dtype=torch.float64, device=device))

    def __add__(self, other: StepTotals) -> StepTotals:
        return StepTotals(self.table + other.table, self.dual + other.dual, self.scalars + other.scalars)

    def __getitem__(self, name: str) -> float:
        return float(self.scalars[SCALARS.index(name)])

    def __setitem__(self, name: str, value: float | Tensor) -> None:
        self.scalars[SCALARS.index(name)] = value

    def add(self, name: str, value: float | Tensor) -> None:
        self.scalars[SCALARS.index(name)] += value

    def readable(self) -> dict[str, Any]:
        """Ledger scalars: sums turned into means; nats per token (golden_nll) or per response (log-probs)."""

        def ratio(total: str, count: str) -> float:
            return self[total] / self[count] if self[count] else float("nan")

        return {
            "objective": self["objective"],
            "golden_nll": -ratio("golden_logp_sum", "golden_tokens"),
            "golden_logp": ratio("golden_logp_sum", "golden_count"),
            "rejected_logp": ratio("rejected_logp_sum", "rejected_count"),
            "tokens": int(self["forward_tokens"]),
            "packs": int(self["packs"]),
            "dual_tokens": int(self["dual_tokens"]),
            "dual_selected": ratio("dual_selected", "dual_records"),
        }


def exchange(totals: StepTotals, digest: int, step: int, world: World) -> StepTotals:
    """Sum the totals over ranks. The vector also has one slot per rank for its dual-state digest (48 bits, exact in
    fp64), so that ranks whose multipliers have parted are found in the same all-reduce."""
    slots = torch.zeros(world.size, dtype=torch.float64, device=totals.scalars.device)
    slots[world.rank] = digest
    tables = torch.stack([totals.table, totals.dual])
    sizes = [tables.numel(), len(SCALARS), world.size]
    vector = sum_over_ranks(torch.cat([tables.flatten(), totals.scalars, slots]))
    summed, scalars, digests_of_all = torch.split(vector, sizes)
    digests = [int(x) for x in digests_of_all]
    if len(set(digests)) > 1:
        values = ", ".join(f"rank {r}: {d:012x}" for r, d in enumerate(digests))
        raise ClusterError(
            f"step {step}: the dual state differs between ranks ({values}). The multipliers are no longer shared, so "
            "the run is stopped. Resume from the last checkpoint; if it happens again, suspect hardware or mixed "
            "versions."
        )
    table, dual = summed.reshape(tables.shape)
    return StepTotals(table, dual, scalars)
