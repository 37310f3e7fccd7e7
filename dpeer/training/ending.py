"""Which checkpoint a run ends with, and when it ends early: functions of the ledger, so that a resumed run agrees."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def checkpoints(done: int, every: int, total: int) -> list[int]:
    """Those of the schedule up to step `done`. What a signal or a lost worker saves between them is never judged."""
    return [s for s in range(1, done + 1) if s % every == 0 or s == total]


def worst_loss(rows: Rows) -> float:
    """Mean loss of the worst dimension over the dual split's batches of these ledger rows.

    Dimensions with a finite tolerance count, or all of them where none has one; each batch by its edges. inf where
    a dimension was never seen.
    """
    bounded = {d for r in rows for d in _bounded(r)}
    return max((_mean_loss(rows, d) for d in bounded or rows[-1]["dimensions"]), default=math.inf)


def _bounded(row: Mapping[str, Any]) -> Collection[str]:
    """Dimensions that a finite tolerance binds, whether each constraint has a row or not."""
    if "all_constraints" in row:
        return list(row["all_constraints"]["bounded"])
    return [d for c in row["constraints"].values() if _finite(c["tolerance"]) for d in c["dimensions"]]


def _finite(tolerance: Any) -> bool:
    return isinstance(tolerance, (int, float)) and math.isfinite(tolerance)


def _mean_loss(rows: Rows, dimension: str) -> float:
    seen = [r["dimensions"][dimension]["dual"] for r in rows]
    edges = sum(row["edges"] for row in seen)
    return sum(row["edges"] * row["loss"] for row in seen if row["edges"]) / edges if edges else math.inf


def scores(rows: Rows, every: int, total: int) -> dict[int, float]:
    """`worst_loss` of each checkpoint, over the `every` steps that led to it (the last one's may overlap)."""
    return {s: worst_loss(rows[max(0, s - every) : s]) for s in checkpoints(len(rows), every, total)}


def best(scores: Mapping[int, float], among: Collection[int] | None = None) -> int | None:
    """The checkpoint with the lowest score, the later of equals; None where there is none."""
    steps = [step for step in scores if among is None or step in among]
    return min(steps, key=lambda step: (scores[step], -step), default=None)


def exhausted(scores: Mapping[int, float], patience: int) -> bool:
    """True when the last `patience` checkpoints were all worse than the best."""
    top = best(scores)
    return top is not None and sum(step > top for step in scores) >= patience


def confidence(look: int, together: float) -> float:
    """Of the certificate at the k-th look at the same records: error levels alpha / (k (k + 1)) sum to alpha, so all
    looks `together` have their confidence, 1 - alpha."""
    return 1 - (1 - together) / (look * (look + 1))
