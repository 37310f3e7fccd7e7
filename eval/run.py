"""Calls to answers on disk: one model after another, each through its backend, every call written exactly once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dpeer.errors import CheckpointError, ClusterError
from dpeer.eval import config
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Call, Job, Method
from dpeer.eval.progress import Meter
from dpeer.integrity import read_state, refuse_damaged_model, write_state

Connect = Callable[[], AbstractContextManager[Any]]
RATES = "rates.json"


@dataclass(frozen=True, slots=True)
class Work:
    """The calls of one model that are still to be answered, conversation by conversation; `write` keeps answers."""

    served: config.Served
    method: Method
    ids: frozenset[str]
    calls: Callable[[], Iterator[Call]]
    write: Callable[[Sequence[Answer]], None]
    done: int = 0
    """Rows of this model that are on disk already."""


def execute(
    cfg: config.EvalConfig, works: Sequence[Work], connect: Connect, folder: Path, console: Console | None = None
) -> None:
    """Answer and write all calls. Ray is entered (`connect`) only when a model whose backend needs it has calls left.

    Raises ClusterError when engines cannot be had; all that was finished before is on disk.
    """
    console = console or Console(highlight=False)
    works = [w for w in works if w.ids]
    connected = False
    sessions: dict[str, Answers] = {}
    with ExitStack() as stack:
        for work in works:
            name = work.served.backend
            if name not in sessions:
                backend = BACKENDS[name]
                if backend.needs_ray and not connected:
                    stack.enter_context(connect())
                    connected = True
                say = partial(console.print, soft_wrap=True)
                sessions[name] = stack.enter_context(backend.session(cfg.farm, say))
            _execute_one(cfg, work, sessions[name], folder, console)


def _execute_one(cfg: config.EvalConfig, work: Work, session: Answers, folder: Path, console: Console) -> None:
    refuse_damaged_model(work.served.path)
    job = Job(work.served, cfg.engine_of(work.served), work.method, count=len(work.ids))
    pending = set(work.ids)
    tokens: int | None = 0
    began = time.monotonic()
    with Meter(console, work.served.name, work.done + len(pending), work.done) as meter:
        for answers in session(job, work.calls()):
            fresh = [a for a in answers if a.id in pending]
            pending -= {a.id for a in fresh}
            work.write(fresh)
            meter.advance(len(fresh))
            tokens = _added(tokens, fresh)
    if pending:
        raise ClusterError(
            f"{work.served.name}: {len(pending)} of {len(work.ids)} calls came back without an answer; the others are "
            "saved. Run the same command again to ask for these."
        )
    _save_rate(folder / RATES, work, tokens, time.monotonic() - began)


def _added(tokens: int | None, answers: Sequence[Answer]) -> int | None:
    """With the tokens that these answers took to compute; None when a backend does not tell which were cached."""
    for answer in answers:
        if answer.cached_tokens is None and answer.finish in ("stop", "length"):
            return None
        if tokens is not None:
            tokens += (answer.prompt_tokens or 0) - (answer.cached_tokens or 0) + answer.output_tokens
    return tokens


def _save_rate(path: Path, work: Work, tokens: int | None, seconds: float) -> None:
    """Remember how fast this model answered, for the next plan."""
    rates = read_rates(path.parent)
    rates[f"{work.served.name}/{work.method.mode}"] = {
        "calls": len(work.ids),
        "tokens": tokens,
        "seconds": round(seconds, 3),
    }
    write_state(path, rates)


def read_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """Measured calls, computed tokens (None: unknown) and seconds per model/mode of earlier runs in this folder."""
    path = folder / RATES
    if not path.exists():
        return {}
    try:
        return read_state(path, "Rates only foretell times: the file is ignored, and made again by the next run.")
    except CheckpointError as error:
        print(f"note: {error}", file=sys.stderr, flush=True)
        return {}
