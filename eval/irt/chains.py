"""Runs the chains of the compiled model through CmdStanPy, and adds what it lacks: see `Chains`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from cmdstanpy import CmdStanMCMC, CmdStanModel, disable_logging

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.types import Floats, Ints

Progress = Callable[[float], None]
"""Told the fraction done, of all chains together."""

ITERATION = re.compile(r"Iteration:\s*(\d+)\s*/\s*(\d+)")
BECOME = """
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(1, 9)  # PR_SET_PDEATHSIG: SIGKILL when the parent ends
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
WIDE = ".wide"
CHAIN_MB, RATING_KB = 10, 0.3
"""Memory of one chain: 10 MB at 5,760 ratings and 32 MB at 88,000."""


class Chains(CmdStanModel):
    """CmdStanPy's model of a compiled program, with a runner of single chains that does four things more.

    Chains end with this process: CmdStanPy's live on after `kill -9`, and Ctrl-C waits for them.
    They end together when one fails: at 88,000 ratings the others would go on for half an hour.
    One progress stands for all: CmdStanPy draws a bar per chain on standard error.
    Files become narrow before they are read: CmdStanPy reads all 19,700 columns of 88,000 ratings, 261 MB of text per
    chain, which takes 1.4 GB and 27 CPU seconds; the wanted ones take 0.12 GB and 6.
    """

    def __init__(self, executable: Path, wanted: set[str], kept: frozenset[int], progress: Progress) -> None:
        super().__init__(exe_file=str(executable))
        self.wanted, self.kept, self.progress = wanted, kept, progress
        self.thinned: dict[int, Floats] = {}
        self.done: dict[int, float] = {}
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.failure: BaseException | None = None
        self.ended = False
        self.changed = threading.Condition()

    def run(self, **options: Any) -> CmdStanMCMC:
        """What `sample` returns, of narrow files. Raises IrtError with CmdStan's last lines when a chain fails."""
        try:
            with disable_logging():
                return self.sample(force_one_process_per_chain=True, show_progress=False, **options)
        except (RuntimeError, ValueError) as error:
            raise self.failure or IrtError(f"the sampler failed: {error}") from error
        finally:
            self._end(None)
            with self.changed:
                self.changed.wait_for(lambda: not self.running)

    def _run_cmdstan(self, runset: Any, idx: int, *_: Any, **__: Any) -> None:
        with self.changed:
            if self.ended:
                return
            self.running[idx] = process = subprocess.Popen(
                [sys.executable, "-IS", "-c", BECOME, str(os.getpid()), *runset.cmd(idx)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        try:
            last = self._listen(process, idx, runset.chains, Path(runset.stdout_files[idx]))
            if code := process.wait():
                raise IrtError(_ended(code, last))
            file = Path(runset.csv_files[idx])
            self.thinned[idx] = narrow(file, file.rename(f"{file}{WIDE}"), self.wanted, self.kept)
            runset._set_retcode(idx, code)
        except BaseException as error:  # this thread's pool would drop it
            self._end(error)
        finally:
            with self.changed:
                del self.running[idx]
                self.changed.notify_all()

    def _listen(self, process: subprocess.Popen[str], idx: int, chains: int, log: Path) -> deque[str]:
        last: deque[str] = deque(maxlen=30)
        assert process.stdout is not None
        with process.stdout, log.open("w") as file:
            for line in process.stdout:
                file.write(line)
                if match := ITERATION.search(line):
                    with self.changed:
                        self.done[idx] = int(match.group(1)) / int(match.group(2))
                        self.progress(sum(self.done.values()) / chains)
                elif line.strip():
                    last.append(line.rstrip())
        return last

    def _end(self, failure: BaseException | None) -> None:
        with self.changed:
            self.failure = self.failure or (None if self.ended else failure)
            self.ended = True
            for process in self.running.values():
                process.kill()


def run_chains(
    executable: Path, wanted: set[str], kept: Ints, progress: Progress, keep: Path | None, **options: Any
) -> tuple[CmdStanMCMC, Floats | None]:
    """The fit of the blocks `wanted`, and u_raw [chains, kept, E] at the draws `kept`; None where the model has no u.

    `options` are those of CmdStanPy's `sample`. CmdStan's whole files are moved to `keep`, if it is given. Whatever
    ends this call ends the chains. Raises IrtError when a chain fails.
    """
    model = Chains(executable, wanted, frozenset(kept.tolist()), progress)
    fit = model.run(metric="diag_e", sig_figs=9, refresh=20, **options)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        for old in keep.glob(f"{executable.stem.split('-')[0]}-*.csv"):
            old.unlink()
        for file in map(Path, fit.runset.csv_files):
            shutil.move(f"{file}{WIDE}", keep / file.name)
    u_raw = [model.thinned[i] for i in range(fit.chains)]
    return fit, np.stack(u_raw) if u_raw[0].size else None


def at_once(chains: int, threads: int, ratings: int) -> int:
    """Chains that run side by side: no more than there are cores for their threads, and memory."""
    need = 2**20 * (CHAIN_MB + RATING_KB * ratings / 2**10)
    return max(1, min(chains, len(os.sched_getaffinity(0)) // threads, int(_free() / need)))


def _free() -> float:
    """Bytes of memory that may still be taken."""
    free = [float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = [2**10 * float(lines["MemAvailable"].split()[0])]
        group = Path("/sys/fs/cgroup")
        free.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):  # not Linux, no such group, or "max"
        pass
    return min(free)


def _ended(code: int, last: deque[str]) -> str:
    if code < 0:
        return (
            f"a chain of the sampler was killed by signal {-code} ({signal.Signals(-code).name}). If nobody sent it, "
            "the machine had no memory left: free some, or give --chains a smaller number, and fit again"
        )
    lines = "\n".join(last)
    return f"a chain of the sampler ended with {code}; its last lines:\n{lines}"


def narrow(file: Path, wide: Path, wanted: set[str], kept: frozenset[int]) -> Floats:
    """Write `file`, which is `wide` with the blocks `wanted` and the sampler's own alone; u_raw [kept, E] at the rows
    `kept`, which has no columns where the model has no u."""
    u_raw: list[Floats] = []
    row = -1
    with wide.open("rb") as source, file.open("wb") as target:
        for line in source:
            if line.startswith(b"#") or not line.strip():
                target.write(line)
                continue
            fields = line.rstrip().split(b",")
            if row < 0:
                names = [field.split(b".")[0].decode() for field in fields]
                pick = itemgetter(*(i for i, name in enumerate(names) if name in wanted or name.endswith("__")))
                first = names.index("u_raw") if "u_raw" in names else 0
                effects = slice(first, first + names.count("u_raw"))
            elif row in kept:
                u_raw.append(np.array(fields[effects], dtype=np.float64))
            target.write(b",".join(pick(fields)) + b"\n")
            row += 1
    return np.stack(u_raw) if u_raw else np.empty((0, 0))
