"""Random faults over one toy training, resumed after each end: `python tests/launcher/chaos.py --faults 20 --seed 0`;
with `--catalogue` the table of `tests/faults/` instead.

Each fault is drawn from a seeded generator: what (kill -9 of driver, policy or reference worker, raylet or the head's
GCS; SIGSTOP of a rank; a network that swallows every packet for 5 to 120 s; a disk that fills up during a save) and
when (some steps from now, or during the start). A fault that this user or machine cannot have is left out and named.
After each end of the process there must be an exit code with a reason, no process left behind, and checkpoints and a
ledger that the next `--resume` goes on from. The finished ledger must equal that of an undisturbed run, byte by byte.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.launcher.conftest import Lab, Launched, build_lab

FAULTS = ("driver", "policy", "reference", "raylet", "gcs", "stop", "partition", "disk")
STEPS, EVERY = 60, 5
SETTINGS = (
    f"training.steps={STEPS}", f"training.checkpoint_every={EVERY}", "cluster.max_restarts=1",
    "cluster.timeout_s=600", "cluster.stall_timeout_s=60", "cluster.placement_timeout_s=600",
)  # fmt: skip
QUIET_S = 900  # without a new ledger line or word of output: beyond all timeouts, even on a busy machine
UNNOTICED_S = 20  # training may go on for a while after Ray's daemons have died
CODES = (0, 1, 86, -9)  # finished; refused or given up, with the reason; a node was lost; the driver was killed


@dataclass
class Outcome:
    fault: str
    at_step: int
    code: int | None  # None: the run recovered by itself and went on
    reason: str
    seconds: float


class Disk:
    """A small file system for the run, where this user may mount one; `fill` leaves no room on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=96m", "dpeer-chaos", str(folder)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0

    def fill(self) -> None:
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as stream:
            while stream.write(bytes(1 << 16)):
                pass

    def free(self) -> None:
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Network:
    """The loopback of a network namespace of our own, where this user may make one; `cut` loses all that is sent."""

    MARK = "DPEER_CHAOS_NETWORK"

    def __init__(self) -> None:
        self.own = self.MARK in os.environ
        self.timer = threading.Timer(0, self.mend)

    @classmethod
    def enter(cls) -> None:
        """Run this program anew inside such a namespace; on return there is none."""
        ready = "ip link set lo up && tc qdisc replace dev lo root blackhole && tc qdisc del dev lo root"
        unshare = ["unshare", "--net", "sh", "-c"]
        with contextlib.suppress(OSError):
            if cls.MARK not in os.environ and subprocess.run([*unshare, ready], capture_output=True).returncode == 0:
                again = [*unshare, f'{ready} && exec "$@"', "sh", sys.executable, *sys.argv]
                os.execvpe("unshare", again, os.environ | {cls.MARK: "1"})

    def cut(self, seconds: float) -> None:
        subprocess.run(["tc", "qdisc", "replace", "dev", "lo", "root", "blackhole"], check=True)
        self.timer = threading.Timer(seconds, self.mend)
        self.timer.start()

    def mend(self) -> None:
        self.timer.cancel()
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True)


class Chaos:
    """One run after another (each to its end) until all faults are planted."""

    def __init__(self, lab: Lab, faults: Iterable[str], seed: int) -> None:
        self.lab, self.random = lab, random.Random(seed)
        self.disk = Disk(lab.folder / "runs")
        self.network = Network()
        possible = {"disk": self.disk.mounted, "partition": self.network.own}
        wanted = list(faults)
        self.plan = [kind for kind in wanted if possible.get(kind, True)]
        for kind in sorted(set(wanted) - set(self.plan)):
            print(f"left out: {kind} (not possible for this user on this machine)", flush=True)
        self.random.shuffle(self.plan)
        self.outcomes: list[Outcome] = []
        self.finished = 0

    @property
    def name(self) -> str:
        return f"chaos-{self.finished + 1}"

    def run(self) -> list[Outcome]:
        """Plant everything, let the last run finish; each finished ledger must equal that of a quiet run."""
        try:
            run = self.start()
            for kind in self.plan:
                run = self.one(kind, run)
            while run.process.poll() != 0:
                self.wait_while(run, lambda: True)
                run = self.after_end(run)
            self.compare()
            return self.outcomes
        finally:
            for launched in self.lab.launched:
                launched.end()
            self.disk.close()

    def start(self) -> Launched:
        return self.lab.train(self.name, *SETTINGS, resume=(self.lab.run(self.name) / "manifest.json").exists())

    def one(self, kind: str, run: Launched) -> Launched:
        """Wait for the moment, plant the fault, see how the run ends or recovers; returns the run that goes on."""
        after, early = self.random.randint(1, 12), kind != "disk" and self.random.random() < 0.2
        delay = self.random.uniform(0, 15)
        while True:
            began, moment = time.monotonic(), self.steps() + after

            def waiting(began: float = began, moment: int = moment) -> bool:
                return time.monotonic() - began < delay if early else self.steps() < moment

            self.wait_while(run, waiting)
            if run.process.poll() is None:
                break
            run = self.after_end(run)
        run.look()
        outcome = Outcome(kind, self.steps(), None, "not noticed yet", 0.0)
        self.outcomes.append(outcome)
        began, said, step = time.monotonic(), len(run.output), self.steps()

        def settling() -> bool:
            recovered = "Restarting from the last checkpoint" in run.output[said:] and self.steps() > step + 1
            unnoticed = time.monotonic() - began > UNNOTICED_S and self.steps() > step + 1
            return not (recovered or unnoticed)

        with self.planted(kind, run):
            self.wait_while(run, settling)
        outcome.seconds = time.monotonic() - began
        if run.process.poll() is not None:
            run = self.after_end(run)
        elif found := [line for line in run.output[said:].splitlines() if "Restarting" in line]:
            outcome.reason = found[-1]
        self.tell(len(self.outcomes), outcome)
        return run

    def steps(self) -> int:
        return self.lab.steps(self.name)

    def after_end(self, run: Launched) -> Launched:
        """Check what an ended run has left; start it again, or the next one if it is finished."""
        code = run.process.returncode
        beside = ("state-dump", "see: dpeer help")
        words = [line for line in run.output.splitlines() if line.strip() and not any(b in line for b in beside)]
        if self.outcomes and self.outcomes[-1].code is None and code:
            self.outcomes[-1].code, self.outcomes[-1].reason = code, words[-1] if words else "(silent)"
        self.check_end(run)
        if code == 0:
            assert (self.lab.run(self.name) / "export" / "model.safetensors").stat().st_size > 0
            self.finished += 1
        return self.start() if code or len(self.outcomes) < len(self.plan) else run

    def compare(self) -> None:
        quiet = self.lab.train("quiet", *SETTINGS)
        assert quiet.wait(1800) == 0, quiet.output
        expected = (self.lab.run("quiet") / "ledger.jsonl").read_bytes()
        for i in range(self.finished):
            name = f"chaos-{i + 1}"
            found = (self.lab.run(name) / "ledger.jsonl").read_bytes()
            assert found == expected, f"{name}: the ledger differs from that of an undisturbed run"

    @contextlib.contextmanager
    def planted(self, kind: str, run: Launched) -> Iterator[None]:
        match kind:
            case "driver":
                run.process.kill()
            case "partition":
                self.network.cut(self.random.uniform(5, 120))
            case "disk":
                checkpoints = self.lab.run(self.name) / "checkpoints"
                self.wait_while(run, lambda: not list(checkpoints.glob(".writing-*")))
                self.disk.fill()
            case _:
                self.wait_while(run, lambda: not self.victims(kind, run))
                for victim in self.victims(kind, run)[-1:] if kind == "reference" else self.victims(kind, run)[:1]:
                    victim.suspend() if kind == "stop" else victim.kill()
        try:
            yield
        finally:
            self.disk.free()
            if kind == "partition":
                self.network.mend()

    def victims(self, kind: str, run: Launched) -> list[psutil.Process]:
        """Living processes of that kind; of the workers the policy's come first, in random order."""
        name = {"raylet": "raylet", "gcs": "gcs_server"}.get(kind)
        if name:
            return [p for p in run.family if _alive(p) and p.name() == name]
        workers = [p for p in run.workers if _alive(p)]
        policy = workers[:-1] or workers
        return [*self.random.sample(policy, len(policy)), *workers[-1:]]

    def wait_while(self, run: Launched, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + QUIET_S
        seen, looked = (-1, -1), 0.0
        while condition() and run.process.poll() is None:
            now = (self.steps(), len(run.output))
            if now != seen:
                seen, deadline = now, time.monotonic() + QUIET_S
            assert time.monotonic() < deadline, f"no progress for {QUIET_S} s:\n{run.output}"
            if time.monotonic() - looked > 0.5:
                run.look()
                looked = time.monotonic()
            time.sleep(0.01)

    def check_end(self, run: Launched) -> None:
        """After an end: a code with a reason, nothing alive, whole checkpoints, whole ledger lines."""
        code = run.process.returncode
        assert "Traceback (most recent call last)" not in run.output, run.output
        assert code in CODES, f"exit code {code}:\n{run.output}"
        # Ray itself ends a driver whose head is gone for a minute; all else is said by dpeer.
        assert code != 1 or "error:" in run.output or "Failed to connect to GCS" in run.output, run.output
        left = [c for c in run.survivors(90) if c.strip()]
        assert left == [], f"left behind: {left}"
        assert "could not be loaded" not in run.output, run.output
        for state in (self.lab.run(self.name) / "checkpoints").glob("step-*/state.json"):
            json.loads(state.read_text())

    def tell(self, number: int, outcome: Outcome) -> None:
        code = "goes on" if outcome.code is None else f"exit {outcome.code}"
        print(
            f"{number:2}. {outcome.fault:9} step {outcome.at_step:3}  {code:9}  {outcome.seconds:5.0f} s  "
            f"{outcome.reason[:150]}",
            flush=True,
        )


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--catalogue", action="store_true", help="The table of tests/faults/, into docs/faults.md.")
    parser.add_argument("--only", action="append", metavar="NAME", help="Rows whose names begin so; repeat.")
    given = parser.parse_args()
    if given.catalogue:
        from tests.faults.whole import run

        sys.exit(run(given.only, given.folder))
    Network.enter()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="dpeer-chaos-"))
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    faults = itertools.islice(itertools.cycle(FAULTS), given.faults)
    chaos = Chaos(build_lab(folder), faults, given.seed)
    outcomes = chaos.run()
    print("\nHow each fault ended at last:")
    for i, outcome in enumerate(outcomes, start=1):
        chaos.tell(i, outcome)
    went_on = sum(o.code is None for o in outcomes)
    print(
        f"{len(outcomes)} faults: after {went_on} the run went on by itself, after {len(outcomes) - went_on} it ended "
        f"with an exit code and was resumed; every finished ledger equals an undisturbed one; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
