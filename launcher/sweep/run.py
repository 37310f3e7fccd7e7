"""`dpeer sweep run`: which cells are left, how many of them fit side by side, and the lanes that train them."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from rich.console import Console
from rich.live import Live

from dpeer.config import Cluster
from dpeer.errors import ClusterError, Interrupted
from dpeer.escape import markup
from dpeer.launcher.cluster import check_feasible, connect, environment_of_children, unplaceable
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.group import bundle
from dpeer.launcher.signals import Signals
from dpeer.launcher.sweep.folder import SweepFolder
from dpeer.launcher.sweep.spec import Cell, Sweep
from dpeer.launcher.sweep.status import overview
from dpeer.launcher.sweep.work import Lane, Stopped

LOOK_S = 1.0
PR_SET_PDEATHSIG = 1


def run(
    sweep: Sweep, cells: Sequence[Cell], folder: SweepFolder, lane_command: list[str], lanes: int | None = None
) -> int:
    """Train the cells that are not finished; returns 0 when all are, 1 when one failed, or a signal's exit code.

    `lane_command` starts a lane in a process of its own; the names of its cells are appended.
    """
    console = Console(highlight=False, soft_wrap=True)
    for cell in cells:
        folder.forgive(cell.name)
    todo = [c for c in cells if folder.state(c.name).kind != "finished"]
    console.print(f"{markup(folder.path)}: {len(cells)} cells, {len(cells) - len(todo)} of them finished")
    with Signals() as signals:
        try:
            if todo:
                with connect(todo[0].config.cluster.address):
                    for wave in waves(todo):
                        count = min(
                            fitting(resolved_gpus(wave[0].config).cluster, len(wave)), lanes or sweep.lanes or len(wave)
                        )
                        if count == 1:
                            Lane(folder, sweep.retries).work(wave)
                        elif code := Lanes(folder, wave, sweep.retries, lane_command, console).run(count, signals):
                            return code
        except Stopped as stopped:
            return stopped.code
        except Interrupted as interrupted:
            console.print(markup(interrupted))
            return interrupted.code
    failed = [c for c in cells if folder.state(c.name).kind == "failed"]
    for cell in failed:
        console.print(f"[red]failed[/] cell {cell.index} {cell.name}: {markup(folder.state(cell.name).reason)}")
    if failed:
        console.print(f"{len(failed)} of {len(cells)} cells failed. Remove the causes and run the sweep again.")
    return 1 if failed else 0


def waves(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of equal placement, which can use the same worker groups; the largest placements first. A cell comes in a
    later wave than those among `cells` whose exports it reads."""
    by_name = {cell.name: cell for cell in cells}

    def depth(cell: Cell) -> int:
        return max((1 + depth(by_name[name]) for name in cell.needs if name in by_name), default=0)

    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((depth(cell), cell.config.cluster.model_dump_json()), []).append(cell)
    return [groups[key] for key in sorted(groups, key=lambda k: (k[0], -width(groups[k][0].config.cluster)))]


def width(spec: Cluster) -> int:
    """Workers that a cell holds at most at any time."""
    match spec.reference:
        case "cache":  # one after the other
            return max(spec.policy_workers, spec.reference_workers)
        case "workers":
            return spec.policy_workers + spec.reference_workers
        case "colocated":
            return spec.policy_workers


def fitting(spec: Cluster, most: int) -> int:
    """How many cells of this placement, at most `most`, the cluster holds at once. ClusterError: not even one."""
    check_feasible({"policy": width(spec)}, bundle(spec))
    nodes = [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]]
    return max(n for n in range(1, most + 1) if not unplaceable([bundle(spec)] * width(spec) * n, nodes))


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    log: Path


class Lanes:
    """Lanes as processes of their own on this driver's cluster; one that dies is replaced."""

    def __init__(
        self, folder: SweepFolder, cells: list[Cell], retries: int, command: list[str], console: Console
    ) -> None:
        self.folder, self.cells, self.retries, self.command, self.console = folder, cells, retries, command, console
        self.deaths: Counter[str] = Counter()
        self.at: dict[int, str] = {}  # process id of a lane -> the cell that it was last seen at
        self.seen: dict[str, str] = {}
        self.running: list[_Process] = []
        self.numbers = itertools.count()
        self.environment = environment_of_children()

    def run(self, count: int, signals: Signals) -> int:
        """Returns 0 when all cells are finished or have failed, or the exit code of a stopped lane."""
        self.console.print(f"{len(self.cells)} cells, {count} side by side; logs in {markup(self.folder.logs)}")
        try:
            for _ in range(count):
                self.start()
            return self.watch()
        except Interrupted as interrupted:
            self.console.print("Stopping the lanes; each saves its cell.")
            with signals.deferred():
                return self.stop(signals.received or signal.SIGTERM) or interrupted.code
        finally:
            for lane in self.running:
                lane.process.kill()
                lane.process.wait()

    def start(self) -> None:
        left = [c for c in self.cells if self.folder.state(c.name).kind not in ("finished", "failed")]
        if not left:
            return
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        log = self.folder.logs / f"lane-{os.getpid()}-{next(self.numbers)}.log"
        cells = [part for c in left for part in ("--cell", c.name)]
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*self.command, *cells],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.running.append(_Process(process, log))

    def watch(self) -> int:
        live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            while self.running:
                self.look(quiet=live is not None)
                if live:
                    live.update(overview(self.folder))
                time.sleep(LOOK_S)
                for lane in [p for p in self.running if p.process.poll() is not None]:
                    self.running.remove(lane)
                    if code := self.ended(lane):
                        self.stop(signal.SIGTERM)
                        return code
            self.look(quiet=live is not None)
        return 0

    def look(self, quiet: bool) -> None:
        """Note which lane is at which cell; a line per cell that has begun, finished or failed since."""
        states = {c.name: self.folder.state(c.name) for c in self.cells}
        done = sum(state.kind == "finished" for state in states.values())
        for name, state in states.items():
            if state.owner:
                self.at[state.owner.pid] = name
            if not quiet and state.kind != self.seen.get(name, "waiting"):
                self.console.print(f"{state.kind} {name} ({done} of {len(states)} finished)")
            self.seen[name] = state.kind

    def ended(self, lane: _Process) -> int:
        """What a lane's end means: 0 to go on, or the code to stop with."""
        code = lane.process.returncode
        if code == 0:
            return 0
        if code > 2:  # stopped by a signal to itself: it has saved its cell
            return code
        name = self.at.get(lane.process.pid, "")
        if name and self.folder.state(name).kind == "finished":
            name = ""
        self.deaths[name] += 1
        end = f"ended with {_ending(code)}; its log is {lane.log}"
        if self.deaths[name] <= self.retries:
            who, then = (f"{name}: its driver", "Trying again") if name else ("A lane", "Starting another")
            self.console.print(f"{who} {markup(end)}. {then}.")
        elif name:
            self.folder.fail(name, f"its driver {end}", self.deaths[name])
        else:
            raise ClusterError(f"A lane {end}. Remove the cause and run the sweep again.")
        self.start()
        return 0

    def stop(self, number: int) -> int:
        """Pass a signal on and wait until every lane has saved; returns the first exit code that is not 0."""
        for lane in self.running:
            lane.process.send_signal(number)
        codes = [lane.process.wait() for lane in self.running]
        self.running.clear()
        return next((code for code in codes if code > 0), 0)


def run_lane(folder: SweepFolder, cells: Sequence[Cell], retries: int) -> int:
    """A lane in a process of its own, on the cluster of the driver that started it."""
    with Signals():
        try:
            with connect():
                Lane(folder, retries).work(cells)
                return 0
        except Stopped as stopped:
            return stopped.code
        except Interrupted as interrupted:
            print(interrupted, flush=True)
            return interrupted.code


def die_with_parent() -> None:
    """Let the kernel kill this lane when the driver that started it ends: with a private cluster nothing can be saved
    any more, and a lane that waits for a dead Ray would keep its cell from whoever resumes the sweep."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        raise SystemExit(1)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
