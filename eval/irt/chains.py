"""Runs the compiled model: one process per chain, progress from what they print, all ended when one fails."""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.eval.irt.errors import IrtError
from dpeer.eval.irt.types import Floats

ITERATION = re.compile(r"Iteration:\s*(\d+)\s*/\s*(\d+)")
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
SAMPLER = ("lp__", "accept_stat__", "stepsize__", "treedepth__", "n_leapfrog__", "divergent__", "energy__")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How each chain is run; see the CmdStan guide for the terms."""

    warmup: int
    draws: int
    adapt_delta: float
    max_treedepth: int
    seed: int
    threads: int


@dataclass(slots=True)
class _Chain:
    process: subprocess.Popen[bytes]
    last: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    done: float = 0.0


def run_chains(
    executable: Path,
    data: Path,
    starts: list[dict[str, Any]],
    inverse_metric: Floats,
    sampling: Sampling,
    folder: Path,
    progress: Callable[[float], None],
) -> list[Path]:
    """CSV files of all chains, written below `folder`; `progress` gets the fraction done.

    At most as many chains at once as there are cores for their threads. Raises IrtError with CmdStan's last lines when
    a chain fails. Whatever ends this call ends the chains: they are killed, and one whose parent died stops by itself
    at its next message.
    """
    (folder / "metric.json").write_text(json.dumps({"inv_metric": inverse_metric.tolist()}))
    at_once = max(1, len(os.sched_getaffinity(0)) // sampling.threads)
    waiting = deque(enumerate(starts, 1))
    files = [folder / f"chain-{i}.csv" for i, _ in waiting]
    running: list[_Chain] = []
    finished = 0
    environment = os.environ | {"STAN_NUM_THREADS": str(sampling.threads), "OMP_NUM_THREADS": "1"}
    with selectors.DefaultSelector() as events:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number, start = waiting.popleft()
                    (folder / f"start-{number}.json").write_text(json.dumps(start))
                    command = _command(executable, data, number, sampling, folder)
                    process = subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        preexec_fn=_end_with_parent,
                    )
                    running.append(chain := _Chain(process))
                    events.register(_stdout(process), selectors.EVENT_READ, chain)
                for key, _ in events.select():
                    chain = key.data
                    if text := os.read(key.fd, 1 << 16):
                        _hear(chain, text.decode(errors="replace"))
                        continue
                    events.unregister(key.fileobj)
                    if code := chain.process.wait():
                        raise IrtError(_ended(code, chain))
                    running.remove(chain)
                    finished += 1
                progress((finished + sum(chain.done for chain in running)) / len(starts))
        finally:
            for chain in running:
                with suppress(ProcessLookupError):
                    chain.process.kill()
                chain.process.wait()
                _stdout(chain.process).close()
    return files


def _ended(code: int, chain: _Chain) -> str:
    if code < 0:
        return (
            f"a chain of the sampler was killed by signal {-code} ({signal.Signals(-code).name}). If nobody sent it, "
            "the machine had no memory left: free some, or give --chains a smaller number, and fit again"
        )
    lines = "\n".join(chain.last)
    return f"a chain of the sampler ended with {code}; its last lines:\n{lines}"


def _end_with_parent() -> None:
    """In the child: the kernel kills it when this process ends, however that ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stdout(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return process.stdout


def _command(executable: Path, data: Path, number: int, sampling: Sampling, folder: Path) -> list[str]:
    return [
        str(executable),
        f"id={number}",
        *("random", f"seed={sampling.seed}"),
        *("data", f"file={data}", f"init={folder / f'start-{number}.json'}"),
        *("output", f"file={folder / f'chain-{number}.csv'}", "refresh=20", "sig_figs=9"),
        *("method=sample", f"num_samples={sampling.draws}", f"num_warmup={sampling.warmup}"),
        *("adapt", f"delta={sampling.adapt_delta}"),
        *("algorithm=hmc", "engine=nuts", f"max_depth={sampling.max_treedepth}"),
        *("metric=diag_e", f"metric_file={folder / 'metric.json'}"),
    ]


def _hear(chain: _Chain, text: str) -> None:
    for line in text.splitlines():
        if match := ITERATION.search(line):
            chain.done = int(match.group(1)) / int(match.group(2))
        elif line.strip():
            chain.last.append(line.rstrip())


def read_csv(path: Path, names: set[str], thinned: set[str], kept: set[int], draws: int) -> dict[str, Floats]:
    """Draws of the blocks `names` [S, ...], and of `thinned` at the rows `kept` only.

    Wide files (10^4 columns) are mostly response effects: only the columns that are asked for become numbers.
    """
    columns: dict[str, slice] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    columns_kept: dict[str, list[Floats]] = {}
    row = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.startswith(b"#") or not line.strip():
                continue
            if not columns:
                columns, shapes = _header(line.decode().strip().split(","))
                columns_kept = {name: [] for name in columns if name in names | thinned}
                continue
            fields = line.split(b",")
            for name, rows in columns_kept.items():
                if name not in thinned or row in kept:
                    rows.append(np.array(fields[columns[name]], dtype=np.float64))
            row += 1
    if row != draws:
        raise IrtError(f"a chain of the sampler wrote {row} of {draws} draws; is the disk full?")
    return {
        name: np.stack(rows).reshape(len(rows), *reversed(shapes[name])).transpose(0, *range(len(shapes[name]), 0, -1))
        for name, rows in columns_kept.items()
    }


def _header(fields: list[str]) -> tuple[dict[str, slice], dict[str, tuple[int, ...]]]:
    """Columns and shape of each block; CmdStan writes the first index fastest. A scalar has the shape (1,)."""
    columns: dict[str, slice] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, text in enumerate(fields):
        name, *index = text.split(".")
        columns[name] = slice(columns[name].start if name in columns else i, i + 1)
        shapes[name] = tuple(map(int, index)) or (1,)
    return columns, shapes
