"""What one gradient of the many-facet model costs, in CPU time and memory, up to a million ratings.

usage: python benchmarks/irt_gradient.py [--million] [--rounds 3] [--than PROGRAM]

`--than`: another compiled version of the model, run in turn with this one on the same data.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from common import BenchmarkError, Figure, Recorder, machine, print_table, spread
from irt_vs_numpyro import DEPTH, LARGE, SMALL, Setting, prepare, stan

from dpeer.eval.irt.cmdstan import compile_model
from dpeer.eval.irt.errors import IrtError

MILLION = Setting(20, 2500, 4, 5)
ITERATIONS, TREE = 4 * 2000 + 200, 63
"""Of a fit with the shipped defaults, and the gradients that each took at 88,000 ratings."""
LENGTHS = {SMALL: (6, 36), LARGE: (2, 10), MILLION: (1, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description="One gradient of the many-facet model.")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 ratings (1 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--than", type=Path, metavar="PROGRAM", help="another compiled version of the model")
    recorder = Recorder(parser)
    given = parser.parse_args()
    rows, figures = [], []
    try:
        programs = [compile_model(print), *([given.than] if given.than else [])]
        for setting in (SMALL, LARGE, *([MILLION] if given.million else [])):
            problem, points = prepare(setting)
            ms: dict[Path, list[float]] = {program: [] for program in programs}
            peak = dict.fromkeys(programs, 0.0)
            for _ in range(given.rounds):
                for program in programs:
                    nuts = (f"max_depth={DEPTH}", "stepsize=1e-9")
                    runs = [stan(setting, points[0], n, *nuts, program=program) for n in LENGTHS[setting]]
                    steps = float(runs[1][0]["n_leapfrog__"].sum() - runs[0][0]["n_leapfrog__"].sum())
                    ms[program].append(1000 * (runs[1][1] - runs[0][1]) / steps)
                    peak[program] = max(peak[program], runs[1][2])
            size = sum(values.size for _, values, _ in problem.blocks)
            if given.than:
                title = f"{setting.ratings:,} ratings: this version over the other"
                figures.append(Figure.ratio(title, *ms.values(), "lower"))
            for program in programs:
                middle = statistics.median(ms[program])
                name = "this version" if program == programs[0] else "the other"
                share = f"{statistics.median(ms[programs[0]]) / middle:.2f}"
                hours = f"{ITERATIONS * TREE * middle / 3.6e6:.1f}"
                shown = (f"{size:,}", spread(ms[program], 2), share, f"{peak[program]:.0f}", hours)
                rows.append([f"{setting.ratings:,}: {name}", *shown])
                title = f"{setting.ratings:,} ratings, {name}"
                figures.append(Figure.median(f"{title}: one gradient", ms[program], "CPU ms", "lower"))
                figures.append(Figure(f"{title}: peak memory of a chain", peak[program], "MB", "lower"))
    except (BenchmarkError, IrtError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(
        "One gradient, NUTS included",
        ["ratings", "parameters", "CPU ms (range)", "this over it", "peak RSS, MB", "CPU hours of a fit"],
        rows,
        f"{given.rounds} rounds, medians; one thread; a fit: 4 chains of 2,000 iterations and a pilot, {TREE} gradients"
        f" per iteration; {machine()['cpu']}",
    )
    recorder.write(given, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
