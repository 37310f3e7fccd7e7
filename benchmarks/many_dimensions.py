"""What a step costs beside the model where each pair of D dimensions is a constraint (form `balance`): D = 4 and 64.

Objective: weights, the loss of a batch with its statistics, the dual update. Ledger: the line, with its checksum, on
disk. Trackers: TensorBoard. CPU seconds per step, medians; one process, one thread. Then the page of a run of so many
steps, with a certificate whose verdicts are made up. Whole step: a step of a model of four layers and 64 wide on the
same number of edges, with its ledger line and trackers, which is the least that any training takes.

usage: python benchmarks/many_dimensions.py [--dimensions 4 64] [--steps 100] [--whole-steps 12]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder, print_table, spread
from benchmarks.engine import one_rank
from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.integrity import write_state
from dpeer.launcher.trackers import Trackers
from dpeer.objective.lagrangian import Lagrangian
from dpeer.report.page import write_report
from dpeer.toyworld.model import tiny_model
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared
from dpeer.training.run_dir import RunDir
from dpeer.training.world import World

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


def whole_steps(folder: Path, sizes: Sequence[int], steps: int, here: World) -> dict[int, list[float]]:
    """CPU seconds of each step after the first, by the number of dimensions; in turns."""
    path = tiny_model(folder / "model", "qwen3", 0, vocab=300, num_hidden_layers=4)
    found: dict[int, list[float]] = {dimensions: [] for dimensions in sizes}
    with ExitStack() as stack:
        parts = []
        for dimensions in sizes:
            base, trees = recipe(folder, dimensions).model_dump(mode="json"), records(dimensions)
            changes = {
                "name": f"whole-{dimensions}",
                "model": base["model"] | {"path": str(path), "dtype": "fp32"},
                "objective": base["objective"] | {"dual": base["objective"]["dual"] | {"evidence": "batch"}},
                "training": base["training"] | {"records_per_step": len(trees.trees), "tokens_per_pack": 4096},
                "cluster": base["cluster"] | {"engine": "plain"},
            }
            config = Config.model_validate(base | changes)
            policy = Policy(config, Prepared(trees, None, None, {}), here)
            files = RunDir(config.run_dir)
            files.begin(config, {})
            parts.append((policy, policy.score(trees.trees), files, stack.enter_context(Trackers(config, files, 0))))
        for step in range(steps + 1):
            for dimensions, (policy, scores, files, trackers) in zip(sizes, parts, strict=True):
                began = time.process_time()
                places = policy.prepared.train_places(policy.config, policy.step)
                policy.meter.start()
                entry = policy.train_step(dict(enumerate(scores[i] for i in places)))
                timing = {"step": step, "seconds": 1.0, "tokens_per_second": 1e3, "reference_wait_s": 0.0, "phases": {}}
                files.append(entry, timing)
                trackers.log(entry, timing)
                if step:
                    found[dimensions].append(time.process_time() - began)
    return found


def records(dimensions: int) -> TokenizedSet:
    """EDGES / 4 records of a prompt of 40 tokens and five responses of 30, each in four dimensions."""
    draw = random.Random(0)
    names = tuple(f"dimension-{d:02d}" for d in range(dimensions))

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, 300) for _ in range(n))

    def tree(i: int) -> TokenTree:
        active = sorted((4 * i + k) % dimensions for k in range(4))
        edges = tuple((d, 0, k + 1) for k, d in enumerate(active))
        return TokenTree(i, ids(40), tuple(ids(30) for _ in range(5)), edges, 0, tuple(names[d] for d in active))

    return TokenizedSet(names, tuple(tree(i) for i in range(EDGES // 4)), 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--whole-steps", type=int, default=12)
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
    with tempfile.TemporaryDirectory() as temporary:
        whole = whole_steps(Path(temporary), (first, last), given.whole_steps, one_rank())
    cells = [[f"{d}", spread(seconds, 3)] for d, seconds in whole.items()]
    print_table("A whole step of a tiny model", ("D", "CPU s"), cells, f"medians of {given.whole_steps} steps")
    figures.append(
        Figure.ratio(f"{last} over {first} dimensions: a whole step", whole[last], whole[first], "lower", goal=1.2)
    )
    figures += [Figure(f"{row[0]} dimensions: together", float(row[4]), "CPU ms") for row in rows]
    figures += [Figure(f"{row[0]} dimensions: ledger line", float(row[5]), "kB") for row in rows]
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
