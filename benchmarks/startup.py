"""From command to first step: CPU and wall seconds until the first ledger line, over all processes of the run.

Two ranks of a tiny random model (DeepSpeed, a reference cache to be filled) and 24 records, by `dpeer train` (Ray) and
under torchrun, each run a process of its own in a fresh folder. One more run of each comes first, is not counted, and
warms the file system's cache and Python's bytecode. `--imports N` shows the N modules whose own import takes most of a
rank's time.

usage: python benchmarks/startup.py [--rounds 2] [--launchers ray torchrun] [--imports 15]
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
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import ROOT, BenchmarkError, Figure, Recorder, print_table, spread
from benchmarks.rerun import end
from dpeer.toyworld import world as toyworld
from dpeer.toyworld.model import tiny_model

RENDEZVOUS = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
DRIVER, RANK = "import dpeer.launcher.cli, dpeer.launcher.train", "import dpeer.training.rank"
GOAL_S, CORES = 12.0, 2
POLL_S = 0.2
LAUNCHERS = {
    "ray": ("-m", "dpeer.launcher.cli", "train"),
    "torchrun": ("-m", "torch.distributed.run", *RENDEZVOUS, "--nproc-per-node=2", "-m", "dpeer.launcher.torchrun"),
}
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""Of runs that are warm, as all but the first after an installation."""
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Start:
    """Wall seconds to each sign of life, and CPU seconds of all processes until the last."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    processes: int = 0


def write_recipe(lab: Path) -> None:
    made = toyworld.write_world(lab / "world", 3, n_train=24, n_heldout=8, n_prompts=2, n_pretrain=5)
    tiny_model(lab / "model", "qwen3", 1, vocab=400, texts=[r.responses[0].text for r in made.train.records])
    recipe = {
        "output_dir": str(lab / "runs"),
        "model": {"path": str(lab / "model"), "dtype": "fp32", "export_dtype": "fp32"},
        "data": {"train": str(lab / "world" / "train.jsonl"), "dual": "none"},
        "objective": {"dual": {"evidence": "batch", "aim": 0}},
        "training": {"steps": 1, "keep": "last", "records_per_step": 8, "sample_every": None},
        "cluster": {"policy_workers": 2, "engine": "deepspeed", "deepspeed": "cpu", "cpus_per_worker": 0.5},
    }
    (lab / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def started(launcher: str, lab: Path, name: str, limit: float) -> Start:
    """One run to its end; BenchmarkError where it fails or takes too long."""
    folder, found, log = lab / "runs" / name, Start(), lab / f"{name}.log"
    command = [sys.executable, *LAUNCHERS[launcher], "recipe.yaml", "--set", f"name={name}"]
    signs = {"manifest": folder / "manifest.json", "first step": folder / "ledger.jsonl"}
    seen: dict[int, float] = {}
    with log.open("w") as file:
        began = time.monotonic()
        run = subprocess.Popen(
            command, cwd=lab, env=ENVIRONMENT | SETTINGS, stdout=file, stderr=file, start_new_session=True
        )
        try:
            while run.poll() is None and len(found.wall) < len(signs) and time.monotonic() - began < limit:
                time.sleep(POLL_S)
                for sign, path in signs.items():
                    if sign not in found.wall and path.exists() and path.stat().st_size:
                        found.wall[sign] = time.monotonic() - began
                seen |= dict(_cpu_of_tree(run.pid))
            run.wait(max(1.0, limit - (time.monotonic() - began)))
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"{launcher} took more than {limit:g} s (--limit)") from error
        finally:
            end(run)
    found.cpu, found.processes = sum(seen.values()), len(seen)
    if run.returncode or len(found.wall) < len(signs):
        raise BenchmarkError(f"{launcher} ended with {run.returncode}:\n{log.read_text()[-3000:]}")
    return found


def _cpu_of_tree(pid: int) -> Iterator[tuple[int, float]]:
    """CPU seconds by process, of `pid` and all below it."""
    with suppress(psutil.Error):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                yield process.pid, times.user + times.system


def imports(code: str) -> tuple[float, list[tuple[float, float, str]]]:
    """CPU seconds of a process with these imports; (own s, s with all below, name) of modules, longest first."""
    before = os.times()
    command = [sys.executable, "-X", "importtime", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT | SETTINGS)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    rows = ((int(own) / 1e6, int(below) / 1e6, name) for own, below, name in IMPORTED.findall(told.stderr))
    return spent, sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--launchers", nargs="+", default=list(LAUNCHERS), choices=list(LAUNCHERS))
    parser.add_argument("--imports", type=int, metavar="N", default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds that one run may take")
    recorder = Recorder(parser)
    given = parser.parse_args()
    (light, _), (heavy, modules) = imports(DRIVER), imports(RANK)
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as temporary:
        lab = Path(temporary)
        write_recipe(lab)
        for launcher in given.launchers:
            names = [f"{launcher}-{i}" for i in range(given.rounds + 1)]
            starts = [started(launcher, lab, name, given.limit) for name in names][1:]
            cpu, built, first = (
                [s.cpu for s in starts],
                [s.wall["manifest"] for s in starts],
                [s.wall["first step"] for s in starts],
            )
            rows.append([launcher, *map(spread, (built, first, cpu)), f"{starts[-1].processes}"])
            name = f"{launcher}: command to first step"
            figures.append(Figure.median(f"{name}, all processes", cpu, "CPU s", "lower", GOAL_S * CORES))
            figures.append(Figure.median(name, first, "s", "lower", GOAL_S))
            figures.append(Figure.median(f"{launcher}: command to manifest", built, "s"))
    figures.append(Figure("imports of a driver before it starts workers", light, "CPU s", "lower"))
    figures.append(Figure("imports of a rank", heavy, "CPU s", "lower"))
    if given.imports:
        longest = [[name, f"{own:.3f}", f"{below:.3f}"] for own, below, name in modules[: given.imports]]
        print_table("What a rank imports", ("module", "own s", "with below s"), longest, "wall seconds")
    columns = ("launcher", "wall s to the manifest", "to the first step", "CPU s until then", "processes")
    caption = f"imports alone: {light:.1f} CPU s of a driver before it starts workers, {heavy:.1f} of a rank"
    print_table(f"Command to first step, {given.rounds} rounds", columns, rows, caption)
    recorder.write(
        given,
        figures,
        f"Wall seconds grow with what else the machine does (see the load), CPU seconds less: {GOAL_S:g} s on "
        f"{CORES} cores allow {GOAL_S * CORES:g} of them at most.",
    )


if __name__ == "__main__":
    main()
