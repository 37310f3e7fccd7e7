"""Who makes no progress, and where: notices a stall of a worker group and says which ranks differ."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpeer.files import PACKAGE
from dpeer.training.pulse import Pulse

OURS = f"{PACKAGE}{os.sep}"
SILENT = "silent"


class Watch:
    """Told what the awaited ranks say and when; knows for how long none of them has moved, and when each did."""

    def __init__(self, limit_s: float, now: float) -> None:
        self.limit_s, self.since, self.began = limit_s, now, now
        self.interval_s = min(15.0, max(1.0, limit_s / 5))
        self.last: dict[int, Pulse] = {}
        self.silent: set[int] = set()
        self.moves: dict[int, float] = {}

    def moved_at(self, rank: int) -> float:
        """When this rank was last seen to go on; before that, when the wait for it began."""
        return self.moves.get(rank, self.began)

    def moved(self, now: float) -> None:
        """A rank has returned: that is progress of all."""
        self.since = now
        self.silent.clear()

    def stalled(self, seen: Mapping[int, Pulse | None], now: float) -> bool:
        """True when no rank of `seen` (None: no answer) has beaten for `limit_s`, though one ought to.

        One ought to when it is in a phase of counted packs, or when it has not answered at all for so long.
        """
        answered = {rank: replace(pulse) for rank, pulse in seen.items() if pulse}
        moving = {rank for rank, pulse in answered.items() if self.last.get(rank) != pulse}
        if moving:
            self.since = now
            self.silent = set(seen)
        self.moves |= dict.fromkeys(moving & self.last.keys(), now)
        self.last |= answered
        self.silent = (self.silent or set(seen)) - answered.keys()
        beating = any(pulse.beating for rank, pulse in self.last.items() if rank in seen)
        if not beating and not self.silent:
            self.since = now
        return now - self.since >= self.limit_s


@dataclass(frozen=True, slots=True)
class State:
    """One rank as the report shows it. `place`: the innermost line of dpeer. `waits_in`: the collective, if in one."""

    name: str
    phase: str
    place: str = ""
    waits_in: str | None = None
    stacks: str = ""


def look() -> dict[str, Any]:
    """Stacks of this process's threads except the calling one, and where the working thread is."""
    names = {t.ident: t.name for t in threading.enumerate()}
    place, waits_in, texts = "", None, []
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        frames = traceback.extract_stack(frame)
        own = [f for f in frames if f.filename.startswith(OURS)]
        if not own:
            continue
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"
        inner = [f.name for f in frames if _collective(f.filename, f.name)]
        waits_in = inner[-1] if inner else None
        texts.append(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_list(frames))}")
    return {"place": place, "waits_in": waits_in, "stacks": "\n".join(texts)}


def _collective(file: str, function: str) -> bool:
    """torch's collectives, and the waiting of ZeRO for the parameters that it gathers."""
    if file.endswith("torch/distributed/distributed_c10d.py"):
        return function != "<module>"
    return "/deepspeed/runtime/zero/" in file and function == "wait"


def differing(states: Sequence[State]) -> list[State]:
    """The ranks to suspect: the silent ones; else those that keep the others waiting in a collective; else those that
    are not where most are. Empty when all are in the same place."""
    if silent := [s for s in states if s.phase == SILENT]:
        return silent
    waiting = [s for s in states if s.waits_in]
    if waiting and len(waiting) < len(states):
        return [s for s in states if not s.waits_in]
    places = Counter((s.phase, s.place) for s in states)
    most = max(places.values(), default=0)
    common = [place for place, count in places.items() if count == most]
    if len(places) < 2:
        return []
    return [s for s in states if len(common) > 1 or (s.phase, s.place) != common[0]]


def headline(states: Sequence[State]) -> str:
    """One or two sentences: who differs, and what the others do."""
    suspects = differing(states)
    others = [s for s in states if s not in suspects]
    if not suspects:
        return f"All {len(states)} ranks are at the same place ({_doing(states[0])}): look at the network and storage."
    shown = "; ".join(f"{s.name} {_doing(s)}" for s in suspects[:4])
    more = f"; and {len(suspects) - 4} more" if len(suspects) > 4 else ""
    rest = f" The other {len(others)}: {_doing(others[0])}." if others else ""
    return f"{shown}{more}.{rest}"


def report(title: str, states: Sequence[State]) -> str:
    """The whole story as text: headline, one line per rank, then every rank's Python stacks."""
    lines = [title, headline(states), ""]
    lines += [f"{s.name}: {_doing(s)}" for s in states]
    for s in states:
        lines += ["", f"--- {s.name} ---", s.stacks.rstrip() or "no stacks: the process did not answer"]
    return "\n".join(lines) + "\n"


def _doing(state: State) -> str:
    if state.phase == SILENT:
        return "is silent (stopped, out of memory, or its node is cut off)"
    waits = f", waits in {state.waits_in}" if state.waits_in else ""
    return f"is in '{state.phase}'{f' at {state.place}' if state.place else ''}{waits}"
