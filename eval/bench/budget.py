"""One budget over the stages of a run, each of which keeps books of its own."""

from __future__ import annotations

from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.spending import spent_in
from dpeer.eval.store.ledger import MANIFEST

NOTHING = 1e-9
"""A budget is above 0; by this one, what is on disk is still read and no call is made."""


def left_of(cfg: BenchConfig, stage: str) -> float | None:
    """What a stage may cost in all: the budget less what the others have cost. None: there is no budget."""
    if cfg.budget is None:
        return None
    books = [path.parent for path in cfg.folder.glob(f"*/*/{MANIFEST}")]
    return max(cfg.budget - sum(spent_in(folder) for folder in books if folder.parent.name != stage), NOTHING)
