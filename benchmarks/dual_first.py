"""Multipliers found before training against multipliers found during it, on the toy world of `dpeer demo`.

Dual-first is one-shot safety alignment by optimal dualization (arXiv 2405.19544), preference-based variant. The optimum
of a reward that is a weighted sum, under a KL penalty, has margins that are the weighted sums of the specialists'
margins: log Z cancels between two responses to one prompt. So it trains a specialist per dimension, finds the
multipliers from their margins alone (`optimal_weights`), and trains once more with the weights held fixed: here the
weights of the losses, where the paper trains on pairs labelled by the weighted reward. What it assumes and a run does
not have: specialists at the optimum of their own rewards, and no anchor (`golden_nll`) beside the preferences.

usage: python benchmarks/dual_first.py [--seed 0] [--steps 80] [--output runs/dual_first] [--json FILE] [--quick]
Without --quick: D + 2 runs of the demo in this process, some minutes each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder
from benchmarks.toy_runs import Arms, Trained
from dpeer.training.heldout import heldout_edges
from dpeer.training.scoring import merge

Array = np.ndarray
QUICK = ("training.steps=4", "training.records_per_step=8")
FREE = "objective.constraint.enforce=false"


@dataclass(frozen=True)
class Solution:
    """weights [S]: of the specialists; multipliers [D]; losses [D]: nats per edge, at these weights; capped: whether a
    multiplier stands at its bound, so that the levels cannot be met by any weights."""

    weights: Array
    multipliers: Array
    losses: Array
    capped: bool


def optimal_weights(margins: Array, dims: Array, primary: Array, levels: Array, most: float = 20.0) -> Solution:
    """The convex problem of dual-first: min over w >= 0 of sum_d p_d L_d(w) subject to L_d(w) <= levels_d.

    L_d(w) is the mean of log(1 + exp(-sum_s w_s margins[s, e])) over the edges e of dimension d.

    margins [S, E]: of S specialists on E edges, in reward units; dims [E]: dimension of each edge, every one of 0 to
    D - 1 at least once; primary [D] >= 0 with sum 1; levels [D]: nats per edge, inf for none; most: bound of each
    multiplier, which an impossible level runs into.

    Solved by its dual: g(lambda) = min_w sum_d (p_d + lambda_d) L_d(w) - lambda . levels is concave in lambda >= 0,
    with the gradient L(w*) - levels; w* warm-starts from one lambda to the next.
    """
    count = np.bincount(dims, minlength=len(primary)).astype(float)
    bounded = np.isfinite(levels)
    inner = np.ones(len(margins))

    def losses(w: Array) -> Array:
        return np.bincount(dims, np.logaddexp(0, -(w @ margins)), len(primary)) / count

    def best(multipliers: Array) -> Array:
        nonlocal inner
        per_edge = ((primary + multipliers) / count)[dims]

        def value(w: Array) -> tuple[float, Array]:
            m = w @ margins
            return float(per_edge @ np.logaddexp(0, -m)), -margins @ (per_edge * expit(-m))

        options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-9}
        inner = minimize(value, inner, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(inner), options=options).x
        return inner

    def minus_dual(multipliers: Array) -> tuple[float, Array]:
        at = losses(best(multipliers))
        excess = np.where(bounded, at - np.where(bounded, levels, 0), 0)
        return -float(primary @ at + multipliers @ excess), -excess

    bounds = [(0, most if b else 0) for b in bounded]
    options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-7}
    start = np.zeros(len(primary))
    multipliers = minimize(minus_dual, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = best(multipliers)
    return Solution(weights, multipliers, losses(weights), bool((multipliers >= most).any()))


def dual_margins(trained: Trained) -> tuple[Array, Array]:
    """([E], [E]): margins of the dual split's edges in reward units, and their dimensions."""
    rank = trained.rank
    assert rank.prepared.dual is not None
    scores = merge([rank.score_dual()], len(rank.prepared.dual.trees))
    edges = heldout_edges(rank.config, rank.prepared.dual, scores, rank.cached_dual())
    return edges.margins.numpy(), edges.dims.numpy()


def fixed(primary: Mapping[str, float], anchor: float) -> tuple[str, ...]:
    """Settings that hold these weights: of the dimensions, and of the anchor in the same units."""
    total = sum(primary.values())
    shares = json.dumps({d: p / total for d, p in primary.items()})
    return f"objective.primary={shares}", FREE, f"objective.golden_nll={anchor / total}"


def dual_first(arms: Arms, levels: Mapping[str, float]) -> tuple[Trained, Solution, float]:
    """(run with the multipliers held fixed, the multipliers, CPU seconds in all)."""
    config, dimensions = arms.config("specialist"), tuple(levels)
    margins, seconds = list[Array](), 0.0
    for d in dimensions:
        alone = {other: float(other == d) for other in dimensions}
        specialist = arms.train(f"specialist-{d}", *fixed(alone, config.objective.golden_nll))
        began = time.process_time()
        found, dims = dual_margins(specialist)
        margins.append(found)
        seconds += specialist.seconds + time.process_time() - began
    began = time.process_time()
    uniform = np.full(len(dimensions), 1 / len(dimensions))
    solution = optimal_weights(np.array(margins), dims, uniform, np.array([levels[d] for d in dimensions]))
    seconds += time.process_time() - began
    weights = dict(zip(dimensions, (uniform + solution.multipliers).tolist(), strict=True))
    trained = arms.train("dual-first", *fixed(weights, config.objective.golden_nll))
    return trained, solution, seconds + trained.seconds


def show(rows: Mapping[str, dict[str, Any]], dimensions: tuple[str, ...]) -> None:
    headings = [*dimensions, "worst", "mean", "fluent", *(f"loss {d}" for d in dimensions), "CPU s"]
    table = Table("arm", title="Good replies by the oracle, held-out losses, multipliers", title_justify="left")
    for heading in (*headings, *(f"λ {d}" for d in dimensions)):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        shares = [row["shares"][d] for d in dimensions]
        numbers = (*shares, min(shares), row["mean"], row["fluency"])
        losses, multipliers = ([row[key][d] for d in dimensions] for key in ("losses", "multipliers"))
        table.add_row(
            name,
            *(f"{x:.2f}" for x in numbers),
            *(f"{x:.3f}" for x in losses),
            f"{row['seconds']:.0f}",
            *(f"{x:.2f}" for x in multipliers),
        )
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of every run; default: the demo's")
    parser.add_argument("--output", type=Path, default=Path("runs/dual_first"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="4 steps of 8 records: shows that it runs, no more")
    recorder = Recorder(parser)
    given = parser.parse_args()
    changes = QUICK if given.quick else ()
    arms = Arms(given.output, given.seed, (*changes, *((f"training.steps={given.steps}",) if given.steps else ())))
    lagrangian = arms.train("lagrangian")
    constraints = lagrangian.ledger[-1]["constraints"]
    levels = {d: float(c["aim"]) for d, c in constraints.items()}  # both aim at the same levels
    rows = {
        "Lagrangian": arms.read("lagrangian", lagrangian)
        | {"seconds": lagrangian.seconds, "multipliers": {d: c["multiplier"] for d, c in constraints.items()}}
    }
    trained, solution, seconds = dual_first(arms, levels)
    multipliers = dict(zip(levels, solution.multipliers.tolist(), strict=True))
    rows["dual-first"] = arms.read("dual-first", trained) | {"seconds": seconds, "multipliers": multipliers}
    show(rows, tuple(levels))
    said = zip(levels, levels.values(), solution.losses, strict=True)
    print("aim, and loss on the dual split at the optimum over weights of the specialists' margins: ", end="")
    print(", ".join(f"{d} {aim:.3f}, {loss:.3f}" for d, aim, loss in said))
    if solution.capped:
        print("A multiplier stands at its bound: no weights of the specialists' margins meet these levels.")
    (ours, theirs), worst = rows.values(), "worst dimension by the oracle"
    figures = [Figure("CPU of dual-first over Lagrangian", theirs["seconds"] / ours["seconds"], "x", "higher")]
    figures += [
        Figure(f"{name}: {worst}", min(row["shares"].values()), "share", "higher") for name, row in rows.items()
    ]
    recorder.write(given, figures)
    if given.json:
        given.json.write_text(json.dumps({"levels": levels, "weights": solution.weights.tolist(), **rows}, indent=1))


if __name__ == "__main__":
    main()
