"""How full the packs are: the share of its time that a rank computes, where all wait for the largest pack.

Pure planning with `plan_packs`, no model and no GPU: batches of records with lengths as they occur, over 8 to 512
ranks. Fill is tokens / (ranks x sum over micro-steps of the largest pack): 1 minus what is lost by waiting. Beside it
the largest over the mean rank, tokens per GPU and micro-step, the time to plan as a share of a step of so many tokens
per second and GPU, and fill by first fit per rank. Where a step has few records, the same with ranks that share them
(`training.sequence_parallel`): so many ranks compute a pack of as many times the tokens.

usage: python benchmarks/fill.py [--per-rank 8] [--teams 1 2 4 8] [--batches 3]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder, print_table
from dpeer.data.bins import evenly, first_fit, length, plan_packs

RANKS, BUDGET = (8, 64, 512), 8192
ENOUGH = 8
"""Records per rank, from which fill is a figure of the result."""
SPEED = 700.0
"""Tokens per second and GPU of a 70B model: 40 % of an H100, recomputation included."""
Record = tuple[int, list[int]]
"""Tokens of the prompt and of each response."""


def lognormal(draw: random.Random, median: float, sigma: float, most: int) -> int:
    return max(4, min(most, round(median * draw.lognormvariate(0, sigma))))


def chat(draw: random.Random) -> Record:
    return lognormal(draw, 40, 0.8, 1000), [lognormal(draw, 60, 0.7, 600) for _ in range(draw.randint(3, 5))]


def heavy(draw: random.Random) -> Record:
    return lognormal(draw, 300, 1.2, 6000), [lognormal(draw, 150, 0.8, 1500) for _ in range(draw.randint(3, 5))]


DRAWN: dict[str, Callable[[random.Random], Record]] = {
    "short chat": chat,
    "300/100/4": lambda draw: (lognormal(draw, 300, 0.3, 2000), [lognormal(draw, 100, 0.3, 800) for _ in range(5)]),
    "1000/400/4": lambda draw: (lognormal(draw, 1000, 0.3, 4000), [lognormal(draw, 400, 0.3, 1000) for _ in range(5)]),
    "heavy tails": heavy,
}


def cost(record: Record) -> int:
    return record[0] + sum(n - 1 for n in record[1])


class Row(NamedTuple):
    """Means over batches."""

    fill: float
    first_fit: float
    uneven: float
    tokens: float
    planning: float
    steps: float


def row(name: str, ranks: int, size: int, team: int, batches: int) -> Row:
    """Of `ranks` ranks, `team` of which compute a pack together."""
    found: list[Row] = []
    groups, budget = ranks // team, BUDGET * team
    for seed in range(batches):
        draw = random.Random(f"{name} {ranks} {seed}")
        records = [DRAWN[name](draw) for _ in range(size)]
        costs = [cost(r) for r in records]
        began = time.process_time()
        plan = plan_packs(costs, groups, budget)
        spent, lasts, total = time.process_time() - began, length(plan, costs), sum(costs)
        order = sorted(range(size), key=lambda i: (-costs[i], i))
        before = [first_fit(items, costs, budget) for items in evenly(order, costs, groups)]
        busiest = max(sum(costs[i] for items in mine for i in items) for mine in plan)
        found.append(
            Row(
                fill=total / groups / lasts,
                first_fit=total / groups / length(before, costs),
                uneven=busiest * groups / total,
                tokens=total / ranks / max(map(len, plan)),
                planning=spent / (lasts / team / SPEED),
                steps=max(map(len, plan)) / max(map(len, before)),
            )
        )
    return Row(*map(statistics.fmean, zip(*found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--per-rank", type=float, nargs="+", default=[0.5, 1, 2, 8, 32], help="records per rank and step"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--teams", type=int, nargs="+", default=[1, 2, 4, 8], help=f"with fewer than {ENOUGH} records")
    parser.add_argument("--batches", type=int, default=3)
    recorder = Recorder(parser)
    given = parser.parse_args()
    cells, figures, most_steps = [], [], 0.0
    for name in DRAWN:
        for per_rank in given.per_rank:
            for team in given.teams if per_rank < ENOUGH else (1,):
                rows = []
                for ranks in given.ranks:
                    size = max(1, round(per_rank * ranks))
                    r = row(name, ranks, size, team, given.batches)
                    rows.append(r)
                    fills = [f"{x:.3f}" for x in (r.fill, r.first_fit, r.uneven)]
                    rest = [f"{r.tokens:,.0f}", f"{100 * r.planning:.3f} %", f"{r.steps:.2f}"]
                    cells.append([name, f"{ranks}", f"{team}", f"{size}", *fills, *rest])
                about = f"{name}, {per_rank:g} records per rank" + f", {team} ranks to a pack" * (team > 1)
                figures.append(Figure.median(f"fill: {about}", [r.fill for r in rows], "share", "higher"))
                if per_rank >= ENOUGH:
                    most_steps = max(most_steps, *(r.steps for r in rows))
                    figures.append(Figure.median(f"first fit: {about}", [r.first_fit for r in rows], "share"))
    figures.append(Figure("most micro-steps over those of first fit", most_steps, "x", "lower"))
    columns = ("lengths", "ranks", "to a pack", "records", "fill", "first fit", "max/mean", "tokens/GPU", "planning")
    columns += ("steps/first fit",)
    print_table(f"Packs of at most {BUDGET} tokens per rank", columns, cells, "planning on one core")
    ranks = ", ".join(map(str, given.ranks))
    recorder.write(given, figures, f"Ranges are over {ranks} ranks; first fit fills packs rank by rank.")


if __name__ == "__main__":
    main()
