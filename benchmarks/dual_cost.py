"""What the dual split costs: CPU seconds of an optimizer step with it and without it, on the toy world of `dpeer demo`.

Without it multipliers follow the training batch. Each setting runs in this process, one after the other, in rounds; the
median over steps counts. A forward pass of policy and reference is added per record of the dual split: with a live
reference and as many dual records as trained ones, two forward passes beside two and one backward pass, which costs
about as much as two.

usage: python benchmarks/dual_cost.py [--rounds 2] [--output runs/dual_cost]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder
from benchmarks.toy_runs import Arms

STEPS, WARM = 16, 4
RECORDS = 32
WITHOUT = ("data.dual=none", "objective.dual.evidence=batch", "objective.dual.aim=0")
SPLITS = {"none": WITHOUT, "half": (f"objective.dual.records_per_step={RECORDS // 2}",), "equal": ()}


def seconds(arms: Arms, reference: str, split: str) -> list[float]:
    """CPU seconds of each step after the first few."""
    length = (f"training.steps={STEPS}", f"training.records_per_step={RECORDS}")
    rank = arms.start(f"{reference}-{split}", *length, f"cluster.reference={reference}", *SPLITS[split])
    found = []
    for _ in range(STEPS):
        began = time.process_time()
        rank.train_step()
        found.append(time.process_time() - began)
    return found[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/dual_cost"))
    recorder = Recorder(parser)
    given = parser.parse_args()
    arms = Arms(given.output, 0, ())
    settings = [(reference, split) for reference in ("colocated", "cache") for split in SPLITS]
    found: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
    for _ in range(given.rounds):
        for setting in settings:
            found[setting] += seconds(arms, *setting)
    figures: list[Figure] = []
    table = Table("reference", "dual records", title=f"One step of {RECORDS} records", title_justify="left")
    for heading in ("CPU s (median)", "ratio"):
        table.add_column(heading, justify="right")
    for reference, split in settings:
        median, base = (statistics.median(found[reference, s]) for s in (split, "none"))
        name = "live" if reference == "colocated" else reference
        if split != "none":
            title = f"{name} reference: {split} split over none"
            figures.append(Figure.ratio(title, found[reference, split], found[reference, "none"], "lower"))
        table.add_row(name, split, f"{median:.3f}", f"{median / base:.2f}")
    Console().print(table)
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
