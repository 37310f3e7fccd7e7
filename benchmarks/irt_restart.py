"""A fit of ratings that have grown by a tenth: from the earlier fit, against afresh, in CPU seconds.

usage: python benchmarks/irt_restart.py [--models 6] [--items 30] [--dimensions 2] [--judges 3]
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from common import machine, print_table

from dpeer.eval.irt.diagnostics import mixing
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.simulate import Spec, simulate
from dpeer.eval.irt.types import Options

SEED = 3


def main() -> int:
    parser = argparse.ArgumentParser(description="A fit from an earlier one, against a fresh one.")
    for name, default in (("models", 6), ("items", 30), ("dimensions", 2), ("judges", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    table, _ = simulate(Spec(**vars(given)), SEED)
    earlier = table[np.random.default_rng(SEED).random(len(table)) < 1 / 1.1]
    before = fit(encode(earlier), Options())
    warm, fresh = fit(encode(table), Options(), start=before), fit(encode(table), Options())
    if not warm.facts["started_from_earlier"]:
        print("error: the chains from the earlier fit were given up, so there is nothing to compare", file=sys.stderr)
        return 1
    a, b = warm.flat("theta"), fresh.flat("theta")
    gap = float(np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / b.std(axis=0)))
    rows = []
    for name, found in (("earlier", before), ("from the earlier", warm), ("afresh", fresh)):
        rhat, ess = mixing(found)
        cpu = found.facts["cpu_seconds"]
        figures = (f"{len(found.ratings):,}", f"{cpu:.0f}", f"{cpu / fresh.facts['cpu_seconds']:.2f}")
        rows.append([name, *figures, f"{found.options.draws:,}", f"{rhat:.4f}", f"{ess:.0f}"])
    print_table(
        "Ratings that have grown by a tenth",
        ["fit", "ratings", "CPU s", "of afresh", "draws per chain", "R-hat", "least ESS"],
        rows,
        f"chains alone; mean abilities differ by at most {gap:.2f} posterior sd; {machine()['cpu']}",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
