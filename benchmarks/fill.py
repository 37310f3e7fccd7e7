"""How full the packs are: the share of its time that a rank computes, where all wait for the largest pack.

Pure planning with `plan_packs`, no model and no GPU: batches of records with lengths as they occur, over 8 to 512
ranks. Fill is tokens / (ranks x sum over micro-steps of the largest pack): 1 minus what is lost by waiting. Beside it
the largest over the mean rank, tokens per GPU and micro-step, the time to plan as a share of a step of so many tokens
per second and GPU, and fill by first fit per rank. `--split K` shows what splitting records over K ranks would give,
each part with the prompt again: "speed" is the step's length of whole records over that of the parts.

usage: python benchmarks/fill.py [--per-rank 8] [--split 2] [--batches 3]
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


def parts(record: Record, count: int) -> list[Record]:
    """The record's responses in `count` parts of near tokens, each with its prompt."""
    lengths = record[1]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [(record[0], [lengths[i] for i in part]) for part in evenly(order, lengths, count) if part]


class Row(NamedTuple):
    """Means over batches."""

    fill: float
    first_fit: float
    uneven: float
    tokens: float
    planning: float
    steps: float
    faster: float


def row(name: str, ranks: int, size: int, split: int, batches: int) -> Row:
    found: list[Row] = []
    for seed in range(batches):
        draw = random.Random(f"{name} {ranks} {seed}")
        records = [DRAWN[name](draw) for _ in range(size)]
        costs = [cost(r) for r in records]
        began = time.process_time()
        plan = plan_packs(costs, ranks, BUDGET)
        spent, lasts, total = time.process_time() - began, length(plan, costs), sum(costs)
        order = sorted(range(size), key=lambda i: (-costs[i], i))
        before = [first_fit(items, costs, BUDGET) for items in evenly(order, costs, ranks)]
        busiest = max(sum(costs[i] for items in mine for i in items) for mine in plan)
        pieces = [cost(p) for r in records for p in parts(r, split)]
        found.append(
            Row(
                fill=total / ranks / lasts,
                first_fit=total / ranks / length(before, costs),
                uneven=busiest * ranks / total,
                tokens=total / ranks / max(map(len, plan)),
                planning=spent / (lasts / SPEED),
                steps=max(map(len, plan)) / max(map(len, before)),
                faster=lasts / length(plan_packs(pieces, ranks, BUDGET), pieces),
            )
        )
    return Row(*map(statistics.fmean, zip(*found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--per-rank", type=float, nargs="+", default=[0.5, 2, 8, 32], help="records per rank and step")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--split", type=int, default=2)
    parser.add_argument("--batches", type=int, default=3)
    recorder = Recorder(parser)
    given = parser.parse_args()
    cells, figures, most_steps = [], [], 0.0
    for name in DRAWN:
        for per_rank in given.per_rank:
            rows = []
            for ranks in given.ranks:
                size = max(1, round(per_rank * ranks))
                r = row(name, ranks, size, given.split, given.batches)
                rows.append(r)
                fills = [f"{x:.3f}" for x in (r.fill, r.first_fit, r.uneven)]
                rest = [f"{r.tokens:,.0f}", f"{100 * r.planning:.3f} %", f"{r.steps:.2f}", f"{r.faster:.2f}"]
                cells.append([name, f"{ranks}", f"{size}", *fills, *rest])
            most_steps = max(most_steps, *(r.steps for r in rows))
            if per_rank >= ENOUGH:
                about = f"{name}, {per_rank:g} records per rank"
                figures.append(Figure.median(f"fill: {about}", [r.fill for r in rows], "share", "higher"))
                figures.append(Figure.median(f"first fit: {about}", [r.first_fit for r in rows], "share"))
    figures.append(Figure("most micro-steps over those of first fit", most_steps, "x", "lower"))
    columns = ("lengths", "ranks", "records", "fill", "first fit", "max/mean", "tokens/GPU", "planning")
    columns += ("steps/first fit", "speed if split")
    caption = f"records split in {given.split}; planning on one core"
    print_table(f"Packs of at most {BUDGET} tokens", columns, cells, caption)
    ranks = ", ".join(map(str, given.ranks))
    recorder.write(given, figures, f"Ranges are over {ranks} ranks; first fit fills packs rank by rank.")


if __name__ == "__main__":
    main()
