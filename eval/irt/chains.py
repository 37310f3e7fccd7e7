"""Runs the chains of the compiled model through CmdStanPy, and adds what it lacks: see `Chains`."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from cmdstanpy import CmdStanMCMC, CmdStanModel, disable_logging

from dpeer.disk import remedy
from dpeer.eval.irt.errors import IrtError, SamplerError
from dpeer.eval.irt.types import Floats
from dpeer.files import clear_temporary

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of a chain's file."""

    blocks: frozenset[str] = frozenset()
    thinned: frozenset[str] = frozenset()
    """Blocks that are wanted at the draws `rows` alone."""
    rows: frozenset[int] = frozenset()
    last: tuple[str, ...] = ()
    """Blocks that are wanted at the last draw."""


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """What a chain wrote beside the blocks of all draws."""

    thinned: dict[str, Floats]
    """[rows, n] of each block that is thinned and in the model."""
    last: dict[str, Floats]
    """Values of each block at the last draw, in the order of its columns."""


class Chains(CmdStanModel):
    """CmdStanPy's model of a compiled program, with a runner of single chains that does four things more.

    Chains end with this process: CmdStanPy's live on after `kill -9`, and Ctrl-C waits for them.
    They end together when one fails: at 88,000 ratings the others would go on for half an hour.
    One progress stands for all: CmdStanPy draws a bar per chain on standard error.
    Files become narrow before they are read: CmdStanPy reads all 19,700 columns of 88,000 ratings, 261 MB of text per
    chain, which takes 1.4 GB and 27 CPU seconds; the wanted ones take 0.12 GB and 6.
    """

    def __init__(self, executable: Path, wanted: Wanted, progress: Progress, keep: bool = False) -> None:
        super().__init__(exe_file=str(executable))
        self.wanted, self.progress = wanted, progress
        self.keep = keep
        self.draws = 0
        self.rest: dict[int, Rest] = {}
        self.done: dict[int, float] = {}
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.failure: BaseException | None = None
        self.ended = False
        self.changed = threading.Condition()

    def run(self, *, iter_sampling: int = 1000, **options: Any) -> CmdStanMCMC:
        """What `sample` returns, of narrow files. Raises IrtError when a chain cannot begin, when it fails, with
        CmdStan's last lines, and when the disk does not take its draws."""
        self.draws = iter_sampling
        try:
            with disable_logging():
                return self.sample(
                    iter_sampling=iter_sampling, force_one_process_per_chain=True, show_progress=False, **options
                )
        except Exception as error:  # CmdStanPy may stumble over what a chain that failed did not write
            if self.failure:
                raise self.failure from error
            if isinstance(error, RuntimeError | ValueError):
                raise IrtError(f"the sampler failed: {error}") from error
            raise
        finally:
            self._end(None)
            with self.changed:
                self.changed.wait_for(lambda: not self.running)

    def _run_cmdstan(self, runset: Any, idx: int, *_: Any, **__: Any) -> None:
        try:
            with self.changed:
                if self.ended:
                    return
                self.running[idx] = process = _begin(runset.cmd(idx))
            said = self._listen(process, idx, runset.chains)
            if code := process.wait():
                raise (SamplerError if code < 0 else IrtError)(_ended(code, said))
            self.rest[idx] = self._read(Path(runset.csv_files[idx]), Path(runset.stdout_files[idx]), said)
            runset._set_retcode(idx, code)
        except BaseException as error:  # this thread's pool would drop it
            self._end(error)
        finally:
            with self.changed:
                self.running.pop(idx, None)
                self.changed.notify_all()

    def _listen(self, process: subprocess.Popen[str], idx: int, chains: int) -> list[str]:
        said = []
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.append(line)
                if match := ITERATION.search(line):
                    with self.changed:
                        self.done[idx] = int(match.group(1)) / int(match.group(2))
                        self.progress(sum(self.done.values()) / chains)
        return said

    def _read(self, file: Path, log: Path, said: list[str]) -> Rest:
        try:
            log.write_text("".join(said))
            wide = file.rename(f"{file}{WIDE}")
            rest = narrow(file, wide, self.wanted, self.draws)
            if not self.keep:
                wide.unlink()
        except OSError as error:
            raise SamplerError(
                f"{file.parent} {_remedy(error)}, or set TMPDIR to another place, and fit again"
            ) from error
        return rest

    def _end(self, failure: BaseException | None) -> None:
        with self.changed:
            self.failure = self.failure or (None if self.ended else failure)
            self.ended = True
            for process in self.running.values():
                process.kill()


def run_chains(
    executable: Path, wanted: Wanted, progress: Progress, keep: Path | None, **options: Any
) -> tuple[CmdStanMCMC, list[Rest]]:
    """The fit of the blocks that are wanted, and the rest of each chain.

    `options` are those of CmdStanPy's `sample`. CmdStan's whole files are moved to `keep`, if it is given. Whatever
    ends this call ends the chains. Raises IrtError when a chain fails.
    """
    model = Chains(executable, wanted, progress, keep is not None)
    fit = model.run(metric="diag_e", sig_figs=9, refresh=20, **options)
    if keep:
        _keep([Path(file) for file in fit.runset.csv_files], keep, executable.stem.split("-")[0])
    return fit, [model.rest[i] for i in range(fit.chains)]


def _keep(files: list[Path], folder: Path, name: str) -> None:
    """Move the whole files to `folder` in place of those of an earlier fit, which go when all are there. A note says
    why it cannot be done: the fit is worth more than they."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.move(f"{file}{WIDE}", folder / f".{file.name}.tmp")
        for old in folder.glob(f"{name}-*.csv"):
            old.unlink()
        for file in files:
            (folder / f".{file.name}.tmp").rename(folder / file.name)
    except OSError as error:
        note = f"note: CmdStan's own files were not kept, the fit is: {folder} {_remedy(error)}, and fit again for them"
        print(note, file=sys.stderr, flush=True)
    finally:
        clear_temporary(folder, f".{name}-*.csv.tmp")


def _begin(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [sys.executable, "-IS", "-c", BECOME, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise SamplerError(
            f"a chain of the sampler could not be started ({error}): raise the limits on processes and open files "
            "(`ulimit -u`, `ulimit -n`), free memory, or give --chains a smaller number, and fit again"
        ) from error


def _remedy(error: OSError) -> str:
    return remedy(error.errno or errno.EIO)


def _ended(code: int, said: list[str]) -> str:
    if code < 0:
        return (
            f"a chain of the sampler was killed by signal {-code} ({signal.Signals(-code).name}). If nobody sent it, "
            "the machine had no memory left: free some, or give --chains a smaller number, and fit again"
        )
    last = [line.rstrip() for line in said if line.strip() and not ITERATION.search(line)][-30:]
    lines = "\n".join(last)
    return f"a chain of the sampler ended with {code}; its last lines:\n{lines}"


def narrow(file: Path, wide: Path, wanted: Wanted, draws: int) -> Rest:
    """Write `file`, which is `wide` with the blocks that are wanted and the sampler's own columns alone.

    Raises IrtError where `wide` does not hold that many whole draws: CmdStan does not notice a disk that is full.
    """
    blocks: dict[str, slice] = {}
    thinned: dict[str, list[Floats]] = {}
    names: list[str] = []
    row, ended = 0, False
    with wide.open("rb") as source, file.open("wb") as target:
        for line in source:
            if line.startswith(b"#") or not line.strip():
                target.write(line)
                ended |= line.endswith(b"(Total)\n")  # the times that CmdStan writes last
                continue
            fields = line.rstrip().split(b",")
            if not line.endswith(b"\n") or (names and len(fields) != len(names)):
                break
            if not names:
                names = [field.split(b".")[0].decode() for field in fields]
                pick = itemgetter(*(i for i, n in enumerate(names) if n in wanted.blocks or n.endswith("__")))
                for name, size in Counter(names).items():
                    blocks[name] = slice(names.index(name), names.index(name) + size)
            else:
                if row in wanted.rows:
                    for name in wanted.thinned & blocks.keys():
                        thinned.setdefault(name, []).append(np.array(fields[blocks[name]], dtype=np.float64))
                row += 1
            target.write(b",".join(pick(fields)) + b"\n")
    if row != draws or not ended:
        raise SamplerError(
            f"a chain of the sampler wrote {row} of {draws} draws and no end of its file; is the disk full? Make "
            f"room in {file.parent}, or set TMPDIR to another place, and fit again"
        )
    last = {n: np.array(fields[blocks[n]], dtype=np.float64) for n in wanted.last if n in blocks}
    return Rest({name: np.stack(rows) for name, rows in thinned.items()}, last)
