"""A fit of ratings that have grown by a tenth: from the earlier fit, against afresh, in CPU seconds.

usage: python benchmarks/irt_restart.py [--models 6] [--items 30] [--dimensions 2] [--judges 3] [--seed 3 ...]
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from common import Figure, Recorder, machine, print_table

from dpeer.eval.irt.diagnostics import mixing
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options


def main() -> int:
    parser = argparse.ArgumentParser(description="A fit from an earlier one, against a fresh one.")
    for name, default in (("models", 6), ("items", 30), ("dimensions", 2), ("judges", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, nargs="+", default=[3], help="of simulated ratings; several: one by one")
    recorder = Recorder(parser)
    options = parser.parse_args()
    given = {k: v for k, v in vars(options).items() if k != "result"}
    seeds, spec = given.pop("seed"), Spec(**given)
    rows, gaps, figures = [], [], []
    for seed in seeds:
        table, _ = simulate(spec, seed)
        earlier = table[np.random.default_rng(seed).random(len(table)) < 1 / 1.1]
        before = fit(encode(earlier), Options())
        warm, fresh = fit(encode(table), Options(), start=before), fit(encode(table), Options())
        a, b = warm.flat("theta"), fresh.flat("theta")
        gaps.append(float(np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / b.std(axis=0))))
        per_draw = fresh.facts["cpu_seconds"] / mixing(fresh)[1]
        given_up = "" if warm.facts["started_from_earlier"] else ", given up"
        share = warm.facts["cpu_seconds"] / fresh.facts["cpu_seconds"]
        figures.append(Figure(f"seed {seed}: from the earlier fit over afresh", share, "x", "lower"))
        for name, found in (("earlier", before), (f"from the earlier{given_up}", warm), ("afresh", fresh)):
            rhat, ess = mixing(found)
            cpu = found.facts["cpu_seconds"]
            shares = (f"{cpu / fresh.facts['cpu_seconds']:.2f}", f"{cpu / ess / per_draw:.2f}")
            costs = (f"{len(found.ratings):,}", f"{cpu:.0f}", *shares, f"{found.length:,}")
            rows.append([f"seed {seed}, {name}", *costs, f"{rhat:.4f}", f"{ess:.0f}"])
    print_table(
        "Ratings that have grown by a tenth",
        ["fit", "ratings", "CPU s", "of afresh", "per ESS of afresh", "draws per chain", "R-hat", "least ESS"],
        rows,
        f"chains alone; mean abilities differ by at most {max(gaps):.2f} posterior sd; {machine()['cpu']}",
    )
    recorder.write(options, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
