"""What a step costs beside the model where each pair of D dimensions is a constraint (form `balance`): D = 4 and 64.

Objective: weights, the loss of a batch with its statistics, the dual update. Ledger: the line, with its checksum, on
disk. Trackers: TensorBoard. CPU seconds per step, medians; one process, one thread. Then the page of a run of so many
steps, with a certificate whose verdicts are made up.

usage: python benchmarks/many_dimensions.py [--dimensions 4 64] [--steps 100]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder, print_table
from dpeer.config import Config
from dpeer.integrity import write_state
from dpeer.launcher.trackers import Trackers
from dpeer.objective.lagrangian import Lagrangian
from dpeer.report.page import write_report
from dpeer.training.run_dir import RunDir

EDGES = 256
"""Per step, over all dimensions; four of each record."""
PARTS = ("objective", "ledger", "trackers")


def recipe(folder: Path, dimensions: int) -> Config:
    return Config.model_validate(
        {
            "name": f"d{dimensions}",
            "output_dir": folder,
            "model": {"path": "m"},
            "data": {"train": "d"},
            "objective": {"constraint": {"form": "balance", "tolerance": 0.05}},
            "training": {"steps": 1000},
        }
    )


def batch(dims: Sequence[str], step: int, edges: int = EDGES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(margins, dimensions, records) of edges that get better, some dimensions faster than others."""
    draw = torch.Generator().manual_seed(step)
    which = torch.arange(edges) % len(dims)
    level = step / 100 * (0.5 + which / len(dims))
    return level + torch.randn(edges, generator=draw, dtype=torch.float64), which, torch.arange(edges) // 4


def run(folder: Path, dimensions: int, steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step by part; sizes in bytes."""
    config = recipe(folder, dimensions)
    names = tuple(f"dimension-{d:02d}" for d in range(dimensions))
    proof = torch.full((dimensions,), 200.0)
    files, spent = RunDir(config.run_dir), {part: [] for part in PARTS}
    files.begin(config, {})
    lagrangian = Lagrangian(config.objective, names, steps=steps, proof=proof)
    timing: dict[str, Any] = {"seconds": 1.0, "tokens_per_second": 1e3, "reference_wait_s": 0.0, "phases": {}}
    with Trackers(config, files, 0) as trackers:
        for step in range(1, steps + 1):
            began = time.process_time()
            margins, dims, records = batch(names, step)
            counts = torch.bincount(dims, minlength=dimensions)
            _, table = lagrangian.loss(margins, dims, records, counts)
            dual = lagrangian.statistics(*batch(names, step + 10_000))
            after = lagrangian.updated(dual)
            then = time.process_time()
            entry = lagrangian.ledger_entry(step, table, after, {"tokens": 1.0}, dual)
            files.append(entry, {"step": step} | timing)
            written = time.process_time()
            trackers.log(entry, timing)
            for part, seconds in zip(PARTS, (then - began, written - then, time.process_time() - written), strict=True):
                spent[part].append(seconds)
            lagrangian = after
    verdicts = ("satisfied", "undecided", "satisfied", "violated")
    mean = {"estimate": 0.02, "lower": -0.02, "upper": 0.06, "skewness": 1.0, "highest_value": 2.0, "clipped": 0.0}
    claims = [
        {"name": name, "estimate": 0.02, "tolerance": 0.05, "lower": -0.02, "upper": 0.06, "records": 400, "edges": 800,
         "verdict": verdicts[c % 4], "extra_records": 100 * (c % 4), "mean": mean}
        for c, name in enumerate(lagrangian.constraints.names)
    ]  # fmt: skip
    write_state(files.certificate, {"confidence": 0.95, "bound": 2.0, "constraints": claims})
    began = time.process_time()
    page = write_report(files.path)
    sizes = {
        "ledger line": files.ledger.stat().st_size / steps,
        "page": page.stat().st_size,
        "page, s": time.process_time() - began,
    }
    return spent, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="Write the runs there.")
    recorder = Recorder(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for dimensions in given.dimensions:
            spent, sizes = run(given.keep or Path(temporary), dimensions, given.steps)
            medians = [1000 * statistics.median(spent[part][1:]) for part in PARTS]
            rows.append(
                [f"{dimensions}", *(f"{m:.1f}" for m in (*medians, sum(medians))), f"{sizes['ledger line'] / 1000:.1f}",
                 f"{sizes['page'] / 1e6:.2f}", f"{sizes['page, s']:.1f}"]
            )  # fmt: skip
    columns = ("D", *(f"{part}, ms" for part in PARTS), "together", "line, kB", "page, MB", "page, CPU s")
    ratio = float(rows[-1][4]) / float(rows[0][4])
    print_table(f"A step of {EDGES} edges, form balance", columns, rows, f"together: {ratio:.2f} times")
    first, last = given.dimensions[0], given.dimensions[-1]
    figures = [Figure(f"{last} over {first} dimensions: objective, ledger and trackers", ratio, "x", "lower")]
    figures += [Figure(f"{row[0]} dimensions: together", float(row[4]), "CPU ms") for row in rows]
    figures += [Figure(f"{row[0]} dimensions: ledger line", float(row[5]), "kB") for row in rows]
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
