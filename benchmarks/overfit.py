"""Do constraints hold on new records when the policy has learned its own by heart? Six epochs on few records.

The dual split moves the multipliers, or (what most trainers do) the training batch does. Records are those of the
toy world of `dpeer demo`, another draw for each seed, on one base model. A tolerance counts as attainable if training
the worst dimension first (form `worst`) reaches it on the held-out records at some checkpoint. The exported checkpoint
is `training.keep: best`; held-out records decide nothing.

usage: python benchmarks/overfit.py [--seeds 10] [--tolerance 0.5 ...] [--output runs/overfit]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.toy_runs import Arms
from dpeer.objective.heldout import heldout_means
from dpeer.objective.ledger import infeasible
from dpeer.toyworld import world as toyworld
from dpeer.training import ending
from dpeer.training.heldout import heldout_edges
from dpeer.training.rank import TrainingRank
from dpeer.training.scoring import merge

TRAIN, DUAL, HELDOUT = 132, 44, 800
EVERY = 11
LENGTH = (
    "training.steps=null",
    "training.epochs=6",
    "training.records_per_step=12",
    f"training.checkpoint_every={EVERY}",
)
TAIL = 20


def heldout_losses(rank: TrainingRank) -> dict[str, float]:
    data = rank.prepared.heldout
    assert data is not None
    scores = merge([rank.score_heldout()], len(data.trees))
    edges = heldout_edges(rank.config, data, scores, rank.cached_heldout())
    return {d: row["loss"] for d, row in heldout_means(edges, rank.config.objective, data.dimensions).items()}


def run(arms: Arms, name: str, *changes: str) -> dict[str, Any]:
    """Held-out losses at each checkpoint, the one that is kept, and what the run says at its end."""
    rank = arms.start(name, *LENGTH, *changes)
    ledger, at = [], {}
    steps = rank.policy.steps
    for step in range(1, steps + 1):
        ledger.append(rank.train_step())
        if step in ending.checkpoints(step, EVERY, steps):
            at[step] = heldout_losses(rank)
    kept = ending.best(ending.scores(ledger, EVERY, steps))
    return {"heldout": at, "kept": kept, "training": training_loss(ledger[-EVERY:]), "says": infeasible(ledger[-TAIL:])}


def training_loss(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of the worst dimension, over the edges of these steps' batches."""
    seen = {d: [r["dimensions"][d] for r in rows if r["dimensions"][d]["edges"]] for d in rows[-1]["dimensions"]}
    return max(sum(s["loss"] * s["edges"] for s in found) / sum(s["edges"] for s in found) for found in seen.values())


def excess(losses: Mapping[str, float], tolerance: float) -> float:
    return max(0.0, max(losses.values()) - tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tolerance", type=float, nargs="+", default=[0.5, 0.6])
    parser.add_argument("--output", type=Path, default=Path("runs/overfit"))
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    arms = Arms(given.output, 0, ())
    table = Table(
        "seed", "tolerance", "evidence", title="Worst held-out excess over the tolerance", title_justify="left"
    )
    for heading in ("training", "held-out, kept", "excess, kept", "excess, last", "best reachable", "says"):
        table.add_column(heading, justify="right")
    rows = []
    for seed in range(given.seeds):
        folder = given.output / f"records-{seed}"
        toyworld.write_world(folder, 100 + seed, TRAIN + DUAL, HELDOUT, 2, 2)
        places = (f"data.train={folder / 'train.jsonl'}", f"data.heldout={folder / 'test.jsonl'}", f"seed={seed}")
        worst = run(
            arms, f"worst-{seed}", *places, "objective.constraint.form=worst", "objective.constraint.tolerance=0"
        )
        reachable = min(max(losses.values()) for losses in worst["heldout"].values())
        for tolerance in given.tolerance:
            for evidence in ("split", "batch"):
                changes = (f"objective.constraint.tolerance={tolerance}", f"objective.dual.evidence={evidence}")
                found = run(arms, f"{evidence}-{tolerance}-{seed}", *places, *changes)
                kept, last = found["heldout"][found["kept"]], list(found["heldout"].values())[-1]
                row = {"seed": seed, "tolerance": tolerance, "evidence": evidence, "reachable": reachable}
                row |= {"kept": excess(kept, tolerance), "last": excess(last, tolerance), "says": list(found["says"])}
                rows.append(row)
                numbers = (found["training"], max(kept.values()), row["kept"], row["last"], reachable)
                said = ", ".join(row["says"]) or "-"
                table.add_row(str(seed), f"{tolerance:g}", evidence, *(f"{x:.3f}" for x in numbers), said)
                print(json.dumps(row), flush=True)
    Console(width=130).print(table)
    for evidence in ("split", "batch"):
        fair = [r for r in rows if r["evidence"] == evidence and r["reachable"] <= r["tolerance"]]
        held = sum(r["kept"] <= 0.02 for r in fair)
        print(f"multipliers follow the {evidence}: {held} of {len(fair)} attainable tolerances held within 0.02")


if __name__ == "__main__":
    main()
