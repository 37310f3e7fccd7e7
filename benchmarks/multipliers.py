"""Shipped controller on random convex problems with known optima: violations, multipliers, conflicts, what others keep.

Problems and oracle stand in tests/objective/problems.py.
usage: multipliers.py [--problems N] [--lr RATE] [--steps N ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dpeer.config import Constraint, Objective
from dpeer.objective.lagrangian import Lagrangian
from dpeer.objective.ledger import infeasible
from tests.objective import problems

TAIL = 20


def lagrangian(problem: Any, steps: int, **constraint: Any) -> Lagrangian:
    names = [f"d{d}" for d in range(problem.dimensions)]
    tolerance = dict(zip(names, problem.tolerances.tolist(), strict=True))
    objective = Objective(golden_nll=problem.anchor, constraint=Constraint(tolerance=tolerance, **constraint))
    return Lagrangian(objective, names, steps=steps)


def feasible(count: int, steps: int, batch: int | None, lr: float) -> str:
    violations, errors, named = [], [], 0
    for problem in problems.feasible(count):
        z, final, ledger = problems.train(problem, lagrangian(problem, steps), steps, batch, lr)
        violations.append(float((problem.losses(z) - problem.tolerances).max()))
        errors.append(float(np.abs(np.array(list(final.multipliers.values())) - problem.multipliers).max()))
        named += bool(infeasible(ledger[-TAIL:]))
    off, most = np.quantile(errors, [0.5, 0.9])
    return (
        f"violation {max(violations):.3f} at most, {np.quantile(violations, 0.9):.3f} in 90 %; "
        f"multipliers off by {off:.2f} (median), {most:.2f} (90 %); {named} called infeasible"
    )


def in_conflict(count: int, steps: int, batch: int | None, lr: float) -> str:
    exact = 0
    for problem in problems.infeasible(count):
        _, _, ledger = problems.train(problem, lagrangian(problem, steps), steps, batch, lr)
        exact += list(infeasible(ledger[-TAIL:])) == [f"d{d}" for d in problem.conflict]
    return f"{exact} of {count} sets named exactly"


def kept(count: int, steps: int, batch: int | None, lr: float) -> Iterator[float]:
    """Gain of each feasible dimension beside an impossible set, as a share of its gain with equal weights."""
    for problem in problems.infeasible(count, independent=True):
        others = [d for d in range(problem.dimensions) if d not in problem.conflict]
        ends = [
            problems.train(problem, lagrangian(problem, steps, enforce=enforce), steps, batch, lr)[0]
            for enforce in (True, False)
        ]
        gain, best = (np.log(2) - problem.losses(z)[others] for z in ends)
        yield from (gain / best)[best > 0.02]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--steps", type=int, nargs="+", default=[125, 400])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for steps in options.steps:
        for batch in (None, 8):
            setting = (options.problems, steps, batch, options.lr)
            print(f"{steps} steps, {'full batch' if batch is None else f'{batch} records'}:")
            print(f"  feasible   {feasible(*setting)}", flush=True)
            print(f"  infeasible {in_conflict(*setting)}", flush=True)
    shares = list(kept(max(3, options.problems // 2), options.steps[0], None, options.lr))
    low, middle = np.quantile(shares, [0.1, 0.5])
    print(f"beside an impossible set others keep {low:.2f} of their gain (10 %), {middle:.2f} (median)")


if __name__ == "__main__":
    main()
