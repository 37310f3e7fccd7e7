"""From command to first step: wall and CPU seconds until the first ledger line, over all processes of the run.

The smallest recipe (two ranks of a tiny random model, 24 records), under Ray and under torchrun, each in a process of
its own and a fresh folder. The first round warms the file system's cache and is not counted. With `--imports` instead
the modules whose own import takes most of the driver's time.

usage: python benchmarks/startup.py [--rounds 3] [--launchers ray torchrun] [--imports 25]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import ROOT, BenchmarkError, print_table, spread

CHANGES = ("training.steps=1", "cluster.policy_workers=2", "cluster.cpus_per_worker=0.5", "cluster.reference=cache")
ON_RANKS = ("-m", "dpeer.launcher.torchrun")
POLL_S, LIMIT_S = 0.02, 600.0
LAUNCHERS = {
    "ray": ("-m", "dpeer.launcher.cli", "train"),
    "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", *ON_RANKS),
}
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")


@dataclass
class Start:
    """Wall seconds to each sign of life, and CPU seconds of all processes until the last."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    processes: int = 0


def started(launcher: str, lab: Path, name: str) -> Start:
    """One run to its end; BenchmarkError where it fails."""
    folder, found = lab / "startup" / name, Start()
    options = [x for change in (*CHANGES, f"name={name}", "output_dir=startup") for x in ("--set", change)]
    command = [sys.executable, *LAUNCHERS[launcher], "recipe.yaml", *options]
    signs = {"manifest": folder / "manifest.json", "first step": folder / "ledger.jsonl"}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with (lab / f"{name}.log").open("w") as log:
        began = time.monotonic()
        run = subprocess.Popen(command, cwd=lab, env=os.environ | settings, stdout=log, stderr=log)
        seen: dict[int, float] = {}
        while run.poll() is None and len(found.wall) < len(signs) and time.monotonic() - began < LIMIT_S:
            for sign, path in signs.items():
                if sign not in found.wall and path.exists() and path.stat().st_size:
                    found.wall[sign] = time.monotonic() - began
            seen |= dict(_cpu_of_tree(run.pid))
            time.sleep(POLL_S)
        found.cpu, found.processes = sum(seen.values()), len(seen)
        run.wait(LIMIT_S)
    if run.returncode or len(found.wall) < len(signs):
        raise BenchmarkError(f"{launcher} ended with {run.returncode}:\n{(lab / f'{name}.log').read_text()[-3000:]}")
    return found


def _cpu_of_tree(pid: int) -> Iterator[tuple[int, float]]:
    """CPU seconds by process, of `pid` and all below it."""
    with suppress(psutil.Error):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                yield process.pid, times.user + times.system


def imports(most: int) -> list[list[str]]:
    """Modules by their own seconds, of all that a driver imports before it connects."""
    command = [sys.executable, "-X", "importtime", "-c", "import dpeer.launcher.cli, dpeer.launcher.train"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr
    rows = sorted(((int(own), int(all_), name) for own, all_, name in IMPORTED.findall(told)), reverse=True)
    return [[name, f"{own / 1e6:.3f}", f"{all_ / 1e6:.3f}"] for own, all_, name in rows[:most]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--launchers", nargs="+", default=list(LAUNCHERS), choices=list(LAUNCHERS))
    parser.add_argument("--imports", type=int, metavar="N")
    given = parser.parse_args()
    if given.imports:
        print_table("What the driver imports", ("module", "own s", "with below s"), imports(given.imports), "")
        return
    from tests.launcher.conftest import build_lab

    with tempfile.TemporaryDirectory() as temporary:
        lab = Path(temporary)
        build_lab(lab, n_train=24, n_heldout=8)
        rows = []
        for launcher in given.launchers:
            starts = [started(launcher, lab, f"{launcher}-{i}") for i in range(given.rounds + 1)][1:]
            walls = [spread([s.wall[sign] for s in starts]) for sign in ("manifest", "first step")]
            rows.append([launcher, *walls, spread([s.cpu for s in starts]), f"{starts[-1].processes}"])
    load = f"load of {os.cpu_count()} cores before: {os.getloadavg()[2]:.1f}"
    columns = ("launcher", "wall s to models built", "to the first step", "CPU s until then", "processes")
    print_table(f"Command to first step, {given.rounds} rounds", columns, rows, load)


if __name__ == "__main__":
    main()
