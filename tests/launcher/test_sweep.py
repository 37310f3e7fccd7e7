"""A sweep for real: killed and resumed, every cell once, one reference cache, failures with their reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpeer.launcher.lock import holder
from dpeer.launcher.sweep.folder import SweepFolder
from dpeer.launcher.sweep.spec import load_sweep, resolve

pytestmark = pytest.mark.slow
SWEEP = """
name: eps
recipe: recipe.yaml
changes:
  training: {steps: 16, checkpoint_every: 4}
  cluster: {policy_workers: 1, cpus_per_worker: 1}
grid: {objective.constraint.tolerance: [0.2, 0.4, 0.6]}
cells:
  diverging:
    training.optimizer: {lr: 1.0e30, grad_clip: 0, warmup: 0.9}
    training.steps: 12
label: "eps{tolerance}"
seeds: [5]
prompts: world/prompts.jsonl
"""


def states(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: SweepFolder(folder).state(name).kind for name in names}


def identity(path: Path) -> tuple[int, int]:
    """Changes when a file is written anew."""
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.mark.timeout(1200)
def test_killed_sweep_goes_on_and_trains_every_cell_once(lab: Any) -> None:
    file = lab.folder / "sweep.yaml"
    file.write_text(SWEEP)
    cells = resolve(load_sweep(file), file)
    folder, names = cells[0].config.output_dir, [c.name for c in cells]
    good, bad = names[:3], names[3]

    def going() -> list[str]:
        """Cells in training that have a checkpoint."""
        found = states(folder, good)
        return [n for n in good if found[n] == "running" and list(folder.glob(f"{n}/checkpoints/step-*/state.json"))]

    first = lab.start("sweep", "run", "sweep.yaml", "--lanes", "2")
    first.until(lambda: bool(going()), 600)
    owner = holder(SweepFolder(folder).lock(going()[0]))
    assert owner and owner.pid != first.process.pid
    psutil.Process(owner.pid).kill()
    first.until(lambda: "its driver ended with signal SIGKILL" in first.output, 60)
    first.until(lambda: "finished" in states(folder, good).values() and bool(going()), 600)
    first.process.kill()
    first.wait()
    assert [c for c in first.survivors(60) if not c.strip().endswith("Agent")] == []
    done = [n for n, kind in states(folder, good).items() if kind == "finished"]
    assert "running" not in states(folder, names).values()
    cache = {p: identity(p) for p in (folder / "reference_cache").glob("*.safetensors")}
    ledgers = {n: identity(folder / n / "ledger.jsonl") for n in done}
    assert len(cache) == 3 and 1 <= len(done) < 3  # training, dual and held-out split

    second = lab.start("sweep", "run", "sweep.yaml", "--lanes", "1")
    assert second.wait(900) == 1, second.output
    assert states(folder, names) == dict.fromkeys(good, "finished") | {bad: "failed"}
    assert f"failed cell 3 {bad}" in second.output and "Training has diverged" in second.output
    assert "1 of 4 cells failed" in second.output and "Traceback" not in second.output
    for name in good:
        steps = [json.loads(line)["step"] for line in (folder / name / "ledger.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 17))
    assert {n: identity(folder / n / "ledger.jsonl") for n in done} == ledgers
    logs = first.output + second.output + "".join(p.read_text() for p in (folder / "logs").glob("*.log"))
    assert logs.count("computing the reference log-probabilities") == 1
    assert {p: identity(p) for p in (folder / "reference_cache").glob("*.safetensors")} == cache
    for name in good:
        told = logs.count(f"model: {folder / name}/export")
        assert told == 1 or (told == 0 and name in done)  # killed between the manifest and this line
    assert second.survivors() == []

    status, report = lab.start("sweep", "status", str(folder)), lab.start("sweep", "report", "sweep.yaml")
    assert (status.wait(), report.wait()) == (0, 0), status.output + report.output
    assert "3 finished, 1 failed" in status.output and re.search(r"diverging.*12|diverging.*failed", status.output)
    page = (folder / "sweep.html").read_text()
    assert "1 of 4 cells are not finished and not shown" in page and "Lowest share of good replies" in page

    # Alone, in processes of its own, a cell is the same to the last bit as in lanes that served others before.
    before = (folder / good[2] / "ledger.jsonl").read_bytes()
    alone = lab.start("sweep", "run", "sweep.yaml", "--cell", "2", "--again")
    assert alone.wait(600) == 0, alone.output
    assert (folder / good[2] / "ledger.jsonl").read_bytes() == before
    assert (folder / "replaced" / f"{good[2]}.1" / "ledger.jsonl").read_bytes() == before
    assert [path for path in folder.glob("locks/*.json") if holder(path)] == []
